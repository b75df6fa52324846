//! `cargo xtask bundle DIR`: a folder that runs on a machine without Rust.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::{fs, io};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{build_ptx, embed, process, project, setup};

/// Arguments of the verb.
#[derive(clap::Args)]
pub struct Arguments {
    /// Folder to make: a new or an empty one, or an earlier bundle, which is replaced
    dir: PathBuf,
}

/// What starts the bundle's programs.
const RUN_SCRIPT: &str = include_str!("bundle_run.sh");

/// The file that tells a bundle from any other folder.
const MARKER: &str = ".sage-bundle";

/// Everything that a bundle holds. The marker is first to come and last to go: a bundle that was cut off stays one.
const PARTS: [&str; 6] = ["bin", "tests", "benches", "data", "run.sh", MARKER];

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure()?;
    build_ptx::for_the_library()?;

    let bundle = &arguments.dir;
    clear(bundle)?;
    fs::create_dir_all(bundle).with_context(|| format!("could not make {}", bundle.display()))?;
    fs::write(bundle.join(MARKER), "Made by `cargo xtask bundle`, which may replace it.\n")?;

    // each is copied before the next cargo command: that for the tests builds `sage` again, with the SIMT executor in it
    let sage = executables(&["build", "--release", "--package=sageattention", "--bin=sage"], Kind::Program)?;
    for program in &sage {
        embed::check_size(
            &format!("bundle: the program {}, with kernels", program.name),
            fs::metadata(&program.path)?.len(),
        )?;
    }
    copy_programs(&sage, &bundle.join("bin"))?;
    let tests = executables(&["test", "--release", "--workspace", "--exclude=xtask", "--no-run"], Kind::Test)?;
    copy_programs(&tests, &bundle.join("tests"))?;
    let benches = executables(&["bench", "--package=sage-benches", "--no-run"], Kind::Benchmark)?;
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

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Program,
    Test,
    Benchmark,
}

/// Runs a cargo command that builds, and returns the programs of a kind among its products.
fn executables(cargo_arguments: &[&str], kind: Kind) -> Result<Vec<Executable>> {
    let mut command = project::cargo();
    command.args(cargo_arguments).arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    Ok(parse_artifacts(&process::read(&mut command)?, kind))
}

/// The programs of a kind in cargo's messages.
fn parse_artifacts(messages: &str, kind: Kind) -> Vec<Executable> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let executable = |message: Value| {
        let path = PathBuf::from(message["executable"].as_str()?);
        let package = Path::new(message["manifest_path"].as_str()?).parent()?.file_name()?.to_str()?;
        let target = message["target"]["name"].as_str()?;
        let found = match message["profile"]["test"].as_bool()? {
            _ if message["target"]["kind"][0] == "bench" => Kind::Benchmark,
            true => Kind::Test,
            false => Kind::Program,
        };
        let name = if kind == Kind::Program { target.to_string() } else { format!("{package}-{target}") };
        (found == kind).then_some(Executable { name, path })
    };
    messages.filter_map(executable).collect()
}

/// Removes what an earlier bundle holds. Anything else in its place is not ours to remove.
fn clear(bundle: &Path) -> Result<()> {
    let mut files = match fs::read_dir(bundle) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        files => files.with_context(|| format!("could not read {}", bundle.display()))?,
    };
    ensure!(
        files.next().is_none() || bundle.join(MARKER).is_file(),
        "{} has files and is no bundle: name another folder",
        bundle.display()
    );
    for part in PARTS {
        let path = bundle.join(part);
        remove(&path).with_context(|| format!("could not remove {}", path.display()))?;
    }
    Ok(())
}

/// Removes a file or a folder, if it is there.
fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    }
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

    /// A folder for one test, empty at its start.
    fn scratch(test: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("sage-bundle-{test}-{}", std::process::id()));
        remove(&folder).unwrap();
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn only_a_bundle_is_cleared() {
        let folder = scratch("cleared");
        clear(&folder).unwrap();
        clear(&folder.join("missing")).unwrap();

        fs::create_dir(folder.join("data")).unwrap();
        fs::write(folder.join("data/precious"), "").unwrap();
        fs::write(folder.join("run.sh"), "").unwrap();
        fs::write(folder.join("notes"), "").unwrap();
        assert!(clear(&folder).unwrap_err().to_string().contains("is no bundle"));
        assert!(folder.join("data/precious").is_file() && folder.join("run.sh").is_file());

        fs::write(folder.join(MARKER), "").unwrap();
        clear(&folder).unwrap();
        let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|file| file.unwrap().file_name()).collect();
        assert_eq!(left, ["notes"]);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_cannot_be_read_is_not_taken_for_empty() {
        let folder = scratch("unreadable");
        let file = folder.join("file");
        fs::write(&file, "").unwrap();
        assert!(clear(&file).unwrap_err().to_string().contains("could not read"));
        assert!(file.is_file());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn programs_are_found_in_cargo_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","manifest_path":"/p/host/Cargo.toml","target":{"kind":["bin"],"name":"sage"},"profile":{"test":false},"executable":"/t/sage"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","manifest_path":"/p/tests/Cargo.toml","target":{"kind":["test"],"name":"gpu"},"profile":{"test":true},"executable":"/t/gpu-0123"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","manifest_path":"/p/host/Cargo.toml","target":{"name":"sageattention"},"profile":{"test":false},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","manifest_path":"/p/benches/Cargo.toml","target":{"kind":["bench"],"name":"cpu"},"profile":{"test":true},"executable":"/t/cpu-0123"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        let names = |kind| parse_artifacts(messages, kind).into_iter().map(|program| program.name).collect::<Vec<_>>();
        assert_eq!(names(Kind::Program), ["sage"]);
        assert_eq!(names(Kind::Test), ["tests-gpu"]);
        assert_eq!(names(Kind::Benchmark), ["benches-cpu"]);
    }
}
