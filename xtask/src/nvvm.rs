//! libNVVM, NVIDIA's compiler from LLVM IR to PTX, as a second backend for Blackwell.
//!
//! It reads the IR of LLVM 22, which the device compiler writes, for compute capability 10.0 and later, after [`rewrite`].
//! For older GPUs it wants the IR of LLVM 7.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::ptr::null_mut;
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};
use libloading::{Library, Symbol};
use sage_layout::architecture::{Architecture, ComputeCapability};

use crate::{cuda_tools, device_compiler};

/// The data layout that libNVVM demands. Of the types in kernels, it lays out all as LLVM does.
const DATA_LAYOUT: &str = "e-p:64:64:64-p6:32:32:32-i1:8:8-i8:8:8-i16:16:16-i32:32:32-i64:64:64-i128:128:128-f32:32:32\
                           -f64:64:64-f128:128:128-v16:16:16-v32:32:32-v64:64:64-v128:128:128-n16:32:64-a:8:8";

/// Whether libNVVM can compile for an architecture.
pub fn is_for(architecture: Architecture) -> bool {
    architecture.capabilities()[0] >= ComputeCapability::new(10, 0)
}

/// Refuses architectures that libNVVM can't compile for.
pub fn check(architecture: Architecture) -> Result<()> {
    ensure!(
        is_for(architecture),
        "--backend nvvm is for sm_100 and newer, not for {}: there libNVVM reads the IR of LLVM 7, and the device \
         compiler writes that of LLVM {}",
        architecture.name(),
        device_compiler::MINIMUM_LLVM
    );
    Ok(())
}

/// libNVVM, loaded.
pub struct Nvvm {
    library: Library,
    /// Its version and file, for a human.
    pub version: String,
}

type Program = *mut c_void;

impl Nvvm {
    /// Loads it: from the file that `SAGE_LIBNVVM` names, else what `setup --nvvm` installed, else a CUDA toolkit's.
    pub fn load() -> Result<Self> {
        let file = find()?;
        // SAFETY: libNVVM's initialization has no preconditions.
        let library = unsafe { Library::new(&file) }.with_context(|| format!("could not load {}", file.display()))?;
        let mut nvvm = Self { library, version: String::new() };
        let (mut major, mut minor) = (0, 0);
        // SAFETY: as nvvm.h declares it.
        let code = unsafe {
            nvvm.function::<unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int>("nvvmVersion")?(
                &mut major, &mut minor,
            )
        };
        nvvm.check(code, "nvvmVersion")?;
        nvvm.version = format!("{major}.{minor}, {}", file.display());
        Ok(nvvm)
    }

    /// Compiles a module of the device compiler's IR to PTX.
    pub fn compile(&self, ir: &str, architecture: Architecture) -> Result<String> {
        check(architecture)?;
        let name = architecture.name().replace("sm_", "compute_");
        let llvm = self.llvm_version(&name)?;
        ensure!(
            llvm >= device_compiler::MINIMUM_LLVM as c_int,
            "libNVVM {} reads the IR of LLVM {llvm} for {name}, the device compiler writes that of LLVM {}: take a newer one",
            self.version,
            device_compiler::MINIMUM_LLVM
        );
        let ir = rewrite(ir, self.ir_version()?)?;

        let mut program: Program = null_mut();
        let option = CString::new(format!("-arch={name}"))?;
        // SAFETY: the functions are as nvvm.h declares them; the program lives until it is destroyed below, the module as
        // long as its bytes are read, and the option until the call returns.
        unsafe {
            let create: Symbol<unsafe extern "C" fn(*mut Program) -> c_int> = self.function("nvvmCreateProgram")?;
            let add: Symbol<unsafe extern "C" fn(Program, *const u8, usize, *const c_char) -> c_int> =
                self.function("nvvmAddModuleToProgram")?;
            let compile: Symbol<unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int> =
                self.function("nvvmCompileProgram")?;
            let destroy: Symbol<unsafe extern "C" fn(*mut Program) -> c_int> = self.function("nvvmDestroyProgram")?;
            self.check(create(&mut program), "nvvmCreateProgram")?;
            let compiled = || {
                self.check(add(program, ir.as_ptr(), ir.len(), c"kernels".as_ptr()), "nvvmAddModuleToProgram")?;
                let code = compile(program, 1, &option.as_ptr());
                if let Err(error) = self.check(code, "nvvmCompileProgram") {
                    bail!("{error}:\n{}", self.text(program, "nvvmGetProgramLogSize", "nvvmGetProgramLog")?.trim_end());
                }
                self.text(program, "nvvmGetCompiledResultSize", "nvvmGetCompiledResult")
            };
            let result = compiled();
            destroy(&mut program);
            result
        }
    }

