//! What is done to scores before the softmax: a soft cap, a bias, a boolean mask.

use core::cmp::min;
use core::f32::consts::LOG2_E;

use sage_layout::mask_tile;
use sage_layout::params::{AttentionParams, BiasType, ScoreView};
use sage_layout::tile::WARPGROUP_ROWS;
use simt::{global, math, warp};

use super::mask::ChunkMask;
use super::schedule::WorkItem;
use super::softmax::Visible;
use crate::element::{Bf16, Element, F16};
use crate::sequences::Sequences;

/// A score in a register.
pub trait Score: Copy {
    /// Its value, exactly.
    fn to_f32(self) -> f32;
    /// The same as an integer, if it is of that type.
    fn to_integer(self) -> Option<i32>;
}

impl Score for i32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self as f32
    }

    #[inline(always)]
    fn to_integer(self) -> Option<i32> {
        Some(self)
    }
}

impl Score for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn to_integer(self) -> Option<i32> {
        None
    }
}

/// Scores of some accumulator registers, as the softmax takes them.
#[derive(Clone, Copy)]
pub struct ChunkScores<S, const N: usize> {
    /// The scores.
    pub scores: [S; N],
    /// Turns them into base-2 scores.
    pub scale: f32,
    /// Which of them count.
    pub visible: Visible,
}

/// Where a lane's scores are.
#[derive(Clone, Copy)]
pub struct Place<'a, S> {
    /// Of the kernel.
    pub params: &'a AttentionParams,
    /// Whose queries.
    pub item: WorkItem<S>,
    /// First row of the warp's 16.
    pub first_row: u32,
    /// Lane of the warp.
    pub lane: u32,
    /// What the boolean mask shows of the key tile at hand.
    pub shown: Shown,
}

/// What a boolean mask shows of a key tile ([`mask_tile`]).
#[derive(Clone, Copy)]
pub struct Shown {
    /// Whether it hides all of the tile.
    pub nothing: bool,
    /// Whether it shows all of it.
    pub everything: bool,
}

impl Shown {
    /// Of a tile's word, for an item of so many queries. The votes tell the compiler that it is the same in all lanes, and that a branch does not divide them.
    ///
    /// # Safety
    ///
    /// As for [`Modifier::mask_tile`]; all lanes of the warp call it.
    #[inline(always)]
    pub unsafe fn of_tile<M: Modifier, S: Sequences>(
        params: &AttentionParams,
        item: WorkItem<S>,
        queries: u32,
        tile: u32,
    ) -> Self {
        // SAFETY: forwarded contract.
        let word = unsafe { M::mask_tile(params, item, queries, tile) };
        Self { nothing: warp::any(word == mask_tile::HIDDEN), everything: warp::any(word == mask_tile::WHOLE) }
    }
}

/// A kind of kernel: whether it modifies scores.
pub trait Modifier {
    /// Whether it may.
    const MODIFIES: bool;
    /// What scores become.
    type Score: Score;

    /// What the boolean mask shows of a key tile to the item's queries, if an item has so many: a word of [`mask_tile`].
    ///
    /// # Safety
    ///
    /// The operands are as the parameters say.
    unsafe fn mask_tile<S: Sequences>(params: &AttentionParams, item: WorkItem<S>, queries: u32, tile: u32) -> u32;

    /// The scores of the accumulator registers from `first` on, a multiple of 4, of those of the keys from `first_key` on.
    ///
    /// # Safety
    ///
    /// The operands are as the parameters say.
    unsafe fn apply<S: Sequences, const N: usize>(
        place: Place<S>,
        first_key: u32,
        first: usize,
        scores: ChunkScores<i32, N>,
    ) -> ChunkScores<Self::Score, N>;
}

/// Scores stay what they are.
pub struct Unmodified;

/// Scores are modified as the parameters say.
pub struct Modified;

impl Modifier for Unmodified {
    const MODIFIES: bool = false;
    type Score = i32;

    #[inline(always)]
    unsafe fn mask_tile<S: Sequences>(_: &AttentionParams, _: WorkItem<S>, _: u32, _: u32) -> u32 {
        mask_tile::WHOLE
    }

    #[inline(always)]
    unsafe fn apply<S: Sequences, const N: usize>(
        _: Place<S>,
        _: u32,
        _: usize,
        scores: ChunkScores<i32, N>,
    ) -> ChunkScores<i32, N> {
        scores
    }
}

impl Modifier for Modified {
    const MODIFIES: bool = true;
    type Score = f32;

    #[inline(always)]
    unsafe fn mask_tile<S: Sequences>(params: &AttentionParams, item: WorkItem<S>, queries: u32, tile: u32) -> u32 {
        let view = &params.modifiers.mask_tiles;
        if view.address == 0 {
            return mask_tile::MIXED;
        }
        let [batch, head] = batch_and_head(params, item);
        let items = math::opaque(item.first_query) / queries;
        let place = batch as i64 * view.batch + head as i64 * view.head + items as i64 * view.query;
        let address = view.address.wrapping_add_signed(place + tile as i64 * view.key);
        // SAFETY: there is a word for each tile of each item.
        unsafe { global::load_u32(address) }
    }

