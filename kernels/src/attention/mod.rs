//! Attention on quantized tiles.
//!
//! | module | what |
//! |---|---|
//! | [`schedule`] | which queries a CTA takes, and which keys they see |
//! | [`mask`] | which scores of a register tile count |
//! | [`modifier`] | what is done to scores before |
//! | [`softmax`] | probabilities from scores, without knowing the row maximum |
//! | [`epilogue`] | the output's way to memory |
//! | [`hopper`] | the kernels for compute capability 9.0 |
//! | [`ampere`] | the kernels on `mma.sync`, for compute capability 8.0 and what followed |

pub mod ampere;
pub mod epilogue;
pub mod hopper;
pub mod interpolation;
pub mod mask;
pub mod mask_tiles;
pub mod modifier;
pub mod schedule;
pub mod softmax;
