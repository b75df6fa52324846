//! `cargo xtask build-ptx`: from Rust to one PTX module and one cubin a kernel.
//!
//! `OUT/<architecture>/<symbol>.ptx`, `.cubin`, and `.txt`, which is what ptxas said; and `OUT/<archive>.lzma`, what the host
//! library embeds (`embed.rs`). Files whose content stays are not touched, so the library is rebuilt only when a kernel changes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::{fs, thread};

use anyhow::{Context, Result, bail, ensure};
use sage_layout::architecture::Architecture;
use sage_layout::kernel::Kernel;

use crate::{cuda_tools, device_compiler, embed, gpu, nvvm, process, project, ptx, ptxas};

/// Arguments of the verb.
#[derive(Default, clap::Args)]
#[group(skip)]
pub struct Arguments {
    #[command(flatten)]
    scope: Scope,
    /// Write the machine code as text too, to KERNEL.sass, as check-ptx does
    #[arg(long)]
    sass: bool,
}

/// What `build-ptx` and `check-ptx` build, and where.
#[derive(clap::Args)]
pub struct Scope {
    /// GPU architectures, separated by commas: names such as sm_90a, `all`, or `native` for this machine's GPU
    #[arg(long, default_value = "all", value_delimiter = ',')]
    pub arch: Vec<String>,
    /// Folder for the kernels [default: SAGE_PTX_DIR or target/ptx, from where the library embeds them; with the backend
    /// nvvm, target/ptx-nvvm]
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// What makes PTX of the device compiler's LLVM IR. nvvm is NVIDIA's libNVVM, for sm_100 and newer
    #[arg(long, value_enum, default_value_t = Backend::Llvm)]
    pub backend: Backend,
}

/// What makes PTX of LLVM IR.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub enum Backend {
    /// LLVM, in the device compiler
    Llvm,
    /// NVIDIA's libNVVM, which `cargo xtask setup --nvvm` installs
    Nvvm,
}

