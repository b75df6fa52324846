//! Online softmax that does not wait for the row maximum.
//!
//! A probability is `P = 2^(s − reference) · 2^CEILING`, where `s` is the score in base 2. The exact softmax needs
//! `reference` only to keep numbers in range, so it may be *stale*: exponentials start at once with the reference of
//! earlier keys. The result tells whether some score was too far above the reference: by a saturated e4m3 code, or by a
//! sum that is too large. Only then is the true maximum taken, everything so far rescaled, and the chunk done
//! again from its scores, which are still in registers. Some headroom makes that rare.

use core::marker::PhantomData;

use sage_layout::scale::E4M3_MAX;
use simt::{convert, math, warp};

use super::interpolation;
use super::mask::ChunkMask;
use super::modifier::{ChunkScores, Score};
use crate::element::Element;

/// Scores of 64 queries and 64 keys: this lane's part of 32 registers.
pub type Scores = [i32; 32];

/// Probabilities of the same, as operands of P·V.
pub trait Probabilities: Copy {
    /// log₂ of the probability of a fresh row maximum.
    const CEILING: f32;
    /// Nothing set.
    const ZERO: Self;

    /// Sets those of keys `16 · group` on.
    fn set<T: Score>(&mut self, group: usize, exponents: &Exponents<T>);

    /// Whether one of the lane's was too large, or NaN.
    fn saturated(&self) -> bool;
}

/// In e4m3: two operands of 32 keys, in the order of `sage_layout::token_order`.
pub type E4m3Probabilities = [[u32; 4]; 2];

/// log₂ of the largest e4m3 number.
const LOG2_E4M3_MAX: f32 = 8.807_355;
/// Octaves between a fresh row maximum's probability and saturation.
const HEADROOM: f32 = 4.0;

/// Of the eight registers of a chunk's probabilities, two for each group of 16 keys, those of which half is interpolated.
const INTERPOLATED: [[bool; 2]; 4] = [[true, false], [true, true], [true, true], [true, true]];

impl Probabilities for E4m3Probabilities {
    const CEILING: f32 = LOG2_E4M3_MAX - HEADROOM;
    const ZERO: Self = [[0; 4]; 2];

    #[inline(always)]
    fn set<T: Score>(&mut self, group: usize, exponents: &Exponents<T>) {
        for row in 0..2 {
            let [low, high] = [2 * row, 2 * row + 4];
            let powers = |first| [exponents.power(first), exponents.power(first + 1)];
            let interpolated = if INTERPOLATED[group][row] { exponents.interpolated_powers(high) } else { None };
            self[group / 2][group % 2 * 2 + row] = match interpolated {
                Some(high) => convert::e4m3x4_of_f32_and_f16(powers(low), high),
                None => {
                    let ([a, b], [c, d]) = (powers(low), powers(high));
                    convert::e4m3x4([a, b, c, d])
                }
            };
        }
    }

    #[inline(always)]
    fn saturated(&self) -> bool {
        // adding 2 to each byte carries into its sign bit exactly from 0x7e (448) and 0x7f (NaN)
        let [[a, b, c, d], [e, f, g, h]] = self.map(|operand| operand.map(|codes| codes.wrapping_add(0x0202_0202)));
        let sum = math::or3(math::or3(math::or3(a, b, c), d, e), f, g);
        (sum | h) & 0x8080_8080 != 0
    }
}

/// In e4m3, with their sums before they were rounded, which also tell whether one was too large: a lane has 16 of a row.
#[derive(Clone, Copy)]
pub struct SummedE4m3Probabilities {
    /// Packed.
    pub operands: E4m3Probabilities,
    /// Sums of the lane's two rows.
    pub sums: [f32; 2],
}

/// Octaves between a fresh row maximum's probability and a sum that is too large: more than 16 equal scores need.
const SUMMED_HEADROOM: f32 = 5.0;

impl Probabilities for SummedE4m3Probabilities {
    const CEILING: f32 = LOG2_E4M3_MAX - SUMMED_HEADROOM;
    const ZERO: Self = Self { operands: E4m3Probabilities::ZERO, sums: [0.0; 2] };

    #[inline(always)]
    fn set<T: Score>(&mut self, group: usize, exponents: &Exponents<T>) {
        let values = exponents.powers();
        for row in 0..2 {
            let codes = [0, 1, 4, 5].map(|index: usize| values[2 * row + index]);
            self.operands[group / 2][group % 2 * 2 + row] = convert::e4m3x4(codes);
        }
        add_row_sums(&mut self.sums, &values);
    }