    /// Which LLVM's IR it reads for an architecture.
    fn llvm_version(&self, architecture: &str) -> Result<c_int> {
        let (architecture, mut version) = (CString::new(architecture)?, 0);
        // SAFETY: as nvvm.h declares it.
        let code = unsafe {
            self.function::<unsafe extern "C" fn(*const c_char, *mut c_int) -> c_int>("nvvmLLVMVersion")?(
                architecture.as_ptr(),
                &mut version,
            )
        };
        self.check(code, "nvvmLLVMVersion")?;
        Ok(version)
    }

    /// The version of its additions to the IR: of the IR itself, and of debug information.
    fn ir_version(&self) -> Result<[c_int; 4]> {
        type Function = unsafe extern "C" fn(*mut c_int, *mut c_int, *mut c_int, *mut c_int) -> c_int;
        let [mut a, mut b, mut c, mut d] = [0; 4];
        // SAFETY: as nvvm.h declares it.
        let code = unsafe { self.function::<Function>("nvvmIRVersion")?(&mut a, &mut b, &mut c, &mut d) };
        self.check(code, "nvvmIRVersion")?;
        Ok([a, b, c, d])
    }

    /// A text of a program's.
    ///
    /// # Safety
    ///
    /// The program must exist, and the functions be a pair of nvvm.h's that tell a text's size, with its NUL, and write it.
    unsafe fn text(&self, program: Program, size: &str, write: &str) -> Result<String> {
        let mut bytes = 0usize;
        // SAFETY: forwarded contract.
        let code =
            unsafe { self.function::<unsafe extern "C" fn(Program, *mut usize) -> c_int>(size)?(program, &mut bytes) };
        self.check(code, size)?;
        let mut text = vec![0u8; bytes + 1];
        // SAFETY: forwarded contract; the buffer is as large as the library said.
        let code = unsafe {
            self.function::<unsafe extern "C" fn(Program, *mut u8) -> c_int>(write)?(program, text.as_mut_ptr())
        };
        self.check(code, write)?;
        Ok(CStr::from_bytes_until_nul(&text)?.to_string_lossy().into_owned())
    }

    /// # Safety
    ///
    /// `T` must be the function's type.
    unsafe fn function<T>(&self, name: &str) -> Result<Symbol<'_, T>> {
        // SAFETY: forwarded contract.
        unsafe { self.library.get(name.as_bytes()) }.with_context(|| format!("libNVVM has no {name}: it is too old"))
    }

    fn check(&self, code: c_int, function: &str) -> Result<()> {
        ensure!(code == 0, "{function} failed with error {code}");
        Ok(())
    }
}

fn find() -> Result<PathBuf> {
    if let Some(file) = env::var_os("SAGE_LIBNVVM") {
        let file = PathBuf::from(file);
        ensure!(file.is_file(), "no {}: correct SAGE_LIBNVVM", file.display());
        return Ok(file);
    }
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let folders = toolkits.chain(["/usr/local/cuda".into()]).map(|toolkit| toolkit.join("nvvm/lib64"));
    let installed = folders.flat_map(|folder| ["libnvvm.so.4", "libnvvm.so"].map(|name| folder.join(name)));
    let mut candidates = cuda_tools::libnvvm().into_iter().chain(installed);
    candidates.find(|file| fs::metadata(file).is_ok()).context(
        "no libNVVM: run `cargo xtask setup --nvvm`, or set CUDA_HOME to a CUDA 13 toolkit, or SAGE_LIBNVVM to the library",
    )
}

