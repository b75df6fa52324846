//! `sage accuracy`: every mode against exact attention, on inputs of many kinds.

use crate::arguments::{DeviceChoice, accum_name, explain};
use crate::call::Call;
use crate::operands::Slices;
use crate::samples::{DataArguments, LAYERS, Sample, normal};
use crate::score_tensors::ScoreTensors;
use crate::table::{self, Column};
use anyhow::Result;
use clap::ValueEnum;
use sageattention::testing::Accuracy;
use sageattention::{AttentionOptions, Device, Element, Error, Mask, PvAccum, PvMode, QkMode, Unsupported};
use std::io::Write;

/// Arguments of the verb.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    data: DataArguments,
    /// Inputs to compute, with commas between them [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    inputs: Vec<Input>,
    /// Queries, and keys, of random inputs
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..))]
    tokens: u32,
    /// Where the quantized attention is computed: auto, cpu, gpu, gpu:N
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Input {
    /// Queries, keys and values normal
    Normal,
    /// Normal, with an offset by channel on keys, of standard deviation 4
    KeyOffsets,
    /// Normal, with such offsets on keys and on queries
    Offsets,
    /// Normal, queries three times as large
    Peaky,
    /// Student's t distribution with three degrees of freedom
    HeavyTailed,
    /// Whisper's encoder self-attention
    Encoder,
    /// Whisper's cross-attention
    Cross,
    /// Whisper's decoder self-attention
    Causal,
    /// The same three with a constant added to every key
    EncoderShifted,
    CrossShifted,
    CausalShifted,
}

/// Batch, heads and channels of random inputs.
const BATCH: usize = 1;
const HEADS: usize = 4;
const HEAD_DIM: usize = 128;

/// Runs the verb.
pub fn run(arguments: &Arguments, out: &mut impl Write) -> Result<()> {
    let device = arguments.device.resolve();
    let inputs = if arguments.inputs.is_empty() { Input::value_variants() } else { &arguments.inputs };
    for input in inputs {
        let sample = input.sample(arguments)?;
        let mask = if sample.mask == Mask::None { "" } else { ", causal" };
        writeln!(out, "{}: {}{mask}", sample.title, sample.shape())?;
        let rows = match &sample.slices {
            Slices::F16(slices) => rows(&sample, slices, device)?,
            Slices::Bf16(slices) => rows(&sample, slices, device)?,
            Slices::F32(slices) => rows(&sample, slices, device)?,
        };
        let words = ["Q·Kᵀ", "smoothed", "P·V", "sums"].map(Column::Left);
        let numbers = ["cosine", "relative L1", "RMSE", "worst head"].map(Column::Right);
        let columns: [Column; 8] = std::array::from_fn(|i| if i < 4 { words[i] } else { numbers[i - 4] });
        table::write(out, columns, &rows)?;
        writeln!(out)?;
    }
    writeln!(
        out,
        "shape: batch × heads × queries (× keys) × channels. cosine, relative L1 (Σ|error| / Σ|exact|), RMSE, and the least \
         cosine of a head:\nquantized attention on {device}, per thread, against exact attention in f64; – where the device \
         has no kernels."
    )?;
    Ok(())
}

impl Input {
    fn sample(self, arguments: &Arguments) -> Result<Sample> {
        let layer = |index: usize| Sample::read(&mut arguments.data.open()?, LAYERS[index]);
        let shape = [BATCH, HEADS, arguments.tokens as usize, HEAD_DIM];
        let tensor = |seed: u64| normal(seed).take(shape.iter().product()).collect::<Vec<f64>>();
        let offset = |mut tensor: Vec<f64>, seed: u64| {
            let offsets: Vec<f64> = normal(seed).take(HEAD_DIM).collect();
            tensor.iter_mut().zip(offsets.iter().cycle()).for_each(|(element, offset)| *element += 4.0 * offset);
            tensor
        };
        Ok(match self {
            Self::Normal => Sample::rounded("normal", shape, [1, 2, 3].map(tensor)),
            Self::KeyOffsets => {
                let tensors = [tensor(1), offset(tensor(2), 4), tensor(3)];
                Sample::rounded("normal, keys with an offset by channel", shape, tensors)
            }
            Self::Offsets => {
                let tensors = [offset(tensor(1), 5), offset(tensor(2), 4), tensor(3)];
                Sample::rounded("normal, keys and queries with an offset by channel", shape, tensors)
            }
            Self::Peaky => {
                let query = tensor(1).into_iter().map(|element| 3.0 * element).collect();
                Sample::rounded("normal, queries three times as large", shape, [query, tensor(2), tensor(3)])
            }
            Self::HeavyTailed => {
                Sample::rounded("heavy-tailed", shape, [1, 2, 3].map(|seed| student(&tensor(seed), seed)))
            }
            Self::Encoder => layer(0)?,
            Self::Cross => layer(1)?,
            Self::Causal => layer(2)?,
            Self::EncoderShifted => layer(0)?.with_shifted_keys(),
            Self::CrossShifted => layer(1)?.with_shifted_keys(),
            Self::CausalShifted => layer(2)?.with_shifted_keys(),
        })
    }
}

