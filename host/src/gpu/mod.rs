//! Running plans on an NVIDIA GPU.
//!
//! | module | what |
//! |---|---|
//! | `driver` | finds the CUDA driver at run time |
//! | `raw` | the driver functions that are called |
//! | `module` | the embedded kernels, and how one is loaded |
//! | [`launch`] | what a plan puts on a stream |
//! | [`quantized`] | the same for operands that are quantized by themselves |
//! | `memory` | device memory and streams of our own |

pub(crate) mod driver;
pub mod launch;
#[doc(hidden)]
pub mod memory;
pub(crate) mod module;
pub mod quantized;
#[doc(hidden)]
pub mod raw;

use crate::error::Error;
use cust::sys::{CUcontext, CUdevice, CUdevice_attribute, CUpointer_attribute};
use driver::cuda;
use module::Function;
use sage_layout::architecture::{Architecture, ComputeCapability};
use sage_layout::dispatch;
use sage_layout::kernel::Kernel;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_void};
use std::sync::{Mutex, OnceLock};

#[doc(hidden)]
pub use driver::bind_to;
pub use launch::{GpuBuffers, PreparedPlan};
pub use quantized::{AttendBuffers, GpuQuantized, QuantizeBuffers};

/// The first driver whose graphs can hold kernels that overlap: CUDA 12.3's.
const OVERLAPPING_DRIVER: i32 = 12030;

/// An NVIDIA GPU that kernels exist for.
///
/// It works in the device's primary context, the one that PyTorch, cudarc and the CUDA runtime use, so that device
/// addresses and streams of theirs can be used here. A GPU is opened once a process and stays open.
#[derive(Debug)]
pub struct Gpu {
    ordinal: usize,
    name: String,
    capability: ComputeCapability,
    multiprocessors: u32,
    /// Whether a kernel may begin before the one before it on the stream ends.
    overlaps_kernels: bool,
    context: CUcontext,
    /// Whether the driver lists others.
    has_siblings: bool,
    /// The kernels that were loaded so far, and for which architecture.
    functions: Mutex<Vec<(Architecture, Function)>>,
}

/// The driver's number for memory of a device (`CU_MEMORYTYPE_DEVICE`).
const DEVICE_MEMORY: u32 = 2;

// SAFETY: the only part that is not already is the context, which any thread may make current.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

