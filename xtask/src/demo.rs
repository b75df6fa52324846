//! `cargo xtask demo`: attention on real tensors, from a fresh checkout.

use std::ffi::OsString;

use anyhow::Result;

use crate::{build_ptx, process, project, setup};

/// Arguments of the verb.
#[derive(clap::Args)]
pub struct Arguments {
    /// Arguments for `sage demo`, which `cargo xtask demo -- --help` lists
    #[arg(last = true)]
    rest: Vec<OsString>,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure()?;
    build_ptx::for_the_library()?;
    let sage = ["run", "--release", "--package", "sageattention", "--bin", "sage", "--", "demo"];
    process::run(project::cargo().args(sage).args(&arguments.rest))
}
