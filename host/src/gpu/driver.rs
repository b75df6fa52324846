//! The CUDA driver, found at run time.
//!
//! `cust` declares the driver's functions as `extern "C"`, to be found by the linker in libcuda. That would tie every
//! binary to machines that have the library. Instead, this module *defines* those symbols: each is one jump through a
//! pointer, and [`load`] fills the pointers from the installed driver. Until then, and for functions that an old driver
//! lacks, a pointer leads to [`missing`], which returns an error code. One binary runs with and without a GPU.

use crate::error::Error;
use cust::error::CudaError;
use std::ffi::{CStr, c_char, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Defines the listed driver functions, and `SLOTS`, where each one's address belongs.
macro_rules! driver_functions {
    ($($name:ident)*) => {
        /// The functions' names, and the pointers that they jump through.
        static SLOTS: &[(&str, &AtomicPtr<c_void>)] = &[$((stringify!($name), &slots::$name)),*];

        #[allow(non_upper_case_globals)]
        mod slots {
            use super::*;
            $(pub(super) static $name: AtomicPtr<c_void> = AtomicPtr::new(missing as *const () as *mut c_void);)*
        }

        /// What the linker finds in place of libcuda's functions. Only code that declares them properly calls them.
        #[allow(non_snake_case)]
        mod trampolines {
            $(
                // SAFETY: the name is the driver's own, and so is what is behind it: the jump leaves registers and
                // stack as the caller set them, so that the driver's function sees its arguments.
                #[unsafe(naked)]
                #[unsafe(no_mangle)]
                unsafe extern "C" fn $name() {
                    #[cfg(target_arch = "x86_64")]
                    core::arch::naked_asm!("jmp qword ptr [rip + {slot}]", slot = sym super::slots::$name);
                    #[cfg(target_arch = "aarch64")]
                    core::arch::naked_asm!(
                        "adrp x16, {slot}",
                        "ldr x16, [x16, :lo12:{slot}]",
                        "br x16",
                        slot = sym super::slots::$name,
                    );
                }
            )*
        }
    };
}

driver_functions! {
    cuArray3DCreate_v2 cuArray3DGetDescriptor_v2 cuArrayDestroy cuCtxCreate_v2 cuCtxDestroy_v2 cuCtxGetApiVersion
    cuCtxGetCacheConfig cuCtxGetCurrent cuCtxGetDevice cuCtxGetFlags cuCtxGetLimit cuCtxGetSharedMemConfig
    cuCtxGetStreamPriorityRange cuCtxPopCurrent_v2 cuCtxPushCurrent_v2 cuCtxSetCacheConfig cuCtxSetCurrent
    cuCtxSetLimit cuCtxSetSharedMemConfig cuCtxSynchronize cuDestroyExternalMemory cuDeviceGet cuDeviceGetAttribute
    cuDeviceGetCount cuDeviceGetName cuDevicePrimaryCtxRelease_v2 cuDevicePrimaryCtxReset_v2 cuDevicePrimaryCtxRetain
    cuDevicePrimaryCtxSetFlags_v2 cuDeviceTotalMem_v2 cuDriverGetVersion cuEventCreate cuEventDestroy_v2
    cuEventElapsedTime cuEventQuery cuEventRecord cuEventSynchronize cuExternalMemoryGetMappedBuffer
    cuFuncGetAttribute cuFuncSetAttribute cuFuncSetCacheConfig cuFuncSetSharedMemConfig cuGetErrorName
    cuGetErrorString cuGraphAddKernelNode cuGraphCreate cuGraphDebugDotPrint cuGraphDestroy cuGraphExecDestroy
    cuGraphGetEdges cuGraphGetNodes cuGraphInstantiateWithFlags cuGraphKernelNodeGetParams cuGraphLaunch cuGraphNodeGetType
    cuImportExternalMemory cuInit cuLaunchHostFunc cuLaunchKernel cuLinkAddData_v2 cuLinkComplete cuLinkCreate_v2
    cuLinkDestroy cuMemAdvise cuMemAllocAsync cuMemAllocHost_v2 cuMemAllocManaged cuMemAlloc_v2 cuMemFreeAsync
    cuMemFreeHost cuMemFree_v2 cuMemGetInfo_v2 cuMemPrefetchAsync cuMemcpy2D_v2 cuMemcpyAtoH_v2 cuMemcpyDtoDAsync_v2
    cuMemcpyDtoD_v2 cuMemcpyDtoHAsync_v2 cuMemcpyDtoH_v2 cuMemcpyHtoA_v2 cuMemcpyHtoDAsync_v2 cuMemcpyHtoD_v2
    cuMemsetD16Async cuMemsetD16_v2 cuMemsetD32Async cuMemsetD32_v2 cuMemsetD8Async cuMemsetD8_v2 cuModuleGetFunction
    cuModuleGetGlobal_v2 cuModuleLoad cuModuleLoadData cuModuleLoadDataEx cuModuleUnload
    cuOccupancyAvailableDynamicSMemPerBlock cuOccupancyMaxActiveBlocksPerMultiprocessor
    cuOccupancyMaxPotentialBlockSize cuStreamBeginCapture_v2 cuStreamCreateWithPriority cuStreamDestroy_v2
    cuStreamEndCapture cuStreamGetFlags cuStreamGetPriority cuStreamIsCapturing cuStreamQuery cuStreamSynchronize
    cuStreamWaitEvent cuSurfObjectCreate cuSurfObjectDestroy cuSurfObjectGetResourceDesc cuTexObjectCreate
    cuTexObjectDestroy cuTexObjectGetResourceDesc
}

/// Stands in for a function that was not found. Its caller may pass any arguments: by the C ABI, the caller owns them.
extern "C" fn missing() -> u32 {
    CudaError::NotFound as u32
}

/// Finds and initializes the driver, once a process. The error says why there is none.
pub(crate) fn load() -> Result<(), &'static str> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    LOADED.get_or_init(find_and_initialize).as_ref().copied().map_err(String::as_str)
}