impl Gpu {
    /// Opens the GPU that CUDA counts as number `ordinal`. Cheap when it is open already.
    ///
    /// # Errors
    ///
    /// [`Error::NoGpu`] without a driver or such a GPU, [`Error::UnsupportedGpu`] if there are no kernels for it,
    /// [`Error::MissingKernel`] if this build holds none, [`Error::Driver`] if the driver refuses.
    pub fn open(ordinal: usize) -> Result<&'static Self, Error> {
        static OPEN: Mutex<BTreeMap<usize, &'static Gpu>> = Mutex::new(BTreeMap::new());
        let mut open = OPEN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(gpu) = open.get(&ordinal) {
            return Ok(gpu);
        }
        let gpu = &*Box::leak(Box::new(Self::find(ordinal)?));
        open.insert(ordinal, gpu);
        Ok(gpu)
    }

    fn find(ordinal: usize) -> Result<Self, Error> {
        let _span = tracing::debug_span!("open_gpu", ordinal).entered();
        let found = FoundGpu::find(ordinal)?;
        found.usable()?;
        let multiprocessors = found.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32;
        let (mut context, mut driver) = (std::ptr::null_mut(), 0);
        // SAFETY: the driver writes a number.
        unsafe { cuda!(cuDriverGetVersion(&mut driver))? };
        // SAFETY: the device comes from the driver. The context is never released, so that it outlives `Self`.
        unsafe { cuda!(cuDevicePrimaryCtxRetain(&mut context, found.device))? };
        let FoundGpu { name, capability, .. } = found;
        tracing::debug!(name, ?capability, multiprocessors, "GPU opened");
        let has_siblings = count().is_ok_and(|count| count > 1);
        let overlaps_kernels = capability.major >= 9 && driver >= OVERLAPPING_DRIVER;
        let functions = Mutex::default();
        Ok(Self { ordinal, name, capability, multiprocessors, overlaps_kernels, context, has_siblings, functions })
    }

    /// The number that CUDA counts it by.
    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// The name that its maker gave it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Compute capability.
    pub fn capability(&self) -> ComputeCapability {
        self.capability
    }

    /// Streaming multiprocessors.
    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// Whether kernels may begin before those before them end.
    pub(crate) fn overlaps_kernels(&self) -> bool {
        self.overlaps_kernels
    }

    /// The kernel as a function of the driver; loads it if this is the first time.
    pub(crate) fn function(&self, architecture: Architecture, kernel: Kernel) -> Result<Function, Error> {
        let mut functions = self.functions.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let is_loaded = |(of, function): &&(Architecture, Function)| (*of, function.kernel) == (architecture, kernel);
        if let Some((_, function)) = functions.iter().find(is_loaded) {
            return Ok(*function);
        }
        let _current = self.enter()?;
        let function = module::load(architecture, kernel, self.capability)?;
        functions.push((architecture, function));
        Ok(function)
    }

    /// The architecture that the environment variable `SAGE_KERNELS` names, if it is set.
    pub(crate) fn named_architecture(&self) -> Result<Option<Architecture>, Error> {
        static VARIABLE: OnceLock<Option<String>> = OnceLock::new();
        let variable = VARIABLE.get_or_init(|| {
            let value = std::env::var_os("SAGE_KERNELS").filter(|value| !value.is_empty());
            value.map(|value| value.to_string_lossy().into_owned())
        });
        let Some(name) = variable else { return Ok(None) };
        let error = |allowed| Error::KernelsVariable { got: name.clone(), gpu: self.description(None), allowed };
        named(name, self.capability).map(Some).map_err(error)
    }

    /// The GPU as messages call it, and the architecture if its kernels alone are meant.
    pub(crate) fn description(&self, architecture: Option<Architecture>) -> String {
        let Self { ordinal, name, capability, .. } = self;
        let of = architecture.map_or(String::new(), |architecture| format!(" with kernels of {}", architecture.name()));
        format!("GPU {ordinal} ({name}, compute capability {capability}){of}")
    }

    /// Refuses memory of another GPU, where there are several.
    pub(crate) fn check(&self, argument: &'static str, address: u64) -> Result<(), Error> {
        match self.stranger(address) {
            Some(got) => Err(Error::WrongGpu { argument, address, got, expected: self.ordinal }),
            None => Ok(()),
        }
    }

    /// Whether device memory at an address is another GPU's, and whose. Nothing is known of an address that is not the driver's.
    fn stranger(&self, address: u64) -> Option<usize> {
        if !self.has_siblings {
            return None;
        }
        let (mut memory_type, mut ordinal) = (0u32, 0i32);
        let mut attributes = [
            CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
            CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
        ];
        let mut values = [(&raw mut memory_type).cast::<c_void>(), (&raw mut ordinal).cast()];
        let (names, values) = (attributes.as_mut_ptr(), values.as_mut_ptr());
        // SAFETY: two attributes, and a place of its type for each.
        let known = unsafe { cuda!(cuPointerGetAttributes(2, names, values, address)) };
        let is_other = known.is_ok() && memory_type == DEVICE_MEMORY && ordinal as usize != self.ordinal;
        is_other.then_some(ordinal as usize)
    }

    /// Makes the GPU's context current on this thread until the guard is dropped.
    #[doc(hidden)]
    pub fn enter(&self) -> Result<CurrentContext, Error> {
        // SAFETY: the primary context was retained and is never released.
        unsafe { cuda!(cuCtxPushCurrent_v2(self.context))? };
        Ok(CurrentContext(std::marker::PhantomData))
    }
}

/// The architecture of this name, if the GPU runs its kernels; else the names of those whose it does.
fn named(name: &str, gpu: ComputeCapability) -> Result<Architecture, String> {
    let allowed: Vec<_> = dispatch::architectures(gpu).filter(|one| dispatch::is_used(*one)).collect();
    let found = allowed.iter().copied().find(|architecture| architecture.name() == name);
    found.ok_or_else(|| allowed.into_iter().map(Architecture::name).collect::<Vec<_>>().join(", "))
}

/// A context that is current on this thread; dropping it brings back the one before.
#[doc(hidden)]
#[derive(Debug)]
pub struct CurrentContext(std::marker::PhantomData<*const ()>);

impl Drop for CurrentContext {
    fn drop(&mut self) {
        let mut context = std::ptr::null_mut();
        // SAFETY: pops what `Gpu::enter` pushed on this same thread: the guard can't be sent to another.
        let popped = unsafe { cuda!(cuCtxPopCurrent_v2(&mut context)) };
        debug_assert_eq!(popped, Ok(()));
    }
}

/// A GPU that the driver lists, supported or not.
struct FoundGpu {
    ordinal: usize,
    device: CUdevice,
    name: String,
    capability: ComputeCapability,
}

