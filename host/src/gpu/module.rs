//! The embedded kernels, and how one becomes a function of the driver.

use super::driver::cuda;
use crate::error::Error;
use cust::sys::{CUfunction, CUfunction_attribute, CUjit_option, CUmodule};
use lzma_rust2::LzmaReader;
use sage_layout::architecture::{Architecture, ComputeCapability};
use sage_layout::kernel::Kernel;
use std::ffi::{CString, c_void};
use std::io::Read;
use std::time::Instant;

/// A compiled kernel.
struct Image {
    architecture: Architecture,
    kernel: Kernel,
    form: Form,
    /// An LZMA file: images of this kernel and others, one after the other.
    archive: &'static [u8],
    /// Where this one begins.
    start: u64,
    /// How long it is.
    bytes: usize,
}

/// What an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// A text, from which the driver compiles for any later GPU.
    Ptx,
    /// ptxas's machine code, an ELF file.
    Cubin,
}

static IMAGES: &[Image] = include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// Dynamic shared memory that a kernel gets without asking, in bytes.
const DEFAULT_SHARED_BYTES: u32 = 48 * 1024;

fn image(architecture: Architecture, kernel: Kernel, form: Form) -> Option<&'static Image> {
    IMAGES.iter().find(|image| (image.architecture, image.kernel, image.form) == (architecture, kernel, form))
}

/// What a GPU may load for a kernel, best first. Machine code that was made with newer tools than a driver's is refused by
/// it, PTX mostly not.
fn images(architecture: Architecture, kernel: Kernel, gpu: ComputeCapability) -> Vec<&'static Image> {
    let cubin = image(architecture, kernel, Form::Cubin).filter(|_| architecture.has_code_for(gpu));
    cubin.into_iter().chain(image(architecture.ptx(), kernel, Form::Ptx)).collect()
}

fn missing(architecture: Architecture, kernel: Kernel) -> Error {
    Error::MissingKernel { kernel: kernel.symbol(), architecture: architecture.name() }
}

/// Whether this build holds every kernel for an architecture; the error names the first that it lacks.
pub(super) fn complete(architecture: Architecture) -> Result<(), Error> {
    let gpu = architecture.capabilities()[0];
    let lacks = |kernel: &Kernel| images(architecture, *kernel, gpu).is_empty();
    Kernel::of(architecture).find(lacks).map_or(Ok(()), |kernel| Err(missing(architecture, kernel)))
}

/// Whether other images of the kernels may do.
pub(crate) fn is_about_the_image(error: &Error) -> bool {
    const INVALID_IMAGE: u32 = 200;
    const NO_BINARY_FOR_GPU: u32 = 209;
    const INVALID_PTX: u32 = 218;
    const UNSUPPORTED_PTX_VERSION: u32 = 222;
    match error {
        Error::MissingKernel { .. } => true,
        Error::Driver { code, .. } => {
            [INVALID_IMAGE, NO_BINARY_FOR_GPU, INVALID_PTX, UNSUPPORTED_PTX_VERSION].contains(code)
        }
        _ => false,
    }
}

impl Image {
    /// The image, where the driver may read it in words, and at least one NUL behind it.
    fn unpack(&self) -> std::io::Result<Vec<u128>> {
        let mut words = vec![0; self.bytes / size_of::<u128>() + 1];
        let mut archive = LzmaReader::new_mem_limit(self.archive, u32::MAX, None)?;
        std::io::copy(&mut archive.by_ref().take(self.start), &mut std::io::sink())?;
        archive.read_exact(&mut bytemuck::cast_slice_mut(&mut words)[..self.bytes])?;
        Ok(words)
    }
}

/// A kernel that is ready to be launched. Its module stays loaded as long as the process lives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function {
    pub kernel: Kernel,
    pub raw: CUfunction,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// Loads a kernel into the current context, which is of a GPU of this compute capability.
pub(super) fn load(architecture: Architecture, kernel: Kernel, gpu: ComputeCapability) -> Result<Function, Error> {
    let _span =
        tracing::debug_span!("load_kernel", symbol = kernel.symbol(), architecture = architecture.name()).entered();
    let mut result = Err(missing(architecture, kernel));
    for image in images(architecture, kernel, gpu) {
        let start = Instant::now();
        let words = image.unpack().map_err(|_| missing(architecture, kernel))?;
        result = load_image(bytemuck::cast_slice(&words));
        match &result {
            Ok(_) => {
                tracing::debug!(form = ?image.form, elapsed = ?start.elapsed(), "kernel loaded");
                break;
            }
            Err(error) => tracing::debug!(form = ?image.form, %error, "the driver does not take the kernel"),
        }
    }
    let module = result?;

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

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    #[test]
    fn every_image_is_what_it_says() {
        for image in IMAGES {
            let words = image.unpack().unwrap();
            let bytes: &[u8] = bytemuck::cast_slice(&words);
            let symbol = image.kernel.symbol();
            assert!(bytes.windows(symbol.len()).any(|window| window == symbol.as_bytes()), "{symbol}");
            assert_eq!(bytes.last(), Some(&0));
            match image.form {
                Form::Cubin => assert!(bytes.starts_with(b"\x7fELF")),
                Form::Ptx => {
                    assert_eq!(image.architecture.ptx(), image.architecture);
                    let text = CStr::from_bytes_until_nul(bytes).unwrap().to_str().unwrap();
                    assert!(text.contains(&format!(".target {}\n", image.architecture.name())), "{text}");
                }
            }
        }
    }

    #[test]
    fn a_gpu_loads_machine_code_of_its_own_and_ptx_of_others() {
        let kernel = Kernel::QuantizeD64F16;
        let forms = |architecture, major, minor| {
            images(architecture, kernel, ComputeCapability::new(major, minor))
                .iter()
                .map(|image| (image.architecture, image.form))
                .collect::<Vec<_>>()
        };
        for architecture in [Architecture::Sm90a].into_iter().filter(|one| complete(*one).is_ok()) {
            assert_eq!(forms(architecture, 9, 0), [(architecture, Form::Cubin), (architecture, Form::Ptx)]);
            assert_eq!(forms(architecture, 8, 0), [(architecture, Form::Ptx)]);
        }
    }
}
