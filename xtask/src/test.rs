//! `cargo xtask test`: everything that must hold, from a fresh checkout.

use std::ffi::OsString;

use anyhow::Result;

use crate::{check_ptx, process, project, setup};

/// Arguments of the verb.
#[derive(clap::Args)]
pub struct Arguments {
    /// Arguments for `cargo test`, such as the name of a test, or `--package sageattention`
    #[arg(last = true)]
    rest: Vec<OsString>,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure()?;
    check_ptx::for_the_library()?;
    process::run(project::cargo().args(["test", "--workspace"]).args(&arguments.rest))
}