impl FoundGpu {
    fn find(ordinal: usize) -> Result<Self, Error> {
        let none = |reason: &str| Error::NoGpu { ordinal, reason: reason.to_owned() };
        let count = count().map_err(none)?;
        if ordinal >= count {
            return Err(none(&match count {
                0 => "the CUDA driver lists no GPU".to_owned(),
                1 => "the CUDA driver lists one GPU, number 0".to_owned(),
                _ => format!("the CUDA driver lists GPUs 0 to {}", count - 1),
            }));
        }
        let (mut device, mut name) = (0, [0u8; 256]);
        // SAFETY: the driver is initialized, and writes a device and a name of at most as many bytes, with its NUL.
        unsafe {
            cuda!(cuDeviceGet(&mut device, ordinal as i32))?;
            cuda!(cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as i32, device))?;
        }
        let name = CStr::from_bytes_until_nul(&name).unwrap_or_default().to_string_lossy().into_owned();
        let mut found = Self { ordinal, device, name, capability: ComputeCapability::new(0, 0) };
        found.capability = ComputeCapability::new(
            found.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32,
            found.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32,
        );
        Ok(found)
    }

    fn attribute(&self, attribute: CUdevice_attribute) -> Result<i32, Error> {
        let mut value = 0;
        // SAFETY: the device comes from the driver.
        unsafe { cuda!(cuDeviceGetAttribute(&mut value, attribute, self.device))? };
        Ok(value)
    }

    fn memory_bytes(&self) -> Result<u64, Error> {
        let mut bytes = 0;
        // SAFETY: as above.
        unsafe { cuda!(cuDeviceTotalMem_v2(&mut bytes, self.device))? };
        Ok(bytes as u64)
    }

    /// Whether there are kernels for it, and this build holds them: all of one architecture.
    fn usable(&self) -> Result<(), Error> {
        let architectures = dispatch::architectures(self.capability).filter(|one| dispatch::is_used(*one));
        let mut first_error = None;
        for architecture in architectures {
            match module::complete(architecture) {
                Ok(()) => return Ok(()),
                Err(error) => first_error.get_or_insert(error),
            };
        }
        Err(first_error.unwrap_or_else(|| Error::UnsupportedGpu {
            ordinal: self.ordinal,
            name: self.name.clone(),
            capability: self.capability,
            supported: supported(),
        }))
    }
}

/// The compute capabilities that there are kernels for, and the PTX that later ones run.
fn supported() -> String {
    let capabilities = dispatch::GPUS.iter().filter(|(gpu, _)| dispatch::architectures(*gpu).any(dispatch::is_used));
    capabilities.map(|(gpu, _)| gpu.to_string()).collect::<Vec<_>>().join(", ")
}

/// How many GPUs the driver lists, or why it lists none.
fn count() -> Result<usize, &'static str> {
    driver::load()?;
    // A driver without a device answers with an error instead of 0.
    let mut count = 0;
    // SAFETY: the driver is initialized.
    Ok(unsafe { cuda!(cuDeviceGetCount(&mut count)) }.map_or(0, |()| count as usize))
}

/// A GPU that the driver lists, for a human who wants to choose one.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GpuInfo {
    /// The number that CUDA counts it by.
    pub ordinal: usize,
    /// The name that its maker gave it.
    pub name: String,
    /// Compute capability.
    pub capability: ComputeCapability,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// The highest clock of its multiprocessors, in kHz.
    pub clock_khz: u32,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Whether [`Gpu::open`] would open it, as far as can be told without doing so.
    pub usable: Result<(), Error>,
}

/// Every GPU that the driver lists, supported or not; none without a driver.
pub fn devices() -> Vec<GpuInfo> {
    let info = |ordinal| -> Result<GpuInfo, Error> {
        let found = FoundGpu::find(ordinal)?;
        Ok(GpuInfo {
            ordinal,
            multiprocessors: found.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
            clock_khz: found.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)? as u32,
            memory_bytes: found.memory_bytes()?,
            usable: found.usable(),
            name: found.name,
            capability: found.capability,
        })
    };
    (0..count().unwrap_or(0)).filter_map(|ordinal| info(ordinal).ok()).collect()
}

/// The architectures that there are attention kernels for, and for each whether this build holds them all.
pub fn embedded_kernels() -> Vec<(&'static str, Result<(), Error>)> {
    let used = Architecture::ALL.into_iter().filter(|architecture| dispatch::is_used(*architecture));
    used.map(|architecture| (architecture.name(), module::complete(architecture))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_chosen_by_name_among_those_that_run() {
        let hopper = ComputeCapability::new(9, 0);
        assert_eq!(named("sm_90a", hopper), Ok(Architecture::Sm90a));
        for name in ["sm_120", "sm_90", "hopper"] {
            let allowed = named(name, hopper).unwrap_err();
            assert!(allowed.starts_with("sm_90a") && !allowed.contains("sm_120"), "{allowed}");
        }
        assert_eq!(named("sm_75", hopper), Ok(Architecture::Sm75));
        assert_eq!(named("sm_90a", ComputeCapability::new(7, 5)), Err("sm_75".to_owned()));
        assert_eq!(named("sm_90a", ComputeCapability::new(7, 0)), Err(String::new()));
    }

    #[test]
    fn supported_gpus_are_those_with_attention_kernels() {
        assert!(supported().starts_with("7.5, 8.0") && supported().contains("9.0"), "{}", supported());
    }
}
