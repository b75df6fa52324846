//! Query, key and value, from a file to what the library takes.

use crate::arguments::{Precision, TensorArguments};
use crate::lengths;
use crate::tensor_file::{Tensor, TensorFile};
use anyhow::Context;
use half::{bf16, f16};
use safetensors::Dtype;
use sageattention::{AttentionProblem, DType, Element, Lengths, SequenceLengths, TensorDesc, TensorLayout};

/// What can be wrong with a tensor.
#[derive(Debug, thiserror::Error)]
enum OperandError {
    #[error("{argument} `{name}` holds {got:?}; allowed are F16, BF16 and F32")]
    UnknownDType { argument: &'static str, name: String, got: Dtype },
    #[error("{argument} `{name}` holds {got:?}, query `{query}` holds {expected:?}; all must be of one type")]
    DTypeMix { argument: &'static str, name: String, got: Dtype, query: String, expected: Dtype },
    #[error(
        "{argument} `{name}` has rank {}, shape {shape:?}; it must have rank 4, [{axes}], or rank 3 without the batch",
        .shape.len()
    )]
    Rank { argument: &'static str, name: String, shape: Vec<usize>, axes: String },
    #[error("{argument} `{name}` has rank {}, shape {shape:?}; packed sequences must have rank 3, [{axes}]", .shape.len())]
    PackedRank { argument: &'static str, name: String, shape: Vec<usize>, axes: String },
    #[error("--precision is for F32 tensors; query `{query}` holds {got:?}, which is computed as it is")]
    NothingToRound { query: String, got: Dtype },
    #[error("{argument} `{name}` holds {got:e}; bf16, which it is to be rounded to, ends at {:e}", bf16::MAX.to_f32())]
    Overflow { argument: &'static str, name: String, got: f32 },
    #[error("reference `{name}` has shape {got:?}; it must be {expected:?}, as the output's")]
    ReferenceShape { name: String, got: Vec<usize>, expected: Vec<usize> },
}

/// Query, key and value as the library takes them.
pub struct Operands {
    /// Their shapes and strides.
    pub problem: AttentionProblem,
    /// Their elements.
    pub slices: Slices,
    /// The lengths of their sequences.
    pub lengths: SequenceLengths<Vec<i32>>,
    /// The output's shape in a file: the query's, with the value's channels.
    pub output_shape: Vec<usize>,
    /// The elements' type in the file.
    pub file_dtype: Dtype,
}

/// Elements of query, key and value.
pub enum Slices {
    /// In binary16.
    F16([Vec<f16>; 3]),
    /// In bfloat16.
    Bf16([Vec<bf16>; 3]),
    /// In binary32, which the library rounds to binary16.
    F32([Vec<f32>; 3]),
}

impl Operands {
    /// Reads the tensors that the arguments name, and says on stderr if they had to be rounded.
    pub fn read(file: &mut TensorFile, arguments: &TensorArguments) -> anyhow::Result<Self> {
        let tensors = [
            ("query", file.read(&arguments.query)?),
            ("key", file.read(&arguments.key)?),
            ("value", file.read(&arguments.value)?),
        ];
        let [(_, query), ..] = &tensors;
        let dtype = common_dtype(&tensors)?;
        let (computed, precision) = match (dtype, arguments.precision) {
            (Dtype::F32, None | Some(Precision::F16)) => (DType::F32, DType::F16),
            (Dtype::F32, Some(Precision::Bf16)) => (DType::Bf16, DType::Bf16),
            (_, Some(_)) => {
                return Err(OperandError::NothingToRound { query: query.name.clone(), got: dtype }.into());
            }
            (Dtype::BF16, None) => (DType::Bf16, DType::Bf16),
            (_, None) => (DType::F16, DType::F16),
        };

        let lengths = lengths::read(file, &arguments.lengths)?;
        let problem = problem(arguments.layout(), computed, &tensors, lengths.kind())?;
        let problem = lengths::with_lengths(problem, &lengths);
        let slices = match computed {
            DType::F32 => Slices::F32(elements(&tensors)?),
            DType::Bf16 => Slices::Bf16(elements(&tensors)?),
            _ => Slices::F16(elements(&tensors)?),
        };
        if dtype == Dtype::F32 {
            eprintln!("note: query, key and value are F32; they are rounded to {precision}");
        }
        let mut output_shape = query.shape.clone();
        output_shape.pop();
        output_shape.push(problem.value_head_dim);
        Ok(Self { problem, slices, lengths, output_shape, file_dtype: dtype })
    }
}

/// The type that the three tensors hold.
fn common_dtype(tensors: &[(&'static str, Tensor); 3]) -> Result<Dtype, OperandError> {
    let [(_, query), ..] = tensors;
    for (argument, Tensor { name, dtype, .. }) in tensors {
        if !matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32) {
            return Err(OperandError::UnknownDType { argument, name: name.clone(), got: *dtype });
        }
        if *dtype != query.dtype {
            return Err(OperandError::DTypeMix {
                argument,
                name: name.clone(),
                got: *dtype,
                query: query.name.clone(),
                expected: query.dtype,
            });
        }
    }
    Ok(query.dtype)
}

/// The problem that the shapes pose.
fn problem(
    layout: TensorLayout,
    dtype: DType,
    tensors: &[(&'static str, Tensor); 3],
    lengths: Lengths,
) -> anyhow::Result<AttentionProblem> {
    let mut shapes = [[1; 4]; 3];
    for (padded, (argument, Tensor { name, shape, .. })) in shapes.iter_mut().zip(tensors) {
        let axes = match layout {
            TensorLayout::Hnd => ["batch", "heads", "tokens", "head_dim"],
            TensorLayout::Nhd => ["batch", "tokens", "heads", "head_dim"],
        };
        let (name, shape) = (name.clone(), shape.clone());
        match (shape.len(), lengths) {
            (3, _) => padded[1..].copy_from_slice(&shape),
            (_, Lengths::Packed) => {
                return Err(OperandError::PackedRank { argument, name, shape, axes: axes[1..].join(", ") }.into());
            }
            (4, _) => padded.copy_from_slice(&shape),
            _ => return Err(OperandError::Rank { argument, name, shape, axes: axes.join(", ") }.into()),
        }
    }
    let strides = shapes.map(contiguous);
    let [query, key, value] = std::array::from_fn(|i| TensorDesc::new(dtype, &shapes[i], &strides[i]));
    let [batch, second, third, _] = shapes[0];
    let output_shape = [batch, second, third, shapes[2][3]];
    let output_strides = contiguous(output_shape);
    let output = TensorDesc::new(dtype, &output_shape, &output_strides);
    AttentionProblem::from_tensors(layout, &query, &key, &value, &output).with_context(|| describe(tensors))
}

/// The strides of a contiguous tensor.
fn contiguous([_, second, third, last]: [usize; 4]) -> [isize; 4] {
    // Only beside an axis of size 0, which no plan accepts, do sizes overflow: a file holds as many bytes as its shapes say.
    let third_stride = last.saturating_mul(third);
    [second.saturating_mul(third_stride), third_stride, last, 1].map(|stride| stride as isize)
}

/// The tensors and their shapes, to stand before an error.
fn describe(tensors: &[(&'static str, Tensor); 3]) -> String {
    tensors.each_ref().map(|(argument, Tensor { name, shape, .. })| format!("{argument} `{name}` {shape:?}")).join(", ")
}

fn elements<T: Element>(tensors: &[(&'static str, Tensor); 3]) -> Result<[Vec<T>; 3], OperandError> {
    let [query, key, value] = tensors;
    Ok([narrow(query)?, narrow(key)?, narrow(value)?])
}

/// A tensor's elements, rounded if they are f32 and `T` is not.
fn narrow<T: Element>((argument, tensor): &(&'static str, Tensor)) -> Result<Vec<T>, OperandError> {
    if tensor.dtype != Dtype::F32 {
        return Ok(tensor.bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect());
    }
    let wide = tensor.bytes.chunks_exact(size_of::<f32>()).map(bytemuck::pod_read_unaligned::<f32>);
    wide.map(|wide| {
        let narrow = T::from_f32(wide);
        if wide.is_finite() && !narrow.to_f32().is_finite() {
            return Err(OperandError::Overflow { argument, name: tensor.name.clone(), got: wide });
        }
        Ok(narrow)
    })
    .collect()
}

/// An output that a file holds.
pub struct Reference {
    /// Its name.
    pub name: String,
    /// `[batch, query_heads, query_len, value_head_dim]`, contiguous.
    pub elements: Vec<f64>,
}

impl Reference {
    /// Reads a tensor of the output's shape, in the layout of query, key and value.
    pub fn read(file: &mut TensorFile, name: &str, operands: &Operands, layout: TensorLayout) -> anyhow::Result<Self> {
        let Tensor { name, dtype, shape, bytes } = file.read(name)?;
        let elements: Vec<f64> = match dtype {
            Dtype::F16 => bytes.chunks_exact(2).map(|b| bytemuck::pod_read_unaligned::<f16>(b).to_f64()).collect(),
            Dtype::BF16 => bytes.chunks_exact(2).map(|b| bytemuck::pod_read_unaligned::<bf16>(b).to_f64()).collect(),
            Dtype::F32 => bytes.chunks_exact(4).map(|b| bytemuck::pod_read_unaligned::<f32>(b).into()).collect(),
            got => return Err(OperandError::UnknownDType { argument: "reference", name, got }.into()),
        };
        if shape != operands.output_shape {
            return Err(
                OperandError::ReferenceShape { name, got: shape, expected: operands.output_shape.clone() }.into()
            );
        }
        let problem = &operands.problem;
        let elements = match layout {
            TensorLayout::Hnd => elements,
            TensorLayout::Nhd => {
                let [batch, heads, tokens, head_dim] = problem.output_shape();
                swap_middle_axes(&elements, [batch, tokens, heads, head_dim])
            }
        };
        Ok(Self { name, elements })
    }
}

/// `[a, b, c, d]` as `[a, c, b, d]`: from one layout to the other.
pub fn swap_middle_axes<T: Copy>(elements: &[T], [a, b, c, d]: [usize; 4]) -> Vec<T> {
    let mut swapped = Vec::with_capacity(elements.len());
    for outer in 0..a {
        for third in 0..c {
            for second in 0..b {
                let row = (outer * b + second) * c + third;
                swapped.extend_from_slice(&elements[row * d..][..d]);
            }
        }
    }
    swapped
}
