//! `sage demo`: attention on activations of a trained model, and on random numbers.

use crate::arguments::{DeviceChoice, Layout, ModeArguments, TensorArguments, explain};
use crate::call::Call;
use crate::devices::cpu_description;
use crate::operands::{Operands, Slices};
use crate::table::{self, Column};
use crate::tensor_file::TensorFile;
use anyhow::Result;
use half::f16;
use sageattention::gpu::memory::{DeviceMemory, Stream};
use sageattention::testing::Accuracy;
use sageattention::{
    AttentionOptions, AttentionPlan, AttentionProblem, DType, Device, Element, Error, Gpu, GpuBuffers, Mask,
    TensorLayout,
};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Arguments of the verb.
#[derive(clap::Args)]
pub struct Arguments {
    /// Safetensors file with the layers `encoder`, `cross` and `causal`, each as F16 `.q`, `.k` and `.v`
    /// [default: whisper_tiny.safetensors in the folder SAGE_DATA_DIR, or in the source tree's tests/data]
    #[arg(long, value_name = "FILE", verbatim_doc_comment)]
    data: Option<PathBuf>,
    #[command(flatten)]
    modes: ModeArguments,
    /// Where to compute: auto, cpu, gpu, gpu:N
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
}

/// The real tensors: layers of a file.
const LAYERS: [(&str, &str, Mask); 3] = [
    ("encoder", "speech encoder", Mask::None),
    ("cross", "cross-attention", Mask::None),
    ("causal", "text decoder", Mask::Causal),
];
/// The random problem: batch, heads, tokens, head_dim.
const RANDOM: [usize; 4] = [1, 8, 2048, 128];

/// Calls that are timed. The median counts.
const TIMED: usize = 7;
/// Calls on a GPU's stream between two looks at the clock.
const BURST: u32 = 20;

/// Runs the verb.
pub fn run(arguments: &Arguments, out: &mut impl Write) -> Result<()> {
    let device = arguments.device.resolve();
    let mut file = TensorFile::open(&data_file(arguments))?;
    let mut samples = LAYERS
        .iter()
        .map(|&(layer, title, mask)| {
            Sample::read(&mut file, layer, title, AttentionOptions { mask, ..arguments.modes.options() })
        })
        .collect::<Result<Vec<_>>>()?;
    samples.push(Sample::random(arguments.modes.options()));

    match device {
        Device::Gpu(ordinal) => {
            let gpu = Gpu::open(ordinal).map_err(explain)?;
            writeln!(out, "SageAttention on {device}, {}\n", gpu.name())?;
        }
        #[cfg(feature = "simt")]
        Device::Simt => writeln!(out, "SageAttention's GPU kernels in the SIMT executor\n")?,
        Device::Cpu => {
            let reason = match (arguments.device, Gpu::open(0)) {
                (DeviceChoice::Auto, Err(Error::NoGpu { reason, .. })) => format!("; {reason}"),
                (DeviceChoice::Auto, Err(reason)) => format!("; {reason}"),
                _ => String::new(),
            };
            writeln!(out, "SageAttention on the CPU, {}{reason}\n", cpu_description())?;
        }
    }
    let rows = samples.iter().map(|sample| sample.row(device)).collect::<Result<Vec<_>>>()?;
    let columns = [
        Column::Left("tensors"),
        Column::Left("shape"),
        Column::Left("mask"),
        Column::Left("device"),
        Column::Right("cosine"),
        Column::Right("relative L1"),
        Column::Right("RMSE"),
        Column::Right("time"),
    ];
    table::write(out, columns, &rows)?;
    writeln!(
        out,
        "\nshape: batch × heads × queries (× keys) × channels. cosine, relative L1 (Σ|error| / Σ|exact|), RMSE: against \
         exact attention in f64.\ntime: one call, quantization included, on tensors in the device's memory; median of \
         {TIMED} after a warm-up."
    )?;
    Ok(())
}

/// The file with the real tensors.
fn data_file(arguments: &Arguments) -> PathBuf {
    arguments.data.clone().unwrap_or_else(|| {
        let folder = std::env::var_os("SAGE_DATA_DIR").map(PathBuf::from);
        folder
            .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data"))
            .join("whisper_tiny.safetensors")
    })
}

/// A problem with its tensors.
struct Sample {
    title: &'static str,
    options: AttentionOptions,
    problem: AttentionProblem,
    slices: Slices,
}

impl Sample {
    /// One layer of a file.
    fn read(file: &mut TensorFile, layer: &str, title: &'static str, options: AttentionOptions) -> Result<Self> {
        let arguments = TensorArguments {
            input: PathBuf::new(),
            query: format!("{layer}.q"),
            key: format!("{layer}.k"),
            value: format!("{layer}.v"),
            layout: Layout::Hnd,
            precision: None,
        };
        let Operands { problem, slices, .. } = Operands::read(file, &arguments)?;
        Ok(Self { title, options, problem, slices })
    }

