//! Embeds the compiled kernels: writes the table that `src/gpu/module.rs` includes.
//!
//! `cargo xtask build-ptx` leaves what to embed in `target/ptx`: `<archive>_<form>.lzma`, images of kernels one after the other, and
//! `<archive>_<form>.images`, a line for each: architecture, symbol, bytes. `SAGE_PTX_DIR` names another folder, from the
//! workspace's root. What is not there is left out, and the library says so when it is asked for.

use sage_layout::architecture::Architecture;
use sage_layout::kernel::Kernel;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=SAGE_PTX_DIR");
    let folder = kernel_folder();
    println!("cargo:rerun-if-changed={}", folder.display());

    let (mut archives, mut images) = (String::new(), String::new());
    let names: BTreeSet<&str> = Kernel::ALL.iter().map(|kernel| kernel.archive()).collect();
    for (name, (form, extension)) in names.into_iter().flat_map(|name| FORMS.map(|form| (name, form))) {
        let name = &format!("{name}_{extension}");
        let [index, archive] = ["images", "lzma"].map(|extension| folder.join(name).with_extension(extension));
        let Ok(index) = fs::read_to_string(index) else { continue };
        let place = name.to_uppercase();
        writeln!(archives, "    static {place}: &[u8] = include_bytes!({archive:?});").expect(STRING);
        let mut start = 0;
        for line in index.lines() {
            let Some((architecture, symbol, bytes)) = image(line) else { panic!("{name}.images: {line}") };
            // an earlier build may have left kernels that are no more
            if let Some(kernel) = Kernel::ALL.iter().find(|kernel| kernel.symbol() == symbol) {
                writeln!(
                    images,
                    "        Image {{ architecture: Architecture::{architecture:?}, kernel: Kernel::{kernel:?}, form: Form::{form}, \
                     archive: {place}, start: {start}, bytes: {bytes} }},"
                )
                .expect(STRING);
            }
            start += bytes;
        }
    }
    let table = format!("{{\n{archives}    &[\n{images}    ]\n}}");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    fs::write(out.join("images.rs"), table).expect("OUT_DIR can be written");
}

/// Forms of images in `src/gpu/module.rs`, and what they are called here.
const FORMS: [(&str, &str); 2] = [("Cubin", "cubin"), ("Ptx", "ptx")];

const STRING: &str = "a String takes everything";

/// What a line of an index says.
fn image(line: &str) -> Option<(Architecture, &str, usize)> {
    let [architecture, symbol, bytes] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
    let architecture = Architecture::ALL.into_iter().find(|one| one.name() == architecture)?;
    Some((architecture, symbol, bytes.parse().ok()?))
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
