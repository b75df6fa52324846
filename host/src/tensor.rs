//! Shapes, strides and element types: [`AttentionProblem`], and tensors in host memory.

use crate::error::Error;
use crate::quantized::Operand;
use sage_layout::kernel::ElementType;
pub use sage_layout::params::Strides;

/// Element type of query, key, value and output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    /// IEEE binary16, [`half::f16`].
    F16,
    /// bfloat16, [`half::bf16`].
    Bf16,
    /// IEEE binary32, [`f32`]. Queries, keys and values are rounded to f16 first: to nearest even, and on a GPU beyond ±65504 to that
    /// ([`attention()`](crate::attention()) refuses such elements). All that follows is as of f16, and the output is not rounded.
    F32,
}

impl DType {
    /// Bytes of an element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        })
    }
}

impl From<DType> for ElementType {
    fn from(dtype: DType) -> Self {
        match dtype {
            DType::F16 => Self::F16,
            DType::Bf16 => Self::Bf16,
            DType::F32 => Self::F32,
        }
    }
}

/// Order of a tensor's axes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TensorLayout {
    /// `[batch, heads, tokens, head_dim]`.
    #[default]
    Hnd,
    /// `[batch, tokens, heads, head_dim]`.
    Nhd,
}

impl TensorLayout {
    /// The axes, outermost first.
    const fn axes(self) -> &'static str {
        match self {
            Self::Hnd => "batch, heads, tokens, head_dim",
            Self::Nhd => "batch, tokens, heads, head_dim",
        }
    }

    /// Strides of a contiguous tensor, in elements; `i64::MAX` in place of what is larger, which no plan accepts.
    pub fn strides(self, heads: usize, tokens: usize, head_dim: usize) -> Strides {
        let [heads, tokens, head_dim] = [heads, tokens, head_dim].map(|size| i64::try_from(size).unwrap_or(i64::MAX));
        let (head, token) = match self {
            Self::Hnd => (tokens.saturating_mul(head_dim), head_dim),
            Self::Nhd => (head_dim, heads.saturating_mul(head_dim)),
        };
        Strides { batch: heads.saturating_mul(tokens).saturating_mul(head_dim), head, token }
    }
}

/// Whether the sequences of a batch are equally long. A problem says which; the numbers themselves come with each call
/// ([`SequenceLengths`]), so that a plan, and a CUDA graph, serves all lengths that its tensors hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Lengths {
    /// All are: every sequence has `query_len` queries and `key_len` keys.
    #[default]
    Uniform,
    /// Every sequence has `query_len` queries, and of its `key_len` keys and values only the first count: as many as `kv_lens`
    /// says. What pads them does not matter.
    PaddedKeys,
    /// Sequences lie one after the other in tensors without a batch axis, from where `cu_seqlens_q` and `cu_seqlens_k` say.
    /// Here `query_len` and `key_len` are the tokens of all sequences together.
    Packed,
}

/// The lengths of the sequences of one call: device addresses in [`GpuBuffers`](crate::GpuBuffers) (`u64`), slices in
/// [`CallInputs`](crate::CallInputs) (`&[i32]`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SequenceLengths<A> {
    /// For [`Lengths::Uniform`].
    #[default]
    Uniform,
    /// For [`Lengths::PaddedKeys`].
    PaddedKeys {
        /// i32 `[batch]`: keys of each sequence, from 0 to `key_len`.
        kv_lens: A,
    },
    /// For [`Lengths::Packed`]. Sequence `s` has tokens `cu_seqlens[s] .. cu_seqlens[s + 1]`, possibly none.
    Packed {
        /// i32 `[batch + 1]`, from 0 to `query_len`, never decreasing.
        cu_seqlens_q: A,
        /// i32 `[batch + 1]`, from 0 to `key_len`, never decreasing.
        cu_seqlens_k: A,
    },
}

impl<A> SequenceLengths<A> {
    /// What they are the numbers of.
    pub fn kind(&self) -> Lengths {
        match self {
            Self::Uniform => Lengths::Uniform,
            Self::PaddedKeys { .. } => Lengths::PaddedKeys,
            Self::Packed { .. } => Lengths::Packed,
        }
    }

