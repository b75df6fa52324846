//! The CUDA driver, found at run time.
//!
//! `cust` declares the driver's functions as `extern "C"`, to be found by the linker in libcuda. That would tie every
//! binary to machines that have the library. Instead, this module *defines* those symbols: each is one jump through a
//! pointer. The pointers lead to [`first_call`] until a function is called for the first time, whoever calls it: other
//! CUDA code in the same binary gets these symbols too. Then [`bind`] fills all of them from the installed driver;
//! without a driver, and for functions that an old one lacks, with [`missing`], which returns an error code. One binary
//! runs with and without a GPU.
//!
//! What this crate calls is declared anew in [`raw`]. `cust` gives the types, and the list of functions below.

use super::raw;
use crate::error::Error;
use cust::error::CudaError;
use std::ffi::{CStr, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
compile_error!("sageattention finds the CUDA driver in Linux's way, and jumps to it on x86-64 and aarch64 only");

/// Defines the listed functions, and `SLOTS`, where each one's address belongs. The first call of any calls `$bind`,
/// which must fill every slot.
macro_rules! lazily_bound_functions {
    ($bind:ident => $($name:ident)*) => {
        /// The functions' names, and the pointers that they jump through.
        static SLOTS: &[(&str, &AtomicPtr<c_void>)] = &[$((stringify!($name), &slots::$name)),*];

        #[allow(non_upper_case_globals)]
        mod slots {
            use super::*;
            $(pub(super) static $name: AtomicPtr<c_void> = AtomicPtr::new(first_call as *const () as *mut c_void);)*
        }

        /// What the linker finds in place of libcuda's functions. Only code that declares them properly calls them.
        #[allow(non_snake_case)]
        mod trampolines {
            $(
                // SAFETY: the name is the driver's own, and so is what is behind it in the end: the jump leaves stack
                // and arguments as the caller set them. It changes only registers that the C ABI gives to such code,
                // one of which tells `first_call` the slot.
                #[unsafe(naked)]
                #[unsafe(no_mangle)]
                unsafe extern "C" fn $name() {
                    #[cfg(target_arch = "x86_64")]
                    core::arch::naked_asm!(
                        "lea r11, [rip + {slot}]",
                        "jmp qword ptr [r11]",
                        slot = sym super::slots::$name,
                    );
                    #[cfg(target_arch = "aarch64")]
                    core::arch::naked_asm!(
                        "adrp x16, {slot}",
                        "add x16, x16, :lo12:{slot}",
                        "ldr x17, [x16]",
                        "br x17",
                        slot = sym super::slots::$name,
                    );
                }
            )*
        }

        /// Calls `$bind`, then jumps through the slot again. What may hold an argument is as before.
        // SAFETY: only the trampolines lead here, with the slot's address in r11 or x16. All registers that may hold an
        // argument are kept, the call's stack is aligned, and none of the caller's is touched.
        #[unsafe(naked)]
        unsafe extern "C" fn first_call() {
            #[cfg(target_arch = "x86_64")]
            core::arch::naked_asm!(
                "sub rsp, 200", // with the return address, a multiple of 16
                "movaps [rsp], xmm0",
                "movaps [rsp + 16], xmm1",
                "movaps [rsp + 32], xmm2",
                "movaps [rsp + 48], xmm3",
                "movaps [rsp + 64], xmm4",
                "movaps [rsp + 80], xmm5",
                "movaps [rsp + 96], xmm6",
                "movaps [rsp + 112], xmm7",
                "mov [rsp + 128], rdi",
                "mov [rsp + 136], rsi",
                "mov [rsp + 144], rdx",
                "mov [rsp + 152], rcx",
                "mov [rsp + 160], r8",
                "mov [rsp + 168], r9",
                "mov [rsp + 176], rax",
                "mov [rsp + 184], r11",
                "call {bind}",
                "movaps xmm0, [rsp]",
                "movaps xmm1, [rsp + 16]",
                "movaps xmm2, [rsp + 32]",
                "movaps xmm3, [rsp + 48]",
                "movaps xmm4, [rsp + 64]",
                "movaps xmm5, [rsp + 80]",
                "movaps xmm6, [rsp + 96]",
                "movaps xmm7, [rsp + 112]",
                "mov rdi, [rsp + 128]",
                "mov rsi, [rsp + 136]",
                "mov rdx, [rsp + 144]",
                "mov rcx, [rsp + 152]",
                "mov r8, [rsp + 160]",
                "mov r9, [rsp + 168]",
                "mov rax, [rsp + 176]",
                "mov r11, [rsp + 184]",
                "add rsp, 200",
                "jmp qword ptr [r11]",
                bind = sym $bind,
            );
            #[cfg(target_arch = "aarch64")]
            core::arch::naked_asm!(
                "stp x29, x30, [sp, -224]!",
                "mov x29, sp",
                "stp x0, x1, [sp, 16]",
                "stp x2, x3, [sp, 32]",
                "stp x4, x5, [sp, 48]",
                "stp x6, x7, [sp, 64]",
                "stp x8, x16, [sp, 80]",
                "stp q0, q1, [sp, 96]",
                "stp q2, q3, [sp, 128]",
                "stp q4, q5, [sp, 160]",
                "stp q6, q7, [sp, 192]",
                "bl {bind}",
                "ldp x0, x1, [sp, 16]",
                "ldp x2, x3, [sp, 32]",
                "ldp x4, x5, [sp, 48]",
                "ldp x6, x7, [sp, 64]",
                "ldp x8, x16, [sp, 80]",
                "ldp q0, q1, [sp, 96]",
                "ldp q2, q3, [sp, 128]",
                "ldp q4, q5, [sp, 160]",
                "ldp q6, q7, [sp, 192]",
                "ldp x29, x30, [sp], 224",
                "ldr x17, [x16]",
                "br x17",
                bind = sym $bind,
            );
        }
    };
}

lazily_bound_functions! {
    bind =>
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
    cuImportExternalMemory cuInit cuLaunchHostFunc cuLaunchKernel cuLaunchKernelEx cuLinkAddData_v2 cuLinkComplete cuLinkCreate_v2
    cuLinkDestroy cuMemAdvise cuMemAllocAsync cuMemAllocHost_v2 cuMemAllocManaged cuMemAlloc_v2 cuMemFreeAsync
    cuMemFreeHost cuMemFree_v2 cuMemGetInfo_v2 cuMemPrefetchAsync cuMemcpy2D_v2 cuMemcpyAtoH_v2 cuMemcpyDtoDAsync_v2
    cuMemcpyDtoD_v2 cuMemcpyDtoHAsync_v2 cuMemcpyDtoH_v2 cuMemcpyHtoA_v2 cuMemcpyHtoDAsync_v2 cuMemcpyHtoD_v2
    cuMemsetD16Async cuMemsetD16_v2 cuMemsetD32Async cuMemsetD32_v2 cuMemsetD8Async cuMemsetD8_v2 cuModuleGetFunction
    cuModuleGetGlobal_v2 cuModuleLoad cuModuleLoadData cuModuleLoadDataEx cuModuleUnload
    cuOccupancyAvailableDynamicSMemPerBlock cuOccupancyMaxActiveBlocksPerMultiprocessor
    cuOccupancyMaxPotentialBlockSize cuPointerGetAttributes cuStreamBeginCapture_v2 cuStreamCreateWithPriority cuStreamDestroy_v2
    cuStreamEndCapture cuStreamGetFlags cuStreamGetPriority cuStreamIsCapturing cuStreamQuery cuStreamSynchronize
    cuStreamWaitEvent cuSurfObjectCreate cuSurfObjectDestroy cuSurfObjectGetResourceDesc cuTexObjectCreate
    cuTexObjectDestroy cuTexObjectGetResourceDesc
}

/// Stands in for a function that was not found. Its caller may pass any arguments: by the C ABI, the caller owns them.
extern "C" fn missing() -> u32 {
    CudaError::NotFound as u32
}

/// Fills all slots, if that has not been done.
extern "C" fn bind() {
    let _ = bound();
}

/// Whether the slots were filled from a driver, or why there is none.
static BOUND: OnceLock<Result<(), String>> = OnceLock::new();

/// Fills all slots, once a process. The error says why there is no driver.
fn bound() -> &'static Result<(), String> {
    BOUND.get_or_init(|| {
        const FILE: &str = "libcuda.so.1";
        // SAFETY: loading the driver runs its initializers, which the driver's own documentation allows at any time.
        let library = unsafe { libloading::Library::new(FILE) };
        // SAFETY: the address is stored, and called only through declarations of the driver's own function.
        fill(|name| unsafe { library.as_ref().ok()?.get::<*mut c_void>(name).ok().map(|symbol| *symbol) });
        // The slots point into the library from now on.
        library.map(std::mem::forget).map_err(|_| format!("no CUDA driver ({FILE}) found"))
    })
}

