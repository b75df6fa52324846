//! Device memory, streams and events of our own: for the call on host tensors, and for tests and measurements.

use super::Gpu;
use super::driver::cuda;
use crate::error::Error;
use cust::error::CudaError;
use cust::stream::StreamFlags;
use cust::sys::{CUevent, CUstream};
use std::ffi::c_void;

/// A stream that does not wait for the default stream, nor it for this one.
#[derive(Debug)]
pub struct Stream {
    gpu: &'static Gpu,
    raw: CUstream,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A new stream.
    pub fn new(gpu: &'static Gpu) -> Result<Self, Error> {
        let _current = gpu.enter()?;
        let mut raw = std::ptr::null_mut();
        // cust's own streams are never non-blocking.
        // SAFETY: the GPU's context is current.
        unsafe { cuda!(cuStreamCreateWithPriority(&mut raw, StreamFlags::NON_BLOCKING.bits(), 0))? };
        Ok(Self { gpu, raw })
    }

    /// The `CUstream`.
    pub fn raw(&self) -> *mut c_void {
        self.raw.cast()
    }

    /// Waits until all work on the stream is done.
    pub fn synchronize(&self) -> Result<(), Error> {
        let _current = self.gpu.enter()?;
        // SAFETY: the stream is alive, and the GPU's context is current.
        unsafe { cuda!(cuStreamSynchronize(self.raw)) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Ok(_current) = self.gpu.enter() {
            // Work that is still on the stream will be finished. An error here is one of earlier work.
            // SAFETY: the stream is alive, and the GPU's context is current.
            let _ = unsafe { cuda!(cuStreamDestroy_v2(self.raw)) };
        }
    }
}

/// A moment in a stream's work.
#[derive(Debug)]
pub struct Event {
    gpu: &'static Gpu,
    raw: CUevent,
}

impl Event {
    /// The moment when the stream's work so far is done.
    pub fn record(stream: &Stream) -> Result<Self, Error> {
        let _current = stream.gpu.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the GPU's context is current.
        unsafe { cuda!(cuEventCreate(&mut raw, 0))? };
        let event = Self { gpu: stream.gpu, raw };
        // SAFETY: event and stream are alive, and the GPU's context is current.
        unsafe { cuda!(cuEventRecord(event.raw, stream.raw))? };
        Ok(event)
    }

    /// Milliseconds from `start` to this event; waits for it.
    pub fn milliseconds_since(&self, start: &Self) -> Result<f32, Error> {
        let _current = self.gpu.enter()?;
        let mut milliseconds = 0.0;
        // SAFETY: both events are alive and recorded, and the GPU's context is current.
        unsafe {
            cuda!(cuEventSynchronize(self.raw))?;
            cuda!(cuEventElapsedTime(&mut milliseconds, start.raw, self.raw))?;
        }
        Ok(milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_current) = self.gpu.enter() {
            // An error here is one of earlier work.
            // SAFETY: the event is alive, and the GPU's context is current.
            let _ = unsafe { cuda!(cuEventDestroy_v2(self.raw)) };
        }
    }
}

/// Bytes in a GPU's memory, aligned to 256.
#[derive(Debug)]
pub struct DeviceMemory {
    gpu: &'static Gpu,
    address: u64,
    bytes: usize,
}

impl DeviceMemory {
    /// Allocates `bytes`, at least 1, with no particular content; `argument` is what the error calls it.
    pub fn new(gpu: &'static Gpu, argument: &'static str, bytes: usize) -> Result<Self, Error> {
        let _current = gpu.enter()?;
        let mut address = 0;
        // SAFETY: the GPU's context is current.
        match unsafe { cuda!(cuMemAlloc_v2(&mut address, bytes)) } {
            Err(Error::Driver { code, .. }) if code == CudaError::OutOfMemory as u32 => {
                Err(Error::OutOfMemory { argument, bytes: bytes as u64 })
            }
            result => result.map(|()| Self { gpu, address, bytes }),
        }
    }

    /// The device address.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies `source` to `offset`, after the stream's earlier work; waits until it is there.
    pub fn write(&mut self, offset: usize, source: &[u8], stream: &Stream) -> Result<(), Error> {
        self.assert_holds(offset, source.len());
        let _current = self.gpu.enter()?;
        let destination = self.address + offset as u64;
        // SAFETY: both sides have `source.len()` bytes, and stay borrowed until the copy is done.
        unsafe { cuda!(cuMemcpyHtoDAsync_v2(destination, source.as_ptr().cast(), source.len(), stream.raw))? };
        stream.synchronize()
    }

    /// Copies what is at `offset` to `destination`, after the stream's earlier work; waits until it is there.
    pub fn read(&self, offset: usize, destination: &mut [u8], stream: &Stream) -> Result<(), Error> {
        self.assert_holds(offset, destination.len());
        let _current = self.gpu.enter()?;
        let (source, bytes) = (self.address + offset as u64, destination.len());
        // SAFETY: both sides have `bytes` bytes, and stay borrowed until the copy is done.
        unsafe { cuda!(cuMemcpyDtoHAsync_v2(destination.as_mut_ptr().cast(), source, bytes, stream.raw))? };
        stream.synchronize()
    }

    /// Enqueues a copy to memory of the same size.
    pub fn copy_to(&self, destination: &Self, stream: &Stream) -> Result<(), Error> {
        assert_eq!(self.bytes, destination.bytes);
        let _current = self.gpu.enter()?;
        // SAFETY: both sides have as many bytes; freeing one waits for the work that uses it.
        unsafe { cuda!(cuMemcpyDtoDAsync_v2(destination.address, self.address, self.bytes, stream.raw)) }
    }

    /// Sets every byte, after the stream's earlier work; waits until it is done.
    pub fn fill(&mut self, byte: u8, stream: &Stream) -> Result<(), Error> {
        let _current = self.gpu.enter()?;
        // SAFETY: the memory is ours.
        unsafe { cuda!(cuMemsetD8Async(self.address, byte, self.bytes, stream.raw))? };
        stream.synchronize()
    }

    fn assert_holds(&self, offset: usize, bytes: usize) {
        let end = offset.checked_add(bytes);
        assert!(end.is_some_and(|end| end <= self.bytes), "{bytes} bytes at {offset} of {}", self.bytes);
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if let Ok(_current) = self.gpu.enter() {
            // An error here is one of earlier work.
            // SAFETY: the memory is ours; freeing it waits for the work that uses it.
            let _ = unsafe { cuda!(cuMemFree_v2(self.address)) };
        }
    }
}