    /// Normal queries, keys and values.
    fn random(options: AttentionOptions) -> Self {
        let tensor = |seed: u64| -> Vec<f16> {
            let elements = RANDOM.iter().product();
            normal(seed).take(elements).map(f16::from_f64).collect()
        };
        Self {
            title: "random normal",
            options,
            problem: AttentionProblem::new(TensorLayout::Hnd, DType::F16, RANDOM),
            slices: Slices::F16([tensor(1), tensor(2), tensor(3)]),
        }
    }

    /// The sample's line in the table.
    fn row(&self, device: Device) -> Result<[String; 8]> {
        match &self.slices {
            Slices::F16(slices) => self.measure(device, slices),
            Slices::Bf16(slices) => self.measure(device, slices),
        }
    }

    fn measure<T: Element>(&self, device: Device, slices: &[Vec<T>; 3]) -> Result<[String; 8]> {
        let slices = slices.each_ref().map(Vec::as_slice);
        let call = Call::new(self.problem, self.options, slices).map_err(explain)?;
        let output = call.attention(device).map_err(explain)?.output;
        let accuracy = Accuracy::of(output.iter().map(|element| element.to_f32().into()), &call.exact_output());
        let time = match device {
            Device::Gpu(ordinal) => time_on_gpu(Gpu::open(ordinal)?, call.problem(), self.options, slices),
            _ => median(1, || call.attention(device).map(drop)),
        }
        .map_err(explain)?;
        let AttentionProblem { batch, query_heads, query_len, key_len, head_dim, .. } = self.problem;
        let keys = if key_len == query_len { String::new() } else { format!(" × {key_len}") };
        Ok([
            self.title.to_owned(),
            format!("{batch} × {query_heads} × {query_len}{keys} × {head_dim}"),
            if self.options.mask == Mask::None { "none" } else { "causal" }.to_owned(),
            device.to_string(),
            format!("{:.6}", accuracy.cosine),
            format!("{:.5}", accuracy.relative_l1),
            format!("{:.2e}", accuracy.rmse),
            format!("{:.3} ms", time.as_secs_f64() * 1e3),
        ])
    }
}

/// The time of one call that reads and writes the GPU's memory.
fn time_on_gpu<T: Element>(
    gpu: &'static Gpu,
    problem: &AttentionProblem,
    options: AttentionOptions,
    slices: [&[T]; 3],
) -> Result<Duration, Error> {
    let plan = AttentionPlan::new(*problem, options)?;
    let prepared = plan.prepare(gpu)?;
    let stream = Stream::new(gpu)?;
    let upload = |argument, elements: &[T]| {
        let bytes: &[u8] = bytemuck::cast_slice(elements);
        let mut memory = DeviceMemory::new(gpu, argument, bytes.len())?;
        memory.write(0, bytes, &stream)?;
        Ok::<_, Error>(memory)
    };
    let [query, key, value] = slices;
    let [query, key, value] = [upload("query", query)?, upload("key", key)?, upload("value", value)?];
    let output = DeviceMemory::new(gpu, "output", query.bytes())?;
    let workspace = DeviceMemory::new(gpu, "workspace", plan.workspace_bytes() as usize)?;
    let buffers = GpuBuffers {
        query: query.address(),
        key: key.address(),
        value: value.address(),
        output: output.address(),
        log_sum_exp: None,
        workspace: workspace.address(),
        workspace_bytes: plan.workspace_bytes(),
    };
    median(BURST, || {
        for _ in 0..BURST {
            // SAFETY: stream and buffers are the GPU's, as large as the plan's sizes, and freed after the work is done.
            unsafe { prepared.enqueue(stream.raw(), &buffers)? };
        }
        stream.synchronize()
    })
}

/// The median time of one call; `run` makes `calls` of them.
fn median(calls: u32, mut run: impl FnMut() -> Result<(), Error>) -> Result<Duration, Error> {
    run()?;
    let mut times = [Duration::ZERO; TIMED];
    for time in &mut times {
        let start = Instant::now();
        run()?;
        *time = start.elapsed() / calls;
    }
    times.sort_unstable();
    Ok(times[TIMED / 2])
}

/// Normal numbers with mean 0 and variance 1 (Box-Muller on SplitMix64), the same everywhere for a seed.
fn normal(seed: u64) -> impl Iterator<Item = f64> {
    let mut state = seed;
    let mut uniform = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ z >> 31) >> 11) + 1) as f64 / (1u64 << 53) as f64
    };
    std::iter::repeat_with(move || (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos())
}
