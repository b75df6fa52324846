//! What the host library embeds of the compiled kernels: machine code, and PTX for newer GPUs and older drivers, compressed.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lzma_rust2::{LzmaOptions, LzmaWriter};
use sage_layout::architecture::Architecture;
use sage_layout::dispatch;

/// What the kernels in the library may take, and a program with the library in it, in bytes.
const LIMIT: u64 = 8 << 20;

/// As far back as a repetition is found: more than any kernel is long.
const DICTIONARY: u32 = 4 << 20;

/// The files of a kernel that are embedded, of those that ptxas read and wrote.
///
/// An architecture without attention kernels has nothing that the library would load; and PTX is embedded once, with the
/// architecture that it is named after.
pub fn embedded(architecture: Architecture, ptx: &Path, cubin: &Path) -> Vec<PathBuf> {
    if !dispatch::is_used(architecture) {
        return Vec::new();
    }
    let ptx = (architecture.ptx() == architecture).then(|| ptx.to_path_buf());
    ptx.into_iter().chain([cubin.to_path_buf()]).collect()
}

/// Where a file's compressed form lies.
pub fn compressed(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".lzma");
    name.into()
}

/// Writes a file's compressed form beside it.
pub fn compress(file: &Path) -> Result<()> {
    let bytes = fs::read(file).with_context(|| format!("could not read {}", file.display()))?;
    let mut options = LzmaOptions::with_preset(9);
    options.dict_size = DICTIONARY;
    let mut writer = LzmaWriter::new_use_header(Vec::new(), &options, Some(bytes.len() as u64))?;
    writer.write_all(&bytes)?;
    Ok(fs::write(compressed(file), writer.finish()?)?)
}

/// Says how large something is that has kernels in it, and refuses it above the limit.
pub fn check_size(what: &str, bytes: u64) -> Result<()> {
    let mebibytes = |bytes| bytes as f64 / f64::from(1 << 20);
    println!("{what}: {:.2} MiB, of {} allowed", mebibytes(bytes), mebibytes(LIMIT));
    ensure!(bytes < LIMIT, "{what} takes {bytes} bytes; it must stay below {LIMIT}: make fewer or smaller kernels");
    Ok(())
}

/// Bytes of all compressed files in a folder.
pub fn compressed_bytes(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for file in fs::read_dir(folder).with_context(|| format!("could not read {}", folder.display()))? {
        let file = file?;
        if file.path().extension().is_some_and(|extension| extension == "lzma") {
            bytes += file.metadata()?.len();
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ptx_is_embedded_once() {
        let files = |architecture| {
            let files = embedded(architecture, Path::new("k.ptx"), Path::new("k.cubin"));
            files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(files(Architecture::Sm90a), ["k.ptx", "k.cubin"]);
        for architecture in Architecture::ALL {
            let has_ptx = files(architecture).contains(&"k.ptx".to_string());
            assert_eq!(has_ptx, dispatch::is_used(architecture) && architecture.ptx() == architecture);
        }
    }

    #[test]
    fn compressed_files_come_back_smaller() {
        let folder = std::env::temp_dir().join(format!("sage-embed-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("kernel.ptx");
        let text = "fma.rn.f32 %r1, %r2, %r3, %r1;\n".repeat(1000);
        fs::write(&file, &text).unwrap();
        compress(&file).unwrap();
        let small = fs::read(compressed(&file)).unwrap();
        assert_eq!(compressed_bytes(&folder).unwrap(), small.len() as u64);
        assert!(small.len() < text.len() / 10);
        let mut reader = lzma_rust2::LzmaReader::new_mem_limit(&small[..], u32::MAX, None).unwrap();
        assert_eq!(std::io::read_to_string(&mut reader).unwrap(), text);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn too_much_is_refused() {
        check_size("kernels", LIMIT - 1).unwrap();
        let error = check_size("kernels", LIMIT).unwrap_err().to_string();
        assert!(error.contains("must stay below 8388608"), "{error}");
    }
}
