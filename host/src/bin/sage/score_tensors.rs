//! What a call reads besides query, key and value, from a file to what the library takes.

use crate::arguments::ScoreArguments;
use crate::tensor_file::{Tensor, TensorFile};
use half::{bf16, f16};
use safetensors::Dtype;
use sageattention::{AttentionProblem, ScoreInputs};

/// What can be wrong with a tensor.
#[derive(Debug, thiserror::Error)]
enum ScoreError {
    #[error("{argument} `{name}` holds {got:?}; allowed are F16, BF16 and F32")]
    UnknownDType { argument: &'static str, name: String, got: Dtype },
    #[error("sinks `{name}` has shape {got:?}; it must be [{heads}], one for each of the query's heads")]
    SinksShape { name: String, got: Vec<usize>, heads: usize },
}

/// The tensors that the arguments name.
#[derive(Default)]
pub struct ScoreTensors {
    /// A logit of each head.
    sinks: Option<Vec<f32>>,
}

impl ScoreTensors {
    /// Reads them.
    pub fn read(file: &mut TensorFile, arguments: &ScoreArguments, problem: &AttentionProblem) -> anyhow::Result<Self> {
        let Some(name) = &arguments.sinks else { return Ok(Self::default()) };
        let tensor = file.read(name)?;
        if tensor.shape != [problem.query_heads] {
            let Tensor { name, shape, .. } = tensor;
            return Err(ScoreError::SinksShape { name, got: shape, heads: problem.query_heads }.into());
        }
        Ok(Self { sinks: Some(widen("sinks", &tensor)?) })
    }

    /// As the library takes them, from a query head on.
    pub fn inputs(&self, first_head: usize) -> ScoreInputs<'_> {
        ScoreInputs { sinks: self.sinks.as_deref().map(|sinks| &sinks[first_head..]), ..Default::default() }
    }
}

/// A tensor's elements.
fn widen(argument: &'static str, tensor: &Tensor) -> Result<Vec<f32>, ScoreError> {
    let bytes = &tensor.bytes;
    match tensor.dtype {
        Dtype::F16 => Ok(bytes.chunks_exact(2).map(|b| bytemuck::pod_read_unaligned::<f16>(b).to_f32()).collect()),
        Dtype::BF16 => Ok(bytes.chunks_exact(2).map(|b| bytemuck::pod_read_unaligned::<bf16>(b).to_f32()).collect()),
        Dtype::F32 => Ok(bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect()),
        got => Err(ScoreError::UnknownDType { argument, name: tensor.name.clone(), got }),
    }
}
