//! Where things lie in this checkout.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The checkout's root folder.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the checkout")
}

/// Where PTX modules and cubins go: a folder for each architecture. The host library embeds them from here, and takes a
/// relative `SAGE_PTX_DIR` from the checkout's root too.
pub fn ptx_dir() -> PathBuf {
    root().join(env::var_os("SAGE_PTX_DIR").unwrap_or_else(|| "target/ptx".into()))
}

/// Where the device compiler's build products go.
pub fn device_target_dir() -> PathBuf {
    root().join("target/device")
}

/// Where `setup` installs tools.
pub fn tools_dir() -> PathBuf {
    root().join(".tools")
}

/// The path as this checkout's user would type it.
pub fn display(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// The cargo that runs this program, at the checkout's root.
pub fn cargo() -> Command {
    let mut command = Command::new(cargo_path());
    command.current_dir(root());
    command
}

/// Path of the cargo that runs this program.
pub fn cargo_path() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from)
}
