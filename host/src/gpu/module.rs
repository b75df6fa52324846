//! The embedded kernels, and how one becomes a function of the driver.

use super::driver::cuda;
use crate::error::Error;
use cust::sys::{CUfunction, CUfunction_attribute, CUjit_option, CUmodule};
use sage_layout::architecture::Architecture;
use sage_layout::kernel::Kernel;
use std::ffi::{CString, c_void};
use std::time::Instant;

/// A compiled kernel.
#[derive(Clone, Copy)]
struct Image {
    architecture: Architecture,
    kernel: Kernel,
    /// PTX, with a final NUL.
    ptx: &'static str,
    /// What ptxas made of it.
    cubin: Option<&'static Aligned<[u8]>>,
}

/// An ELF file where the driver may read it in words.
#[repr(C, align(16))]
struct Aligned<T: ?Sized>(T);

static IMAGES: &[Image] = include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// Dynamic shared memory that a kernel gets without asking, in bytes.
const DEFAULT_SHARED_BYTES: u32 = 48 * 1024;

fn image(architecture: Architecture, kernel: Kernel) -> Result<&'static Image, Error> {
    IMAGES
        .iter()
        .find(|image| image.architecture == architecture && image.kernel == kernel)
        .ok_or(Error::MissingKernel { kernel: kernel.symbol(), architecture: architecture.name() })
}

/// Whether this build holds every kernel for an architecture; the error names the first that it lacks.
pub(super) fn complete(architecture: Architecture) -> Result<(), Error> {
    Kernel::of(architecture).try_for_each(|kernel| image(architecture, kernel).map(drop))
}

/// A kernel that is ready to be launched. Its module stays loaded as long as the process lives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function {
    pub kernel: Kernel,
    pub raw: CUfunction,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// Loads a kernel into the current context.
pub(super) fn load(architecture: Architecture, kernel: Kernel) -> Result<Function, Error> {
    let _span = tracing::debug_span!("load_kernel", symbol = kernel.symbol()).entered();
    let start = Instant::now();
    let image = image(architecture, kernel)?;
    // A cubin is for one compute capability; from PTX the driver compiles for any later one.
    let from_cubin = image.cubin.and_then(|cubin| {
        load_image(&cubin.0).inspect_err(|error| tracing::debug!(%error, "the driver does not take the cubin")).ok()
    });
    let (module, source) = match from_cubin {
        Some(module) => (module, "cubin"),
        None => (load_image(image.ptx.as_bytes())?, "ptx"),
    };
    tracing::debug!(source, elapsed = ?start.elapsed(), "kernel loaded");

    let symbol = CString::new(kernel.symbol()).expect("a symbol has no NUL");
    let mut raw = std::ptr::null_mut();
    // SAFETY: the module was loaded into the current context, and the name is NUL-terminated.
    unsafe { cuda!(cuModuleGetFunction(&mut raw, module, symbol.as_ptr()))? };
    if kernel.shared_bytes() > DEFAULT_SHARED_BYTES {
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: `raw` is a function of the current context.
        unsafe { cuda!(cuFuncSetAttribute(raw, attribute, kernel.shared_bytes() as i32))? };
    }
    Ok(Function { kernel, raw })
}

/// Loads a cubin, or PTX that ends in NUL. The error's message is the compiler's log, if it wrote one.
fn load_image(image: &[u8]) -> Result<CUmodule, Error> {
    let mut log = [0u8; 4096];
    let mut options = [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values = [log.as_mut_ptr().cast::<c_void>(), log.len() as *mut c_void];
    let mut module = std::ptr::null_mut();
    // SAFETY: the image is an ELF file or a NUL-terminated text, and the log's address and size belong together.
    let result = unsafe {
        cuda!(cuModuleLoadDataEx(
            &mut module,
            image.as_ptr().cast(),
            options.len() as u32,
            options.as_mut_ptr(),
            values.as_mut_ptr()
        ))
    };
    match result {
        Err(Error::Driver { call, code, message }) => {
            let log = String::from_utf8_lossy(log.split(|&byte| byte == 0).next().unwrap_or_default());
            let message = if log.trim().is_empty() { message } else { format!("{message}\n{}", log.trim()) };
            Err(Error::Driver { call, code, message })
        }
        other => other.map(|()| module),
    }
}
