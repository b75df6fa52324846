//! The device compiler: a rustc that turns the kernels into PTX.
//!
//! It is not the stable rustc that compiles the host. It needs LLVM 22 with the NVPTX backend, and the sources of
//! `core` that belong to it, as `core` is compiled along with the kernels.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, anyhow, bail, ensure};
use sage_layout::architecture::Architecture;
use sage_layout::kernel::Family;

use crate::{process, project};

/// The release that the kernels are tuned with, and Debian's. Another one allots registers otherwise: kernels may spill.
const RELEASE: &str = "1.96.0";

const TARGET: &str = "nvptx64-nvidia-cuda";

/// Older LLVMs don't know the instructions that the kernels use, or miscompile around barriers.
pub const MINIMUM_LLVM: u32 = 22;

/// Loops over register arrays must unroll whole: an array that is indexed by a variable lives in local memory.
const UNROLL: [&str; 2] =
    ["-Cllvm-args=-unroll-threshold=100000", "-Cllvm-args=-unroll-max-iteration-count-to-analyze=128"];

/// Jump threading copies code into the branches before it. A barrier must not be copied: threads that take different
/// branches would wait at different barriers, for ever. `core` has no barriers and needs the pass, which newer compilers
/// switch off for GPUs: without it, iterators don't shrink enough for loops over them to unroll.
const JUMP_THREADING: [&str; 2] = [
    r#"profile.device.rustflags=["-Zmir-enable-passes=-JumpThreading"]"#,
    r#"profile.device.package.core.rustflags=["-Zmir-enable-passes=+JumpThreading"]"#,
];

/// What to type where `setup` can't install a device compiler.
pub const REMEDY: &str = "run `cargo xtask setup` (as root on Debian, or with rustup installed), \
     or set SAGE_DEVICE_RUSTC to a rustc that has LLVM 22 and rust-src";

/// A usable device compiler.
pub struct DeviceCompiler {
    /// Path of rustc.
    pub rustc: PathBuf,
    /// rustc's release and its LLVM's version.
    pub version: String,
    release: String,
    cargo: PathBuf,
}

/// A rustc that may be the device compiler.
pub struct Candidate {
    /// How it was found.
    pub origin: String,
    /// The compiler, or why it can't be used.
    pub verdict: Result<DeviceCompiler>,
}

/// The first usable candidate.
pub fn find() -> Result<DeviceCompiler> {
    let candidates = candidates();
    let reasons: Vec<_> = candidates
        .iter()
        .filter_map(|candidate| Some(format!("\n  {}: {:#}", candidate.origin, candidate.verdict.as_ref().err()?)))
        .collect();
    candidates
        .into_iter()
        .find_map(|candidate| candidate.verdict.ok())
        .ok_or_else(|| anyhow!("no device compiler: {REMEDY}{}", reasons.concat()))
}

/// Every rustc that we know of, best first. `SAGE_DEVICE_RUSTC`, where it is set, is the only one.
pub fn candidates() -> Vec<Candidate> {
    if let Some(rustc) = env::var_os("SAGE_DEVICE_RUSTC") {
        return vec![Candidate { origin: "SAGE_DEVICE_RUSTC".into(), verdict: examine(Path::new(&rustc), None) }];
    }
    let system = process::on_path("rustc").into_iter().chain([PathBuf::from("/usr/bin/rustc")]);
    let sysroots: BTreeSet<_> = system.filter_map(|rustc| sysroot(&rustc).ok()).collect();
    let system = sysroots.into_iter().map(|sysroot| {
        let rustc = sysroot.join("bin/rustc");
        Candidate { origin: rustc.display().to_string(), verdict: examine(&rustc, None) }
    });
    let mut candidates = rustup_toolchains(RELEASE);
    candidates.extend(system);
    candidates.extend(rustup_toolchains("nightly"));
    let is_second_choice = |compiler: &DeviceCompiler| !compiler.is_pinned();
    candidates.sort_by_key(|candidate| candidate.verdict.as_ref().is_ok_and(is_second_choice));
    candidates
}

