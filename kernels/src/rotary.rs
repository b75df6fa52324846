//! Rotary embedding of a thread's chunk of a row (`sage_layout::rotation`). The lanes beside it have the row's other chunks.

use core::cmp::min;

use sage_layout::params::RotaryParams;
use sage_layout::rotation::RotaryPairs;
use simt::{global, math, thread, warp};

use crate::element::Element;
use crate::quantize::{CHUNK, Chunk};

/// The pairs that are turned.
#[inline(always)]
pub fn pairs_of(rotary: &RotaryParams) -> RotaryPairs {
    match rotary.pairs == RotaryPairs::HalfSplit as u32 {
        true => RotaryPairs::HalfSplit,
        false => RotaryPairs::Interleaved,
    }
}

/// Rotary embedding of a thread's chunk of rows, rounded to the elements that they have: the `index`-th row is the
/// sequence's token `token(index)`, zeros from token `tokens` on. Pairs are of whole chunks. All lanes of the warp call it.
///
/// # Safety
///
/// As the parameters say.
#[inline(always)]
pub unsafe fn turn_rows<E: Element, const N: usize>(
    rotary: &RotaryParams,
    mut rows: [Chunk; N],
    token: impl Fn(usize) -> u32,
    tokens: u32,
    chunk: u32,
) -> [Chunk; N] {
    // opaque, or what follows from them is kept in registers from one item to the next
    let [dim, positions] = [rotary.dim, rotary.positions].map(math::opaque);
    let rotary = &RotaryParams { dim, positions, ..*rotary };
    let channel = chunk * CHUNK as u32;
    let is_turned = channel < dim;
    let partners = Partners::new(rotary, chunk);
    for index in 0..N {
        let row = rows[index];
        // what is not turned reads the first chunk's turns, and throws them away: all lanes shuffle
        // SAFETY: forwarded contract.
        let turns = unsafe { Turns::of_chunk(rotary, token(index), if is_turned { channel } else { 0 }) };
        let Chunk([a, b, c, d]) = Chunk::of_values::<E>(turns.turn(row.values::<E>(), partners.of(row).values::<E>()));
        let present = if token(index) < tokens { u32::MAX } else { 0 };
        let either = |turned: u32, kept: u32| if is_turned { turned & present } else { kept };
        let Chunk([e, f, g, h]) = row;
        rows[index] = Chunk([either(a, e), either(b, f), either(c, g), either(d, h)]);
    }
    rows
}

/// Where a thread finds what its chunk is turned with.
struct Partners {
    /// The lane that has them.
    lane: u32,
    /// How far from its own place in a pair of elements, in bits.
    shift: u32,
    /// Signs to flip.
    signs: u32,
}

impl Partners {
    #[inline(always)]
    fn new(rotary: &RotaryParams, chunk: u32) -> Self {
        // lanes of a row are as many as its chunks, and beside each other
        let lane = math::opaque(thread::thread_idx_x()) % warp::LANES;
        match pairs_of(rotary) {
            RotaryPairs::Interleaved => Self { lane, shift: 16, signs: 0x0000_8000 },
            RotaryPairs::HalfSplit => {
                let half = rotary.dim / 2 / CHUNK as u32;
                match chunk < half {
                    true => Self { lane: lane + half, shift: 0, signs: 0x8000_8000 },
                    false => Self { lane: lane - half, shift: 0, signs: 0 },
                }
            }
        }
    }

    /// The partners of a chunk's elements, those of the first of a pair negated. All lanes of the warp call it.
    #[inline(always)]
    fn of(&self, row: Chunk) -> Chunk {
        row.map(|pair| warp::shuffle(pair, self.lane).rotate_left(self.shift) ^ self.signs)
    }
}

/// What turns a chunk.
pub struct Turns {
    /// Cosines of its channels.
    pub cos: [f32; CHUNK],
    /// Sines.
    pub sin: [f32; CHUNK],
}

impl Turns {
    /// For a token's chunk from `channel` on, whose pairs are of whole chunks.
    ///
    /// # Safety
    ///
    /// As the parameters say. The channel is one that is turned.
    #[inline(always)]
    pub unsafe fn of_chunk(rotary: &RotaryParams, token: u32, channel: u32) -> Self {
        let pairs = pairs_of(rotary);
        let (pair, _) = pairs.pair_of(channel, rotary.dim);
        let place = first_turn(rotary, token) + pair as u64;
        let is_split = pairs == RotaryPairs::HalfSplit;
        let [cos, sin] = [rotary.cos, rotary.sin].map(|table| {
            // SAFETY: forwarded contract: the tables have the position, and all pairs of it.
            let load = |offset: u64| unsafe { global::load_u32x4(table + 4 * place + offset).map(f32::from_bits) };
            // both at once, whether the second is another or not
            let ([a, b, c, d], [e, f, g, h]) = (load(0), load(if is_split { 16 } else { 0 }));
            let either = |split: f32, interleaved: f32| if is_split { split } else { interleaved };
            [a, either(b, a), either(c, b), either(d, b), either(e, c), either(f, c), either(g, d), either(h, d)]
        });
        Self { cos, sin }
    }

    /// A chunk, turned; partners of the first of a pair are negated.
    #[inline(always)]
    pub fn turn(&self, values: [f32; CHUNK], partners: [f32; CHUNK]) -> [f32; CHUNK] {
        let mut turned = values;
        for index in 0..CHUNK {
            turned[index] = values[index] * self.cos[index] + partners[index] * self.sin[index];
        }
        turned
    }
}

/// Place in the tables of the first pair of a sequence's token.
#[inline(always)]
pub fn first_turn(rotary: &RotaryParams, token: u32) -> u64 {
    let position = min(token.wrapping_add(rotary.first_position), rotary.positions - 1);
    position as u64 * (rotary.dim / 2) as u64
}
