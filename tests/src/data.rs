//! The real tensors of `tests/data`.

use std::path::PathBuf;

use half::f16;
use safetensors::{Dtype, SafeTensors};
use sageattention::{AttentionProblem, DType, TensorLayout};

use crate::tensor::Inputs;

/// One layer of `whisper_tiny.safetensors`.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Its shapes.
    pub problem: AttentionProblem,
    /// Its queries, keys and values.
    pub inputs: Inputs<f16>,
    /// The exact output of every `output_step`-th query.
    pub output: Vec<f16>,
    /// See `output`.
    pub output_step: usize,
}

/// Layer, and the least accuracy (cosine, relative L1) that quantized attention must reach on it: that of the emulation
/// in `data/README.md` with smoothed keys.
pub const BARS: [(&str, f64, f64); 3] =
    [("encoder", 0.999849, 0.01535), ("cross", 0.999791, 0.01876), ("causal", 0.999615, 0.02567)];

/// The folder of the test data: `SAGE_DATA_DIR`, or `tests/data` of the source tree.
pub fn folder() -> PathBuf {
    std::env::var_os("SAGE_DATA_DIR")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/data")), PathBuf::from)
}

/// Reads the layer `encoder`, `cross` or `causal`.
pub fn whisper(layer: &str) -> Layer {
    let path = folder().join("whisper_tiny.safetensors");
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let read = |name: &str| {
        let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(tensor.dtype(), Dtype::F16, "{name}");
        let shape: [usize; 4] = tensor.shape().try_into().expect("four axes");
        let elements: Vec<f16> =
            tensor.data().chunks_exact(2).map(|bytes| f16::from_le_bytes([bytes[0], bytes[1]])).collect();
        (shape, elements)
    };
    let (query_shape, query) = read(&format!("{layer}.q"));
    let ([_, key_heads, key_len, _], key) = read(&format!("{layer}.k"));
    let (_, value) = read(&format!("{layer}.v"));
    let (output_name, output_step) = if layer == "encoder" { ("o_every10", 10) } else { ("o", 1) };
    let (_, output) = read(&format!("{layer}.{output_name}"));
    Layer {
        problem: AttentionProblem::cross(TensorLayout::Hnd, DType::F16, query_shape, [key_heads, key_len]),
        inputs: Inputs { query, key, value },
        output,
        output_step,
    }
}
