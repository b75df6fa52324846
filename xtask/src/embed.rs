//! What the host library embeds of the compiled kernels: machine code, and PTX for newer GPUs and older drivers.
//!
//! A kernel's *images*, of all architectures, are one LZMA file: `<symbol>.lzma`. They are much alike, and so take two thirds
//! of what they would one by one. `<symbol>.images` says in which order they are in it, and how long each is. Machine code comes
//! first, and the newest: what is asked for most is found without unpacking the rest.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lzma_rust2::{LzmaOptions, LzmaWriter};
use sage_layout::architecture::Architecture;
use sage_layout::dispatch;
use sage_layout::kernel::Kernel;

use crate::build_ptx;

/// What the kernels in the library may take, and a program with the library in it, in bytes.
const LIMIT: u64 = 8 << 20;

/// As far back as a repetition is found: more than the images of any kernel are long.
const DICTIONARY: u32 = 4 << 20;

/// Packs the images of every kernel that a folder has, of all architectures that were built there, now or before. Returns how
/// many bytes they take.
pub fn pack(folder: &Path) -> Result<u64> {
    let kernels: Vec<&str> = Kernel::ALL.iter().map(|kernel| kernel.symbol()).collect();
    remove_others(folder, &kernels)?;
    let sizes = build_ptx::in_parallel(&kernels, |symbol| {
        pack_kernel(folder, symbol).with_context(|| format!("could not pack the images of {symbol}"))
    })?;
    Ok(sizes.iter().sum())
}

/// A kernel's image that is embedded.
struct Image {
    architecture: Architecture,
    extension: &'static str,
    file: PathBuf,
}

/// A kernel's images in a folder, in their order.
///
/// An architecture without attention kernels has nothing that the library would load; and PTX is embedded once, with the
/// architecture that it is named after.
fn images(folder: &Path, symbol: &str) -> Vec<Image> {
    let newest_first = || Architecture::ALL.into_iter().rev().filter(|one| dispatch::is_used(*one));
    let image = |architecture: Architecture, extension| {
        let file = folder.join(architecture.name()).join(format!("{symbol}.{extension}"));
        Image { architecture, extension, file }
    };
    let machine_code = newest_first().map(|architecture| image(architecture, "cubin"));
    let ptx = newest_first().filter(|one| one.ptx() == *one).map(|architecture| image(architecture, "ptx"));
    machine_code.chain(ptx).filter(|image| image.file.is_file()).collect()
}

/// Packs a kernel's images, if they are not packed already, and returns how many bytes they take.
fn pack_kernel(folder: &Path, symbol: &str) -> Result<u64> {
    let [index_file, packed_file] = ["images", "lzma"].map(|extension| folder.join(format!("{symbol}.{extension}")));
    let images = images(folder, symbol);
    if images.is_empty() {
        return Ok(0);
    }
    let mut index = String::new();
    let mut bytes = Vec::new();
    for image in &images {
        let content = fs::read(&image.file)?;
        index += &format!("{} {} {}\n", image.architecture.name(), image.extension, content.len());
        bytes.extend(content);
    }
    let is_newer = |file: &Path| {
        Ok::<_, anyhow::Error>(fs::metadata(&packed_file)?.modified()? >= fs::metadata(file)?.modified()?)
    };
    let is_current = || {
        let newer = images.iter().all(|image| is_newer(&image.file).unwrap_or(false));
        newer && fs::read_to_string(&index_file).is_ok_and(|old| old == index)
    };
    if !is_current() {
        fs::write(&packed_file, compress(&bytes)?)?;
        // last: a run that is cut off leaves none that fits, and the next one starts again
        fs::write(&index_file, index)?;
    }
    Ok(fs::metadata(&packed_file)?.len())
}

fn compress(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut options = LzmaOptions::with_preset(9);
    options.dict_size = DICTIONARY;
    let mut writer = LzmaWriter::new_use_header(Vec::new(), &options, Some(bytes.len() as u64))?;
    writer.write_all(bytes)?;
    Ok(writer.finish()?)
}

