//! The vocabulary of a GPU thread.
//!
//! One module an instruction family, named as in `cuda_std` where it has the name and after the PTX mnemonic elsewhere.
//! Each function documents the instruction's contract here; what it means in PTX is in `ptx/`, the only place with `asm!`
//! and LLVM intrinsics; what it means on the host is in `host/`.
//!
//! On the host, kernels run in the SIMT executor, `host`, which looks for missing synchronisation. Arithmetic ([`math`],
//! [`convert`]) works outside of it too, and computes the same bits where PTX defines them.
//!
//! Collective operations (`.sync.aligned` in PTX; but for `setmaxnreg`, which stands alone) are LLVM intrinsics, which are
//! *convergent*: the compiler may not duplicate them into two arms of a branch. `asm!` is not convergent, so [`wgmma`]'s
//! multiplications must stand in one basic block with a [`wgmma::fence`], and [`mma`]'s in one with a barrier.
#![cfg_attr(target_arch = "nvptx64", no_std)]
#![cfg_attr(target_arch = "nvptx64", feature(asm_experimental_arch, link_llvm_intrinsics))]
#![cfg_attr(target_arch = "nvptx64", allow(internal_features))]

#[cfg(not(target_arch = "nvptx64"))]
pub mod host;
#[cfg(not(target_arch = "nvptx64"))]
use host as arch;
#[cfg(target_arch = "nvptx64")]
#[path = "ptx/mod.rs"]
mod arch;

pub mod barrier;
pub mod convert;
pub mod copy;
pub mod global;
pub mod grid;
pub mod math;
pub mod mbarrier;
pub mod mma;
pub mod shared;
pub mod thread;
pub mod warp;
pub mod wgmma;