/// Normal numbers, each divided by the root mean square of three others: Student's t with three degrees of freedom.
fn student(numbers: &[f64], seed: u64) -> Vec<f64> {
    let others: Vec<f64> = normal(seed + 10).take(3 * numbers.len()).collect();
    let square = |others: &[f64]| others.iter().map(|x| x * x).sum::<f64>() / 3.0;
    numbers.iter().zip(others.chunks_exact(3)).map(|(number, others)| number / square(others).sqrt()).collect()
}

/// Every mode: with keys and, where that is a question, values smoothed, with and without queries smoothed; and then what
/// smoothing does.
fn modes() -> Vec<AttentionOptions> {
    let default = AttentionOptions::default();
    let mut modes = Vec::new();
    for (qk_mode, smooth_q) in QkMode::ALL.into_iter().flat_map(|mode| [(mode, false), (mode, true)]) {
        for pv_mode in PvMode::ALL {
            let with = |&pv_accum| AttentionOptions { qk_mode, smooth_q, pv_mode, pv_accum, ..default };
            modes.extend(PvAccum::of(pv_mode).iter().map(with));
        }
    }
    modes.extend([
        AttentionOptions { smooth_v: false, ..default },
        AttentionOptions { pv_mode: PvMode::F16, pv_accum: PvAccum::F16, smooth_v: false, ..default },
    ]);
    modes.extend(QkMode::ALL.map(|qk_mode| AttentionOptions { qk_mode, smooth_k: false, smooth_v: false, ..default }));
    modes
}

fn rows<T: Element>(sample: &Sample, slices: &[Vec<T>; 3], device: Device) -> Result<Vec<[String; 8]>> {
    let slices = slices.each_ref().map(Vec::as_slice);
    let none = ScoreTensors::default();
    let call = |options| Call::new(sample.problem, AttentionOptions { mask: sample.mask, ..options }, slices, &none);
    let exact = call(AttentionOptions::default()).map_err(explain)?.exact_output();
    let mut rows = Vec::new();
    for options in modes() {
        let numbers = match call(options).and_then(|call| call.attention(device)) {
            Ok(result) => {
                let output: Vec<f64> = result.output.iter().map(|element| element.to_f32().into()).collect();
                numbers(&output, &exact, sample.problem.query_len * sample.problem.value_head_dim)
            }
            Err(Error::NoKernels { .. }) => ["–"; 4].map(str::to_owned),
            // the element type has no such sums
            Err(Error::Unsupported(Unsupported::PvAccum { .. })) => continue,
            Err(error) => return Err(explain(error)),
        };
        let [cosine, relative_l1, rmse, worst_head] = numbers;
        let [qk, smoothed, pv, sums] = words(&options);
        rows.push([qk, smoothed, pv, sums, cosine, relative_l1, rmse, worst_head]);
    }
    Ok(rows)
}

/// The mode in the table's words.
fn words(options: &AttentionOptions) -> [String; 4] {
    let smooths_values =
        matches!((options.pv_mode, options.pv_accum), (PvMode::Fp8, PvAccum::F32) | (PvMode::F16, PvAccum::F16));
    let smoothed: Vec<&str> =
        [("Q", options.smooth_q), ("K", options.smooth_k), ("V", options.smooth_v && smooths_values)]
            .into_iter()
            .filter_map(|(name, smoothed)| smoothed.then_some(name))
            .collect();
    let qk = match options.qk_mode {
        QkMode::Int8 => "INT8",
        QkMode::Int4 => "INT4",
    };
    let pv = match options.pv_mode {
        PvMode::Fp8 => "FP8",
        PvMode::F16 => "F16",
    };
    let smoothed = if smoothed.is_empty() { "nothing".to_owned() } else { smoothed.join(" ") };
    [qk.to_owned(), smoothed, pv.to_owned(), accum_name(options.pv_accum).to_owned()]
}

/// Cosine, relative L1, RMSE, and the least cosine of a head of so many elements.
fn numbers(output: &[f64], exact: &[f64], head: usize) -> [String; 4] {
    let Accuracy { cosine, relative_l1, rmse, .. } = Accuracy::of(output.iter().copied(), exact);
    let heads = output.chunks_exact(head).zip(exact.chunks_exact(head));
    let worst = heads
        .map(|(output, exact)| Accuracy::of(output.iter().copied(), exact).cosine)
        .fold(1.0, |worst, cosine| if cosine < worst || cosine.is_nan() { cosine } else { worst });
    [format!("{cosine:.6}"), format!("{relative_l1:.5}"), format!("{rmse:.2e}"), format!("{worst:.6}")]
}
