//! What several verbs are told, and the library's words for it.

use clap::ValueEnum;
use sageattention::{
    AttentionOptions, CausalAlign, Device, Error, Mask, PvAccum, PvMode, QkMode, QuantGranularity, RotaryPairs,
    TensorLayout, Unsupported,
};
use std::convert::Infallible;
use std::path::PathBuf;
use std::str::FromStr;

/// Where query, key and value are.
#[derive(clap::Args)]
pub struct TensorArguments {
    /// Safetensors file with query, key and value, in f16, bf16 or f32
    pub input: PathBuf,
    /// Name of the query tensor, of rank 4, or of rank 3 for a single sequence and for packed ones
    #[arg(long = "q", value_name = "NAME", default_value = "q")]
    pub query: String,
    /// Name of the key tensor
    #[arg(long = "k", value_name = "NAME", default_value = "k")]
    pub key: String,
    /// Name of the value tensor
    #[arg(long = "v", value_name = "NAME", default_value = "v")]
    pub value: String,
    /// Order of the tensors' axes [default: hnd; nhd for packed sequences]
    #[arg(long, value_enum)]
    pub layout: Option<Layout>,
    /// 16-bit type that f32 tensors are rounded to [default: f16]
    #[arg(long, value_enum)]
    pub precision: Option<Precision>,
    /// How long its sequences are
    #[command(flatten)]
    pub lengths: LengthsArguments,
}

impl TensorArguments {
    /// Order of the tensors' axes.
    pub fn layout(&self) -> TensorLayout {
        match (self.layout, &self.lengths.cu_seqlens_q) {
            (Some(layout), _) => layout.into(),
            (None, Some(_)) => TensorLayout::Nhd,
            (None, None) => TensorLayout::Hnd,
        }
    }
}

/// Lengths of sequences that are not equally long.
#[derive(Default, clap::Args)]
pub struct LengthsArguments {
    /// Tokens at which packed sequences' queries begin, and the end of the last: integers with commas between them, or the
    /// name of an I32 tensor; the tensors are then [tokens, heads, head_dim]
    #[arg(long, value_name = "LIST|NAME", requires = "cu_seqlens_k")]
    pub cu_seqlens_q: Option<Numbers>,
    /// The same of keys and values
    #[arg(long, value_name = "LIST|NAME", requires = "cu_seqlens_q")]
    pub cu_seqlens_k: Option<Numbers>,
    /// Keys of each batch that count, the others pad it: likewise a list, or the name of an I32 tensor
    #[arg(long, value_name = "LIST|NAME", conflicts_with_all = ["cu_seqlens_q", "cu_seqlens_k"])]
    pub kv_lens: Option<Numbers>,
}

/// Integers, or where they are.
#[derive(Clone)]
pub enum Numbers {
    /// On the command line.
    List(Vec<i32>),
    /// In the file's tensor of this name.
    Tensor(String),
}

impl FromStr for Numbers {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let list: Result<_, _> = text.split(',').map(|number| number.trim().parse()).collect();
        Ok(list.map_or_else(|_| Self::Tensor(text.to_owned()), Self::List))
    }
}

/// What to compute.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("window").multiple(true)))]
pub struct OptionArguments {
    /// Hide later keys from each query; unequal lengths need an alignment
    #[arg(long, value_enum, value_name = "ALIGNMENT", num_args = 0..=1, require_equals = true)]
    causal: Option<Option<Align>>,
    /// Hide keys more than so many before the query's own
    #[arg(long, value_name = "KEYS", group = "window", conflicts_with = "causal")]
    window_left: Option<u32>,
    /// Hide keys more than so many after the query's own; with 0 the window is causal
    #[arg(long, value_name = "KEYS", group = "window", conflicts_with = "causal")]
    window_right: Option<u32>,
    /// Which key is the query's own, for a window and unequal lengths [default: bottom-right]
    #[arg(long, value_enum, value_name = "ALIGNMENT", requires = "window")]
    window_align: Option<Align>,
    /// What query · key is multiplied by before the softmax [default: head_dim^-½]
    #[arg(long, allow_negative_numbers = true)]
    scale: Option<f32>,
    /// Cap logits softly: they become cap · tanh(logit / cap)
    #[arg(long, value_name = "CAP", allow_negative_numbers = true)]
    soft_cap: Option<f32>,
    /// What else is in the file
    #[command(flatten)]
    pub score: ScoreArguments,
    #[command(flatten)]
    modes: ModeArguments,
}

/// Tensors of the file besides query, key and value.
#[derive(clap::Args)]
pub struct ScoreArguments {
    /// Name of a tensor of a logit for each query head, which only the softmax's denominator has
    #[arg(long, value_name = "NAME")]
    pub sinks: Option<String>,
    /// Name of a tensor [batch, heads, queries, keys], or one that can be broadcast to it, that is added to the logits
    #[arg(long, value_name = "NAME")]
    pub bias: Option<String>,
    /// Name of such a tensor of BOOL or U8: what is 0 is hidden
    #[arg(long, value_name = "NAME")]
    pub mask: Option<String>,
    /// Rotary embedding of query and key
    #[command(flatten)]
    pub rotary: RotaryArguments,
}

