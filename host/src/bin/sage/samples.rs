//! What the demo and the accuracy tables run on: activations of a trained model, and random numbers.

use crate::arguments::{LengthsArguments, TensorArguments};
use crate::operands::{Operands, Slices};
use crate::tensor_file::TensorFile;
use anyhow::Result;
use half::f16;
use sageattention::{AttentionProblem, DType, Element, Mask, TensorLayout};
use std::path::{Path, PathBuf};

/// The real tensors: layers of a file.
pub const LAYERS: [(&str, &str, Mask); 3] = [
    ("encoder", "speech encoder", Mask::None),
    ("cross", "cross-attention", Mask::None),
    ("causal", "text decoder", Mask::Causal),
];

/// Which file has the layers.
#[derive(clap::Args)]
pub struct DataArguments {
    /// Safetensors file with the layers `encoder`, `cross` and `causal`, each as F16 `.q`, `.k` and `.v`
    /// [default: whisper_tiny.safetensors in the folder SAGE_DATA_DIR, or in the source tree's tests/data]
    #[arg(long, value_name = "FILE", verbatim_doc_comment)]
    data: Option<PathBuf>,
}

impl DataArguments {
    /// Opens the file.
    pub fn open(&self) -> Result<TensorFile> {
        let path = self.data.clone().unwrap_or_else(|| {
            let folder = std::env::var_os("SAGE_DATA_DIR").map(PathBuf::from);
            folder
                .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data"))
                .join("whisper_tiny.safetensors")
        });
        Ok(TensorFile::open(&path)?)
    }
}

/// A problem with its tensors.
pub struct Sample {
    /// What it is.
    pub title: String,
    /// Which keys its queries see.
    pub mask: Mask,
    /// Its shapes.
    pub problem: AttentionProblem,
    /// Its elements.
    pub slices: Slices,
}

impl Sample {
    /// One layer of a file.
    pub fn read(file: &mut TensorFile, (layer, title, mask): (&str, &str, Mask)) -> Result<Self> {
        let arguments = TensorArguments {
            input: PathBuf::new(),
            query: format!("{layer}.q"),
            key: format!("{layer}.k"),
            value: format!("{layer}.v"),
            layout: None,
            precision: None,
            lengths: LengthsArguments::default(),
        };
        let Operands { problem, slices, .. } = Operands::read(file, &arguments)?;
        Ok(Self { title: title.to_owned(), mask, problem, slices })
    }

    /// Self-attention on query, key and value of this shape, rounded to f16.
    pub fn rounded(title: &str, shape: [usize; 4], tensors: [Vec<f64>; 3]) -> Self {
        let slices = tensors.map(|tensor| tensor.into_iter().map(f16::from_f64).collect());
        let problem = AttentionProblem::new(TensorLayout::Hnd, DType::F16, shape);
        Self { title: title.to_owned(), mask: Mask::None, problem, slices: Slices::F16(slices) }
    }

    /// The sample with 16 added to channels 5 and 37 of every key, and −16 to 21 and 53: exact attention does not notice.
    pub fn with_shifted_keys(mut self) -> Self {
        fn shift<T: Element>(keys: &mut [T], head_dim: usize) {
            for key in keys.chunks_exact_mut(head_dim) {
                for (channel, by) in [(5, 16.0), (21, -16.0), (37, 16.0), (53, -16.0)] {
                    if let Some(element) = key.get_mut(channel) {
                        *element = T::from_f32(element.to_f32() + by);
                    }
                }
            }
        }
        match &mut self.slices {
            Slices::F16([_, key, _]) => shift(key, self.problem.head_dim),
            Slices::Bf16([_, key, _]) => shift(key, self.problem.head_dim),
            Slices::F32([_, key, _]) => shift(key, self.problem.head_dim),
        }
        Self { title: format!("{}, keys shifted", self.title), ..self }
    }

    /// batch × heads × queries (× keys) × channels.
    pub fn shape(&self) -> String {
        let AttentionProblem { batch, query_heads, query_len, key_len, head_dim, .. } = self.problem;
        let keys = if key_len == query_len { String::new() } else { format!(" × {key_len}") };
        format!("{batch} × {query_heads} × {query_len}{keys} × {head_dim}")
    }
}

/// Normal numbers with mean 0 and variance 1 (Box-Muller on SplitMix64), the same everywhere for a seed.
pub fn normal(seed: u64) -> impl Iterator<Item = f64> {
    let mut state = seed;
    let mut uniform = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ z >> 31) >> 11) + 1) as f64 / (1u64 << 53) as f64
    };
    std::iter::repeat_with(move || (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos())
}
