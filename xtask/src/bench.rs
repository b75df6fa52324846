//! `cargo xtask bench`: the benchmarks.

use std::ffi::OsString;

use anyhow::Result;

use crate::{build_ptx, process, project, setup};

/// Arguments of the verb.
#[derive(clap::Args)]
pub struct Arguments {
    /// Run only the benchmarks whose name contains this; they are `cpu` (against candle) and `gpu`
    #[arg(long)]
    filter: Option<String>,
    /// What else to pass to the benchmark programs
    #[arg(last = true)]
    rest: Vec<OsString>,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure()?;
    build_ptx::for_the_library()?;
    let bench = ["bench", "--package", "sage-benches", "--"];
    process::run(project::cargo().args(bench).args(&arguments.filter).args(&arguments.rest))
}