    #[inline(always)]
    unsafe fn apply<S: Sequences, const N: usize>(
        place: Place<S>,
        first_key: u32,
        first: usize,
        ChunkScores { scores, scale, visible }: ChunkScores<i32, N>,
    ) -> ChunkScores<f32, N> {
        let modifiers = &place.params.modifiers;
        // a lane has four registers of eight keys
        let first_key = first_key + 2 * first as u32;
        let mut scores: [f32; N] = core::array::from_fn(|index| scores[index] as f32 * scale);
        let mut mask = match visible {
            Visible::All => ChunkMask::ALL,
            Visible::Some(mask) => mask,
        };
        // keys that the mask hides may not exist: nothing of them is loaded
        // SAFETY: forwarded contract.
        unsafe {
            if modifiers.soft_cap != 0.0 {
                place.cap(&mut scores);
            }
            if modifiers.bias.address != 0 {
                let view = &modifiers.bias;
                let mut add = |index: usize, bias: f32| scores[index] = math::fma(bias, LOG2_E, scores[index]);
                if modifiers.bias_type == BiasType::F32 as u32 {
                    place.elements(view, first_key, 4).for_each::<N>(|index, address| {
                        add(index, global::load_f32_if(mask.shows(first + index), address));
                    });
                } else {
                    let is_bf16 = modifiers.bias_type == BiasType::Bf16 as u32;
                    place.elements(view, first_key, 2).for_each::<N>(|index, address| {
                        let bits = global::load_u16_if(mask.shows(first + index), address);
                        add(index, if is_bf16 { Bf16::to_f32(bits) } else { F16::to_f32(bits) });
                    });
                }
            }
            if modifiers.boolean_mask.address != 0 && !place.shown.everything {
                place.elements(&modifiers.boolean_mask, first_key, 1).for_each::<N>(|index, address| {
                    let is_visible = global::load_u8_if(mask.shows(first + index), address);
                    mask.hide_if(first + index, is_visible == 0);
                });
            }
        }
        ChunkScores { scores, scale: 1.0, visible: Visible::Some(mask) }
    }
}

/// An item's batch, and its head in it: those of a ragged batch are sequences.
#[inline(always)]
fn batch_and_head<S: Sequences>(params: &AttentionParams, item: WorkItem<S>) -> [u32; 2] {
    // opaque, or what follows from them is kept in registers from one chunk to the next
    let (batch, head) = math::div_rem(math::opaque(item.head), math::opaque(params.output.heads));
    [batch + item.sequence.index(), head]
}

/// Where the elements of a tensor `[batch, heads, query_len, key_len]` are that belong to a lane's accumulator registers.
struct Elements {
    /// That of each row and the lane's first key.
    rows: [u64; 2],
    /// Bytes from key to key.
    stride: i64,
}

impl Elements {
    /// Calls `f` for `N` registers and their elements' addresses.
    #[inline(always)]
    fn for_each<const N: usize>(self, mut f: impl FnMut(usize, u64)) {
        let Self { mut rows, stride } = self;
        for group in 0..N / 4 {
            for part in 0..4 {
                f(4 * group + part, rows[part / 2].wrapping_add_signed(if part % 2 == 0 { 0 } else { stride }));
            }
            rows = rows.map(|row| row.wrapping_add_signed(8 * stride));
        }
    }
}

impl<S: Sequences> Place<'_, S> {
    /// The lane's two rows, or the last one in the place of rows that pad.
    #[inline(always)]
    fn rows(&self) -> [u32; 2] {
        // opaque: see `elements`
        let row = math::opaque(self.first_row) + math::opaque(self.lane) / 4;
        let last = math::opaque(self.item.sequence.queries(self.params.output.tokens)) - 1;
        [row, row + 8].map(|row| min(row, last))
    }

    /// Of a tensor whose elements are so many bytes.
    #[inline(always)]
    fn elements(&self, view: &ScoreView, first_key: u32, bytes: i64) -> Elements {
        // opaque, or what follows from it is kept in registers from one chunk to the next
        let lane = math::opaque(self.lane);
        let [batch, head] = batch_and_head(self.params, self.item);
        let first_key = first_key + 2 * (lane % 4);
        let start = batch as i64 * view.batch + head as i64 * view.head + first_key as i64 * view.key;
        let row = |row: u32| view.address.wrapping_add_signed(bytes * (start + row as i64 * view.query));
        Elements { rows: self.rows().map(row), stride: bytes * view.key }
    }

    /// Caps the scores. What smoothed keys took out of them comes back before.
    #[inline(always)]
    unsafe fn cap(&self, scores: &mut [f32]) {
        let modifiers = &self.params.modifiers;
        let mut shift = [0.0; 2];
        if modifiers.score_shift != 0 {
            let head = math::opaque(self.item.head) as u64;
            let first_tile = self.item.sequence.first_query_tile(head, S::query_places(self.params));
            let shifts = modifiers.score_shift + 4 * first_tile * WARPGROUP_ROWS as u64;
            // SAFETY: the rows are the head's.
            shift = self.rows().map(|row| unsafe { global::load_f32(shifts + 4 * row as u64) } * LOG2_E);
        }
        for (index, score) in scores.iter_mut().enumerate() {
            *score = capped(*score + shift[index / 2 % 2], modifiers.soft_cap, modifiers.inverse_soft_cap);
        }
    }
}

/// A score under a soft cap: `cap · tanh(score / cap)`, which is `cap − 2 · cap / (1 + exp(2 · score / cap))`. Scores are in octaves, the
/// cap in natural units.
#[inline(always)]
pub fn capped(score: f32, soft_cap: f32, inverse_soft_cap: f32) -> f32 {
    let cap = soft_cap * LOG2_E;
    let power = math::exp2(score * inverse_soft_cap * 2.0);
    math::fma(-2.0 * cap, math::reciprocal(1.0 + power), cap)
}
