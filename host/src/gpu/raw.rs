//! The driver functions that this workspace calls.
//!
//! `cust` declares them too, and the types here are `cust`'s. But its functions return `CUresult`, a Rust enum of the
//! codes that were known when `cust` was written. A newer driver returns others, which no such value may hold; so here
//! a code is a number.

use cust::sys::{
    CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUevent, CUfunction, CUfunction_attribute, CUgraph,
    CUgraphExec, CUjit_option, CUmodule, CUpointer_attribute, CUstream, CUstreamCaptureMode,
};
use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};

/// `CUlaunchConfig`, of CUDA 11.8 and newer.
#[repr(C)]
pub struct LaunchConfiguration {
    pub grid: [c_uint; 3],
    pub block: [c_uint; 3],
    pub shared_bytes: c_uint,
    pub stream: CUstream,
    pub attributes: *mut LaunchAttribute,
    pub attribute_count: c_uint,
}

/// `CUlaunchAttribute` with a value that is an `int`.
#[repr(C, align(8))]
pub struct LaunchAttribute {
    pub id: c_uint,
    pub padding: c_uint,
    pub value: c_int,
    pub rest: [c_int; 15],
}

/// `CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`: whether the kernel may begin when the one before it allows that.
pub const PROGRAMMATIC_STREAM_SERIALIZATION: c_uint = 6;

unsafe extern "C" {
    pub fn cuInit(flags: c_uint) -> u32;
    pub fn cuDriverGetVersion(version: *mut c_int) -> u32;
    pub fn cuGetErrorString(code: u32, text: *mut *const c_char) -> u32;

    pub fn cuDeviceGetCount(count: *mut c_int) -> u32;
    pub fn cuDeviceGet(device: *mut CUdevice, ordinal: c_int) -> u32;
    pub fn cuDeviceGetName(name: *mut c_char, bytes: c_int, device: CUdevice) -> u32;
    pub fn cuDeviceGetAttribute(value: *mut c_int, attribute: CUdevice_attribute, device: CUdevice) -> u32;
    pub fn cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice) -> u32;
    pub fn cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice) -> u32;

    pub fn cuCtxPushCurrent_v2(context: CUcontext) -> u32;
    pub fn cuCtxPopCurrent_v2(context: *mut CUcontext) -> u32;

    pub fn cuStreamCreateWithPriority(stream: *mut CUstream, flags: c_uint, priority: c_int) -> u32;
    pub fn cuStreamSynchronize(stream: CUstream) -> u32;
    pub fn cuStreamDestroy_v2(stream: CUstream) -> u32;

    pub fn cuMemAlloc_v2(address: *mut CUdeviceptr, bytes: usize) -> u32;
    pub fn cuMemFree_v2(address: CUdeviceptr) -> u32;
    pub fn cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream) -> u32;
    pub fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream) -> u32;
    pub fn cuMemcpyDtoDAsync_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream) -> u32;
    pub fn cuPointerGetAttributes(
        count: c_uint,
        attributes: *mut CUpointer_attribute,
        values: *mut *mut c_void,
        address: CUdeviceptr,
    ) -> u32;
    pub fn cuMemsetD8Async(address: CUdeviceptr, byte: u8, bytes: usize, stream: CUstream) -> u32;

    pub fn cuModuleLoadDataEx(
        module: *mut CUmodule,
        image: *const c_void,
        options: c_uint,
        option_names: *mut CUjit_option,
        option_values: *mut *mut c_void,
    ) -> u32;
    pub fn cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char) -> u32;
    pub fn cuFuncSetAttribute(function: CUfunction, attribute: CUfunction_attribute, value: c_int) -> u32;
    pub fn cuLaunchKernel(
        function: CUfunction,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared_bytes: c_uint,
        stream: CUstream,
        parameters: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) -> u32;

    pub fn cuLaunchKernelEx(
        configuration: *const LaunchConfiguration,
        function: CUfunction,
        parameters: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) -> u32;

    pub fn cuStreamBeginCapture_v2(stream: CUstream, mode: CUstreamCaptureMode) -> u32;
    pub fn cuStreamEndCapture(stream: CUstream, graph: *mut CUgraph) -> u32;
    pub fn cuGraphInstantiateWithFlags(executable: *mut CUgraphExec, graph: CUgraph, flags: c_ulonglong) -> u32;
    pub fn cuGraphLaunch(executable: CUgraphExec, stream: CUstream) -> u32;
    pub fn cuGraphExecDestroy(executable: CUgraphExec) -> u32;
    pub fn cuGraphDestroy(graph: CUgraph) -> u32;

    pub fn cuEventCreate(event: *mut CUevent, flags: c_uint) -> u32;
    pub fn cuEventRecord(event: CUevent, stream: CUstream) -> u32;
    pub fn cuEventSynchronize(event: CUevent) -> u32;
    pub fn cuEventElapsedTime(milliseconds: *mut f32, start: CUevent, stop: CUevent) -> u32;
    pub fn cuEventDestroy_v2(event: CUevent) -> u32;
}
