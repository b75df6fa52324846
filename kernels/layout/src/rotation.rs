//! What may be done to queries and keys before they are quantized: rotary embedding, Hadamard rotation. All of it is f32, each
//! operation rounded to nearest even on its own.
//!
//! *Rotary embedding* turns pairs of channels `(x, y)` by an angle that grows with the token's position, of which tables have cosine
//! and sine: `(x · cos − y · sin, y · cos + x · sin)`. Scores of turned queries and keys depend on the difference of positions alone.
//!
//! *Hadamard rotation* multiplies rows of all (padded) channels by the matrix of signs `(−1)^popcount(i & j) / √channels`. It is
//! orthogonal, so that products of rows stay what they are; and what was large in one channel is spread over all. It is computed in
//! stages: stage `s` takes channels `i` and `i + 2ˢ`, where bit `s` of `i` is 0, to their sum and their difference; in the end, all
//! are multiplied by [`hadamard_scale`].

/// Which channels are pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum RotaryPairs {
    /// Channels `2i` and `2i + 1` (GPT-J's).
    Interleaved,
    /// Channels `i` and `i + dim / 2` (GPT-NeoX's, Llama's in most frameworks).
    #[default]
    HalfSplit,
}

impl RotaryPairs {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Interleaved, Self::HalfSplit];

    /// The pair that a channel belongs to, and whether it is the first of it; `dim` channels are pairs.
    #[inline(always)]
    pub const fn pair_of(self, channel: u32, dim: u32) -> (u32, bool) {
        match self {
            Self::Interleaved => (channel / 2, channel.is_multiple_of(2)),
            Self::HalfSplit if channel < dim / 2 => (channel, true),
            Self::HalfSplit => (channel.wrapping_sub(dim / 2), false),
        }
    }

    /// Whether a chunk of eight channels, if it is turned at all, is turned with another chunk, or each of its channels with a neighbour in
    /// it; `dim` channels are pairs.
    pub const fn are_whole_chunks(self, dim: u32) -> bool {
        match self {
            Self::Interleaved => dim.is_multiple_of(8),
            Self::HalfSplit => dim.is_multiple_of(16),
        }
    }

    /// The channels of a pair.
    #[inline(always)]
    pub const fn channels_of(self, pair: u32, dim: u32) -> [u32; 2] {
        match self {
            Self::Interleaved => [2 * pair, 2 * pair + 1],
            Self::HalfSplit => [pair, pair + dim / 2],
        }
    }
}

/// What a Hadamard rotation multiplies by in the end, 1 / √`channels`: 64, 128 or 256 channels.
pub const fn hadamard_scale(channels: u32) -> f32 {
    match channels {
        64 => 0.125,
        128 => 0.125 * core::f32::consts::FRAC_1_SQRT_2,
        _ => 0.0625,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tile::PADDED_HEAD_DIMS;

    #[test]
    fn every_channel_is_in_one_pair() {
        for pairs in RotaryPairs::ALL {
            for dim in (2..=256).step_by(2) {
                for channel in 0..dim {
                    let (pair, is_first) = pairs.pair_of(channel, dim);
                    assert!(pair < dim / 2);
                    assert_eq!(pairs.channels_of(pair, dim)[usize::from(!is_first)], channel);
                }
            }
        }
    }

    #[test]
    fn whole_chunks_are_turned_with_whole_chunks() {
        for pairs in RotaryPairs::ALL {
            for dim in (2..=256).step_by(2) {
                let partner = |channel| {
                    let (pair, is_first) = pairs.pair_of(channel, dim);
                    pairs.channels_of(pair, dim)[usize::from(is_first)]
                };
                let is_whole = |first: u32| {
                    let mut channels = first..first + 8;
                    let is_in_another = channels.clone().all(|channel| partner(channel) % 8 == channel % 8);
                    first + 8 <= dim && (is_in_another || channels.all(|channel| partner(channel) == channel ^ 1))
                };
                assert_eq!(pairs.are_whole_chunks(dim), (0..dim).step_by(8).all(is_whole), "{pairs:?} {dim}");
            }
        }
    }

    #[test]
    fn rotations_keep_lengths() {
        for channels in PADDED_HEAD_DIMS {
            let scale = hadamard_scale(channels);
            assert!((scale * scale * channels as f32 - 1.0).abs() < 1e-6);
        }
    }
}
