//! What P·V multiplies, and what it is summed in.

use core::marker::PhantomData;

use sage_layout::swizzle;
use sage_layout::tile::{KEY_CHUNK, VALUE_ROW_BYTES, key_tile_bytes, value_tile_bytes};
use sage_layout::value_tile;
use simt::mma;

use super::instructions::{Ampere, Instructions, Turing};

use crate::attention::softmax::{F16Sums, F32Sums, HalfProbabilities, Operands, SummedE4m3Probabilities};
use crate::element::{Element, F16};

/// A kind of values.
pub trait Values {
    /// Bytes of a value.
    const BYTES: u32;
    /// In memory, bytes from a channel's row to that eight channels further on, divided by eight.
    const ROW_STRIDE: u32;

    /// Whether they are in units of a scale of their channel.
    const SCALED: bool;
    /// Whether they are stored less the mean of a segment each, or of all.
    const HAS_SEGMENTS: bool;

    /// Bytes of a tile.
    fn tile_bytes(head_dim: u32) -> u32;
    /// Byte offset in its tile of 16 bytes of channel `channel`'s values of the tile's `chunk`-th 64 keys.
    fn offset(channel: u32, chunk: u32, piece: u32) -> u32;
}

/// In 16 bits.
pub struct HalfValues;

/// In e4m3.
pub struct E4m3Values;

impl Values for HalfValues {
    const BYTES: u32 = 2;
    const SCALED: bool = false;
    const HAS_SEGMENTS: bool = false;
    const ROW_STRIDE: u32 = value_tile::GROUP_STRIDE / swizzle::PERIOD;

    #[inline(always)]
    fn tile_bytes(head_dim: u32) -> u32 {
        value_tile_bytes(head_dim)
    }

    #[inline(always)]
    fn offset(channel: u32, chunk: u32, piece: u32) -> u32 {
        value_tile::offset(channel, chunk * KEY_CHUNK + piece * (swizzle::CHUNK_BYTES / 2))
    }
}

impl Values for E4m3Values {
    const BYTES: u32 = 1;
    const SCALED: bool = true;
    const HAS_SEGMENTS: bool = true;
    const ROW_STRIDE: u32 = VALUE_ROW_BYTES;

    #[inline(always)]
    fn tile_bytes(head_dim: u32) -> u32 {
        key_tile_bytes(head_dim)
    }

    #[inline(always)]
    fn offset(channel: u32, chunk: u32, piece: u32) -> u32 {
        swizzle::offset(channel, chunk * KEY_CHUNK + piece * swizzle::CHUNK_BYTES, VALUE_ROW_BYTES)
    }
}

/// A lane's part of 16 rows and 8 columns of a sum.
pub trait Fragment: Copy {
    /// Nothing added.
    const ZERO: Self;
    /// The values, as `sage_layout::fragment::accumulator` deals them.
    fn values(&self) -> [f32; 4];
    /// Of such values.
    fn from_values(values: [f32; 4]) -> Self;
}

impl Fragment for [f32; 4] {
    const ZERO: Self = [0.0; 4];

    #[inline(always)]
    fn values(&self) -> [f32; 4] {
        *self
    }

    #[inline(always)]
    fn from_values(values: [f32; 4]) -> Self {
        values
    }
}

/// In f16, two a register.
impl Fragment for [u32; 2] {
    const ZERO: Self = [0; 2];

    #[inline(always)]
    fn values(&self) -> [f32; 4] {
        let [[a, b], [c, d]] = self.map(F16::unpack);
        [a, b, c, d]
    }

    #[inline(always)]
    fn from_values([a, b, c, d]: [f32; 4]) -> Self {
        [F16::pack([a, b]), F16::pack([c, d])]
    }
}

/// An instruction, or several that make up one.
pub trait Product {
    /// The GPU's.
    type Instructions: Instructions;
    /// What it multiplies probabilities with.
    type Values: Values;
    /// Its A operands.
    type Probabilities: Operands;
    /// What it adds to.
    type Sum: Fragment;

    /// `sum` += `a` · `b`.
    fn multiply(sum: &mut Self::Sum, a: &[u32; 4], b: &[u32; 2]);
}

/// 16-bit values of a type, summed in f32.
pub struct HalfInF32<E>(PhantomData<E>);

/// f16 values, summed in f16.
pub struct HalfInF16;

/// e4m3 values, summed in f32.
pub struct E4m3InF32;

/// e4m3 values, summed in f16.
pub struct E4m3InF16;

impl<E: Element> Product for HalfInF32<E> {
    type Instructions = Ampere;
    type Values = HalfValues;
    type Probabilities = HalfProbabilities<E, F32Sums>;
    type Sum = [f32; 4];

    #[inline(always)]
    fn multiply(sum: &mut [f32; 4], a: &[u32; 4], b: &[u32; 2]) {
        E::m16n8k16_f32(sum, a, b);
    }
}

