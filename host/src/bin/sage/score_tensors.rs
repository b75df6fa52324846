//! What a call reads besides query, key and value, from a file to what the library takes.

use crate::arguments::{RotaryArguments, ScoreArguments};
use crate::tensor_file::{Tensor, TensorFile};
use half::{bf16, f16};
use safetensors::Dtype;
use sageattention::{
    AttentionOptions, AttentionProblem, Bias, BiasSlice, BiasType, CallInputs, Rotary, RotaryTables, ScoreStrides,
};

/// What can be wrong with a tensor.
#[derive(Debug, thiserror::Error)]
enum ScoreError {
    #[error("{argument} `{name}` holds {got:?}; allowed are {allowed}")]
    UnknownDType { argument: &'static str, name: String, got: Dtype, allowed: &'static str },
    #[error("sinks `{name}` has shape {got:?}; it must be [{heads}], one for each of the query's heads")]
    SinksShape { name: String, got: Vec<usize>, heads: usize },
    #[error("{argument} `{name}` has shape {got:?}; it must be {expected}")]
    TableShape { argument: &'static str, name: String, got: Vec<usize>, expected: String },
    #[error(
        "{argument} `{name}` has shape {got:?}; it must be {expected:?}, [batch, heads, queries, keys], where any size may be 1, \
         and leading axes may be missing"
    )]
    ScoreShape { argument: &'static str, name: String, got: Vec<usize>, expected: [usize; 4] },
}

/// The tensors that the arguments name.
#[derive(Default)]
pub struct ScoreTensors {
    /// A logit of each head.
    sinks: Option<Vec<f32>>,
    /// What is added to logits.
    bias: Option<(ScoreStrides, Elements)>,
    /// A byte for each logit.
    boolean_mask: Option<(ScoreStrides, Vec<u8>)>,
    /// A rotary embedding.
    rotary: Option<(Rotary, RotaryTables<Vec<f32>>)>,
}

/// A bias's elements.
enum Elements {
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    F32(Vec<f32>),
}

impl ScoreTensors {
    /// Reads them.
    pub fn read(file: &mut TensorFile, arguments: &ScoreArguments, problem: &AttentionProblem) -> anyhow::Result<Self> {
        let mut read = |name: &Option<String>| name.as_deref().map(|name| file.read(name)).transpose();
        let sinks = match read(&arguments.sinks)? {
            Some(Tensor { name, shape, .. }) if shape != [problem.query_heads] => {
                return Err(ScoreError::SinksShape { name, got: shape, heads: problem.query_heads }.into());
            }
            Some(tensor) => Some(Elements::read("sinks", tensor)?.widened()),
            None => None,
        };
        let bias = match read(&arguments.bias)? {
            Some(tensor) => Some((strides("bias", &tensor, problem)?, Elements::read("bias", tensor)?)),
            None => None,
        };
        let boolean_mask = match read(&arguments.mask)? {
            Some(tensor) => {
                let strides = strides("mask", &tensor, problem)?;
                let Tensor { name, dtype, bytes, .. } = tensor;
                if !matches!(dtype, Dtype::BOOL | Dtype::U8) {
                    let allowed = "BOOL and U8";
                    return Err(ScoreError::UnknownDType { argument: "mask", name, got: dtype, allowed }.into());
                }
                Some((strides, bytes))
            }
            None => None,
        };
        let RotaryArguments { cos, sin, pairs, query_offset, key_offset } = &arguments.rotary;
        let rotary = match (read(cos)?, read(sin)?) {
            (Some(cos), Some(sin)) => {
                let [positions, half] = table_shape("rotary-cos", &cos, None)?;
                table_shape("rotary-sin", &sin, Some([positions, half]))?;
                let (query_offset, key_offset) = (*query_offset, *key_offset);
                let rotary = Rotary { dim: 2 * half, pairs: (*pairs).into(), positions, query_offset, key_offset };
                let cos = Elements::read("rotary-cos", cos)?.widened();
                Some((rotary, RotaryTables { cos, sin: Elements::read("rotary-sin", sin)?.widened() }))
            }
            _ => None,
        };
        Ok(Self { sinks, bias, boolean_mask, rotary })
    }