    /// The same kind of lengths, each array made into another by its name and itself.
    pub fn try_map<B, E>(self, mut f: impl FnMut(&'static str, A) -> Result<B, E>) -> Result<SequenceLengths<B>, E> {
        Ok(match self {
            Self::Uniform => SequenceLengths::Uniform,
            Self::PaddedKeys { kv_lens } => SequenceLengths::PaddedKeys { kv_lens: f("kv_lens", kv_lens)? },
            Self::Packed { cu_seqlens_q, cu_seqlens_k } => SequenceLengths::Packed {
                cu_seqlens_q: f("cu_seqlens_q", cu_seqlens_q)?,
                cu_seqlens_k: f("cu_seqlens_k", cu_seqlens_k)?,
            },
        })
    }

    /// [`try_map`](Self::try_map) where nothing can go wrong.
    pub fn map<B>(self, mut f: impl FnMut(&'static str, A) -> B) -> SequenceLengths<B> {
        let Ok(mapped) = self.try_map(|name, array| Ok::<_, std::convert::Infallible>(f(name, array)));
        mapped
    }

    /// References to its arrays.
    pub fn as_ref(&self) -> SequenceLengths<&A> {
        match self {
            Self::Uniform => SequenceLengths::Uniform,
            Self::PaddedKeys { kv_lens } => SequenceLengths::PaddedKeys { kv_lens },
            Self::Packed { cu_seqlens_q, cu_seqlens_k } => SequenceLengths::Packed { cu_seqlens_q, cu_seqlens_k },
        }
    }
}

/// Shapes, strides and element type of one attention call.
///
/// | tensor | shape | with [`Lengths::Packed`] |
/// |---|---|---|
/// | query | `[batch, query_heads, query_len, head_dim]` | `[query_heads, query_len, head_dim]` |
/// | key | `[batch, key_heads, key_len, head_dim]` | `[key_heads, key_len, head_dim]` |
/// | value | `[batch, key_heads, key_len, value_head_dim]` | `[key_heads, key_len, value_head_dim]` |
/// | output | `[batch, query_heads, query_len, value_head_dim]` | `[query_heads, query_len, value_head_dim]` |
///
/// in whatever order of all axes but the last the strides say; channels are always adjacent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionProblem {
    /// Independent sequences.
    pub batch: usize,
    /// Query heads, a multiple of `key_heads`; query head `h` uses key head `h / (query_heads / key_heads)`.
    pub query_heads: usize,
    /// Key and value heads.
    pub key_heads: usize,
    /// Queries a sequence; of all together with [`Lengths::Packed`].
    pub query_len: usize,
    /// Keys and values a sequence; of all together with [`Lengths::Packed`].
    pub key_len: usize,
    /// Channels a head of queries and keys, 1 to 256.
    pub head_dim: usize,
    /// Channels a head of values and output, 1 to 256. As many as queries have, but for
    /// [`with_value_head_dim`](Self::with_value_head_dim). Kernels compute as many of both as the larger has.
    pub value_head_dim: usize,
    /// Whether sequences are equally long.
    pub lengths: Lengths,
    /// Element type of all four tensors.
    pub dtype: DType,
    /// Strides of the queries.
    pub query_strides: Strides,
    /// Strides of the keys.
    pub key_strides: Strides,
    /// Strides of the values.
    pub value_strides: Strides,
    /// Strides of the output.
    pub output_strides: Strides,
}

impl AttentionProblem {
    /// Contiguous tensors with as many key heads as query heads and as many keys as queries.
    pub fn new(layout: TensorLayout, dtype: DType, [batch, heads, tokens, head_dim]: [usize; 4]) -> Self {
        Self::cross(layout, dtype, [batch, heads, tokens, head_dim], [heads, tokens])
    }

    /// Contiguous tensors; `query` is `[batch, query_heads, query_len, head_dim]`, `key` is `[key_heads, key_len]`.
    pub fn cross(
        layout: TensorLayout,
        dtype: DType,
        [batch, query_heads, query_len, head_dim]: [usize; 4],
        [key_heads, key_len]: [usize; 2],
    ) -> Self {
        let queries = layout.strides(query_heads, query_len, head_dim);
        let keys = layout.strides(key_heads, key_len, head_dim);
        Self {
            batch,
            query_heads,
            key_heads,
            query_len,
            key_len,
            head_dim,
            value_head_dim: head_dim,
            lengths: Lengths::Uniform,
            dtype,
            query_strides: queries,
            key_strides: keys,
            value_strides: keys,
            output_strides: queries,
        }
    }

