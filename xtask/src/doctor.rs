//! `cargo xtask doctor`: what is there, where, and what to do about the rest.

use std::fs;
use std::process::Command;

use anyhow::{Result, bail};
use sage_layout::architecture::Architecture;
use sage_layout::dispatch;
use sage_layout::kernel::Kernel;

use crate::nvvm::Nvvm;
use crate::{cuda_tools, device_compiler, gpu, process, project};

/// Runs the verb.
pub fn run() -> Result<()> {
    line("cargo", process::read(project::cargo().arg("--version")));
    line("rustc", process::read(Command::new("rustc").arg("--version")));
    device_compiler();
    for tool in cuda_tools::ALL {
        line(tool.program, tool.version().and_then(|version| Ok(format!("{version}, {}", tool.find()?.display()))));
    }
    // Few need it, so nothing is missing without it.
    if let Ok(nvvm) = Nvvm::load() {
        line("libNVVM", Ok(nvvm.version));
    }
    for architecture in Architecture::ALL {
        line(&format!("PTX {}", architecture.name()), built(architecture));
    }
    match gpu::list() {
        Ok(gpus) => gpus.iter().for_each(|gpu| line("GPU", describe(gpu))),
        Err(_) => line("GPU", Ok("none: kernels compile, attention and tests run on the CPU".into())),
    }
    Ok(())
}

fn device_compiler() {
    let candidates = device_compiler::candidates();
    // A rejected candidate is worth a word: its owner may have thought that it would do.
    for candidate in &candidates {
        match &candidate.verdict {
            Ok(compiler) => {
                line("device compiler", Ok(format!("{}, {}", compiler.version, compiler.rustc.display())));
                compiler.doubt().into_iter().for_each(|doubt| line("", Ok(doubt)));
                return;
            }
            Err(reason) => line("device compiler", Ok(format!("(not {}: {reason:#})", candidate.origin))),
        }
    }
    line("device compiler", Err(anyhow::anyhow!(device_compiler::REMEDY)));
}

fn built(architecture: Architecture) -> Result<String> {
    let folder = project::ptx_dir().join(architecture.name());
    let modules = fs::read_dir(&folder).into_iter().flatten().flatten();
    let count = modules.filter(|file| file.path().extension().is_some_and(|extension| extension == "ptx")).count();
    if count == 0 {
        bail!("not built: run `cargo xtask build-ptx`");
    }
    Ok(format!("{count} of {} kernels, {}", Kernel::of(architecture).count(), project::display(&folder)))
}

fn describe(gpu: &gpu::Gpu) -> Result<String> {
    let capability = gpu.compute_capability;
    let kernels = match dispatch::architectures(capability).find(|architecture| dispatch::is_used(*architecture)) {
        Some(architecture) => format!("runs {}", architecture.name()),
        None => "there are no kernels for it: attention runs on the CPU".into(),
    };
    Ok(format!("{}, compute capability {capability}, driver {}: {kernels}", gpu.name, gpu.driver))
}

fn line(part: &str, finding: Result<String>) {
    match finding {
        Ok(text) => println!("{part:<16} {}", text.trim()),
        Err(error) => println!("{part:<16} MISSING: {error:#}"),
    }
}
