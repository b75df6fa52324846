//! ptxas and its companions, from NVIDIA's Python wheels: a few files, where the CUDA toolkit is gigabytes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, ensure};

use crate::{process, project};

/// A tool, and the Python package that it comes in.
pub struct Tool {
    /// File name of the program.
    pub program: &'static str,
    package: &'static str,
    version: &'static str,
}

/// Assembler. What `check-ptx` reports depends on its version; CUDA 13.0's cubins need driver 580 or newer.
pub const PTXAS: Tool = Tool { program: "ptxas", package: "nvidia-cuda-nvcc", version: "13.0.88" };
/// Reads cubins.
pub const CUOBJDUMP: Tool = Tool { program: "cuobjdump", package: "nvidia-cuda-cuobjdump", version: "13.5.37" };
/// Disassembler.
pub const NVDISASM: Tool = Tool { program: "nvdisasm", package: "nvidia-cuda-nvdisasm", version: "13.5.37" };
/// All of them.
pub const ALL: [&Tool; 3] = [&PTXAS, &CUOBJDUMP, &NVDISASM];

/// Where the wheels put their programs.
const WHEEL_PROGRAMS: &str = "nvidia/cu13/bin";

impl Tool {
    /// Where the tool is: in `SAGE_CUDA_TOOLS` if that is set, else where [`install`] puts it.
    pub fn find(&self) -> Result<PathBuf> {
        let folder = match env::var_os("SAGE_CUDA_TOOLS") {
            Some(folder) => PathBuf::from(folder),
            None => {
                ensure!(self.wheel_is_installed(), "no {} {}: run `cargo xtask setup`", self.program, self.version);
                install_dir().join(WHEEL_PROGRAMS)
            }
        };
        let program = folder.join(self.program);
        ensure!(program.is_file(), "no {}: run `cargo xtask setup`, or correct SAGE_CUDA_TOOLS", program.display());
        Ok(program)
    }

    /// The version that the tool says it is, such as `13.0.88`.
    pub fn version(&self) -> Result<String> {
        let text = process::read(Command::new(self.find()?).arg("--version"))?;
        let version = text.split_whitespace().find_map(|word| word.strip_prefix('V'));
        Ok(version.with_context(|| format!("{} doesn't say its version", self.program))?.to_string())
    }

    /// Whether the tool says that it is the version that [`install`] would install.
    pub fn is_pinned(&self) -> bool {
        self.version().is_ok_and(|version| version == self.version)
    }

    fn wheel_is_installed(&self) -> bool {
        let metadata = format!("{}-{}.dist-info", self.package.replace('-', "_"), self.version);
        install_dir().join(metadata).is_dir()
    }
}

/// libNVVM's Python package and version.
const LIBNVVM: (&str, &str) = ("nvidia-nvvm", "13.5.37");

/// libNVVM, if [`install_libnvvm`] has installed it.
pub fn libnvvm() -> Option<PathBuf> {
    let file = libnvvm_dir().join("nvidia/cu13/lib/libnvvm.so.4");
    file.is_file().then_some(file)
}

/// Installs all tools with pip, into a folder of this checkout.
pub fn install() -> Result<()> {
    pip_install(&ALL.map(|tool| format!("{}=={}", tool.package, tool.version)), &install_dir())
}

/// Installs libNVVM with pip, into a folder of this checkout.
pub fn install_libnvvm() -> Result<()> {
    let (package, version) = LIBNVVM;
    pip_install(&[format!("{package}=={version}")], &libnvvm_dir())
}

fn pip_install(requirements: &[String], folder: &Path) -> Result<()> {
    let python = python_with_pip()?;
    // Installed beside and then renamed: what is interrupted is not taken for complete.
    let partial = folder.with_extension("partial");
    println!("setup: pip install {} (into {})", requirements.join(" "), project::display(folder));
    remove_dir(&partial)?;
    process::run(
        python
            .command()
            .args(["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--target"])
            .arg(&partial)
            .args(requirements),
    )?;
    remove_dir(folder)?;
    fs::rename(&partial, folder)?;
    Ok(())
}

struct Python(PathBuf);

impl Python {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.0);
        // Quiet about being root: nothing is installed outside this checkout.
        command.env("PIP_ROOT_USER_ACTION", "ignore").env("PIP_DISABLE_PIP_VERSION_CHECK", "1");
        command
    }
}

fn python_with_pip() -> Result<Python> {
    let find = || {
        let pythons = process::on_path("python3").into_iter().map(Python);
        pythons.into_iter().find(|python| process::read(python.command().args(["-m", "pip", "--version"])).is_ok())
    };
    if find().is_none() && process::apt_is_usable() {
        process::apt_install(&["python3-pip", "ca-certificates"])?;
    }
    find().context(
        "no python3 with pip, which the CUDA tools are installed with: install it (Debian, Ubuntu: \
         apt-get install python3-pip), or set SAGE_CUDA_TOOLS to a folder with ptxas, cuobjdump and nvdisasm",
    )
}

fn install_dir() -> PathBuf {
    project::tools_dir().join("cuda")
}

fn libnvvm_dir() -> PathBuf {
    project::tools_dir().join("nvvm")
}

fn remove_dir(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("could not remove {}", folder.display()))?;
    }
    Ok(())
}
