//! Queries, keys or values to the 16 bits that the quantizer reads; queries and keys rotated, if they are to be
//! (`sage_layout::rotation`).

use core::cmp::min;

use sage_layout::kernel::threads_per_row;
use sage_layout::params::PrepareParams;
use sage_layout::rotation::{RotaryPairs, hadamard_scale};
use sage_layout::sequence::last_at;
use sage_layout::statistics::TOKEN_LANES;
use sage_layout::tile::KEY_TILE;
use simt::global::CachePolicy;
use simt::{global, math, thread, warp};

use crate::element::{Bf16, Element, F16};
use crate::quantize::CHUNK;

/// IEEE binary32.
pub struct F32;

/// What a tensor holds before it is prepared.
pub trait Source {
    /// Bytes of an element.
    const BYTES: i64;

    /// Eight elements in a row. `AGAIN` says whether others load them too.
    ///
    /// # Safety
    ///
    /// The address is readable for as many, and a multiple of 16.
    unsafe fn load_chunk<const AGAIN: bool>(address: u64) -> [f32; CHUNK];

    /// An element on a condition, or else 0.
    ///
    /// # Safety
    ///
    /// On the condition, the address is an element's.
    unsafe fn load_if(condition: bool, address: u64) -> f32;

    /// Two elements of what it becomes, as near as can be.
    fn round_pair(values: [f32; 2]) -> u32;
}

impl Source for F32 {
    const BYTES: i64 = 4;

    #[inline(always)]
    unsafe fn load_chunk<const AGAIN: bool>(address: u64) -> [f32; CHUNK] {
        // SAFETY: forwarded contract.
        let [[a, b, c, d], [e, f, g, h]] = [0, 16].map(|offset| unsafe { load_words::<AGAIN>(address + offset) });
        [a, b, c, d, e, f, g, h].map(f32::from_bits)
    }

    #[inline(always)]
    unsafe fn load_if(condition: bool, address: u64) -> f32 {
        // SAFETY: forwarded contract.
        unsafe { global::load_f32_if(condition, address) }
    }

    #[inline(always)]
    fn round_pair(values: [f32; 2]) -> u32 {
        round_f16_pair(values)
    }
}

/// 16 bytes.
///
/// # Safety
///
/// As [`Source::load_chunk`].
#[inline(always)]
unsafe fn load_words<const AGAIN: bool>(address: u64) -> [u32; 4] {
    // SAFETY: forwarded contract.
    unsafe {
        match AGAIN {
            true => global::load_u32x4(address),
            false => global::load_u32x4_hint(address, CachePolicy::evict_first()),
        }
    }
}

/// Elements of 16 bits, which stay what they are.
trait Narrow: Element {
    /// See [`Source::round_pair`].
    fn round_pair(values: [f32; 2]) -> u32;
}

impl Narrow for F16 {
    #[inline(always)]
    fn round_pair(values: [f32; 2]) -> u32 {
        round_f16_pair(values)
    }
}

impl Narrow for Bf16 {
    #[inline(always)]
    fn round_pair(values: [f32; 2]) -> u32 {
        Self::pack(values)
    }
}

impl<E: Narrow> Source for E {
    const BYTES: i64 = 2;

    #[inline(always)]
    unsafe fn load_chunk<const AGAIN: bool>(address: u64) -> [f32; CHUNK] {
        // SAFETY: forwarded contract.
        let pairs = unsafe { load_words::<AGAIN>(address) };
        let [[a, b], [c, d], [e, f], [g, h]] = pairs.map(E::unpack);
        [a, b, c, d, e, f, g, h]
    }

    #[inline(always)]
    unsafe fn load_if(condition: bool, address: u64) -> f32 {
        // SAFETY: forwarded contract.
        E::to_f32(unsafe { global::load_u16_if(condition, address) })
    }

    #[inline(always)]
    fn round_pair(values: [f32; 2]) -> u32 {
        <E as Narrow>::round_pair(values)
    }
}

/// Two f16, as near as can be; what is beyond ±65504 becomes that.
#[inline(always)]
fn round_f16_pair(values: [f32; 2]) -> u32 {
    const LARGEST_PAIR: u32 = F16::INFINITY_PAIR - 0x0001_0001;
    F16::max_nan(F16::min_nan(F16::pack(values), LARGEST_PAIR), LARGEST_PAIR | 0x8000_8000)
}