/// Makes the device compiler's IR libNVVM's: its data layout, no name of a source, and the version of the IR.
fn rewrite(ir: &str, version: [c_int; 4]) -> Result<String> {
    let mut text = String::with_capacity(ir.len() + 256);
    let (mut has_layout, mut metadata) = (false, 0);
    for line in ir.lines() {
        if line.starts_with("source_filename = ") {
            continue;
        }
        if line.starts_with("target datalayout = ") {
            has_layout = true;
            text += &format!("target datalayout = \"{DATA_LAYOUT}\"\n");
            continue;
        }
        ensure!(!line.starts_with("!nvvmir.version"), "the IR has a version of libNVVM's already");
        // `!12 = …`
        let number = line.strip_prefix('!').and_then(|rest| rest.split_once(" = ")?.0.parse::<u32>().ok());
        metadata = metadata.max(number.map_or(0, |number| number + 1));
        text += line;
        text.push('\n');
    }
    ensure!(has_layout, "the IR has no `target datalayout`");
    let [a, b, c, d] = version;
    text += &format!("!nvvmir.version = !{{!{metadata}}}\n!{metadata} = !{{i32 {a}, i32 {b}, i32 {c}, i32 {d}}}\n");
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IR: &str = "\
; ModuleID = 'kernels'
source_filename = \"kernels\"
target datalayout = \"e-p6:32:32-i64:64-n16:32:64\"
target triple = \"nvptx64-nvidia-cuda\"

define ptx_kernel void @kernel(ptr %0) {
  store i32 1, ptr %0, align 4, !note !7
  ret void
}

!llvm.module.flags = !{!0}
!0 = !{i32 8, !\"PIC Level\", i32 2}
!7 = !{i32 1}
";

    #[test]
    fn ir_gets_a_data_layout_and_a_version_and_loses_its_name() {
        let text = rewrite(IR, [2, 0, 3, 2]).unwrap();
        assert!(!text.contains("source_filename"), "{text}");
        assert!(text.contains(&format!("\ntarget datalayout = \"{DATA_LAYOUT}\"\ntarget triple")), "{text}");
        assert!(
            text.ends_with("!7 = !{i32 1}\n!nvvmir.version = !{!8}\n!8 = !{i32 2, i32 0, i32 3, i32 2}\n"),
            "{text}"
        );
        assert!(text.contains("store i32 1, ptr %0, align 4, !note !7\n"), "the rest stays");
    }

    #[test]
    fn ir_that_is_not_the_device_compilers_is_refused() {
        assert!(rewrite("define void @kernel()", [2, 0, 3, 2]).unwrap_err().to_string().contains("datalayout"));
        let twice = rewrite(IR, [2, 0, 3, 2]).unwrap();
        assert!(rewrite(&twice, [2, 0, 3, 2]).unwrap_err().to_string().contains("already"));
    }

    #[test]
    fn older_architectures_are_refused() {
        for architecture in Architecture::ALL {
            assert_eq!(check(architecture).is_ok(), architecture.name() >= "sm_100" && architecture.name() < "sm_2");
        }
        let error = check(Architecture::Sm90a).unwrap_err().to_string();
        assert!(error.contains("sm_90a") && error.contains("LLVM 7"), "{error}");
    }

    /// Where libNVVM is installed.
    #[test]
    fn libnvvm_compiles_what_was_rewritten() {
        let Ok(nvvm) = Nvvm::load() else {
            eprintln!("skipped: no libNVVM (cargo xtask setup --nvvm)");
            return;
        };
        let ptx = nvvm.compile(IR, Architecture::Sm100).unwrap();
        assert!(ptx.contains(".target sm_100") && ptx.contains(".entry kernel"), "{ptx}");
        let broken = IR.replace("ret void", "ret i32 %missing");
        assert!(nvvm.compile(&broken, Architecture::Sm100).is_err());
    }
}