    /// `sequences` sequences, one after the other in contiguous tensors: queries and output `[total_queries, query_heads,
    /// head_dim]`, keys and values `[total_keys, key_heads, head_dim]`. How long each is, the call says
    /// ([`SequenceLengths::Packed`]).
    pub fn packed(
        dtype: DType,
        sequences: usize,
        [total_queries, query_heads, head_dim]: [usize; 3],
        [total_keys, key_heads]: [usize; 2],
    ) -> Self {
        let query = [1, query_heads, total_queries, head_dim];
        let problem = Self::cross(TensorLayout::Nhd, dtype, query, [key_heads, total_keys]);
        Self { batch: sequences, lengths: Lengths::Packed, ..problem }
    }

    /// The same tensors, of whose keys and values each sequence has only as many as the call says
    /// ([`SequenceLengths::PaddedKeys`]).
    pub fn with_padded_keys(self) -> Self {
        Self { lengths: Lengths::PaddedKeys, ..self }
    }

    /// The same problem with values and output of so many channels, as multi-head latent attention has. Their strides are multiplied
    /// accordingly: contiguous tensors stay so.
    pub fn with_value_head_dim(self, value_head_dim: usize) -> Self {
        let strides = |strides| with_channels(strides, self.value_head_dim, value_head_dim);
        let [value_strides, output_strides] = [self.value_strides, self.output_strides].map(strides);
        Self { value_head_dim, value_strides, output_strides, ..self }
    }

    /// The problem that four tensors of one layout pose.
    ///
    /// # Errors
    ///
    /// A rank other than 4, channels that are not adjacent, different element types, or shapes that don't go together.
    /// Everything else is checked when the problem is planned.
    pub fn from_tensors(
        layout: TensorLayout,
        query: &TensorDesc,
        key: &TensorDesc,
        value: &TensorDesc,
        output: &TensorDesc,
    ) -> Result<Self, Error> {
        let (query_shape, query_strides) = query.resolve("query", layout)?;
        let (key_shape, key_strides) = key.resolve("key", layout)?;
        let (value_shape, value_strides) = value.resolve("value", layout)?;
        let (output_shape, output_strides) = output.resolve("output", layout)?;
        for (tensor, desc) in [("key", key), ("value", value), ("output", output)] {
            if desc.dtype != query.dtype {
                return Err(Error::DTypeMix { tensor, got: desc.dtype, query: query.dtype });
            }
        }
        let same = |tensor, shape: [usize; 4], of, expected: [usize; 4], axes: &[usize]| match axes
            .iter()
            .find(|&&axis| shape[axis] != expected[axis])
        {
            None => Ok(()),
            Some(&axis) => {
                let (got, expected) = (shape[axis], expected[axis]);
                let axis = ["batch", "heads", "tokens", "head_dim"][axis];
                Err(Error::Shape { tensor, axis, got, expected, of })
            }
        };
        same("key", key_shape, "query", query_shape, &[0, 3])?;
        same("value", value_shape, "key", key_shape, &[0, 1, 2])?;
        same("output", output_shape, "query", query_shape, &[0, 1, 2])?;
        same("output", output_shape, "value", value_shape, &[3])?;
        let [batch, query_heads, query_len, head_dim] = query_shape;
        let [_, key_heads, key_len, _] = key_shape;
        Ok(Self {
            batch,
            query_heads,
            key_heads,
            query_len,
            key_len,
            head_dim,
            value_head_dim: value_shape[3],
            lengths: Lengths::Uniform,
            dtype: query.dtype,
            query_strides,
            key_strides,
            value_strides,
            output_strides,
        })
    }

    /// An operand's shape, `[batch, heads, tokens, channels]`, and strides.
    pub(crate) fn operand(&self, operand: Operand) -> ([usize; 4], Strides) {
        match operand {
            Operand::Query => (self.query_shape(), self.query_strides),
            Operand::Key => (self.key_shape(), self.key_strides),
            Operand::Value => (self.value_shape(), self.value_strides),
        }
    }

    /// Batches that the tensors have: 1 with [`Lengths::Packed`].
    fn batches(&self) -> usize {
        if self.lengths == Lengths::Packed { 1 } else { self.batch }
    }

    /// `[batch, query_heads, query_len, head_dim]`: the shape of the query. The batch is 1 with [`Lengths::Packed`], here and in the next.
    pub fn query_shape(&self) -> [usize; 4] {
        [self.batches(), self.query_heads, self.query_len, self.head_dim]
    }

