//! What a call reads besides query, key and value, from a file to what the library takes.

use crate::arguments::ScoreArguments;
use crate::tensor_file::{Tensor, TensorFile};
use half::{bf16, f16};
use safetensors::Dtype;
use sageattention::{AttentionOptions, AttentionProblem, Bias, BiasSlice, BiasType, CallInputs, ScoreStrides};

/// What can be wrong with a tensor.
#[derive(Debug, thiserror::Error)]
enum ScoreError {
    #[error("{argument} `{name}` holds {got:?}; allowed are {allowed}")]
    UnknownDType { argument: &'static str, name: String, got: Dtype, allowed: &'static str },
    #[error("sinks `{name}` has shape {got:?}; it must be [{heads}], one for each of the query's heads")]
    SinksShape { name: String, got: Vec<usize>, heads: usize },
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
            Some(tensor) => Some(match Elements::read("sinks", tensor)? {
                Elements::F16(elements) => elements.into_iter().map(f16::to_f32).collect(),
                Elements::Bf16(elements) => elements.into_iter().map(bf16::to_f32).collect(),
                Elements::F32(elements) => elements,
            }),
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
        Ok(Self { sinks, bias, boolean_mask })
    }

    /// Options that ask for them.
    pub fn options(&self, options: AttentionOptions) -> AttentionOptions {
        AttentionOptions {
            sinks: self.sinks.is_some(),
            bias: self.bias.as_ref().map(|(strides, elements)| Bias { dtype: elements.dtype(), strides: *strides }),
            boolean_mask: self.boolean_mask.as_ref().map(|(strides, _)| *strides),
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
