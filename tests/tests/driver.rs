//! The driver's functions, for code that knows nothing of this library: they bind themselves when first called.
//!
//! One test alone, so that nothing else calls the driver before it.

use sageattention::{Error, Gpu};
use std::sync::Barrier;

unsafe extern "C" {
    fn cuInit(flags: u32) -> u32;
    fn cuDriverGetVersion(version: *mut i32) -> u32;
}

/// What a call returns where there is no driver.
const CUDA_ERROR_NOT_FOUND: u32 = 500;

#[test]
fn first_calls_from_many_threads() {
    const THREADS: usize = 8;
    let barrier = Barrier::new(THREADS);
    let first_calls = |thread: usize| {
        let mut version = 0;
        barrier.wait();
        // SAFETY: the declarations are the driver's, which allows both calls at any time from any thread.
        let [init, get_version] = unsafe {
            if thread.is_multiple_of(2) {
                [cuInit(0), cuDriverGetVersion(&mut version)]
            } else {
                let get_version = cuDriverGetVersion(&mut version);
                [cuInit(0), get_version]
            }
        };
        (init, get_version, version)
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || first_calls(thread))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });

    let no_driver = matches!(Gpu::open(0), Err(Error::NoGpu { reason, .. }) if reason.starts_with("no CUDA driver"));
    for (init, get_version, version) in results {
        if no_driver {
            assert_eq!((init, get_version, version), (CUDA_ERROR_NOT_FOUND, CUDA_ERROR_NOT_FOUND, 0));
        } else {
            assert_ne!(init, CUDA_ERROR_NOT_FOUND);
            assert!(get_version == 0 && version > 0, "error {get_version}, version {version}");
        }
    }
}
