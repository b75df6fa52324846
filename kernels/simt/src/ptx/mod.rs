//! What the vocabulary means on `nvptx64`.

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
