//! Host tensors of any strides, and random ones.

use half::{bf16, f16};
use sageattention::testing::{self, ExactOutput, Quantized};
use sageattention::{
    AttentionOptions, AttentionProblem, BiasSlice, BiasType, CallInputs, Element, Rotary, RotaryTables, ScoreStrides,
    SequenceLengths, Strides,
};

/// Evaluates with `$T` the Rust type of a problem's elements.
#[macro_export]
macro_rules! with_element {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            sageattention::DType::F16 => {
                type $T = half::f16;
                $body
            }
            sageattention::DType::Bf16 => {
                type $T = half::bf16;
                $body
            }
            sageattention::DType::F32 => {
                type $T = f32;
                $body
            }
            other => unreachable!("{other}"),
        }
    };
}

/// Random numbers for tests: the same seed gives the same numbers everywhere (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Uniform in (0, 1].
    pub fn uniform(&mut self) -> f64 {
        ((self.bits() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Normal with mean 0 and variance 1 (Box-Muller).
    pub fn normal(&mut self) -> f32 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        (radius * (std::f64::consts::TAU * self.uniform()).cos()) as f32
    }
}

/// Where element `[batch, head, token, channel]` lies.
pub fn offset(strides: Strides, [batch, head, token, channel]: [usize; 4]) -> usize {
    (batch as i64 * strides.batch + head as i64 * strides.head + token as i64 * strides.token) as usize + channel
}

/// Elements that a tensor of this shape and these strides needs.
pub fn span(strides: Strides, [batch, heads, tokens, head_dim]: [usize; 4]) -> usize {
    offset(strides, [batch - 1, heads - 1, tokens - 1, head_dim])
}

/// The indices of a `[batch, heads, tokens, head_dim]` tensor, in order.
pub fn indices([batch, heads, tokens, head_dim]: [usize; 4]) -> impl Iterator<Item = [usize; 4]> {
    (0..batch).flat_map(move |batch| {
        (0..heads).flat_map(move |head| {
            (0..tokens).flat_map(move |token| (0..head_dim).map(move |channel| [batch, head, token, channel]))
        })
    })
}

/// A tensor of these strides with `f(index)` in each place, and NaN in the gaps.
pub fn tensor<T: Element>(strides: Strides, shape: [usize; 4], mut f: impl FnMut([usize; 4]) -> f32) -> Vec<T> {
    let mut elements = vec![T::from_f32(f32::NAN); span(strides, shape)];
    for index in indices(shape) {
        elements[offset(strides, index)] = T::from_f32(f(index));
    }
    elements
}

/// The elements of a tensor in the order of [`indices`].
pub fn gather<T: Element>(elements: &[T], strides: Strides, shape: [usize; 4]) -> Vec<f64> {
    indices(shape).map(|index| f64::from(elements[offset(strides, index)].to_f32())).collect()
}

/// Shape of the queries.
pub fn query_shape(problem: &AttentionProblem) -> [usize; 4] {
    problem.query_shape()
}

/// Shape of the keys.
pub fn key_shape(problem: &AttentionProblem) -> [usize; 4] {
    problem.key_shape()
}

/// Queries, keys and values.
#[derive(Clone, Debug)]
pub struct Inputs<T> {
    /// In the problem's query strides.
    pub query: Vec<T>,
    /// In the problem's key strides.
    pub key: Vec<T>,
    /// In the problem's value strides.
    pub value: Vec<T>,
}

impl<T: Element> Inputs<T> {
    /// Normal queries, keys and values, with an offset by channel on keys (as real models have) and a smaller one on
    /// values.
    pub fn random(problem: &AttentionProblem, seed: u64) -> Self {
        Self::with_offsets(problem, seed, [2.0, 0.5])
    }

    /// Normal queries, keys and values, with an offset by channel on keys alone: the inputs of the accuracy figures.
    pub fn normal(problem: &AttentionProblem, seed: u64) -> Self {
        Self::with_offsets(problem, seed, [2.0, 0.0])
    }

    /// Scores that rise along the keys, by 46 octaves for 64 channels and 65 for 128, so that the largest score is always yet
    /// to come; and values whose mean changes its sign on the way.
    pub fn rising(problem: &AttentionProblem, seed: u64) -> Self {
        let mut random = Random(seed);
        let signs: Vec<f32> = (0..problem.head_dim.max(128)).map(|_| random.normal().signum()).collect();
        let position = |token: usize| token as f32 / problem.key_len as f32;
        Self {
            query: tensor(problem.query_strides, query_shape(problem), |[.., channel]| {
                random.normal() + signs[channel]
            }),
            key: tensor(problem.key_strides, key_shape(problem), |[_, _, token, channel]| {
                random.normal() + 4.0 * position(token) * signs[channel]
            }),
            value: tensor(problem.value_strides, problem.value_shape(), |[_, _, token, _]| {
                random.normal() + 8.0 * position(token) - 4.0
            }),
        }
    }

    /// Normal, but for one key of each head, `first` in the first head and the next one in each next: its scores are 92 octaves for 64
    /// channels and 130 for 128.
    pub fn outliers(problem: &AttentionProblem, seed: u64, first: usize) -> Self {
        let mut inputs = Self::random(problem, seed);
        let mut random = Random(seed + 1);
        let signs: Vec<f32> = (0..problem.head_dim).map(|_| random.normal().signum()).collect();
        inputs.query = tensor(problem.query_strides, query_shape(problem), |[.., channel]| signs[channel]);
        inputs.key = tensor(problem.key_strides, key_shape(problem), |[_, head, token, channel]| {
            if token == first + head { 8.0 * signs[channel] } else { random.normal() }
        });
        inputs
    }

    /// Normal, with queries and keys multiplied by these: of scores, one unit of the integers may be many octaves.
    pub fn scaled(problem: &AttentionProblem, seed: u64, [of_queries, of_keys]: [f32; 2]) -> Self {
        let mut random = Random(seed);
        Self {
            query: tensor(problem.query_strides, query_shape(problem), |_| of_queries * random.normal()),
            key: tensor(problem.key_strides, key_shape(problem), |_| of_keys * random.normal()),
            value: tensor(problem.value_strides, problem.value_shape(), |_| random.normal()),
        }
    }

    /// Normal, but for one key, whose channels are all of this size: those that share its scale become zeros.
    pub fn with_huge_key(problem: &AttentionProblem, seed: u64, size: f32) -> Self {
        let mut inputs = Self::scaled(problem, seed, [1.0; 2]);
        let mut random = Random(seed + 1);
        inputs.key = tensor(problem.key_strides, key_shape(problem), |[_, _, token, _]| {
            let normal = random.normal();
            if token == 70 { size * normal.signum() } else { normal }
        });
        inputs
    }

    /// Normal queries, keys and values, with offsets by channel of these standard deviations on keys and on values.
    pub fn with_offsets(problem: &AttentionProblem, seed: u64, [of_keys, of_values]: [f32; 2]) -> Self {
        let mut random = Random(seed);
        let offsets: Vec<[f32; 2]> = (0..problem.head_dim.max(problem.value_head_dim).max(128))
            .map(|_| [of_keys * random.normal(), of_values * random.normal()])
            .collect();
        Self {
            query: tensor(problem.query_strides, query_shape(problem), |_| random.normal()),
            key: tensor(problem.key_strides, key_shape(problem), |[.., channel]| random.normal() + offsets[channel][0]),
            value: tensor(problem.value_strides, problem.value_shape(), |[.., channel]| {
                random.normal() + offsets[channel][1]
            }),
        }
    }

    /// As the library's functions take them.
    pub fn slices(&self) -> [&[T]; 3] {
        [&self.query, &self.key, &self.value]
    }
}

impl Inputs<f16> {
    /// The same numbers in f32.
    pub fn widened(&self) -> Inputs<f32> {
        let [query, key, value] = self.slices().map(|tensor| tensor.iter().map(|element| element.to_f32()).collect());
        Inputs { query, key, value }
    }
}

/// What the options ask for besides queries, keys and values; the same for the same problem.
#[derive(Clone, Debug)]
pub struct ScoreTensors {
    /// A sink of each head.
    pub sinks: Option<Vec<f32>>,
    /// A bias of each score, as far as its strides reach.
    pub bias: Option<Vec<f32>>,
    /// The same in 16 bits, if it is.
    half_bias: Vec<f16>,
    bfloat_bias: Vec<bf16>,
    bias_type: BiasType,
    /// Whether each score counts.
    pub boolean_mask: Option<Vec<u8>>,
    /// Cosines and sines of the usual angles.
    pub rotary: Option<RotaryTables<Vec<f32>>>,
}

impl ScoreTensors {
    /// Sinks below, among and far above the scores, and none.
    pub fn of(problem: &AttentionProblem, options: &AttentionOptions) -> Self {
        let sink = |head: usize| [0.5, 4.0, -3.0, 200.0, f32::NEG_INFINITY][head % 5];
        let mut random = Random(17);
        let elements = |strides: ScoreStrides| {
            let axes = problem.score_shape().into_iter().zip([strides.batch, strides.head, strides.query, strides.key]);
            1 + axes.map(|(size, stride)| (size - 1) * stride as usize).sum::<usize>()
        };
        // some far below all scores, and some of those −∞
        let mut bias_element = |_| match random.bits() % 8 {
            0 => f32::NEG_INFINITY,
            1 => -30.0 * random.normal().abs(),
            _ => 2.0 * random.normal(),
        };
        let bias: Option<Vec<f32>> =
            options.bias.map(|bias| (0..elements(bias.strides)).map(&mut bias_element).collect());
        let bias_type = options.bias.map_or(BiasType::F32, |bias| bias.dtype);
        let narrow = bias.as_deref().unwrap_or_default();
        let half_bias = narrow.iter().copied().map(f16::from_f32).collect();
        let bfloat_bias = narrow.iter().copied().map(bf16::from_f32).collect();
        // whole stretches of keys, so that there are tiles and rows of which nothing counts
        let mask_element =
            |index: usize| u8::from(!(index / 37).is_multiple_of(3) && (index / 1000).is_multiple_of(2)) << (index % 8);
        let boolean_mask = options.boolean_mask.map(|strides| (0..elements(strides)).map(mask_element).collect());
        let sinks = options.sinks.then(|| (0..problem.query_heads).map(sink).collect());
        let rotary = options.rotary.map(|rotary| rotary_tables(&rotary));
        Self { sinks, bias, half_bias, bfloat_bias, bias_type, boolean_mask, rotary }
    }

    /// As the library's functions take them.
    pub fn inputs(&self) -> CallInputs<'_> {
        CallInputs {
            sinks: self.sinks.as_deref(),
            bias: self.bias_slice(),
            boolean_mask: self.boolean_mask.as_deref(),
            rotary: self.rotary.as_ref().map(|RotaryTables { cos, sin }| RotaryTables { cos: &cos[..], sin: &sin[..] }),
            ..Default::default()
        }
    }

    fn bias_slice(&self) -> Option<BiasSlice<'_>> {
        let bias = self.bias.as_deref()?;
        Some(match self.bias_type {
            BiasType::F16 => BiasSlice::F16(&self.half_bias),
            BiasType::Bf16 => BiasSlice::Bf16(&self.bfloat_bias),
            BiasType::F32 => BiasSlice::F32(bias),
        })
    }

    /// The bias's bytes, in its type.
    pub fn bias_bytes(&self) -> Option<&[u8]> {
        self.bias_slice().map(|bias| match bias {
            BiasSlice::F16(elements) => bytemuck::cast_slice(elements),
            BiasSlice::Bf16(elements) => bytemuck::cast_slice(elements),
            BiasSlice::F32(elements) => bytemuck::cast_slice(elements),
        })
    }
}

