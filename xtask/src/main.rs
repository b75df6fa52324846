//! The project's verbs: `cargo xtask <verb>`. One file a verb; `docs/architecture.md` says how they fit together.

mod bench;
mod budget;
mod build_ptx;
mod bundle;
mod check_ptx;
mod cuda_tools;
mod demo;
mod device_compiler;
mod doctor;
mod embed;
mod gpu;
mod nvvm;
mod process;
mod project;
mod ptx;
mod ptxas;
mod registers;
mod sass;
mod setup;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Everything that is done with this project, from a fresh checkout on.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct CommandLine {
    #[command(subcommand)]
    verb: Verb,
}

// The doc comments below are what `--help` prints.
#[derive(Subcommand)]
enum Verb {
    /// Find or install what the GPU kernels need: a device compiler, and ptxas with its companions
    ///
    /// The device compiler is a second Rust compiler, which turns the kernels into PTX: Debian's rustc-web with
    /// rust-web-src (when root, by apt-get), else the release that the kernels are tuned with, by rustup. ptxas,
    /// cuobjdump and nvdisasm come as Python wheels, by pip, into .tools/ in this checkout; pip itself is installed when
    /// root. No GPU and no CUDA installation is needed. What is there already is left alone.
    ///
    /// SAGE_DEVICE_RUSTC names a rustc to use instead; SAGE_CUDA_TOOLS a folder with ptxas, cuobjdump and nvdisasm.
    Setup(setup::Arguments),
    /// Say what of the setup was found, where, in which version, and what to do about what is missing
    ///
    /// Installs and changes nothing. The parts: cargo and rustc, the device compiler, the CUDA tools, the compiled
    /// kernels, the GPUs.
    Doctor,
    /// Compile the GPU kernels to PTX, one module each, and assemble them
    ///
    /// For each kernel OUT/ARCHITECTURE/ gets KERNEL.ptx, KERNEL.cubin and KERNEL.txt, which is what ptxas said, and
    /// compressed what the library embeds, whose size is printed and must stay below 8 MiB. Needs no GPU; `cargo xtask setup` must have been run once.
    BuildPtx(build_ptx::Arguments),
    /// Build the GPU kernels, and check that the compiled code is as it must be
    ///
    /// Each kernel against its row in the kernel table (kernels/layout/src/kernel.rs): launch bounds, barriers, stack and
    /// spills; against its budgets (kernels/budgets): registers, and instructions of the main loops; and no panics, calls
    /// or arrays in local memory. CONTRIBUTING.md says how to read the report. Needs no GPU; `cargo xtask setup` must
    /// have been run once.
    CheckPtx(check_ptx::Arguments),
    /// Set up, build, and run attention on real tensors: on the GPU if there is one, else on the CPU
    ///
    /// Prints accuracy and time. The first run builds for some minutes.
    Demo(demo::Arguments),
    /// Set up, build and check the kernels, and run every test
    ///
    /// Where there is no GPU, the GPU tests say that they were skipped; with SAGE_REQUIRE_GPU=1 they fail instead.
    Test(test::Arguments),
    /// Set up, build the kernels, and run the benchmarks
    ///
    /// On the GPU: the attention kernel, the quantization, and the whole call, in bursts and sustained; on the CPU: the
    /// engine against candle, and the SIMT executor. Prints tables, and writes JSON, CSV and charts (SVG) to --out.
    Bench(bench::Arguments),
    /// Make a folder that runs demo, tests and benchmarks on a machine that has no Rust
    ///
    /// Copy it to another Linux x86-64 machine, and there type ./run.sh demo, ./run.sh test or ./run.sh bench.
    Bundle(bundle::Arguments),
}

fn main() -> ExitCode {
    match run(CommandLine::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Setup(arguments) => setup::run(&arguments),
        Verb::Doctor => doctor::run(),
        Verb::BuildPtx(arguments) => build_ptx::run(&arguments),
        Verb::CheckPtx(arguments) => check_ptx::run(&arguments),
        Verb::Demo(arguments) => demo::run(&arguments),
        Verb::Test(arguments) => test::run(&arguments),
        Verb::Bench(arguments) => bench::run(&arguments),
        Verb::Bundle(arguments) => bundle::run(&arguments),
    }
}

#[cfg(test)]
mod tests {
    use super::CommandLine;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }
}
