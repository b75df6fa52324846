//! What the host library embeds of the compiled kernels: machine code, and PTX for newer GPUs and older drivers.
//!
//! The *images* of one form, machine code or PTX, of a family with a head dimension, of all element types and architectures, are one
//! LZMA file: `<family>_d<head dimension>_<form>.lzma`. They are much alike, and so take half of what they would one by one. The file's
//! name with `.images` says in which order they are in it, and how long each is. The newest comes first: what is asked for most is found
//! without unpacking the rest.

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

/// What an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// ptxas's machine code.
    Cubin,
    Ptx,
}

impl Form {
    const ALL: [Self; 2] = [Self::Cubin, Self::Ptx];

    /// What files of such an image end in, and names of its archives.
    fn extension(self) -> &'static str {
        match self {
            Self::Cubin => "cubin",
            Self::Ptx => "ptx",
        }
    }

    /// Whether an architecture's are embedded.
    ///
    /// An architecture without attention kernels has nothing that the library would load; and PTX is embedded once, with the architecture
    /// that it is named after.
    fn is_embedded(self, architecture: Architecture) -> bool {
        dispatch::is_used(architecture) && (self == Self::Cubin || architecture.ptx() == architecture)
    }

    fn compress(self, bytes: &[u8]) -> Result<Vec<u8>> {
        let mut options = LzmaOptions::with_preset(9);
        options.dict_size = DICTIONARY;
        (options.lc, options.pb) = match self {
            // an instruction has 16 bytes, and what it begins with tells little of the rest
            Self::Cubin => (0, 4),
            // of a text, a letter tells of the next, and its place nothing
            Self::Ptx => (3, 0),
        };
        let mut writer = LzmaWriter::new_use_header(Vec::new(), &options, Some(bytes.len() as u64))?;
        writer.write_all(bytes)?;
        Ok(writer.finish()?)
    }
}

/// Images that are packed together.
struct Archive {
    name: String,
    form: Form,
    kernels: Vec<Kernel>,
}

/// Packs the images of all kernels that a folder has, of all architectures that were built there, now or before. Returns how many
/// bytes they take.
pub fn pack(folder: &Path) -> Result<u64> {
    let mut archives: Vec<Archive> = Vec::new();
    for (kernel, form) in Kernel::ALL.iter().flat_map(|&kernel| Form::ALL.map(|form| (kernel, form))) {
        let name = format!("{}_{}", kernel.archive(), form.extension());
        match archives.iter_mut().find(|archive| archive.name == name) {
            Some(archive) => archive.kernels.push(kernel),
            None => archives.push(Archive { name, form, kernels: vec![kernel] }),
        }
    }
    remove_others(folder, &archives)?;
    let sizes = build_ptx::in_parallel(&archives, |archive| {
        archive.pack(folder).with_context(|| format!("could not pack {}", archive.name))
    })?;
    Ok(sizes.iter().sum())
}

/// A kernel's image that is embedded.
struct Image {
    architecture: Architecture,
    kernel: Kernel,
    file: PathBuf,
}

impl Archive {
    /// Its images in a folder, in their order.
    fn images(&self, folder: &Path) -> Vec<Image> {
        let newest_first = Architecture::ALL.into_iter().rev().filter(|one| self.form.is_embedded(*one));
        let images = newest_first.flat_map(|architecture| {
            self.kernels.iter().map(move |&kernel| {
                let file = folder.join(architecture.name()).join(kernel.symbol());
                Image { architecture, kernel, file: file.with_extension(self.form.extension()) }
            })
        });
        images.filter(|image| image.file.is_file()).collect()
    }