    #[inline(always)]
    fn saturated(&self) -> bool {
        !(self.sums[0] < E4M3_MAX && self.sums[1] < E4M3_MAX)
    }
}

/// In 16 bits: four operands of 16 keys in their order (`sage_layout::fragment::a_operand`), and their sums.
///
/// The sums also tell whether a probability was too large: a lane has 16 of a row, so that [`CEILING`] may be exceeded by
/// [`Sums::HEADROOM`] octaves by all of them together.
///
/// [`CEILING`]: Probabilities::CEILING
pub struct HalfProbabilities<E, S = F32Sums> {
    /// Packed.
    pub operands: [[u32; 4]; 4],
    /// Sums of the lane's two rows, before rounding to 16 bits.
    pub sums: [f32; 2],
    types: PhantomData<(E, S)>,
}

/// What 16-bit probabilities' products with values are summed in.
pub trait Sums {
    /// log₂ of the largest sum of probabilities of 16 keys, a whole number, if it is less than the element's.
    const LOG2_LARGEST_SUM: f32;
    /// Octaves between a fresh row maximum's probability and a sum that is too large.
    const HEADROOM: f32;
}

/// In f32.
pub struct F32Sums;

/// In f16.
pub struct F16Sums;

impl Sums for F32Sums {
    const LOG2_LARGEST_SUM: f32 = f32::INFINITY;
    const HEADROOM: f32 = 10.0;
}

impl Sums for F16Sums {
    // those of 64 keys are less than 4, so that values below 2¹⁴ cannot overflow the sum of their products
    const LOG2_LARGEST_SUM: f32 = 0.0;
    const HEADROOM: f32 = 6.0;
}

impl<E: Element, S: Sums> HalfProbabilities<E, S> {
    const LOG2_LARGEST_SUM: f32 =
        if E::LOG2_LARGEST_SUM < S::LOG2_LARGEST_SUM { E::LOG2_LARGEST_SUM } else { S::LOG2_LARGEST_SUM };

    /// [`set`](Probabilities::set) of what the exponents are already the powers of two of.
    #[inline(always)]
    pub fn set_powers(&mut self, group: usize, powers: &[f32; 8]) {
        for row in 0..2 {
            let [a, b, c, d] = [0, 1, 4, 5].map(|index: usize| powers[2 * row + index]);
            self.operands[group][row] = E::pack([a, b]);
            self.operands[group][row + 2] = E::pack([c, d]);
        }
        add_row_sums(&mut self.sums, powers);
    }
}

impl<E, S> Clone for HalfProbabilities<E, S> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<E, S> Copy for HalfProbabilities<E, S> {}

impl<E: Element, S: Sums> Probabilities for HalfProbabilities<E, S> {
    const CEILING: f32 = Self::LOG2_LARGEST_SUM - S::HEADROOM;
    const ZERO: Self = Self { operands: [[0; 4]; 4], sums: [0.0; 2], types: PhantomData };

    #[inline(always)]
    fn set<T: Score>(&mut self, group: usize, exponents: &Exponents<T>) {
        self.set_powers(group, &exponents.powers());
    }

    #[inline(always)]
    fn saturated(&self) -> bool {
        const LARGEST_EXPONENT: f32 = 127.0;
        // 2^LOG2_LARGEST_SUM
        let largest = const { f32::from_bits(((Self::LOG2_LARGEST_SUM + LARGEST_EXPONENT) as u32) << 23) };
        !(self.sums[0] < largest && self.sums[1] < largest)
    }
}

/// Probabilities of 16 rows and 64 keys as operands, with their sums.
pub trait Operands: Probabilities {
    /// How many operands: each is of 32 bytes of keys.
    const STEPS: usize;

    /// The A operand of the `step`-th 32 bytes of keys.
    fn operand(&self, step: usize) -> &[u32; 4];
    /// Sums of the lane's two rows.
    fn sums(&self) -> [f32; 2];
}

impl<E: Element, S: Sums> Operands for HalfProbabilities<E, S> {
    const STEPS: usize = 4;

    #[inline(always)]
    fn operand(&self, step: usize) -> &[u32; 4] {
        &self.operands[step]
    }

    #[inline(always)]
    fn sums(&self) -> [f32; 2] {
        self.sums
    }
}

impl Operands for SummedE4m3Probabilities {
    const STEPS: usize = 2;