fn find_and_initialize() -> Result<(), String> {
    let file = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
    // SAFETY: loading the driver runs its initializers, which the driver's own documentation allows at any time.
    let library = unsafe { libloading::Library::new(file) }.map_err(|_| format!("no CUDA driver ({file}) found"))?;
    for (name, slot) in SLOTS {
        // SAFETY: the address is stored, and called only through declarations of the driver's own function.
        if let Ok(symbol) = unsafe { library.get::<*mut c_void>(*name) } {
            slot.store(*symbol, Ordering::Release);
        }
    }
    // The slots point into the library from now on.
    std::mem::forget(library);
    cust::init(cust::CudaFlags::empty())
        .map_err(|error| format!("the CUDA driver does not start: {}", words(error as u32)))
}

/// Calls a function of the driver through `cust`'s declaration; an [`Error::Driver`] with its name if it fails.
macro_rules! cuda {
    ($function:ident($($argument:expr),* $(,)?)) => {
        $crate::gpu::driver::check(stringify!($function), cust::sys::$function($($argument),*) as u32)
    };
}
pub(crate) use cuda;

/// The outcome of a driver call.
pub(crate) fn check(call: &'static str, code: u32) -> Result<(), Error> {
    if code == 0 { Ok(()) } else { Err(Error::Driver { call, code, message: words(code) }) }
}

/// The outcome of a call of `cust`'s.
pub(crate) fn checked<T>(call: &'static str, result: Result<T, CudaError>) -> Result<T, Error> {
    result.map_err(|error| Error::Driver { call, code: error as u32, message: words(error as u32) })
}

/// The driver's description of an error. (`CudaError`'s own `Display` fails where the driver knows none.)
fn words(code: u32) -> String {
    unsafe extern "C" {
        // As in `cust`, but with codes that its enum does not know.
        fn cuGetErrorString(code: u32, text: *mut *const c_char) -> u32;
    }
    let mut text = std::ptr::null();
    // SAFETY: the driver takes any code, and writes the address of a string that lives forever, or null.
    unsafe {
        if cuGetErrorString(code, &mut text) == 0 && !text.is_null() {
            return CStr::from_ptr(text).to_string_lossy().into_owned();
        }
    }
    "the driver has no description".to_owned()
}
