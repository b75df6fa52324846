//! `cargo xtask setup`: finds or installs what the kernels need.

use anyhow::Result;

use crate::{cuda_tools, device_compiler};

/// Runs the verb.
pub fn run() -> Result<()> {
    ensure()?;
    println!("setup: complete (`cargo xtask doctor` says what was found where)");
    Ok(())
}

/// Installs what is missing; says nothing if nothing is.
pub fn ensure() -> Result<()> {
    if device_compiler::find().is_err() {
        device_compiler::install()?;
    }
    if cuda_tools::ALL.iter().any(|tool| tool.find().is_err()) {
        cuda_tools::install()?;
    }
    Ok(())
}
