//! SageAttention's GPU programs, in plain Rust.
//!
//! ```text
//! q,k,v (f32, or some that are to be rotated) ─ prepare ─► f16/bf16
//! q,k,v (f16/bf16, any outer strides) ─ quantize, items in the order of sage_layout::schedule:
//!    ├─ quantize/statistics ─► channel mean of k, segment means and scale of v
//!    ├─ quantize/query_key  ─► q8 + scales, (k − mean)8 + scales    tile-major, swizzled
//!    └─ quantize/value      ─► (v − mean)ᵀ e4m3, or vᵀ in 16 bits   tile-major, transposed; e4m3 reordered
//! then attention           ─► o (caller's strides), optional log-sum-exp
//! ```
//!
//! `entry` makes a kernel of every row of the table in `sage_layout::kernel`. Everything else is ordinary Rust on the
//! vocabulary of `simt`, without `asm!`, allocation, panics or floating-point atomics.
#![cfg_attr(target_arch = "nvptx64", no_std)]
#![cfg_attr(target_arch = "nvptx64", feature(abi_ptx))]
// a row or channel indexes several register arrays and shared memory alike
#![allow(clippy::needless_range_loop)]

pub mod attention;
pub mod cache;
pub mod element;
// unit tests need no launches: without them, they are compiled in a fraction of the time
#[cfg(not(test))]
pub mod entry;
pub mod prepare;
pub mod quantize;
pub mod rotary;
pub mod sequences;

#[cfg(target_arch = "nvptx64")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