/// Removes what was packed of kernels that are no more.
fn remove_others(folder: &Path, kernels: &[&str]) -> Result<()> {
    for file in fs::read_dir(folder).with_context(|| format!("could not read {}", folder.display()))? {
        let path = file?.path();
        let is_ours = path.extension().is_some_and(|extension| extension == "lzma" || extension == "images");
        let is_current = path.file_stem().and_then(|stem| stem.to_str()).is_some_and(|stem| kernels.contains(&stem));
        if is_ours && !is_current {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Says how large something is that has kernels in it, and refuses it above the limit.
pub fn check_size(what: &str, bytes: u64) -> Result<()> {
    let mebibytes = |bytes| bytes as f64 / f64::from(1 << 20);
    println!("{what}: {:.2} MiB, of {} allowed", mebibytes(bytes), mebibytes(LIMIT));
    ensure!(bytes < LIMIT, "{what} takes {bytes} bytes; it must stay below {LIMIT}: make fewer or smaller kernels");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYMBOL: &str = "sage_quantize_d64_f16";

    /// A folder with images of all architectures, which are much alike.
    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("sage-embed-{name}-{}", std::process::id()));
        for architecture in Architecture::ALL {
            fs::create_dir_all(folder.join(architecture.name())).unwrap();
            for extension in ["ptx", "cubin"] {
                let text =
                    format!("{} {extension}\n", architecture.name()) + &"fma.rn.f32 %r1, %r2, %r3, %r1;\n".repeat(1000);
                fs::write(folder.join(architecture.name()).join(SYMBOL).with_extension(extension), text).unwrap();
            }
        }
        folder
    }

    #[test]
    fn machine_code_comes_first_and_ptx_once() {
        let folder = folder("order");
        let images = images(&folder, SYMBOL);
        let names: Vec<_> = images.iter().map(|image| (image.architecture.name(), image.extension)).collect();
        fs::remove_dir_all(folder).unwrap();
        let machine_code =
            ["sm_120", "sm_100", "sm_90a", "sm_89", "sm_86", "sm_80", "sm_75"].map(|name| (name, "cubin"));
        let ptx = ["sm_90a", "sm_89", "sm_80", "sm_75"].map(|name| (name, "ptx"));
        assert_eq!(names, [machine_code.as_slice(), ptx.as_slice()].concat());
    }

    #[test]
    fn what_is_packed_comes_back_smaller() {
        let folder = folder("packed");
        fs::write(folder.join("gone.lzma"), "of a kernel that is no more").unwrap();
        let size = pack(&folder).unwrap();
        assert!(!folder.join("gone.lzma").exists());
        let packed = fs::read(folder.join(SYMBOL).with_extension("lzma")).unwrap();
        assert_eq!(packed.len() as u64, size);
        let mut reader = lzma_rust2::LzmaReader::new_mem_limit(&packed[..], u32::MAX, None).unwrap();
        let text = std::io::read_to_string(&mut reader).unwrap();
        assert!(packed.len() < text.len() / 50);
        let index = fs::read_to_string(folder.join(SYMBOL).with_extension("images")).unwrap();
        let mut rest = text.as_str();
        for line in index.lines() {
            let (name, length) = line.rsplit_once(' ').unwrap();
            let (image, after) = rest.split_at(length.parse().unwrap());
            assert!(image.starts_with(&format!("{name}\n")), "{name}");
            rest = after;
        }
        assert_eq!((index.lines().count(), rest), (11, ""));

        // a change of one image is taken in
        let file = folder.join("sm_80").join(SYMBOL).with_extension("cubin");
        fs::write(&file, "new").unwrap();
        fs::File::options().write(true).open(&file).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
        pack(&folder).unwrap();
        let index = fs::read_to_string(folder.join(SYMBOL).with_extension("images")).unwrap();
        assert!(index.contains("sm_80 cubin 3\n"), "{index}");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn too_much_is_refused() {
        check_size("kernels", LIMIT - 1).unwrap();
        let error = check_size("kernels", LIMIT).unwrap_err().to_string();
        assert!(error.contains("must stay below 8388608"), "{error}");
    }
}
