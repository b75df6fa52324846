//! Embeds the compiled kernels: writes the table that `src/gpu/module.rs` includes.
//!
//! `cargo xtask build-ptx` leaves what to embed in `target/ptx`: `<architecture>/<symbol>.ptx.lzma` and `.cubin.lzma`.
//! `SAGE_PTX_DIR` names another folder, from the workspace's root. What is not there is left out, and the library says so when it is asked for.

use sage_layout::architecture::Architecture;
use sage_layout::kernel::Kernel;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=SAGE_PTX_DIR");
    let folder = kernel_folder();
    println!("cargo:rerun-if-changed={}", folder.display());

    let mut table = String::from("&[\n");
    for architecture in Architecture::ALL {
        for kernel in Kernel::of(architecture) {
            for (form, extension) in [("Ptx", "ptx.lzma"), ("Cubin", "cubin.lzma")] {
                let file = folder.join(architecture.name()).join(kernel.symbol()).with_extension(extension);
                if file.is_file() {
                    writeln!(
                        table,
                        "    Image {{ architecture: Architecture::{architecture:?}, kernel: Kernel::{kernel:?}, \
                         form: Form::{form}, compressed: include_bytes!({file:?}) }},"
                    )
                    .expect("a String takes everything");
                }
            }
        }
    }
    table.push(']');
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    fs::write(out.join("images.rs"), table).expect("OUT_DIR can be written");
}

/// Where the kernels are. The default folder is made if need be, because cargo takes a missing one for changed and would
/// build everything anew each time.
fn kernel_folder() -> PathBuf {
    let host = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let workspace = host.parent().unwrap_or(Path::new("/"));
    if let Some(folder) = env::var_os("SAGE_PTX_DIR") {
        let folder = workspace.join(folder);
        assert!(folder.is_dir(), "SAGE_PTX_DIR is {}; it must be a folder, as build-ptx makes it", folder.display());
        return folder;
    }
    let folder = workspace.join("target").join("ptx");
    if workspace.join("kernels").is_dir() {
        // A folder that can't be made costs a rebuild, nothing else.
        let _ = fs::create_dir_all(&folder);
    }
    folder
}
