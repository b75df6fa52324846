//! The order in which channel statistics are summed, so that the CPU gets the GPU's bits.
//!
//! Floating-point addition is not associative; these rules are the definition of a channel's sum, and the kernels and
//! the CPU engine both follow them:
//!
//! 1. A segment's tokens are dealt to [`TOKEN_LANES`] partial sums: token `i` of the segment goes to partial sum
//!    `i % TOKEN_LANES`, in order of `i`, starting from 0.
//! 2. The segment's sum adds the partial sums in order: `((0 + p0) + p1) + …`.
//! 3. The channel's sum adds the segments' sums in order, starting from 0. The mean is that sum divided by the length.
//!
//! The product of a query row with the key mean (for the log-sum-exp) is a sum too: each chunk of eight channels from 0
//! in order, then the chunks' sums in pairs, pairs of pairs, and so on: every sum plus its partner's, whose index differs
//! in bit 0, then in bit 1, …
//!
//! Every operation is f32 with rounding to nearest even. Minimum and maximum do not depend on order.

/// Partial sums of a segment.
pub const TOKEN_LANES: u32 = 16;
