//! Online softmax that does not wait for the row maximum.
//!
//! A probability is `P = 2^(s − reference) · 2^CEILING`, where `s` is the score in base 2. The exact softmax needs
//! `reference` only to keep numbers in range, so it may be *stale*: exponentials start at once with the reference of
//! earlier keys. e4m3 conversion saturates at 448, and a saturated code (`0x7e`) in the result tells that some score was
//! too far above the reference. Only then is the true maximum taken, everything so far rescaled, and the chunk done
//! again from its scores, which are still in registers. Some headroom below saturation
//! makes that rare.

use simt::{convert, math, warp};

use super::mask::ChunkMask;

/// Scores of 64 queries and 64 keys: this lane's part of 32 registers.
pub type Scores = [i32; 32];

/// Probabilities of the same, in e4m3: two operands of 32 keys.
pub type Probabilities = [[u32; 4]; 2];

/// log₂ of the largest e4m3 number.
const LOG2_E4M3_MAX: f32 = 8.807_355;
/// Octaves between a fresh row maximum's probability and saturation.
const HEADROOM: f32 = 4.0;
/// log₂ of the probability of a fresh row maximum.
const CEILING: f32 = LOG2_E4M3_MAX - HEADROOM;
/// `CEILING − reference` before any score was seen: every probability saturates.
const NO_REFERENCE: f32 = 1e30;

/// Per row: what is added to a score before the exponential.
#[derive(Clone, Copy)]
pub struct OnlineSoftmax {
    /// `CEILING − reference` of the lane's two rows.
    pub offset: [f32; 2],
}

/// Whether a chunk has masked scores.
#[derive(Clone, Copy)]
pub enum Visible {
    /// All count.
    All,
    /// Those that the mask shows count.
    Some(ChunkMask),
}

impl Visible {
    #[inline(always)]
    fn shows(&self, element: usize) -> bool {
        match self {
            Self::All => true,
            Self::Some(mask) => mask.shows(element),
        }
    }
}

impl OnlineSoftmax {
    /// Nothing seen.
    #[inline(always)]
    pub fn new() -> Self {
        Self { offset: [NO_REFERENCE; 2] }
    }

    /// Probabilities against the stale reference, and whether any lane of the warp saw one saturate.
    ///
    /// `scale` turns this lane's integer scores into base-2 scores.
    #[inline(always)]
    pub fn probabilities(&self, scores: &Scores, scale: f32, visible: Visible) -> (Probabilities, bool) {
        let probabilities = self.exponentials(scores, scale, visible);
        // adding 2 to each byte carries into its sign bit exactly from 0x7e (448) and 0x7f (NaN)
        let mut sum = 0;
        for operand in &probabilities {
            let [a, b, c, d] = operand.map(|codes| codes.wrapping_add(0x0202_0202));
            sum = math::or3(math::or3(sum, a, b), c, d);
        }
        (probabilities, warp::any(sum & 0x8080_8080 != 0))
    }

    /// Takes the true row maxima of `scores` into the reference. Returns the probabilities against it, and what
    /// everything accumulated so far must be multiplied by.
    #[inline(always)]
    pub fn rebase(&mut self, scores: &Scores, scale: f32, visible: Visible) -> (Probabilities, [f32; 2]) {
        let rescale = self.raise_reference(scores, scale, visible);
        (self.exponentials(scores, scale, visible), rescale)
    }

    /// Takes the true row maxima of `scores` into the reference. Returns what everything accumulated so far must be
    /// multiplied by.
    #[inline(always)]
    pub fn raise_reference(&mut self, scores: &Scores, scale: f32, visible: Visible) -> [f32; 2] {
        let mut largest = [i32::MIN; 2];
        for (element, &score) in scores.iter().enumerate() {
            let row = element / 2 % 2;
            if visible.shows(element) && score > largest[row] {
                largest[row] = score;
            }
        }
        let mut rescale = [1.0; 2];
        for row in 0..2 {
            let seen = largest[row] > i32::MIN;
            let mut maximum = if seen { largest[row] as f32 * scale } else { f32::NEG_INFINITY };
            maximum = maximum.max(warp::shuffle_xor(maximum, 1));
            maximum = maximum.max(warp::shuffle_xor(maximum, 2));
            let offset = self.offset[row].min(CEILING - maximum);
            rescale[row] = math::exp2(offset - self.offset[row]);
            self.offset[row] = offset;
        }
        rescale
    }

    /// `2^(score · scale + offset)` in e4m3, packed as the P·V operand (`sage_layout::token_order`).
    #[inline(always)]
    fn exponentials(&self, scores: &Scores, scale: f32, visible: Visible) -> Probabilities {
        let mut probabilities = [[0; 4]; 2];
        for keys in 0..4 {
            // 16 keys: eight registers, two for each row and half
            let mut values = [0.0; 8];
            for (index, value) in values.iter_mut().enumerate() {
                let element = 8 * keys + index;
                let exponent = math::fma(scores[element] as f32, scale, self.offset[index / 2 % 2]);
                *value = math::exp2(if visible.shows(element) { exponent } else { f32::NEG_INFINITY });
            }
            let operand = &mut probabilities[keys / 2];
            operand[keys % 2 * 2] = convert::e4m3x4([values[0], values[1], values[4], values[5]]);
            operand[keys % 2 * 2 + 1] = convert::e4m3x4([values[2], values[3], values[6], values[7]]);
        }
        probabilities
    }

    /// Natural logarithm of the sum of exponentials of a row, from the sum of its probabilities; −∞ for no keys.
    #[inline(always)]
    pub fn log_sum_exp(&self, row: usize, row_sum: f32) -> f32 {
        if row_sum == 0.0 {
            f32::NEG_INFINITY
        } else {
            (math::log2(row_sum) - self.offset[row]) * core::f32::consts::LN_2
        }
    }
}

impl Default for OnlineSoftmax {
    fn default() -> Self {
        Self::new()
    }
}