/// Cosines and sines of `position · 10000^(−2 · pair / dim)`.
pub fn rotary_tables(rotary: &Rotary) -> RotaryTables<Vec<f32>> {
    let half = rotary.dim / 2;
    let angle = |place: usize| (place / half) as f64 * 10000f64.powf(-((place % half) as f64) / half as f64);
    let table = |of: fn(f64) -> f64| (0..rotary.positions * half).map(|place| of(angle(place)) as f32).collect();
    RotaryTables { cos: table(f64::cos), sin: table(f64::sin) }
}

/// Attention in f64.
pub fn exact<T: Element>(problem: &AttentionProblem, options: &AttentionOptions, inputs: &Inputs<T>) -> ExactOutput {
    testing::exact_with(problem, options, inputs.slices(), &ScoreTensors::of(problem, options).inputs())
}

/// Codes and scales.
pub fn quantize<T: Element>(problem: &AttentionProblem, options: &AttentionOptions, inputs: &Inputs<T>) -> Quantized {
    testing::quantize_with(problem, options, inputs.slices(), &ScoreTensors::of(problem, options).inputs())
}

/// What attention gives, in the order of [`indices`].
#[derive(Clone, Debug, PartialEq)]
pub struct Outputs {
    /// `[batch, query_heads, query_len, value_head_dim]`.
    pub output: Vec<f64>,
    /// `[batch, query_heads, query_len]`; empty if not asked for.
    pub log_sum_exp: Vec<f32>,
}

