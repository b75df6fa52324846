//! `cargo xtask bench`: the benchmarks.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::{build_ptx, process, project, setup};

/// Arguments of the verb, which the benchmark programs take too (`benches/measure/src/arguments.rs`).
#[derive(clap::Args)]
pub struct Arguments {
    /// Fewer lengths, bursts and calls
    #[arg(long)]
    quick: bool,
    /// Measure only what has this in its name, such as gpu/d128/causal/16384/attention/int8-fp8, or one of several texts: int8|torch; if
    /// given more than once, all must match
    #[arg(long, value_name = "TEXT")]
    filter: Vec<String>,
    /// Folder for results and charts [default: target/bench]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// On the GPU, time PyTorch's attention too, in turn with ours
    #[arg(long)]
    peers: bool,
    /// The Python that has PyTorch, for --peers
    #[arg(long, value_name = "PROGRAM", default_value = "python3", requires = "peers")]
    python: PathBuf,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure()?;
    build_ptx::for_the_library()?;
    let mut command = project::cargo();
    command.args(["bench", "--package", "sage-benches", "--"]);
    pass_on(arguments, &mut command)?;
    process::run(&mut command)
}

/// The arguments for the programs, which cargo runs in another folder.
fn pass_on(arguments: &Arguments, command: &mut Command) -> Result<()> {
    let Arguments { quick, filter, out, peers, python } = arguments;
    command.args(quick.then_some("--quick"));
    for text in filter {
        command.arg("--filter").arg(text);
    }
    let out = out.as_ref().map_or_else(|| Ok(project::root().join("target/bench")), std::path::absolute)?;
    command.arg("--out").arg(out);
    if *peers {
        // A mere name is looked up in PATH.
        let is_name = python.parent() == Some(Path::new(""));
        command.args(["--peers", "--python"]);
        command.arg(if is_name { python.clone() } else { std::path::absolute(python)? });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_get_paths_that_hold_in_any_folder() {
        let arguments = |out: Option<&str>, peers: bool, python: &str| {
            let filter = vec!["d128/causal".into(), "attention".into()];
            let arguments =
                Arguments { quick: true, filter, out: out.map(PathBuf::from), peers, python: python.into() };
            let mut command = Command::new("bench");
            pass_on(&arguments, &mut command).unwrap();
            command.get_args().map(|argument| argument.to_str().unwrap().to_string()).collect::<Vec<_>>()
        };
        let here = std::env::current_dir().unwrap();
        let named = arguments(Some("results"), true, "venv/bin/python");
        assert_eq!(named[..6], ["--quick", "--filter", "d128/causal", "--filter", "attention", "--out"]);
        assert_eq!(named[6], here.join("results").to_str().unwrap());
        assert_eq!(named[7..], ["--peers", "--python", here.join("venv/bin/python").to_str().unwrap()]);
        assert_eq!(arguments(None, true, "python3")[9], "python3");
        assert_eq!(arguments(None, false, "python3")[6..], [project::root().join("target/bench").to_str().unwrap()]);
    }
}
