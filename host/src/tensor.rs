//! Shapes, strides and element types: [`AttentionProblem`], and tensors in host memory.

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
}

impl From<DType> for ElementType {
    fn from(dtype: DType) -> Self {
        match dtype {
            DType::F16 => Self::F16,
            DType::Bf16 => Self::Bf16,
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
    /// Strides of a contiguous tensor, in elements.
    pub fn strides(self, heads: usize, tokens: usize, head_dim: usize) -> Strides {
        let [heads, tokens, head_dim] = [heads, tokens, head_dim].map(|size| size as i64);
        match self {
            Self::Hnd => Strides { batch: heads * tokens * head_dim, head: tokens * head_dim, token: head_dim },
            Self::Nhd => Strides { batch: heads * tokens * head_dim, head: head_dim, token: heads * head_dim },
        }
    }
}

/// Shapes, strides and element type of one attention call.
///
/// | tensor | shape |
/// |---|---|
/// | query, output | `[batch, query_heads, query_len, head_dim]` |
/// | key, value | `[batch, key_heads, key_len, head_dim]` |
///
/// in whatever order of the first three axes the strides say; channels are always adjacent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionProblem {
    /// Independent sequences.
    pub batch: usize,
    /// Query heads, a multiple of `key_heads`; query head `h` uses key head `h / (query_heads / key_heads)`.
    pub query_heads: usize,
    /// Key and value heads.
    pub key_heads: usize,
    /// Queries a sequence.
    pub query_len: usize,
    /// Keys and values a sequence.
    pub key_len: usize,
    /// Channels a head, 1 to 128.
    pub head_dim: usize,
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
            dtype,
            query_strides: queries,
            key_strides: keys,
            value_strides: keys,
            output_strides: queries,
        }
    }
}
