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

use crate::element::{Element, F16};
use crate::quantize::CHUNK;
use crate::rotary::{Turns, first_turn, pairs_of};

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
        F16::pack_nearest(values)
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

impl<E: Element> Source for E {
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
        E::pack_nearest(values)
    }
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
            if params.rotary.cos != 0 {
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
        let (rotary, pairs) = (&self.params.rotary, pairs_of(&self.params.rotary));
        let dim = rotary.dim;
        let whole = self.params.source.vectorized != 0 && pairs.are_whole_chunks(dim);
        let pair = |index: usize| pairs.pair_of(self.channel + index as u32, dim);
        let partner = |index: u32| {
            let (pair, is_first) = pairs.pair_of(self.channel + index, dim);
            pairs.channels_of(pair, dim)[is_first as usize]
        };
        let is_turned = |index: usize| self.channel + (index as u32) < dim;
        // SAFETY: forwarded contract; tables have the positions.
        unsafe {
            let mut partners = match pairs {
                RotaryPairs::HalfSplit => {
                    let row = Row { channels: min(self.channels, dim), ..*self };
                    row.load::<E, true>(partner(0), partner, whole)
                }
                RotaryPairs::Interleaved => {
                    let [a, b, c, d, e, f, g, h] = values;
                    [b, a, d, c, f, e, h, g]
                }
            };
            let mut turns = Turns { cos: [0.0; CHUNK], sin: [0.0; CHUNK] };
            let token = self.token_of_sequence(token);
            if !whole {
                let first = first_turn(rotary, token);
                for index in 0..CHUNK {
                    let load =
                        |table| global::load_f32_if(is_turned(index), table + 4 * (first + pair(index).0 as u64));
                    [turns.cos[index], turns.sin[index]] = [rotary.cos, rotary.sin].map(load);
                }
            } else if is_turned(0) {
                turns = Turns::of_chunk(rotary, token, self.channel);
            }
            for index in 0..CHUNK {
                partners[index] = if pair(index).1 { -partners[index] } else { partners[index] };
            }
            let mut turned = turns.turn(values, partners);
            for index in 0..CHUNK {
                turned[index] = if is_turned(index) { turned[index] } else { values[index] };
            }
            turned
        }
    }

    /// A token's index in its sequence.
    ///
    /// # Safety
    ///
    /// As the parameters say.
    #[inline(always)]
    unsafe fn token_of_sequence(&self, token: u32) -> u32 {
        let params = self.params;
        if params.starts == 0 {
            return token;
        }
        // SAFETY: there is a start of every sequence.
        let start_of = |sequence: u32| unsafe { global::load_u32(params.starts + 4 * sequence as u64) };
        token.wrapping_sub(start_of(last_at(token, params.sequences, start_of)))
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
