//! `sage`: attention on the tensors of safetensors files, from the command line.

mod accuracy;
mod arguments;
mod attend;
mod call;
mod compare;
mod demo;
mod devices;
mod lengths;
mod operands;
mod progress;
mod samples;
mod score_tensors;
mod table;
mod tensor_file;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::io::{self, ErrorKind, IsTerminal};
use std::process::ExitCode;
use tracing_subscriber::fmt::format::FmtSpan;

/// Quantized attention (SageAttention2) on the tensors of safetensors files
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit status: 0 for success, 1 for an error, 2 for a command line that makes no sense."
)]
struct CommandLine {
    #[command(subcommand)]
    verb: Verb,

    /// Say on stderr what is done, and how long it takes
    #[arg(short, long, global = true)]
    verbose: bool,
}

#[derive(Subcommand)]
enum Verb {
    /// Compute attention on a file's tensors, and write the result to another file
    Attend(attend::Arguments),
    /// Show how far quantized attention on a file's tensors is from exact attention
    Compare(compare::Arguments),
    /// Show how far every mode is from exact attention, on random and real tensors
    Accuracy(accuracy::Arguments),
    /// List the CPU and the GPUs, and say which can be used
    Devices,
    /// Run attention on real tensors, and show its accuracy and time
    Demo(demo::Arguments),
}

fn main() -> ExitCode {
    let command_line = CommandLine::parse();
    if command_line.verbose {
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_span_events(FmtSpan::CLOSE)
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .init();
    }
    match run(&command_line.verb) {
        Ok(()) => ExitCode::SUCCESS,
        // Who reads the output has seen enough.
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe) => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: &Verb) -> Result<()> {
    let mut out = io::stdout().lock();
    match verb {
        Verb::Attend(arguments) => attend::run(arguments),
        Verb::Compare(arguments) => compare::run(arguments, &mut out),
        Verb::Accuracy(arguments) => accuracy::run(arguments, &mut out),
        Verb::Devices => devices::run(&mut out),
        Verb::Demo(arguments) => demo::run(arguments, &mut out),
    }
}