/// A kernel, compiled.
#[derive(Clone, Default)]
pub struct Built {
    /// Its symbol, in the kernel table or not.
    pub symbol: String,
    /// Its module.
    pub ptx: String,
    /// ptxas's report.
    pub report: String,
    /// Where its cubin lies.
    pub cubin: PathBuf,
    /// Whether it was assembled now, or found from an earlier build.
    pub assembled: bool,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<()> {
    for (_, built) in build(&arguments.scope)? {
        if arguments.sass {
            in_parallel(&built, disassemble)?;
        }
    }
    Ok(())
}

/// Builds the kernels of every architecture for the host library to embed.
pub fn for_the_library() -> Result<()> {
    run(&Arguments::default())
}

impl Default for Scope {
    fn default() -> Self {
        Self { arch: vec!["all".into()], out: None, backend: Backend::Llvm }
    }
}

/// Builds the kernels that the arguments ask for.
pub fn build(scope: &Scope) -> Result<Vec<(Architecture, Vec<Built>)>> {
    let compiler = device_compiler::find()?;
    let ptxas = Ptxas { path: cuda_tools::PTXAS.find()?, version: cuda_tools::PTXAS.version()? };
    let out = scope.out.clone().unwrap_or_else(|| match scope.backend {
        Backend::Llvm => project::ptx_dir(),
        Backend::Nvvm => project::root().join("target/ptx-nvvm"),
    });
    let manifest = project::root().join("kernels/Cargo.toml");

    let architectures = scope.architectures()?;
    let nvvm = if scope.backend == Backend::Nvvm { Some(nvvm::Nvvm::load()?) } else { None };
    // libNVVM compiles for each architecture by itself.
    let source = |architecture: Architecture| if nvvm.is_some() { architecture } else { architecture.ptx() };
    let sources = unique(architectures.iter().copied().map(source));
    let modules = in_parallel(&sources, |&source| {
        let text = match &nvvm {
            Some(nvvm) => nvvm.compile(&compiler.compile_to_ir(&manifest, source)?, source)?,
            None => compiler.compile(&manifest, source)?,
        };
        let mut module = ptx::Module::parse(&text)?;
        module.set_version(source.ptx_version())?;
        Ok((source, module))
    })?;
    let mut work = Vec::new();
    for &architecture in &architectures {
        let folder = out.join(architecture.name());
        fs::create_dir_all(&folder).with_context(|| format!("could not make {}", folder.display()))?;
        let module = modules.iter().find(|(compiled, _)| *compiled == source(architecture));
        let kernels = split(&module.context("every PTX was compiled")?.1, architecture)?;
        remove_others(&folder, &kernels)?;
        work.extend(kernels.into_iter().map(|(symbol, text)| (architecture, folder.clone(), symbol, text)));
    }
    let built = in_parallel(&work, |(architecture, folder, symbol, text)| {
        Ok((*architecture, ptxas.assemble(*architecture, folder, symbol, text)?))
    })?;
    let mut all: Vec<(Architecture, Vec<Built>)> = architectures.iter().map(|one| (*one, Vec::new())).collect();
    for (architecture, kernel) in built {
        all.iter_mut().filter(|(one, _)| *one == architecture).for_each(|(_, built)| built.push(kernel.clone()));
    }
    for (architecture, built) in &all {
        println!(
            "build-ptx: {}: {} kernels, {} of them new, in {}",
            architecture.name(),
            built.len(),
            built.iter().filter(|kernel| kernel.assembled).count(),
            project::display(&out.join(architecture.name()))
        );
    }
    let what = format!("build-ptx: kernels to embed, compressed, in {}", project::display(&out));
    embed::check_size(&what, embed::pack(&out)?)?;
    Ok(all)
}

impl Scope {
    /// The architectures that are built: with libNVVM, `all` are those that it is for.
    pub fn architectures(&self) -> Result<Vec<Architecture>> {
        let mut chosen = architectures(&self.arch)?;
        if self.backend == Backend::Nvvm {
            let is_all = self.arch == ["all"];
            chosen.retain(|architecture| !is_all || nvvm::is_for(*architecture));
            chosen.iter().try_for_each(|architecture| nvvm::check(*architecture))?;
        }
        Ok(chosen)
    }
}

fn architectures(names: &[String]) -> Result<Vec<Architecture>> {
    let known = || Architecture::ALL.map(Architecture::name).join(", ");
    let mut chosen = Vec::new();
    for name in names {
        match name.as_str() {
            "all" => chosen.extend(Architecture::ALL),
            "native" => chosen.push(native()?),
            _ => {
                let found = Architecture::ALL.into_iter().find(|architecture| architecture.name() == name);
                chosen
                    .push(found.with_context(|| format!("no architecture `{name}`: take {}, all or native", known()))?);
            }
        }
    }
    Ok(unique(chosen))
}

/// Each architecture once, in the order of their first appearance.
fn unique(architectures: impl IntoIterator<Item = Architecture>) -> Vec<Architecture> {
    let mut unique = Vec::new();
    for architecture in architectures {
        if !unique.contains(&architecture) {
            unique.push(architecture);
        }
    }
    unique
}

fn native() -> Result<Architecture> {
    let gpus = gpu::list().context("`native` needs a GPU and its driver")?;
    let gpu = gpus.first().context("`native` needs a GPU")?;
    let capability = gpu.compute_capability;
    let found = Architecture::ALL.into_iter().find(|architecture| architecture.has_code_for(capability));
    found.with_context(|| format!("no kernels for {} (compute capability {capability})", gpu.name))
}

/// Symbol and module of each kernel. A kernel that the table doesn't know has no launch bounds; `check-ptx` tells.
fn split(module: &ptx::Module, architecture: Architecture) -> Result<Vec<(String, String)>> {
    let mut modules = Vec::new();
    for entry in module.entries() {
        let alone = module.only(entry);
        let row = Kernel::ALL.iter().find(|kernel| kernel.symbol() == entry.name);
        if row.is_some_and(|kernel| !kernel.exists_for(architecture)) {
            // nobody's, or of GPUs whose drivers compile the PTX
            continue;
        }
        let text = match row {
            Some(kernel) => ptx::with_launch_bounds(&alone, kernel.launch_bounds(architecture))
                .with_context(|| format!("kernel {}", entry.name))?,
            None => alone,
        };
        modules.push((entry.name.clone(), text));
    }
    Ok(modules)
}

struct Ptxas {
    path: PathBuf,
    version: String,
}

impl Ptxas {
    /// Writes and assembles one module, unless the folder has it already from the same ptxas.
    fn assemble(&self, architecture: Architecture, folder: &Path, symbol: &str, text: &str) -> Result<Built> {
        let file = |extension: &str| folder.join(format!("{symbol}.{extension}"));
        let [ptx, cubin, report] = ["ptx", "cubin", "txt"].map(file);
        let stamp = format!("ptxas {}\n", self.version);
        let is_current = || {
            let same_text = fs::read_to_string(&ptx).is_ok_and(|old| old == text);
            let old_report = fs::read_to_string(&report).ok().filter(|old| old.starts_with(&stamp));
            old_report.filter(|_| same_text && cubin.is_file())
        };
        let built = |report, assembled| {
            let (symbol, ptx, cubin) = (symbol.to_string(), text.to_string(), cubin.clone());
            Built { symbol, ptx, report, cubin, assembled }
        };
        if let Some(report) = is_current() {
            return Ok(built(report, false));
        }
        // The report is written last: a run that is cut off leaves none, and the next one starts again.
        for old in [report.clone(), file("sass")].iter().filter(|old| old.exists()) {
            fs::remove_file(old)?;
        }
        fs::write(&ptx, text)?;
        let said = stamp + &ptxas::assemble(&self.path, architecture, &ptx, &cubin)?;
        fs::write(&report, &said)?;
        Ok(built(said, true))
    }
}

/// Removes what earlier builds left of kernels that are no more.
fn remove_others(folder: &Path, modules: &[(String, String)]) -> Result<()> {
    for file in fs::read_dir(folder)? {
        let path = file?.path();
        let is_ours = path
            .extension()
            .is_some_and(|extension| ["ptx", "cubin", "txt", "sass"].iter().any(|ours| extension == *ours));
        let symbol = path.file_name().and_then(|name| name.to_str()?.split('.').next());
        let is_current = modules.iter().any(|(current, _)| symbol == Some(current));
        if is_ours && !is_current {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// A kernel's machine code as text, which is kept beside its cubin.
pub fn disassemble(kernel: &Built) -> Result<String> {
    let file = kernel.cubin.with_extension("sass");
    if let Ok(text) = fs::read_to_string(&file) {
        return Ok(text);
    }
    let text = process::read(Command::new(cuda_tools::NVDISASM.find()?).arg("--print-code").arg(&kernel.cubin))?;
    // Written beside and then renamed: what is interrupted is not taken for complete.
    let partial = file.with_extension("partial");
    fs::write(&partial, &text)?;
    fs::rename(&partial, &file)?;
    Ok(text)
}

/// Does the work for every item, on all cores; results in the items' order. Reports every failure, not just the first.
pub fn in_parallel<Item: Sync, Done: Send>(
    items: &[Item],
    work: impl Fn(&Item) -> Result<Done> + Sync,
) -> Result<Vec<Done>> {
    let next = Mutex::new(items.iter().enumerate());
    let worker = || {
        let mut done = Vec::new();
        loop {
            let Some((index, item)) = next.lock().expect("no worker panics while it holds the lock").next() else {
                return done;
            };
            done.push((index, work(item)));
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let mut results: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker panicked")).collect()
    });
    results.sort_by_key(|(index, _)| *index);
    let failures: Vec<_> =
        results.iter().filter_map(|(_, result)| Some(format!("{:#}", result.as_ref().err()?))).collect();
    if !failures.is_empty() {
        bail!("{}", failures.join("\n\n"));
    }
    ensure!(results.len() == items.len(), "a worker lost an item");
    Ok(results.into_iter().filter_map(|(_, result)| result.ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_are_chosen_by_name() {
        let choose = |names: &[&str]| architectures(&names.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(choose(&["all"]).unwrap(), Architecture::ALL);
        assert_eq!(choose(&["sm_90a", "sm_80", "sm_90a"]).unwrap(), [Architecture::Sm90a, Architecture::Sm80]);
        let error = choose(&["sm_30"]).unwrap_err().to_string();
        assert!(error.contains("sm_30") && error.contains("sm_90a") && error.contains("native"), "{error}");
    }

    #[test]
    fn libnvvm_is_for_the_newest() {
        let scope = |names: &[&str]| Scope {
            arch: names.iter().map(ToString::to_string).collect(),
            out: None,
            backend: Backend::Nvvm,
        };
        assert_eq!(scope(&["all"]).architectures().unwrap(), [Architecture::Sm100, Architecture::Sm120]);
        assert!(scope(&["sm_100", "sm_90a"]).architectures().unwrap_err().to_string().contains("not for sm_90a"));
    }

    #[test]
    fn every_result_and_every_failure_comes_back() {
        let items: Vec<u32> = (0..100).collect();
        assert_eq!(in_parallel(&items, |item| Ok(item * 2)).unwrap(), (0..200).step_by(2).collect::<Vec<_>>());
        let odd = |item: &u32| if item.is_multiple_of(2) { Ok(()) } else { bail!("odd {item}") };
        let error = in_parallel(&items[..6], odd).unwrap_err().to_string();
        assert_eq!(error, "odd 1\n\nodd 3\n\nodd 5");
    }
}