    /// `[batch, query_heads, query_len, key_len]`: the shape of the logits.
    pub fn score_shape(&self) -> [usize; 4] {
        [self.batches(), self.query_heads, self.query_len, self.key_len]
    }

    /// `[batch, key_heads, key_len, head_dim]`: the shape of the key.
    pub fn key_shape(&self) -> [usize; 4] {
        [self.batches(), self.key_heads, self.key_len, self.head_dim]
    }

    /// `[batch, key_heads, key_len, value_head_dim]`: the shape of the value.
    pub fn value_shape(&self) -> [usize; 4] {
        [self.batches(), self.key_heads, self.key_len, self.value_head_dim]
    }

    /// `[batch, query_heads, query_len, value_head_dim]`: the shape of the output.
    pub fn output_shape(&self) -> [usize; 4] {
        [self.batches(), self.query_heads, self.query_len, self.value_head_dim]
    }
}

/// A tensor as frameworks describe it: element type, shape and strides, without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorDesc<'a> {
    /// Element type.
    pub dtype: DType,
    /// Sizes of the axes, outermost first.
    pub shape: &'a [usize],
    /// Distances between neighbours along each axis, in elements.
    pub strides: &'a [isize],
}

impl<'a> TensorDesc<'a> {
    /// Takes note of a tensor; [`AttentionProblem::from_tensors`] checks it.
    pub fn new(dtype: DType, shape: &'a [usize], strides: &'a [isize]) -> Self {
        Self { dtype, shape, strides }
    }

    /// `[batch, heads, tokens, head_dim]` and the strides of the first three.
    fn resolve(&self, name: &'static str, layout: TensorLayout) -> Result<([usize; 4], Strides), Error> {
        let &[batch, second, third, head_dim] = self.shape else {
            return Err(Error::Rank { tensor: name, got: self.shape.len(), axes: layout.axes() });
        };
        let &[batch_stride, second_stride, third_stride, last_stride] = self.strides else {
            return Err(Error::StrideCount { tensor: name, got: self.strides.len(), rank: 4 });
        };
        // The stride of an axis of size 1 is never used, and frameworks put anything there.
        if last_stride != 1 && head_dim > 1 {
            return Err(Error::LastStride { tensor: name, got: last_stride });
        }
        let stride = |size: usize, stride: isize| if size > 1 { stride as i64 } else { 0 };
        let batch_stride = stride(batch, batch_stride);
        let (second_stride, third_stride) = (stride(second, second_stride), stride(third, third_stride));
        Ok(match layout {
            TensorLayout::Hnd => (
                [batch, second, third, head_dim],
                Strides { batch: batch_stride, head: second_stride, token: third_stride },
            ),
            TensorLayout::Nhd => (
                [batch, third, second, head_dim],
                Strides { batch: batch_stride, head: third_stride, token: second_stride },
            ),
        })
    }
}

/// The strides of a contiguous tensor, had it `to` channels instead of `from`; `i64::MAX` in place of what is larger.
pub(crate) fn with_channels(Strides { batch, head, token }: Strides, from: usize, to: usize) -> Strides {
    let [from, to] = [from.max(1), to].map(|channels| i64::try_from(channels).unwrap_or(i64::MAX));
    let [batch, head, token] = [batch, head, token].map(|stride| (stride / from).saturating_mul(to));
    Strides { batch, head, token }
}

/// Whether a tensor's rows are whole chunks of eight channels, and begin at multiples of that: of 16 bytes, as addresses do.
pub(crate) fn has_whole_chunks([.., head_dim]: [usize; 4], Strides { batch, head, token }: Strides) -> bool {
    [batch, head, token, head_dim as i64].iter().all(|elements| elements % 8 == 0)
}

/// How far a tensor with these sizes and strides reaches: the index after its last element, if 64 bits hold its
/// distance in bytes, four an element.
///
/// Sizes are at least 1 and strides not negative.
pub(crate) fn extent([batch, heads, tokens, head_dim]: [usize; 4], strides: Strides) -> Option<u64> {
    let last = |size: usize, stride: i64| i64::try_from(size - 1).ok()?.checked_mul(stride);
    let elements = last(batch, strides.batch)?
        .checked_add(last(heads, strides.head)?)?
        .checked_add(last(tokens, strides.token)?)?
        .checked_add(i64::try_from(head_dim).ok()?)?;
    elements.checked_mul(DType::F32.bytes() as i64)?;
    Some(elements as u64)
}
