//! `sage attend`: attention from file to file.

use crate::arguments::{DeviceChoice, OptionArguments, TensorArguments, explain};
use crate::call::Call;
use crate::operands::{Operands, Slices, swap_middle_axes};
use crate::score_tensors::ScoreTensors;
use crate::tensor_file::{NewFile, Tensor, TensorFile};
use anyhow::Result;
use safetensors::Dtype;
use sageattention::{AttentionOptions, AttentionOutput, Element, TensorLayout};
use std::path::PathBuf;
use std::time::Instant;

/// Arguments of the verb.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    tensors: TensorArguments,
    /// Safetensors file to write: tensor `o`, in the query's type, shape and layout with the value's head dimension, and with --lse
    /// `lse`
    output: PathBuf,
    #[command(flatten)]
    options: OptionArguments,
    /// Where to compute: auto, cpu, gpu, gpu:N
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Also write `lse`: the natural logarithm of each query's sum of exponentials, F32, [batch, heads, tokens]
    #[arg(long)]
    lse: bool,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut file = TensorFile::open(&arguments.tensors.input)?;
    let operands = Operands::read(&mut file, &arguments.tensors)?;
    let score_tensors = ScoreTensors::read(&mut file, &arguments.options.score, &operands.problem)?;
    let output = NewFile::create(&arguments.output)?;
    let tensors = match &operands.slices {
        Slices::F16(slices) => attend(arguments, &operands, slices, &score_tensors)?,
        Slices::Bf16(slices) => attend(arguments, &operands, slices, &score_tensors)?,
        Slices::F32(slices) => attend(arguments, &operands, slices, &score_tensors)?,
    };
    Ok(output.write(&tensors)?)
}

/// The tensors to write.
fn attend<T: Element>(
    arguments: &Arguments,
    operands: &Operands,
    slices: &[Vec<T>; 3],
    score_tensors: &ScoreTensors,
) -> Result<Vec<Tensor>> {
    let options = AttentionOptions { return_lse: arguments.lse, ..score_tensors.options(arguments.options.options()) };
    let device = arguments.device.resolve();
    let slices = slices.each_ref().map(Vec::as_slice);
    let call = Call::new(operands.problem, options, slices, score_tensors).map_err(explain)?;
    let call = call.with_lengths(&operands.lengths);
    let start = Instant::now();
    let AttentionOutput { output, log_sum_exp } = call.attention(device).map_err(explain)?;
    eprintln!("attention on {device}: {:.1?}", start.elapsed());

    let output = match arguments.tensors.layout() {
        TensorLayout::Hnd => output,
        TensorLayout::Nhd => swap_middle_axes(&output, call.problem().output_shape()),
    };
    let shape = operands.output_shape.clone();
    let [batch, heads, tokens, _] = call.problem().query_shape();
    let log_sum_exp = log_sum_exp.map(|log_sum_exp| Tensor {
        name: "lse".to_owned(),
        dtype: Dtype::F32,
        shape: if shape.len() == 4 { vec![batch, heads, tokens] } else { vec![heads, tokens] },
        bytes: bytemuck::cast_slice(&log_sum_exp).to_vec(),
    });
    let bytes = match operands.file_dtype {
        Dtype::F32 => output.iter().flat_map(|element| element.to_f32().to_le_bytes()).collect(),
        _ => bytemuck::cast_slice(&output).to_vec(),
    };
    let output = Tensor { name: "o".to_owned(), dtype: operands.file_dtype, shape, bytes };
    Ok([output].into_iter().chain(log_sum_exp).collect())
}
