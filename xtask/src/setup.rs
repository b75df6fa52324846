//! `cargo xtask setup`: finds or installs what the kernels need.

use std::env;

use anyhow::Result;

use crate::{cuda_tools, device_compiler};

/// Arguments of the verb.
#[derive(clap::Args)]
pub struct Arguments {
    /// Install libNVVM too, for build-ptx --backend nvvm
    #[arg(long)]
    nvvm: bool,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure()?;
    if arguments.nvvm && cuda_tools::libnvvm().is_none() {
        cuda_tools::install_libnvvm()?;
    }
    println!("setup: complete (`cargo xtask doctor` says what was found where)");
    Ok(())
}

/// Installs what is missing; says nothing if all is there as it should be. What the user chose by a variable is used or refused.
pub fn ensure() -> Result<()> {
    if let Some(doubt) = device_compiler::ensure()?.doubt() {
        eprintln!("setup: {doubt}");
    }
    for tool in cuda_tools::ALL {
        if let Err(error) = tool.find() {
            if env::var_os("SAGE_CUDA_TOOLS").is_some() {
                return Err(error);
            }
            cuda_tools::install()?;
        }
    }
    Ok(())
}
