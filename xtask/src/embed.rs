//! What the host library embeds of the compiled kernels: machine code, and PTX for newer GPUs and older drivers.
//!
//! The *images* of a family with a head dimension, of all element types and architectures, are one LZMA file:
//! `<family>_d<head dimension>.lzma`. They are much alike, and so take half of what they would one by one. The file's name with
//! `.images` says in which order they are in it, and how long each is. Machine code comes first, and the newest: what is asked
//! for most is found without unpacking the rest.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lzma_rust2::{LzmaOptions, LzmaWriter};
use sage_layout::architecture::Architecture;
use sage_layout::dispatch;
use sage_layout::kernel::Kernel;

use crate::{build_ptx, ptx};

/// What the kernels in the library may take, and a program with the library in it, in bytes.
const LIMIT: u64 = 8 << 20;

/// As far back as a repetition is found: more than the images of any kernel are long.
const DICTIONARY: u32 = 4 << 20;

/// Packs the images of all kernels that a folder has, of all architectures that were built there, now or before. Returns how many
/// bytes they take.
pub fn pack(folder: &Path) -> Result<u64> {
    let mut archives: Vec<(&str, Vec<Kernel>)> = Vec::new();
    for kernel in Kernel::ALL.iter().copied() {
        let name = kernel.archive();
        match archives.iter_mut().find(|(other, _)| *other == name) {
            Some((_, kernels)) => kernels.push(kernel),
            None => archives.push((name, vec![kernel])),
        }
    }
    remove_others(folder, &archives)?;
    let sizes = build_ptx::in_parallel(&archives, |(name, kernels)| {
        pack_archive(folder, name, kernels).with_context(|| format!("could not pack {name}"))
    })?;
    Ok(sizes.iter().sum())
}

/// A kernel's image that is embedded.
struct Image {
    architecture: Architecture,
    kernel: Kernel,
    extension: &'static str,
    file: PathBuf,
}

/// The kernels' images in a folder, in their order.
///
/// An architecture without attention kernels has nothing that the library would load; and PTX is embedded once, with the
/// architecture that it is named after.
fn images(folder: &Path, kernels: &[Kernel]) -> Vec<Image> {
    let newest_first = || Architecture::ALL.into_iter().rev().filter(|one| dispatch::is_used(*one));
    let of_all = |architecture: Architecture, extension| {
        kernels.iter().map(move |&kernel| {
            let file = folder.join(architecture.name()).join(kernel.symbol()).with_extension(extension);
            Image { architecture, kernel, extension, file }
        })
    };
    let machine_code = newest_first().flat_map(|architecture| of_all(architecture, "cubin"));
    let ptx = newest_first().filter(|one| one.ptx() == *one).flat_map(|architecture| of_all(architecture, "ptx"));
    machine_code.chain(ptx).filter(|image| image.file.is_file()).collect()
}

/// Packs images, if they are not packed already, and returns how many bytes they take.
fn pack_archive(folder: &Path, name: &str, kernels: &[Kernel]) -> Result<u64> {
    let [index_file, packed_file] = ["images", "lzma"].map(|extension| folder.join(name).with_extension(extension));
    let images = images(folder, kernels);
    if images.is_empty() {
        return Ok(0);
    }
    let mut index = String::new();
    let mut bytes = Vec::new();
    for Image { architecture, kernel, extension, file } in &images {
        let content = match *extension {
            "ptx" => ptx::compact(&fs::read_to_string(file)?).into_bytes(),
            _ => fs::read(file)?,
        };
        index += &format!("{} {} {extension} {}\n", architecture.name(), kernel.symbol(), content.len());
        bytes.extend(content);
    }
    let changed = |file: &Path| fs::metadata(file).and_then(|metadata| metadata.modified());
    let packed = changed(&packed_file).ok();
    let is_current = packed.is_some_and(|packed| {
        images.iter().all(|image| changed(&image.file).is_ok_and(|changed| changed <= packed))
            && fs::read_to_string(&index_file).is_ok_and(|old| old == index)
    });
    if !is_current {
        fs::write(&packed_file, compress(&bytes)?)?;
        // last: a run that is cut off leaves none that fits, and the next one starts again
        fs::write(&index_file, index)?;
    }
    Ok(fs::metadata(&packed_file)?.len())
}

