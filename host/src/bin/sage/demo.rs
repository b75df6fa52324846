//! `sage demo`: attention on activations of a trained model, and on random numbers.

use crate::arguments::{DeviceChoice, ModeArguments, explain};
use crate::call::Call;
use crate::devices::cpu_description;
use crate::operands::Slices;
use crate::samples::{DataArguments, LAYERS, Sample, normal};
use crate::score_tensors::ScoreTensors;
use crate::table::{self, Column};
use anyhow::Result;
use sageattention::gpu::memory::{DeviceMemory, Stream};
use sageattention::testing::Accuracy;
use sageattention::{AttentionOptions, AttentionPlan, AttentionProblem, Device, Element, Error, Gpu, GpuBuffers, Mask};
use std::io::Write;
use std::time::{Duration, Instant};

/// Arguments of the verb.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    data: DataArguments,
    #[command(flatten)]
    modes: ModeArguments,
    /// Where to compute: auto, cpu, gpu, gpu:N
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
}

/// The random problem: batch, heads, tokens, head_dim.
const RANDOM: [usize; 4] = [1, 8, 2048, 128];

/// Calls that are timed. The median counts.
const TIMED: usize = 7;
/// Calls on a GPU's stream between two looks at the clock.
const BURST: u32 = 20;

/// Runs the verb.
pub fn run(arguments: &Arguments, out: &mut impl Write) -> Result<()> {
    let device = arguments.device.resolve();
    let mut file = arguments.data.open()?;
    let mut samples = LAYERS.into_iter().map(|layer| Sample::read(&mut file, layer)).collect::<Result<Vec<_>>>()?;
    let tensor = |seed: u64| normal(seed).take(RANDOM.iter().product()).collect();
    samples.push(Sample::rounded("random normal", RANDOM, [1, 2, 3].map(tensor)));

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
    let rows =
        samples.iter().map(|sample| row(sample, &arguments.modes.options(), device)).collect::<Result<Vec<_>>>()?;
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

/// A sample's line in the table.
fn row(sample: &Sample, modes: &AttentionOptions, device: Device) -> Result<[String; 8]> {
    let options = AttentionOptions { mask: sample.mask, ..*modes };
    match &sample.slices {
        Slices::F16(slices) => measure(sample, options, device, slices),
        Slices::Bf16(slices) => measure(sample, options, device, slices),
        Slices::F32(slices) => measure(sample, options, device, slices),
    }
}

fn measure<T: Element>(
    sample: &Sample,
    options: AttentionOptions,
    device: Device,
    slices: &[Vec<T>; 3],
) -> Result<[String; 8]> {
    let slices = slices.each_ref().map(Vec::as_slice);
    let score_tensors = ScoreTensors::default();
    let call = Call::new(sample.problem, options, slices, &score_tensors).map_err(explain)?;
    let output = call.attention(device).map_err(explain)?.output;
    let accuracy = Accuracy::of(output.iter().map(|element| element.to_f32().into()), &call.exact_output());
    let time = match device {
        Device::Gpu(ordinal) => time_on_gpu(Gpu::open(ordinal)?, call.problem(), options, slices),
        _ => median(1, || call.attention(device).map(drop)),
    }
    .map_err(explain)?;
    Ok([
        sample.title.clone(),
        sample.shape(),
        if sample.mask == Mask::None { "none" } else { "causal" }.to_owned(),
        device.to_string(),
        format!("{:.6}", accuracy.cosine),
        format!("{:.5}", accuracy.relative_l1),
        format!("{:.2e}", accuracy.rmse),
        format!("{:.3} ms", time.as_secs_f64() * 1e3),
    ])
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
    let output_elements: usize = problem.output_shape().iter().product();
    let output = DeviceMemory::new(gpu, "output", output_elements * size_of::<T>())?;
    let workspace = DeviceMemory::new(gpu, "workspace", plan.workspace_bytes() as usize)?;
    let buffers = GpuBuffers {
        query: query.address(),
        key: key.address(),
        value: value.address(),
        output: output.address(),
        workspace: workspace.address(),
        workspace_bytes: plan.workspace_bytes(),
        ..Default::default()
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
