//! How long the sequences are, from the command line or a file to what the library takes.

use crate::arguments::{LengthsArguments, Numbers};
use crate::tensor_file::{Tensor, TensorFile};
use safetensors::Dtype;
use sageattention::{AttentionProblem, Lengths, SequenceLengths};

/// What can be wrong with a tensor of lengths.
#[derive(Debug, thiserror::Error)]
enum LengthsError {
    #[error("{argument} `{name}` holds {got:?}; it must hold I32")]
    DType { argument: &'static str, name: String, got: Dtype },
    #[error("{argument} `{name}` has shape {got:?}; it must have rank 1")]
    Rank { argument: &'static str, name: String, got: Vec<usize> },
}

/// Reads the lengths that the arguments name.
pub fn read(file: &mut TensorFile, arguments: &LengthsArguments) -> anyhow::Result<SequenceLengths<Vec<i32>>> {
    let LengthsArguments { cu_seqlens_q, cu_seqlens_k, kv_lens } = arguments;
    let lengths = match (cu_seqlens_q, cu_seqlens_k, kv_lens) {
        (Some(cu_seqlens_q), Some(cu_seqlens_k), _) => SequenceLengths::Packed { cu_seqlens_q, cu_seqlens_k },
        (.., Some(kv_lens)) => SequenceLengths::PaddedKeys { kv_lens },
        _ => SequenceLengths::Uniform,
    };
    lengths.try_map(|argument, numbers| match numbers {
        Numbers::List(numbers) => Ok(numbers.clone()),
        Numbers::Tensor(name) => integers(argument, file.read(name)?),
    })
}

/// The elements of a tensor of integers.
fn integers(argument: &'static str, Tensor { name, dtype, shape, bytes }: Tensor) -> anyhow::Result<Vec<i32>> {
    if dtype != Dtype::I32 {
        return Err(LengthsError::DType { argument, name, got: dtype }.into());
    }
    if shape.len() != 1 {
        return Err(LengthsError::Rank { argument, name, got: shape }.into());
    }
    Ok(bytes.chunks_exact(size_of::<i32>()).map(bytemuck::pod_read_unaligned).collect())
}

/// The problem of tensors, whose sequences have these lengths. Packed tensors are known to have one batch.
pub fn with_lengths(problem: AttentionProblem, lengths: &SequenceLengths<Vec<i32>>) -> AttentionProblem {
    match lengths {
        SequenceLengths::Uniform => problem,
        SequenceLengths::PaddedKeys { .. } => problem.with_padded_keys(),
        SequenceLengths::Packed { cu_seqlens_q, .. } => {
            AttentionProblem { batch: cu_seqlens_q.len().saturating_sub(1), lengths: Lengths::Packed, ..problem }
        }
    }
}