/// rustup's toolchains whose name starts so.
fn rustup_toolchains(prefix: &str) -> Vec<Candidate> {
    let list = process::read(Command::new("rustup").args(["toolchain", "list"])).unwrap_or_default();
    let names = list.lines().filter_map(|line| line.split_whitespace().next()).filter(|name| name.starts_with(prefix));
    let candidate = |toolchain| {
        let which = process::read(Command::new("rustup").args(["which", "--toolchain", toolchain, "rustc"]));
        let verdict = which.and_then(|rustc| examine(Path::new(rustc.trim()), Some(toolchain)));
        Candidate { origin: format!("rustup's {toolchain}"), verdict }
    };
    names.map(candidate).collect()
}

/// Finds a device compiler, or installs one: Debian's if we may; where that is not the pinned release, rustup's.
///
/// Another release will do if the pinned one can't be had.
pub fn ensure() -> Result<DeviceCompiler> {
    let may_install = env::var_os("SAGE_DEVICE_RUSTC").is_none();
    let mut found = find();
    if found.is_err() && may_install && process::apt_is_usable() {
        report(process::apt_install(&["rustc-web", "rust-web-src"]));
        found = find();
    }
    let has_pinned = found.as_ref().is_ok_and(DeviceCompiler::is_pinned);
    if !has_pinned && may_install && !process::on_path("rustup").is_empty() {
        println!("setup: rustup toolchain install {RELEASE} --component rust-src");
        let arguments =
            ["toolchain", "install", RELEASE, "--profile", "minimal", "--no-self-update", "--component", "rust-src"];
        report(process::run(Command::new("rustup").args(arguments)));
        found = find();
    }
    found
}

/// Says what did not work, where there is something else to try.
fn report(result: Result<()>) {
    if let Err(error) = result {
        eprintln!("setup: {error:#}");
    }
}

impl DeviceCompiler {
    fn is_pinned(&self) -> bool {
        self.release == RELEASE
    }

    /// What to know about a compiler of another release than the kernels are tuned with.
    pub fn doubt(&self) -> Option<String> {
        let doubt =
            || format!("device compiler {} is not the pinned {RELEASE}: kernels may use other registers", self.release);
        (!self.is_pinned()).then(doubt)
    }

    /// Compiles a library package to one PTX module.
    ///
    /// `manifest` is its `Cargo.toml`, whose workspace must have the profile `device`.
    pub fn compile(&self, manifest: &Path, architecture: Architecture) -> Result<String> {
        self.emit("asm", manifest, architecture)
    }

    /// Compiles a library package to one module of LLVM's IR, otherwise as [`compile`](Self::compile) does.
    pub fn compile_to_ir(&self, manifest: &Path, architecture: Architecture) -> Result<String> {
        self.emit("llvm-ir", manifest, architecture)
    }

    fn emit(&self, form: &str, manifest: &Path, architecture: Architecture) -> Result<String> {
        let target_dir = project::device_target_dir().join(architecture.name());
        let mut command = self.command(manifest, architecture, &target_dir);
        // cargo keeps the products of each compiler and set of flags apart, and so do we: it won't compile again what it
        // has, though another compiler may have written since.
        let mut hasher = DefaultHasher::new();
        (format!("{command:?}"), &self.version).hash(&mut hasher);
        let file = target_dir.join(format!("{:016x}.{form}", hasher.finish()));
        process::run(command.arg(format!("--emit={form}={}", file.display())))?;
        fs::read_to_string(&file)
            .with_context(|| format!("no {}: delete {} and try again", file.display(), target_dir.display()))
    }

    /// The one command line that compiles for the device, but for where the PTX goes. Of a package with kernel families, it
    /// compiles those that exist for the architecture.
    fn command(&self, manifest: &Path, architecture: Architecture, target_dir: &Path) -> Command {
        // LLVM takes the PTX version from the processor.
        let processor = format!("-Ctarget-cpu={}", architecture.name());
        let mut command = Command::new(&self.cargo);
        command
            .current_dir(project::root())
            .args(["rustc", "--lib", "--crate-type=cdylib", "--profile=device", "-Zbuild-std=core"])
            .arg("-Zprofile-rustflags")
            .args(JUMP_THREADING.iter().flat_map(|setting| ["--config", setting]))
            .arg(format!("--target={TARGET}"))
            .arg("--manifest-path")
            .arg(manifest)
            .arg("--target-dir")
            .arg(target_dir)
            // Unstable flags, on whatever channel the device compiler is.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTC", &self.rustc)
            // These flags go to every crate, `core` included, and take precedence over a user's RUSTFLAGS.
            .env("CARGO_ENCODED_RUSTFLAGS", [UNROLL[0], UNROLL[1], &processor].join("\x1f"))
            .env("CARGO_TARGET_NVPTX64_NVIDIA_CUDA_LINKER", project::root().join("xtask/src/device_linker.sh"))
            .arg("--")
            .args(Family::ALL.iter().map(|family| format!("--check-cfg=cfg({})", family.name())))
            .args(architecture.families().map(|family| format!("--cfg={}", family.name())));
        // What belongs to the host's toolchain, which runs us.
        for variable in ["RUSTUP_TOOLCHAIN", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTDOC", "LD_LIBRARY_PATH"] {
            command.env_remove(variable);
        }
        command
    }
}