impl Product for HalfInF16 {
    type Instructions = Ampere;
    type Values = HalfValues;
    type Probabilities = HalfProbabilities<F16, F16Sums>;
    type Sum = [u32; 2];

    #[inline(always)]
    fn multiply(sum: &mut [u32; 2], a: &[u32; 4], b: &[u32; 2]) {
        mma::m16n8k16_f16_f16(sum, a, b);
    }
}

impl Product for E4m3InF32 {
    type Instructions = Ampere;
    type Values = E4m3Values;
    type Probabilities = SummedE4m3Probabilities;
    type Sum = [f32; 4];

    #[inline(always)]
    fn multiply(sum: &mut [f32; 4], a: &[u32; 4], b: &[u32; 2]) {
        mma::m16n8k32_f32_e4m3(sum, a, b);
    }
}

impl Product for E4m3InF16 {
    type Instructions = Ampere;
    type Values = E4m3Values;
    type Probabilities = SummedE4m3Probabilities;
    type Sum = [u32; 2];

    #[inline(always)]
    fn multiply(sum: &mut [u32; 2], a: &[u32; 4], b: &[u32; 2]) {
        mma::m16n8k32_f16_e4m3(sum, a, b);
    }
}

/// The same on Turing, eight keys at a time.
pub struct OnTuring<P>(PhantomData<P>);

impl Product for OnTuring<HalfInF32<F16>> {
    type Instructions = Turing;
    type Values = HalfValues;
    type Probabilities = HalfProbabilities<F16, F32Sums>;
    type Sum = [f32; 4];

    #[inline(always)]
    fn multiply(sum: &mut [f32; 4], [a, b, c, d]: &[u32; 4], [first, second]: &[u32; 2]) {
        mma::m16n8k8_f32_f16(sum, &[*a, *b], &[*first]);
        mma::m16n8k8_f32_f16(sum, &[*c, *d], &[*second]);
    }
}

impl Product for OnTuring<HalfInF16> {
    type Instructions = Turing;
    type Values = HalfValues;
    type Probabilities = HalfProbabilities<F16, F16Sums>;
    type Sum = [u32; 2];

    #[inline(always)]
    fn multiply(sum: &mut [u32; 2], [a, b, c, d]: &[u32; 4], [first, second]: &[u32; 2]) {
        mma::m16n8k8_f16_f16(sum, &[*a, *b], &[*first]);
        mma::m16n8k8_f16_f16(sum, &[*c, *d], &[*second]);
    }
}

/// How the products of all keys are summed.
pub trait Accumulator {
    /// The instruction.
    type Product: Product;
    /// What a lane keeps of 16 rows and 8 channels.
    type Output: Fragment;
    /// Keys that are taken at a time, 16, 32 or 64: fewer take fewer registers.
    const KEYS: u32;

    /// What the next products, of so many keys, are added to.
    fn begin(output: &Self::Output) -> Sum<Self>;
    /// Takes in what they were added to.
    fn end(output: &mut Self::Output, sum: &Sum<Self>);
}

/// What the instruction adds to.
pub type Sum<A> = <<A as Accumulator>::Product as Product>::Sum;

/// All in the instruction's accumulator.
pub struct InPlace<P>(PhantomData<P>);

/// Those of keys that are taken at a time in the instruction's accumulator, and these in f32.
pub struct TwoLevel<P>(PhantomData<P>);

/// As `A`, with as many keys at a time as one operand of probabilities has: for kernels in which a score takes much code.
pub struct OneStep<A>(PhantomData<A>);

impl<A: Accumulator> Accumulator for OneStep<A> {
    type Product = A::Product;
    type Output = A::Output;
    const KEYS: u32 = 32 / <A::Product as Product>::Values::BYTES;

    #[inline(always)]
    fn begin(output: &A::Output) -> Sum<A> {
        A::begin(output)
    }

    #[inline(always)]
    fn end(output: &mut A::Output, sum: &Sum<A>) {
        A::end(output, sum);
    }
}

impl<P: Product> Accumulator for InPlace<P> {
    type Product = P;
    type Output = P::Sum;
    const KEYS: u32 = P::Instructions::KEYS;

    #[inline(always)]
    fn begin(output: &P::Sum) -> P::Sum {
        *output
    }

    #[inline(always)]
    fn end(output: &mut P::Sum, sum: &P::Sum) {
        *output = *sum;
    }
}

impl<P: Product> Accumulator for TwoLevel<P> {
    type Product = P;
    type Output = [f32; 4];
    const KEYS: u32 = 64;

    #[inline(always)]
    fn begin(_: &[f32; 4]) -> P::Sum {
        P::Sum::ZERO
    }

    #[inline(always)]
    fn end(output: &mut [f32; 4], sum: &P::Sum) {
        let sum = sum.values();
        for index in 0..4 {
            output[index] += sum[index];
        }
    }
}