    #[inline(always)]
    fn operand(&self, step: usize) -> &[u32; 4] {
        &self.operands[step]
    }

    #[inline(always)]
    fn sums(&self) -> [f32; 2] {
        self.sums
    }
}

/// The sum of what the four lanes that share a row have of it.
#[inline(always)]
pub fn row_sum(part: f32) -> f32 {
    let pair = part + warp::shuffle_xor(part, 1);
    pair + warp::shuffle_xor(pair, 2)
}

/// Adds eight accumulator registers to the sums of their rows.
#[inline(always)]
fn add_row_sums(sums: &mut [f32; 2], values: &[f32; 8]) {
    for row in 0..2 {
        let [a, b, c, d] = [0, 1, 4, 5].map(|index: usize| values[2 * row + index]);
        sums[row] = sums[row] + a + b + c + d;
    }
}

/// `CEILING − reference` before any score was seen: the first maximum is lower.
const NO_REFERENCE: f32 = 1e30;

/// Per row: what is added to a score before the exponential.
#[derive(Clone, Copy)]
pub struct OnlineSoftmax {
    /// [`Probabilities::CEILING`] `− reference` of the lane's two rows.
    offset: [f32; 2],
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

/// log₂ of the probabilities of 16 keys: eight accumulator registers, two for each row and half.
pub struct Exponents<S> {
    scores: [S; 8],
    scale: f32,
    /// Of the lane's two rows.
    offset: [f32; 2],
    /// Of the lane's four columns.
    bias: Option<[f32; 4]>,
    visible: Visible,
    /// The first of the registers.
    first: usize,
    /// Whether some powers may be interpolated. There is no bias then.
    may_interpolate: bool,
}

impl<S: Score> Exponents<S> {
    /// What is added to a score that has been multiplied by the scale, in two parts: the offset, and the bias if there is one.
    #[inline(always)]
    fn addends(&self, index: usize) -> (f32, Option<f32>) {
        (self.offset[index / 2 % 2], self.bias.map(|bias| bias[index / 4 * 2 + index % 2]))
    }

    /// `2^(score · scale + offset + bias)`, by the MUFU.
    #[inline(always)]
    fn power(&self, index: usize) -> f32 {
        let (offset, bias) = self.addends(index);
        let mut exponent = math::fma(self.scores[index].to_f32(), self.scale, offset);
        if let Some(bias) = bias {
            exponent += bias;
        }
        math::exp2(if self.visible.shows(self.first + index) { exponent } else { f32::NEG_INFINITY })
    }

    /// All eight.
    #[inline(always)]
    pub fn powers(&self) -> [f32; 8] {
        core::array::from_fn(|index| self.power(index))
    }

    /// The same of two adjacent ones, in f16, by [`interpolation`], if they may be and scores are integers.
    #[inline(always)]
    fn interpolated_powers(&self, first: usize) -> Option<u32> {
        if !self.may_interpolate {
            return None;
        }
        let scale = interpolation::scale(self.scale);
        let place = |index: usize| {
            let score = interpolation::score(self.scores[index].to_integer()?);
            let offset = interpolation::offset(self.offset[index / 2 % 2], scale);
            let place = math::fma_saturated(score, scale, offset);
            Some(if self.visible.shows(self.first + index) { place } else { 0.0 })
        };
        Some(interpolation::powers([place(first)?, place(first + 1)?]))
    }
}

/// The largest visible scores of a lane's two rows.
#[derive(Clone, Copy)]
pub struct RowMaxima([f32; 2]);

impl RowMaxima {
    /// Of nothing.
    #[inline(always)]
    pub fn new() -> Self {
        Self([f32::NEG_INFINITY; 2])
    }

    /// Takes in a chunk's accumulator registers from `first` on, an even one.
    #[inline(always)]
    pub fn include<S: Score>(&mut self, scores: &[S], first: usize, visible: Visible) {
        // as f32, which most exponentials take: of integers and f32, one kind is kept in registers
        for (element, &score) in (first..).zip(scores) {
            let largest = &mut self.0[element / 2 % 2];
            *largest = largest.max(if visible.shows(element) { score.to_f32() } else { f32::NEG_INFINITY });
        }
    }