/// Fills all slots with functions of the caller's instead; those that it has none for fail. For tests of what is called, on
/// machines without a GPU.
///
/// # Panics
///
/// If a function of the driver was called before.
///
/// # Safety
///
/// `find` must return functions that may be called as the driver's of that name.
#[doc(hidden)]
pub unsafe fn bind_to(find: impl Fn(&str) -> Option<*mut c_void>) {
    let mut is_first = false;
    let _ = BOUND.get_or_init(|| {
        is_first = true;
        fill(find);
        Ok(())
    });
    assert!(is_first, "the driver was called before");
}

/// Points all slots to the functions of their names.
fn fill(find: impl Fn(&str) -> Option<*mut c_void>) {
    for (name, slot) in SLOTS {
        slot.store(find(name).unwrap_or(missing as *const () as *mut c_void), Ordering::Release);
    }
}

/// Finds and initializes the driver, once a process. The error says why there is none.
pub(crate) fn load() -> Result<(), &'static str> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    let loaded = LOADED.get_or_init(|| {
        bound().clone()?;
        // SAFETY: the driver takes this call at any time.
        match unsafe { raw::cuInit(0) } {
            0 => Ok(()),
            code => Err(format!("the CUDA driver does not start: {}", words(code))),
        }
    });
    loaded.as_ref().copied().map_err(String::as_str)
}