    /// Options that ask for them.
    pub fn options(&self, options: AttentionOptions) -> AttentionOptions {
        AttentionOptions {
            sinks: self.sinks.is_some(),
            bias: self.bias.as_ref().map(|(strides, elements)| Bias { dtype: elements.dtype(), strides: *strides }),
            boolean_mask: self.boolean_mask.as_ref().map(|(strides, _)| *strides),
            rotary: self.rotary.as_ref().map(|(rotary, _)| *rotary),
            ..options
        }
    }

    /// As the library takes them, from a batch and a query head on.
    pub fn inputs(&self, [batch, head]: [usize; 2]) -> CallInputs<'_> {
        let start = |strides: &ScoreStrides| (batch as i64 * strides.batch + head as i64 * strides.head) as usize;
        CallInputs {
            sinks: self.sinks.as_deref().map(|sinks| &sinks[head..]),
            bias: self.bias.as_ref().map(|(strides, elements)| elements.slice(start(strides))),
            boolean_mask: self.boolean_mask.as_ref().map(|(strides, elements)| &elements[start(strides)..]),
            rotary: self
                .rotary
                .as_ref()
                .map(|(_, RotaryTables { cos, sin })| RotaryTables { cos: &cos[..], sin: &sin[..] }),
            ..Default::default()
        }
    }
}

impl Elements {
    fn read(argument: &'static str, Tensor { name, dtype, bytes, .. }: Tensor) -> Result<Self, ScoreError> {
        match dtype {
            Dtype::F16 => Ok(Self::F16(bytes.chunks_exact(2).map(bytemuck::pod_read_unaligned).collect())),
            Dtype::BF16 => Ok(Self::Bf16(bytes.chunks_exact(2).map(bytemuck::pod_read_unaligned).collect())),
            Dtype::F32 => Ok(Self::F32(bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect())),
            got => Err(ScoreError::UnknownDType { argument, name, got, allowed: "F16, BF16 and F32" }),
        }
    }

    /// The same numbers in f32.
    fn widened(self) -> Vec<f32> {
        match self {
            Self::F16(elements) => elements.into_iter().map(f16::to_f32).collect(),
            Self::Bf16(elements) => elements.into_iter().map(bf16::to_f32).collect(),
            Self::F32(elements) => elements,
        }
    }

    fn dtype(&self) -> BiasType {
        self.slice(0).dtype()
    }

    fn slice(&self, start: usize) -> BiasSlice<'_> {
        match self {
            Self::F16(elements) => BiasSlice::F16(&elements[start..]),
            Self::Bf16(elements) => BiasSlice::Bf16(&elements[start..]),
            Self::F32(elements) => BiasSlice::F32(&elements[start..]),
        }
    }
}

/// The shape of a rotary embedding's table: any, or this.
fn table_shape(
    argument: &'static str,
    Tensor { name, shape, .. }: &Tensor,
    expected: Option<[usize; 2]>,
) -> Result<[usize; 2], ScoreError> {
    match (<[usize; 2]>::try_from(&shape[..]), expected) {
        (Ok(got), None) => Ok(got),
        (Ok(got), Some(expected)) if got == expected => Ok(got),
        (_, expected) => {
            let expected = match expected {
                Some(expected) => format!("{expected:?}, as that of the cosines"),
                None => "[positions, pairs]".to_owned(),
            };
            Err(ScoreError::TableShape { argument, name: name.clone(), got: shape.clone(), expected })
        }
    }
}

/// The strides of a tensor with an element for each score.
fn strides(argument: &'static str, tensor: &Tensor, problem: &AttentionProblem) -> Result<ScoreStrides, ScoreError> {
    let expected = problem.score_shape();
    let mut sizes = [1; 4];
    let fits = tensor.shape.len() <= 4;
    if fits {
        sizes[4 - tensor.shape.len()..].copy_from_slice(&tensor.shape);
    }
    if !fits || sizes.iter().zip(expected).any(|(&size, expected)| size != 1 && size != expected) {
        let (name, got) = (tensor.name.clone(), tensor.shape.clone());
        return Err(ScoreError::ScoreShape { argument, name, got, expected });
    }
    Ok(ScoreStrides::broadcast(sizes))
}