/// A rotary embedding.
#[derive(clap::Args)]
pub struct RotaryArguments {
    /// Name of a tensor [positions, pairs] of cosines, by which pairs of channels of query and key are turned
    #[arg(long = "rotary-cos", value_name = "NAME", requires = "sin")]
    pub cos: Option<String>,
    /// Name of such a tensor of sines
    #[arg(long = "rotary-sin", value_name = "NAME", requires = "cos")]
    pub sin: Option<String>,
    /// Which channels are pairs
    #[arg(long = "rotary-pairs", value_enum, requires = "cos", default_value_t = Pairs::HalfSplit)]
    pub pairs: Pairs,
    /// Position of each sequence's first query
    #[arg(long = "rotary-query-offset", value_name = "POSITION", requires = "cos", default_value_t = 0)]
    pub query_offset: usize,
    /// Position of each sequence's first key
    #[arg(long = "rotary-key-offset", value_name = "POSITION", requires = "cos", default_value_t = 0)]
    pub key_offset: usize,
}

/// Pairs of a rotary embedding.
#[derive(Clone, Copy, ValueEnum)]
pub enum Pairs {
    /// Channels 2i and 2i + 1
    Interleaved,
    /// Channels i and i + half of them
    HalfSplit,
}

impl From<Pairs> for RotaryPairs {
    fn from(pairs: Pairs) -> Self {
        match pairs {
            Pairs::Interleaved => Self::Interleaved,
            Pairs::HalfSplit => Self::HalfSplit,
        }
    }
}

/// How to compute it.
#[derive(clap::Args)]
pub struct ModeArguments {
    /// How many queries and keys share a scale
    #[arg(long, value_enum, default_value_t = Granularity::Thread)]
    granularity: Granularity,
    /// How queries and keys are quantized
    #[arg(long, value_enum, default_value_t = Qk::Int8)]
    qk_mode: Qk,
    /// How probabilities are multiplied with values
    #[arg(long, value_enum, default_value_t = Pv::Fp8)]
    pv_mode: Pv,
    /// What their products are summed in
    #[arg(long, value_enum, default_value_t = Accum::F32)]
    pv_accum: Accum,
    /// Take the queries' channel means out, and their products with keys into the scores
    #[arg(long)]
    smooth_q: bool,
    /// Rotate queries and keys by a Hadamard matrix, which spreads what is large in few channels
    #[arg(long)]
    hadamard: bool,
    /// Leave the keys' channel mean in
    #[arg(long)]
    no_smooth_k: bool,
    /// Leave the values' channel means in (all sums but --pv-mode fp8 --pv-accum f32 and --pv-accum f16 always do)
    #[arg(long)]
    no_smooth_v: bool,
}

impl OptionArguments {
    /// The library's options, without log-sum-exp and what comes with the call.
    pub fn options(&self) -> AttentionOptions {
        AttentionOptions {
            mask: match (self.causal, self.window_left, self.window_right) {
                (None, None, None) => Mask::None,
                (None, left, right) => {
                    let align = self.window_align.unwrap_or(Align::BottomRight).into();
                    Mask::Window { left, right, align }
                }
                (Some(None), ..) => Mask::Causal,
                (Some(Some(align)), ..) => Mask::CausalAligned(align.into()),
            },
            softmax_scale: self.scale,
            soft_cap: self.soft_cap,
            ..self.modes.options()
        }
    }
}