    /// Takes in one accumulator of eight keys, as base-2 scores with a bias for each of the lane's two columns.
    #[inline(always)]
    pub fn include_biased(&mut self, scores: &[i32; 4], scale: f32, bias: [f32; 2], first: usize, visible: Visible) {
        for (index, &score) in scores.iter().enumerate() {
            let score = math::fma(score as f32, scale, bias[index % 2]);
            let largest = &mut self.0[index / 2];
            *largest = largest.max(if visible.shows(first + index) { score } else { f32::NEG_INFINITY });
        }
    }
}

impl Default for RowMaxima {
    fn default() -> Self {
        Self::new()
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
    #[inline(always)]
    pub fn probabilities<P: Probabilities, S: Score>(&self, scores: &ChunkScores<S, 32>) -> (P, bool) {
        let probabilities: P = self.exponentials(scores, true);
        (probabilities, warp::any(probabilities.saturated()))
    }

    /// Takes the true row maxima of `scores` into the reference. Returns the probabilities against it, and what
    /// everything accumulated so far must be multiplied by.
    #[inline(always)]
    pub fn rebase<P: Probabilities, S: Score>(&mut self, scores: &ChunkScores<S, 32>) -> (P, [f32; 2]) {
        let rescale = self.raise_reference::<P, S>(scores);
        // nobody looks at these for saturation, which interpolated ones of huge scores may still show
        (self.exponentials(scores, false), rescale)
    }

    /// Takes the true row maxima of `scores` into the reference. Returns what everything accumulated so far must be
    /// multiplied by.
    #[inline(always)]
    pub fn raise_reference<P: Probabilities, S: Score>(&mut self, scores: &ChunkScores<S, 32>) -> [f32; 2] {
        let mut largest = RowMaxima::new();
        largest.include(&scores.scores, 0, scores.visible);
        self.raise_to::<P>(largest, scores.scale)
    }

    /// The same, if the maxima are known.
    #[inline(always)]
    pub fn raise_to<P: Probabilities>(&mut self, RowMaxima(largest): RowMaxima, scale: f32) -> [f32; 2] {
        let mut rescale = [1.0; 2];
        for row in 0..2 {
            let mut maximum = if largest[row] > f32::NEG_INFINITY { largest[row] * scale } else { f32::NEG_INFINITY };
            maximum = maximum.max(warp::shuffle_xor(maximum, 1));
            maximum = maximum.max(warp::shuffle_xor(maximum, 2));
            let offset = self.offset[row].min(P::CEILING - maximum);
            rescale[row] = math::exp2(offset - self.offset[row]);
            self.offset[row] = offset;
        }
        rescale
    }

    /// `2^(score · scale + offset)`.
    #[inline(always)]
    fn exponentials<P: Probabilities, S: Score>(&self, scores: &ChunkScores<S, 32>, may_interpolate: bool) -> P {
        let ChunkScores { scores, scale, visible } = *scores;
        let mut probabilities = P::ZERO;
        for group in 0..4 {
            let first = 8 * group;
            let scores = core::array::from_fn(|index| scores[first + index]);
            let offset = self.offset;
            let exponents = Exponents { scores, scale, offset, bias: None, visible, first, may_interpolate };
            probabilities.set(group, &exponents);
        }
        probabilities
    }

    /// `2^(score · scale + offset + bias)` for keys `16 · group` on. Biases are of the lane's four columns.
    #[inline(always)]
    pub fn exponentials_of_group<P: Probabilities, S: Score>(
        &self,
        scores: &[S; 8],
        group: usize,
        scale: f32,
        bias: Option<[f32; 4]>,
        visible: Visible,
        probabilities: &mut P,
    ) {
        let (scores, offset, first) = (*scores, self.offset, 8 * group);
        let exponents = Exponents { scores, scale, offset, bias, visible, first, may_interpolate: false };
        probabilities.set(group, &exponents);
    }

    /// What a row's sums are divided by: the sum of its probabilities, and that of a logit that has no value, in natural units.
    /// ∞ if the probabilities are nothing beside it, however stale the reference is; 0 without both.
    #[inline(always)]
    pub fn denominator(&self, row: usize, row_sum: f32, sink: f32) -> f32 {
        row_sum + math::exp2(math::fma(sink, core::f32::consts::LOG2_E, self.offset[row]))
    }

    /// Natural logarithm of the sum of exponentials of a row, from its [`denominator`](Self::denominator), if that is neither 0 nor ∞.
    #[inline(always)]
    pub fn log_sum_exp(&self, row: usize, denominator: f32) -> f32 {
        (math::log2(denominator) - self.offset[row]) * core::f32::consts::LN_2
    }
}

impl Default for OnlineSoftmax {
    fn default() -> Self {
        Self::new()
    }
}