/// Whether a rustc can be the device compiler; if it can't, the error says why.
fn examine(rustc: &Path, toolchain: Option<&str>) -> Result<DeviceCompiler> {
    let version = read_version(rustc)?;
    let llvm_major: u32 = version.llvm.split('.').next().unwrap_or_default().parse().unwrap_or(0);
    let update = toolchain.map_or(String::new(), |name| format!(" (rustup update {name})"));
    ensure!(llvm_major >= MINIMUM_LLVM, "LLVM {} is older than {MINIMUM_LLVM}{update}", version.llvm);

    let sysroot = sysroot(rustc)?;
    if !sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file() {
        match toolchain {
            Some(name) => bail!("has no rust-src (rustup component add rust-src --toolchain {name})"),
            None => bail!("has no sources of `core` in {}", sysroot.join("lib/rustlib/src").display()),
        }
    }
    let cpus = process::read(Command::new(rustc).args(["--print=target-cpus", "--target", TARGET]))?;
    for architecture in Architecture::ALL {
        let known = cpus.lines().any(|line| line.split_whitespace().next() == Some(architecture.name()));
        ensure!(known, "its LLVM has no {}", architecture.name());
    }

    // cargo and `core` belong together; where the toolchain has no cargo of its own, ours has proved good enough.
    let own_cargo = sysroot.join("bin/cargo");
    let cargo = match read_version(&own_cargo) {
        Ok(own) if own.release == version.release => own_cargo,
        _ => project::cargo_path(),
    };
    let description = format!("{} (LLVM {})", version.release, version.llvm);
    Ok(DeviceCompiler { rustc: rustc.to_path_buf(), version: description, release: version.release, cargo })
}

struct Version {
    release: String,
    llvm: String,
}

/// What `rustc -vV` or `cargo -vV` says.
fn read_version(program: &Path) -> Result<Version> {
    let text = process::read(Command::new(program).arg("-vV"))?;
    let field =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_string();
    Ok(Version { release: field("release:"), llvm: field("LLVM version:") })
}

fn sysroot(rustc: &Path) -> Result<PathBuf> {
    Ok(process::read(Command::new(rustc).arg("--print=sysroot"))?.trim().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ptx;

    #[test]
    fn another_release_is_doubted() {
        let compiler = |release: &str| DeviceCompiler {
            rustc: PathBuf::new(),
            version: String::new(),
            release: release.into(),
            cargo: PathBuf::new(),
        };
        assert_eq!(compiler(RELEASE).doubt(), None);
        assert!(compiler("1.97.0-nightly").doubt().unwrap().contains("1.97.0-nightly is not the pinned"));
    }

    /// A barrier between two `if`s on the same condition is an invitation to thread the jumps through it.
    #[test]
    fn a_barrier_is_not_duplicated() {
        let manifest = project::root().join("xtask/tests/convergence/Cargo.toml");
        let source = fs::read_to_string(manifest.with_file_name("src/lib.rs")).unwrap();
        let barriers_in_source = source.matches("sync_threads();").count() as u32;
        assert!(barriers_in_source > 0);

        let compiler = find().unwrap();
        for architecture in [Architecture::Sm80, Architecture::Sm90a] {
            let module = ptx::Module::parse(&compiler.compile(&manifest, architecture).unwrap()).unwrap();
            let barriers: u32 = module.entries().map(|entry| ptx::count_block_barriers(&entry.text)).sum();
            assert_eq!(barriers, barriers_in_source, "{}", architecture.name());
        }
    }
}