impl ModeArguments {
    /// The library's options, without mask, scale and log-sum-exp.
    pub fn options(&self) -> AttentionOptions {
        AttentionOptions {
            granularity: match self.granularity {
                Granularity::Block => QuantGranularity::PerBlock,
                Granularity::Warp => QuantGranularity::PerWarp,
                Granularity::Thread => QuantGranularity::PerThread,
            },
            qk_mode: match self.qk_mode {
                Qk::Int8 => QkMode::Int8,
                Qk::Int4 => QkMode::Int4,
            },
            pv_mode: match self.pv_mode {
                Pv::Fp8 => PvMode::Fp8,
                Pv::F16 => PvMode::F16,
            },
            pv_accum: match self.pv_accum {
                Accum::F32 => PvAccum::F32,
                Accum::F32F32 => PvAccum::F32F32,
                Accum::F16 => PvAccum::F16,
                Accum::F16F32 => PvAccum::F16F32,
                Accum::F32F16 => PvAccum::F32F16,
            },
            smooth_q: self.smooth_q,
            hadamard: self.hadamard,
            smooth_k: !self.no_smooth_k,
            smooth_v: !self.no_smooth_v,
            ..Default::default()
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Align {
    /// The first query lines up with the first key
    TopLeft,
    /// The last query lines up with the last key
    BottomRight,
}

impl From<Align> for CausalAlign {
    fn from(align: Align) -> Self {
        match align {
            Align::TopLeft => Self::TopLeft,
            Align::BottomRight => Self::BottomRight,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Granularity {
    /// 64 queries, 128 keys
    #[value(name = "per-block")]
    Block,
    /// 16 queries, 128 keys
    #[value(name = "per-warp")]
    Warp,
    /// 2 queries, 32 keys
    #[value(name = "per-thread")]
    Thread,
}

#[derive(Clone, Copy, ValueEnum)]
enum Qk {
    /// Codes from -127 to 127
    Int8,
    /// Codes from -7 to 7; wants --smooth-q
    Int4,
}

#[derive(Clone, Copy, ValueEnum)]
enum Accum {
    /// f32
    F32,
    /// f32, a chunk of keys at a time, added to f32 (fp8)
    #[value(name = "f32+f32")]
    F32F32,
    /// f16 (f16 values): may overflow
    F16,
    /// f16, a chunk of keys at a time, added to f32 (f16 values)
    #[value(name = "f16+f32")]
    F16F32,
    /// f16, a chunk of keys at a time, added to f32 (fp8)
    #[value(name = "f32+f16")]
    F32F16,
}

#[derive(Clone, Copy, ValueEnum)]
enum Pv {
    /// Values in e4m3: fast
    Fp8,
    /// Values as they are, f16 or bf16: more exact
    F16,
}

/// The word for sums on the command line.
pub fn accum_name(accum: PvAccum) -> &'static str {
    match accum {
        PvAccum::F32 => "f32",
        PvAccum::F32F32 => "f32+f32",
        PvAccum::F16 => "f16",
        PvAccum::F16F32 => "f16+f32",
        PvAccum::F32F16 => "f32+f16",
    }
}

/// Order of a tensor's axes.
#[derive(Clone, Copy, ValueEnum)]
pub enum Layout {
    /// [batch, heads, tokens, head_dim]
    Hnd,
    /// [batch, tokens, heads, head_dim]
    Nhd,
}

impl From<Layout> for TensorLayout {
    fn from(layout: Layout) -> Self {
        match layout {
            Layout::Hnd => Self::Hnd,
            Layout::Nhd => Self::Nhd,
        }
    }
}

/// A 16-bit type.
#[derive(Clone, Copy, ValueEnum)]
pub enum Precision {
    /// 11 bits of precision, up to 65504
    F16,
    /// 8 bits of precision, the range of f32
    Bf16,
}

/// The device that was asked for.
#[derive(Clone, Copy)]
pub enum DeviceChoice {
    /// The GPU if it can be used, else the CPU.
    Auto,
    /// This one.
    Exactly(Device),
}

impl DeviceChoice {
    /// The device to use.
    pub fn resolve(self) -> Device {
        match self {
            Self::Auto => Device::auto(),
            Self::Exactly(device) => device,
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let gpu = |ordinal: &str| ordinal.parse().ok().map(|ordinal| Self::Exactly(Device::Gpu(ordinal)));
        match text {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Exactly(Device::Cpu)),
            "gpu" => Some(Self::Exactly(Device::Gpu(0))),
            _ => text.strip_prefix("gpu:").and_then(gpu),
        }
        .ok_or("allowed are auto, cpu, gpu, and gpu:N for GPU number N")
    }
}

/// An error of the library in the command line's words, where the library's own speak of Rust.
pub fn explain(error: Error) -> anyhow::Error {
    match error {
        Error::Unsupported(Unsupported::AmbiguousCausal { query_len, key_len }) => anyhow::anyhow!(
            "--causal with {query_len} queries and {key_len} keys can mean two things; for unequal lengths choose \
             --causal=top-left or --causal=bottom-right"
        ),
        Error::Unsupported(Unsupported::CausalLengths { .. }) => anyhow::anyhow!(
            "--causal with sequences of different lengths can mean two things; choose --causal=top-left or \
             --causal=bottom-right"
        ),
        Error::Unsupported(Unsupported::SoftmaxScale { got }) => {
            anyhow::anyhow!("--scale is {got}; it must be finite and positive")
        }
        Error::Unsupported(Unsupported::SoftCap { got }) => {
            anyhow::anyhow!("--soft-cap is {got}; it must be finite and positive")
        }
        Error::Unsupported(Unsupported::PvAccum { pv_accum, pv_mode, dtype, allowed }) => {
            let mode = match pv_mode {
                PvMode::Fp8 => "fp8",
                PvMode::F16 => "f16",
            };
            let allowed: Vec<&str> = allowed.iter().copied().map(accum_name).collect();
            anyhow::anyhow!(
                "--pv-accum is {} with --pv-mode {mode} and {dtype} values; allowed there: {}",
                accum_name(pv_accum),
                allowed.join(", ")
            )
        }
        Error::OutOfRange { .. } => anyhow::anyhow!("{error}; use --precision bf16"),
        Error::NoKernels { .. } => {
            anyhow::anyhow!("{error}; --device cpu computes every mode, and `sage devices` lists what GPUs do")
        }
        Error::NoGpu { ordinal, reason } => {
            anyhow::anyhow!("no GPU {ordinal}: {reason}; use --device cpu, or --device auto to take what is there")
        }
        other => other.into(),
    }
}