    /// Packs its images, if they are not packed already, and returns how many bytes they take.
    fn pack(&self, folder: &Path) -> Result<u64> {
        let [index_file, packed_file] =
            ["images", "lzma"].map(|extension| folder.join(&self.name).with_extension(extension));
        let images = self.images(folder);
        if images.is_empty() {
            return Ok(0);
        }
        let mut index = String::new();
        let mut bytes = Vec::new();
        for Image { architecture, kernel, file } in &images {
            let content = match self.form {
                Form::Cubin => fs::read(file)?,
                Form::Ptx => ptx::compact(&fs::read_to_string(file)?).into_bytes(),
            };
            index += &format!("{} {} {}\n", architecture.name(), kernel.symbol(), content.len());
            bytes.extend(content);
        }
        let changed = |file: &Path| fs::metadata(file).and_then(|metadata| metadata.modified());
        let packed = changed(&packed_file).ok();
        let is_current = packed.is_some_and(|packed| {
            images.iter().all(|image| changed(&image.file).is_ok_and(|changed| changed <= packed))
                && fs::read_to_string(&index_file).is_ok_and(|old| old == index)
        });
        if !is_current {
            fs::write(&packed_file, self.form.compress(&bytes)?)?;
            // last: a run that is cut off leaves none that fits, and the next one starts again
            fs::write(&index_file, index)?;
        }
        Ok(fs::metadata(&packed_file)?.len())
    }
}

/// Removes archives of kernels that are no more.
fn remove_others(folder: &Path, archives: &[Archive]) -> Result<()> {
    for file in fs::read_dir(folder).with_context(|| format!("could not read {}", folder.display()))? {
        let path = file?.path();
        let is_ours = path.extension().is_some_and(|extension| extension == "lzma" || extension == "images");
        let name = path.file_stem().and_then(|stem| stem.to_str());
        if is_ours && !archives.iter().any(|archive| name == Some(&archive.name)) {
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
    fn the_newest_comes_first_and_ptx_once() {
        let folder = folder("order");
        let names = |form| {
            let archive = Archive { name: String::new(), form, kernels: KERNELS.to_vec() };
            let images = archive.images(&folder);
            let is_first = |image: &&Image| image.kernel == KERNELS[0];
            let names: Vec<_> = images.iter().filter(is_first).map(|image| image.architecture.name()).collect();
            assert_eq!(images.len(), 2 * names.len());
            names
        };
        let [machine_code, ptx] = Form::ALL.map(names);
        fs::remove_dir_all(folder).unwrap();
        assert_eq!(machine_code, ["sm_120", "sm_100", "sm_90a", "sm_89", "sm_86", "sm_80", "sm_75"]);
        assert_eq!(ptx, ["sm_90a", "sm_89", "sm_80", "sm_75"]);
    }

    #[test]
    fn what_is_packed_comes_back_smaller() {
        let folder = folder("packed");
        fs::write(folder.join("gone.lzma"), "of a kernel that is no more").unwrap();
        let size = pack(&folder).unwrap();
        assert!(!folder.join("gone.lzma").exists());
        let mut packed_bytes = 0;
        for (form, count) in [("cubin", 14), ("ptx", 8)] {
            let file = folder.join(format!("Quantize_d64_{form}"));
            let packed = fs::read(file.with_extension("lzma")).unwrap();
            packed_bytes += packed.len() as u64;
            let mut reader = lzma_rust2::LzmaReader::new_mem_limit(&packed[..], u32::MAX, None).unwrap();
            let text = std::io::read_to_string(&mut reader).unwrap();
            assert!(packed.len() < text.len() / 50);
            let index = fs::read_to_string(file.with_extension("images")).unwrap();
            let mut rest = text.as_str();
            for line in index.lines() {
                let [architecture, _, length] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
                let (image, after) = rest.split_at(length.parse().unwrap());
                assert!(image.starts_with(&format!("{architecture} {form}\n")), "{line}");
                rest = after;
            }
            assert_eq!((index.lines().count(), rest), (count, ""));
        }
        assert_eq!(packed_bytes, size);

        // a change of one image is taken in
        let file = folder.join("sm_80").join(KERNELS[0].symbol()).with_extension("cubin");
        fs::write(&file, "new").unwrap();
        fs::File::options().write(true).open(&file).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
        pack(&folder).unwrap();
        let index = fs::read_to_string(folder.join("Quantize_d64_cubin.images")).unwrap();
        assert!(index.contains("sm_80 sage_quantize_d64_f16 3\n"), "{index}");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn too_much_is_refused() {
        check_size("kernels", LIMIT - 1).unwrap();
        let error = check_size("kernels", LIMIT).unwrap_err().to_string();
        assert!(error.contains("must stay below 8388608"), "{error}");
    }
}
