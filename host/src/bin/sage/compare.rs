//! `sage compare`: accuracy, head by head.

use crate::arguments::{DeviceChoice, OptionArguments, TensorArguments, explain};
use crate::call::Call;
use crate::operands::{Operands, Reference, Slices};
use crate::score_tensors::ScoreTensors;
use crate::table::{self, Column};
use crate::tensor_file::TensorFile;
use anyhow::Result;
use sageattention::testing::Accuracy;
use sageattention::{AttentionOutput, Element};
use std::io::Write;

/// Arguments of the verb.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    tensors: TensorArguments,
    #[command(flatten)]
    options: OptionArguments,
    /// Where the quantized attention is computed: auto, cpu, gpu, gpu:N
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Name of an output in the file, of the query's shape with the value's head dimension, to compare with too
    #[arg(long, value_name = "NAME")]
    reference: Option<String>,
}

/// Runs the verb.
pub fn run(arguments: &Arguments, out: &mut impl Write) -> Result<()> {
    let mut file = TensorFile::open(&arguments.tensors.input)?;
    let operands = Operands::read(&mut file, &arguments.tensors)?;
    let score_tensors = ScoreTensors::read(&mut file, &arguments.options.score, &operands.problem)?;
    let reference = arguments.reference.as_deref();
    let reference = reference.map(|name| Reference::read(&mut file, name, &operands, arguments.tensors.layout()));
    let reference = reference.transpose()?;
    match &operands.slices {
        Slices::F16(slices) => compare(arguments, &operands, (slices, &score_tensors), reference, out),
        Slices::Bf16(slices) => compare(arguments, &operands, (slices, &score_tensors), reference, out),
        Slices::F32(slices) => compare(arguments, &operands, (slices, &score_tensors), reference, out),
    }
}

fn compare<T: Element>(
    arguments: &Arguments,
    operands: &Operands,
    (slices, score_tensors): (&[Vec<T>; 3], &ScoreTensors),
    reference: Option<Reference>,
    out: &mut impl Write,
) -> Result<()> {
    let device = arguments.device.resolve();
    let slices = slices.each_ref().map(Vec::as_slice);
    let call = Call::new(operands.problem, score_tensors.options(arguments.options.options()), slices, score_tensors)
        .map_err(explain)?
        .with_lengths(&operands.lengths);
    let AttentionOutput { output, .. } = call.attention(device).map_err(explain)?;
    let output: Vec<f64> = output.into_iter().map(|element| element.to_f32().into()).collect();
    let [_, heads, tokens, head_dim] = call.problem().output_shape();
    let heads = Heads { heads, elements: tokens * head_dim };

    writeln!(out, "quantized attention on {device} against exact attention (f64):")?;
    heads.write(out, &output, &call.exact_output())?;
    if let Some(Reference { name, elements }) = reference {
        writeln!(out, "\nquantized attention on {device} against the file's `{name}`:")?;
        heads.write(out, &output, &elements)?;
    }
    Ok(())
}

/// How an output falls into heads.
struct Heads {
    /// Heads of a sequence.
    heads: usize,
    /// Elements of a head.
    elements: usize,
}

impl Heads {
    /// A table with a line for each head, and one for all.
    fn write(&self, out: &mut impl Write, output: &[f64], expected: &[f64]) -> Result<()> {
        let row = |batch: String, head: String, Accuracy { cosine, relative_l1, rmse, max }| {
            [
                batch,
                head,
                format!("{cosine:.6}"),
                format!("{relative_l1:.5}"),
                format!("{rmse:.2e}"),
                format!("{max:.2e}"),
            ]
        };
        let heads = output.chunks_exact(self.elements).zip(expected.chunks_exact(self.elements)).enumerate();
        let mut rows: Vec<_> = heads
            .map(|(index, (output, expected))| {
                let (batch, head) = (index / self.heads, index % self.heads);
                row(batch.to_string(), head.to_string(), Accuracy::of(output.iter().copied(), expected))
            })
            .collect();
        rows.push(row("all".to_owned(), "all".to_owned(), Accuracy::of(output.iter().copied(), expected)));
        let columns = ["batch", "head", "cosine", "relative L1", "RMSE", "max error"].map(Column::Right);
        Ok(table::write(out, columns, &rows)?)
    }
}
