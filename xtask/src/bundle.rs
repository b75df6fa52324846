//! `cargo xtask bundle DIR`: a folder that runs on a machine without Rust.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{build_ptx, process, project, setup};

/// Arguments of the verb.
#[derive(clap::Args)]
pub struct Arguments {
    /// Folder to make; it must not exist, or be an earlier bundle
    dir: PathBuf,
}

/// What starts the bundle's programs.
const RUN_SCRIPT: &str = include_str!("bundle_run.sh");

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure()?;
    build_ptx::for_the_library()?;

    let sage = executables(&["build", "--package=sageattention", "--bin=sage"])?;
    let tests = executables(&["test", "--workspace", "--exclude=xtask", "--no-run"])?;
    let benches = executables(&["bench", "--package=sage-benches", "--benches", "--no-run"])?;

    let bundle = &arguments.dir;
    clear(bundle)?;
    copy_programs(&sage, &bundle.join("bin"))?;
    copy_programs(&tests, &bundle.join("tests"))?;
    copy_programs(&benches, &bundle.join("benches"))?;
    copy_folder(&project::root().join("tests/data"), &bundle.join("data"))?;
    write_script(&bundle.join("run.sh"))?;
    println!(
        "bundle: {} tests and {} benchmarks in {}; run it with ./run.sh demo, test or bench",
        tests.len(),
        benches.len(),
        bundle.display()
    );
    Ok(())
}

/// A program that cargo built.
struct Executable {
    /// `package-target`: unique, and says what it is.
    name: String,
    path: PathBuf,
}

/// Builds in release and returns the programs that the command is about.
fn executables(cargo_arguments: &[&str]) -> Result<Vec<Executable>> {
    let mut command = project::cargo();
    command.args(cargo_arguments).arg("--message-format=json-render-diagnostics");
    // `cargo bench` is a release build and has no such flag.
    if cargo_arguments[0] != "bench" {
        command.arg("--release");
    }
    command.stderr(std::process::Stdio::inherit());
    Ok(parse_artifacts(&process::read(&mut command)?, cargo_arguments[0] != "build"))
}

/// The programs in cargo's messages: test and benchmark programs, or plain ones.
fn parse_artifacts(messages: &str, tests: bool) -> Vec<Executable> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let executable = |message: Value| {
        let path = PathBuf::from(message["executable"].as_str()?);
        let package = Path::new(message["manifest_path"].as_str()?).parent()?.file_name()?.to_str()?.to_string();
        let target = message["target"]["name"].as_str()?;
        let is_test = message["profile"]["test"].as_bool()?;
        (is_test == tests)
            .then(|| Executable { name: if tests { format!("{package}-{target}") } else { target.into() }, path })
    };
    messages.filter_map(executable).collect()
}

/// Removes an earlier bundle. Anything else in its place is not ours to remove.
fn clear(bundle: &Path) -> Result<()> {
    let is_empty = fs::read_dir(bundle).map_or(true, |mut files| files.next().is_none());
    ensure!(
        is_empty || bundle.join("run.sh").is_file(),
        "{} exists and is no bundle: name another folder",
        bundle.display()
    );
    if bundle.exists() {
        fs::remove_dir_all(bundle).with_context(|| format!("could not remove {}", bundle.display()))?;
    }
    Ok(())
}

fn copy_programs(programs: &[Executable], folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("could not make {}", folder.display()))?;
    for program in programs {
        fs::copy(&program.path, folder.join(&program.name))
            .with_context(|| format!("could not copy {}", program.name))?;
    }
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("could not read {}", from.display()))? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

fn write_script(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, RUN_SCRIPT)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_cargo_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","manifest_path":"/p/host/Cargo.toml","target":{"name":"sage"},"profile":{"test":false},"executable":"/t/sage"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","manifest_path":"/p/tests/Cargo.toml","target":{"name":"gpu"},"profile":{"test":true},"executable":"/t/gpu-0123"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","manifest_path":"/p/host/Cargo.toml","target":{"name":"sageattention"},"profile":{"test":false},"executable":null}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        let names =
            |tests| parse_artifacts(messages, tests).into_iter().map(|program| program.name).collect::<Vec<_>>();
        assert_eq!(names(true), ["tests-gpu"]);
        assert_eq!(names(false), ["sage"]);
    }
}