/// A CTA: 128 tokens of a head. Threads own chunks of eight channels, as in the quantizer; those of a row are lanes of one warp.
///
/// # Safety
///
/// As the kernel table and the parameters say.
#[inline(always)]
pub unsafe fn prepare<E: Source, const HEAD_DIM: u32>(params: &PrepareParams) {
    let source = &params.source;
    let threads_per_row = threads_per_row(HEAD_DIM);
    let thread = thread::thread_idx_x();
    let (lane, chunk) = (thread / threads_per_row, thread % threads_per_row);
    let (all_head, tile) = math::div_rem(thread::block_idx_x(), params.tiles);
    let (batch, head) = math::div_rem(all_head, source.heads);
    let head_start = batch as i64 * source.strides.batch + head as i64 * source.strides.head;
    // all lanes of a warp go on together, since a rotation takes what others have
    let mut first = tile * KEY_TILE;
    let end = min(first + KEY_TILE, source.tokens);
    while first < end {
        let token = first + lane;
        // opaque, or all that follows from it is kept in registers from one token to the next
        let channel = math::opaque(chunk) * CHUNK as u32;
        let element = head_start + token as i64 * source.strides.token;
        let row = Row {
            params,
            address: source.address.wrapping_add_signed(E::BYTES * element),
            channels: if token < end { source.head_dim } else { 0 },
            channel,
        };
        // SAFETY: the row is one of the tensor's, or has no channels; the place is this thread's own.
        unsafe {
            let mut values = row.load::<E, false>(channel, |index| channel + index, source.vectorized != 0);
            if params.rotary_cos != 0 {
                values = row.rotate::<E>(values, token);
            }
            if params.hadamard != 0 {
                values = hadamard::<HEAD_DIM>(values, chunk);
            }
            if token < end && channel < params.row {
                let row = all_head as u64 * source.tokens as u64 + token as u64;
                let [a, b, c, d, e, f, g, h] = values;
                let to = params.prepared + 2 * (row * params.row as u64 + channel as u64);
                global::store_u32x4(to, [[a, b], [c, d], [e, f], [g, h]].map(E::round_pair));
            }
        }
        first += TOKEN_LANES;
    }
}

/// A row of the source, and a thread's chunk of it.
struct Row<'a> {
    params: &'a PrepareParams,
    /// Of its first channel.
    address: u64,
    /// Channels that it has.
    channels: u32,
    /// The chunk's first.
    channel: u32,
}