/// Calls a function of the driver; an [`Error::Driver`] with its name if it fails.
macro_rules! cuda {
    ($function:ident($($argument:expr),* $(,)?)) => {
        $crate::gpu::driver::check(stringify!($function), $crate::gpu::raw::$function($($argument),*))
    };
}
pub(crate) use cuda;

/// The outcome of a driver call.
pub(crate) fn check(call: &'static str, code: u32) -> Result<(), Error> {
    if code == 0 { Ok(()) } else { Err(Error::Driver { call, code, message: words(code) }) }
}

/// The driver's description of an error.
fn words(code: u32) -> String {
    let mut text = std::ptr::null();
    // SAFETY: the driver takes any code, and writes the address of a string that lives forever, or null.
    unsafe {
        if raw::cuGetErrorString(code, &mut text) == 0 && !text.is_null() {
            return CStr::from_ptr(text).to_string_lossy().into_owned();
        }
    }
    "the driver has no description".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hint::black_box;
    use std::sync::atomic::AtomicUsize;

    lazily_bound_functions!(bind_probe => sage_probe);

    // More integers and more floats than there are registers for them.
    unsafe extern "C" {
        #[rustfmt::skip]
        fn sage_probe(
            i0: u64,
            i1: u64,
            i2: u64,
            i3: u64,
            i4: u64,
            i5: u64,
            i6: u64,
            i7: u64,
            i8: u64,
            f0: f64,
            f1: f64,
            f2: f64,
            f3: f64,
            f4: f64,
            f5: f64,
            f6: f64,
            f7: f64,
            f8: f64,
        ) -> u64;
    }

    /// The digits of the number it returns are its arguments.
    #[rustfmt::skip]
    #[allow(clippy::too_many_arguments)]
    extern "C" fn probe(
        i0: u64, i1: u64, i2: u64, i3: u64, i4: u64, i5: u64, i6: u64, i7: u64, i8: u64,
        f0: f64, f1: f64, f2: f64, f3: f64, f4: f64, f5: f64, f6: f64, f7: f64, f8: f64,
    ) -> u64 {
        let floats = [f0, f1, f2, f3, f4, f5, f6, f7, f8].map(|float| float as u64);
        [i0, i1, i2, i3, i4, i5, i6, i7, i8].into_iter().chain(floats).fold(0, |number, digit| 10 * number + digit)
    }

    static BINDS: AtomicUsize = AtomicUsize::new(0);

    extern "C" fn bind_probe() {
        BINDS.fetch_add(1, Ordering::Relaxed);
        // Other values in all the registers that arguments are in.
        black_box(black_box(probe)(9, 9, 9, 9, 9, 9, 9, 9, 9, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0));
        let [(name, slot)] = SLOTS else { unreachable!() };
        assert_eq!(*name, "sage_probe");
        slot.store(probe as *const () as *mut c_void, Ordering::Release);
    }

    #[test]
    fn the_first_call_binds_and_keeps_the_arguments() {
        for _ in 0..2 {
            // SAFETY: declared as `probe` is.
            let number = unsafe { sage_probe(1, 2, 3, 4, 5, 6, 7, 8, 9, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0) };
            assert_eq!(number, 123_456_789_987_654_321);
        }
        assert_eq!(BINDS.load(Ordering::Relaxed), 1);
    }
}