fn compress(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut options = LzmaOptions::with_preset(9);
    options.dict_size = DICTIONARY;
    // an instruction of machine code has 16 bytes, and what it begins with tells little of the rest
    (options.lc, options.pb) = (0, 4);
    let mut writer = LzmaWriter::new_use_header(Vec::new(), &options, Some(bytes.len() as u64))?;
    writer.write_all(bytes)?;
    Ok(writer.finish()?)
}

/// Removes archives of kernels that are no more.
fn remove_others(folder: &Path, archives: &[(&str, Vec<Kernel>)]) -> Result<()> {
    for file in fs::read_dir(folder).with_context(|| format!("could not read {}", folder.display()))? {
        let path = file?.path();
        let is_ours = path.extension().is_some_and(|extension| extension == "lzma" || extension == "images");
        let name = path.file_stem().and_then(|stem| stem.to_str());
        if is_ours && !archives.iter().any(|(current, _)| name == Some(current)) {
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

    const KERNELS: [Kernel; 2] = [Kernel::QuantizeD64F16, Kernel::QuantizeD64Bf16];

    /// A folder with images of all architectures, which are much alike.
    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("sage-embed-{name}-{}", std::process::id()));
        for architecture in Architecture::ALL {
            fs::create_dir_all(folder.join(architecture.name())).unwrap();
            for extension in ["ptx", "cubin"] {
                let text =
                    format!("{} {extension}\n", architecture.name()) + &"fma.rn.f32 %r1, %r2, %r3, %r1;\n".repeat(1000);
                for kernel in KERNELS {
                    let file = folder.join(architecture.name()).join(kernel.symbol()).with_extension(extension);
                    fs::write(file, &text).unwrap();
                }
            }
        }
        folder
    }

    #[test]
    fn machine_code_comes_first_and_ptx_once() {
        let folder = folder("order");
        let images = images(&folder, &KERNELS);
        let is_first = |image: &&Image| image.kernel == KERNELS[0];
        let names = images.iter().filter(is_first).map(|image| (image.architecture.name(), image.extension));
        let names: Vec<_> = names.collect();
        fs::remove_dir_all(folder).unwrap();
        assert_eq!(images.len(), 2 * names.len());
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
        let packed = fs::read(folder.join("Quantize_d64.lzma")).unwrap();
        assert_eq!(packed.len() as u64, size);
        let mut reader = lzma_rust2::LzmaReader::new_mem_limit(&packed[..], u32::MAX, None).unwrap();
        let text = std::io::read_to_string(&mut reader).unwrap();
        assert!(packed.len() < text.len() / 50);
        let index = fs::read_to_string(folder.join("Quantize_d64.images")).unwrap();
        let mut rest = text.as_str();
        for line in index.lines() {
            let [architecture, _, form, length] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let (image, after) = rest.split_at(length.parse().unwrap());
            assert!(image.starts_with(&format!("{architecture} {form}\n")), "{line}");
            rest = after;
        }
        assert_eq!((index.lines().count(), rest), (22, ""));

        // a change of one image is taken in
        let file = folder.join("sm_80").join(KERNELS[0].symbol()).with_extension("cubin");
        fs::write(&file, "new").unwrap();
        fs::File::options().write(true).open(&file).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
        pack(&folder).unwrap();
        let index = fs::read_to_string(folder.join("Quantize_d64.images")).unwrap();
        assert!(index.contains("sm_80 sage_quantize_d64_f16 cubin 3\n"), "{index}");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn too_much_is_refused() {
        check_size("kernels", LIMIT - 1).unwrap();
        let error = check_size("kernels", LIMIT).unwrap_err().to_string();
        assert!(error.contains("must stay below 8388608"), "{error}");
    }
}