/// Runs the CPU engine into a poisoned output, and checks that it leaves the gaps between the output's rows alone.
pub fn attend<T: Element>(problem: &AttentionProblem, options: &AttentionOptions, inputs: &Inputs<T>) -> Outputs {
    attend_varlen(problem, options, SequenceLengths::Uniform, inputs)
}

/// [`attend`] of sequences of these lengths.
pub fn attend_varlen<T: Element>(
    problem: &AttentionProblem,
    options: &AttentionOptions,
    lengths: SequenceLengths<&[i32]>,
    inputs: &Inputs<T>,
) -> Outputs {
    let shape = problem.output_shape();
    let rows = shape[0] * shape[1] * shape[2];
    let poison = T::from_f32(f32::from_bits(0x7fc0_0000));
    let mut output = vec![poison; span(problem.output_strides, shape)];
    let mut log_sum_exp = vec![f32::NAN; if options.return_lse { rows } else { 0 }];
    let wanted = options.return_lse.then_some(&mut log_sum_exp[..]);
    let score_tensors = ScoreTensors::of(problem, options);
    let call_inputs = CallInputs { lengths, ..score_tensors.inputs() };
    testing::attend_with(problem, options, inputs.slices(), &call_inputs, &mut output, wanted);
    let result = gather(&output, problem.output_strides, shape);
    let written = output.iter().filter(|element| !element.to_f32().is_nan()).count();
    assert_eq!(written, result.len(), "elements written, and elements of the output");
    Outputs { output: result, log_sum_exp }
}