impl Row<'_> {
    /// The channels `place(0 … 7)`, of which the first is `first`; zeros for those that there are not. If `whole`, they are a chunk.
    ///
    /// # Safety
    ///
    /// The row is readable. If `whole`, it has whole chunks, and begins at a multiple of 16 bytes.
    #[inline(always)]
    unsafe fn load<E: Source, const AGAIN: bool>(
        &self,
        first: u32,
        place: impl Fn(u32) -> u32,
        whole: bool,
    ) -> [f32; CHUNK] {
        let mut values = [0.0; CHUNK];
        // SAFETY: forwarded contract.
        unsafe {
            if whole {
                if first < self.channels {
                    values = E::load_chunk::<AGAIN>(self.address + E::BYTES as u64 * first as u64);
                }
            } else {
                for index in 0..CHUNK {
                    let channel = place(index as u32);
                    let address = self.address + E::BYTES as u64 * channel as u64;
                    values[index] = E::load_if(channel < self.channels, address);
                }
            }
        }
        values
    }

    /// Rotary embedding of the thread's chunk.
    ///
    /// # Safety
    ///
    /// As the parameters say; the token is the row's.
    #[inline(always)]
    unsafe fn rotate<E: Source>(&self, values: [f32; CHUNK], token: u32) -> [f32; CHUNK] {
        let params = self.params;
        let (dim, half) = (params.rotary_dim, params.rotary_dim / 2);
        let is_split = params.rotary_pairs == RotaryPairs::HalfSplit as u32;
        let pairs = if is_split { RotaryPairs::HalfSplit } else { RotaryPairs::Interleaved };
        // then a chunk's partners are a chunk, and its cosines are
        let whole = params.source.vectorized != 0 && half.is_multiple_of(CHUNK as u32);
        let partner = |channel: u32| {
            let (pair, is_first) = pairs.pair_of(channel, dim);
            pairs.channels_of(pair, dim)[is_first as usize]
        };
        // SAFETY: forwarded contract; tables have the positions.
        unsafe {
            let partners = match is_split {
                true => {
                    let channels = min(self.channels, dim);
                    let row = Row { channels, ..*self };
                    row.load::<E, true>(partner(self.channel), |index| partner(self.channel + index), whole)
                }
                false => {
                    let [a, b, c, d, e, f, g, h] = values;
                    [b, a, d, c, f, e, h, g]
                }
            };
            let place = self.position(token) as u64 * half as u64;
            let [cos, sin] = [params.rotary_cos, params.rotary_sin].map(|table| {
                let table = table + 4 * place;
                let mut turns = [0.0; CHUNK];
                if whole {
                    if self.channel < dim {
                        let (pair, _) = pairs.pair_of(self.channel, dim);
                        let at = table + 4 * pair as u64;
                        turns = match is_split {
                            true => F32::load_chunk::<true>(at),
                            false => {
                                let [a, b, c, d] = load_words::<true>(at).map(f32::from_bits);
                                [a, a, b, b, c, c, d, d]
                            }
                        };
                    }
                } else {
                    for index in 0..CHUNK {
                        let channel = self.channel + index as u32;
                        let (pair, _) = pairs.pair_of(channel, dim);
                        turns[index] = global::load_f32_if(channel < dim, table + 4 * pair as u64);
                    }
                }
                turns
            });
            let mut turned = values;
            for index in 0..CHUNK {
                let channel = self.channel + index as u32;
                let (_, is_first) = pairs.pair_of(channel, dim);
                let sin = if is_first { -sin[index] } else { sin[index] };
                let sum = values[index] * cos[index] + partners[index] * sin;
                turned[index] = if channel < dim { sum } else { values[index] };
            }
            turned
        }
    }

    /// A token's position in its sequence, if the tables have it.
    ///
    /// # Safety
    ///
    /// As the parameters say.
    #[inline(always)]
    unsafe fn position(&self, token: u32) -> u32 {
        let params = self.params;
        let mut start = 0;
        if params.starts != 0 {
            // SAFETY: there is a start of every sequence.
            let start_of = |sequence: u32| unsafe { global::load_u32(params.starts + 4 * sequence as u64) };
            let sequence = last_at(token, params.sequences, start_of);
            start = start_of(sequence);
        }
        min(token.wrapping_sub(start).wrapping_add(params.first_position), params.positions - 1)
    }
}

/// Hadamard rotation of a row, whose chunks the lanes beside each other have. All lanes of the warp call it.
#[inline(always)]
fn hadamard<const HEAD_DIM: u32>(mut values: [f32; CHUNK], chunk: u32) -> [f32; CHUNK] {
    for stage in 0..CHUNK.ilog2() {
        let distance = 1 << stage;
        for first in 0..CHUNK {
            if first & distance == 0 {
                let (a, b) = (values[first], values[first + distance]);
                values[first] = a + b;
                values[first + distance] = a - b;
            }
        }
    }
    let mut distance = 1;
    while distance < threads_per_row(HEAD_DIM) {
        let is_first = chunk & distance == 0;
        for index in 0..CHUNK {
            let own = values[index];
            let other = warp::shuffle_xor(own, distance);
            values[index] = if is_first { own + other } else { other - own };
        }
        distance *= 2;
    }
    values.map(|value| value * hadamard_scale(HEAD_DIM))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_f16_cannot_hold() {
        for (value, expected) in [
            (1.0, 0x3c00),
            (-0.0, 0x8000),
            (65519.996, 0x7bff),
            (65520.0, 0x7bff),
            (-1e30, 0xfbff),
            (f32::INFINITY, 0x7bff),
            (f32::NEG_INFINITY, 0xfbff),
            (1.0 + 1.5 / 1024.0, 0x3c02),
            (1e-7, 0x0002),
        ] {
            assert_eq!(round_f16_pair([0.0, value]), expected << 16, "{value}");
        }
        assert!(F16::unpack(round_f16_pair([f32::NAN, 1.0]))[0].is_nan());
    }
}
