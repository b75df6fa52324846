//! `cargo xtask check-ptx`: does the compiled code keep what the kernel table promises?
//!
//! None of it needs a GPU: it reads the PTX, ptxas's report, and the machine code.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use sage_layout::architecture::Architecture;
use sage_layout::kernel::Kernel;

use crate::budget::{self, Budgets, Difference};
use crate::build_ptx::{self, Backend, Built, Scope};
use crate::ptxas::Usage;
use crate::{cuda_tools, device_compiler, project, ptx};

/// Arguments of the verb.
#[derive(Default, clap::Args)]
#[group(skip)]
pub struct Arguments {
    #[command(flatten)]
    scope: Scope,
    /// Make the budgets of registers and instructions what the kernels have now, and print the differences
    #[arg(long)]
    update: bool,
}

/// What a kernel's row in the table says about its compiled code.
#[derive(Clone, Copy)]
struct Promise {
    threads: u32,
    min_blocks: u32,
    block_barriers: u32,
    /// Whether it may spill registers: by the kernel table; and what libNVVM makes is compared, not held to anything.
    may_spill: bool,
}

impl Promise {
    fn new(kernel: Kernel, architecture: Architecture, backend: Backend) -> Self {
        let (threads, min_blocks) = kernel.launch_bounds(architecture);
        let may_spill = backend == Backend::Nvvm || kernel.may_spill();
        Self { threads, min_blocks, block_barriers: kernel.block_barriers(), may_spill }
    }
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut problems = Vec::new();
    let is_nvvm = arguments.scope.backend == Backend::Nvvm;
    ensure!(!(is_nvvm && arguments.update), "budgets are of the backend llvm");
    for (architecture, built) in build_ptx::build(&arguments.scope)? {
        print_table(architecture, &built);
        problems.extend(check(architecture, arguments.scope.backend, &built));
        if is_nvvm {
            let scope = Scope { arch: vec![architecture.name().into()], ..Scope::default() };
            for (_, by_llvm) in build_ptx::build(&scope)? {
                print_comparison(architecture, &by_llvm, &built);
            }
            continue;
        }
        let found = count(&built)?;
        if arguments.update {
            update(architecture, &found)?;
        } else {
            problems.extend(check_budgets(architecture, &found)?);
        }
    }
    if !problems.is_empty() {
        let doubt = device_compiler::find()?.doubt().map_or(String::new(), |doubt| format!("\n{doubt}"));
        bail!("check-ptx found {} problems{}{doubt}", problems.len(), grouped(&problems));
    }
    let budgets = if is_nvvm { "" } else { ", and within its budgets" };
    println!("check-ptx: every kernel is as the kernel table says{budgets}");
    Ok(())
}

/// Builds and checks the kernels of every architecture for the host library to embed.
pub fn for_the_library() -> Result<()> {
    run(&Arguments::default())
}

/// Registers and instructions of the kernels.
fn count(built: &[Built]) -> Result<Budgets> {
    let compiler = device_compiler::find()?;
    let mut found = Budgets::new(format!("rustc {}, ptxas {}", compiler.version, cuda_tools::PTXAS.version()?));
    let listings = build_ptx::in_parallel(built, build_ptx::disassemble)?;
    for (kernel, listing) in built.iter().zip(listings) {
        found.add(&kernel.symbol, &Usage::parse(&kernel.report).unwrap_or_default(), &listing)?;
    }
    Ok(found)
}

fn read_budgets(architecture: Architecture) -> Result<Budgets> {
    let path = budget::path(architecture);
    let text = fs::read_to_string(&path);
    let budgets = text.map_err(anyhow::Error::from).and_then(|text| Budgets::parse(&text));
    budgets.with_context(|| format!("{}: run `cargo xtask check-ptx --update`", project::display(&path)))
}

/// What is over budget. Says what is far below it; and, with other compilers than the budgets', only says.
fn check_budgets(architecture: Architecture, found: &Budgets) -> Result<Vec<Problem>> {
    let budgets = read_budgets(architecture)?;
    let differences = budgets.compare(found);
    if budgets.compilers != found.compilers && !differences.is_empty() {
        println!("check-ptx: these kernels are of {}, the budgets of {}:", found.compilers, budgets.compilers);
        differences.iter().for_each(|Difference { kernel, text, .. }| println!("  {kernel} {text}"));
        return Ok(Vec::new());
    }
    let (worse, better): (Vec<_>, Vec<_>) = differences.into_iter().partition(|difference| difference.is_worse);
    if !better.is_empty() {
        println!("check-ptx: far below budget; keep it so with `cargo xtask check-ptx --update`:");
        better.iter().for_each(|Difference { kernel, text, .. }| println!("  {kernel} {text}"));
    }
    let problem = |Difference { kernel, text, .. }| Problem {
        kernel,
        text: format!("{text}: measure, and if it is worth it, accept it with `cargo xtask check-ptx --update`"),
    };
    Ok(worse.into_iter().map(problem).collect())
}

/// Makes what was found the budgets.
fn update(architecture: Architecture, found: &Budgets) -> Result<()> {
    let pinned = device_compiler::find()?.doubt().is_none() && cuda_tools::PTXAS.is_pinned();
    ensure!(pinned, "budgets are of the compilers that `cargo xtask setup` installs, these are {}", found.compilers);
    let path = budget::path(architecture);
    // Budgets that can't be read have nothing to compare.
    let old = read_budgets(architecture).unwrap_or_default();
    for (place, numbers) in old.changes(found) {
        println!("{place}: {numbers}");
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&path, found.to_string()).with_context(|| format!("could not write {}", path.display()))?;
    println!("check-ptx: budgets written to {}", project::display(&path));
    Ok(())
}

/// Something that is wrong with a kernel.
struct Problem {
    kernel: String,
    /// What is wrong, and what to do.
    text: String,
}

/// The problems as text: what kernels have in common is said once.
fn grouped(problems: &[Problem]) -> String {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for problem in problems {
        match groups.iter_mut().find(|(text, _)| *text == problem.text) {
            Some((_, kernels)) => kernels.push(&problem.kernel),
            None => groups.push((&problem.text, vec![&problem.kernel])),
        }
    }
    groups.iter().map(|(text, kernels)| format!("\n{}\n    {text}", kernels.join("\n"))).collect()
}

/// Everything that is wrong with the kernels of an architecture.
fn check(architecture: Architecture, backend: Backend, built: &[Built]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for kernel in built {
        let row = Kernel::of(architecture).find(|row| row.symbol() == kernel.symbol);
        let found = match row {
            Some(row) => check_kernel(Promise::new(row, architecture, backend), &kernel.ptx, &kernel.report),
            None => vec![
                "is not in the kernel table for this architecture: add a row in sage-layout, or remove the entry"
                    .into(),
            ],
        };
        problems.extend(found.into_iter().map(|text| Problem { kernel: kernel.symbol.clone(), text }));
    }
    let missing = Kernel::of(architecture).filter(|row| built.iter().all(|kernel| kernel.symbol != row.symbol()));
    problems.extend(missing.map(|row| Problem {
        kernel: row.symbol().into(),
        text: "is in the kernel table but not in the PTX: add the entry to sage-kernels, or remove the row".into(),
    }));
    problems
}

/// Everything that is wrong with one kernel.
fn check_kernel(promise: Promise, module: &str, report: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let mut expect = |holds: bool, problem: String| {
        if !holds {
            problems.push(problem);
        }
    };

    let bounds = ptx::launch_bounds(module);
    expect(
        bounds == Some((promise.threads, promise.min_blocks)),
        format!(
            "launch bounds are {}, the table says {} threads, {} blocks: run `cargo xtask build-ptx`",
            bounds.map_or("missing".into(), |(threads, blocks)| format!("{threads} threads, {blocks} blocks")),
            promise.threads,
            promise.min_blocks
        ),
    );

    let barriers = ptx::count_block_barriers(module);
    expect(
        barriers == promise.block_barriers,
        format!(
            "has {barriers} block barriers, the table says {}: if the source has {barriers}, correct the table; \
             if not, the compiler duplicated or removed one, and threads may wait for ever: barriers must be LLVM \
             intrinsics, not asm!",
            promise.block_barriers
        ),
    );

    let is_panic = |word: &&str| word.contains("panic") || word.contains("core3fmt") || *word == "trap";
    let panic = ptx::code_lines(module).flat_map(ptx::words).find(is_panic);
    expect(
        panic.is_none(),
        format!(
            "can panic or format text (`{}`): use unchecked or masked indices, wrapping arithmetic, no unwrap",
            panic.unwrap_or_default()
        ),
    );
    // Mangled names, old and new. Panics have been reported already.
    let is_mangled = |word: &&str| (word.starts_with("_ZN") || word.starts_with("_R")) && !is_panic(word);
    let call = ptx::code_lines(module).flat_map(ptx::words).find(is_mangled);
    let call = call.or_else(|| ptx::opcodes(module).find(|opcode| *opcode == "call" || opcode.starts_with("call.")));
    expect(call.is_none(), format!("calls a function (`{}`): mark it #[inline(always)]", call.unwrap_or_default()));

    // Not ptxas's spills, which its report counts: what the PTX itself declares was an array in the source.
    let local = ptx::local_bytes(module);
    expect(
        local == 0,
        format!(
            "keeps an array in local memory (`.local`, {local} bytes): an index must be a constant once loops are \
             unrolled, and no address may be taken"
        ),
    );

    let Some(usage) = Usage::parse(report) else {
        problems.push("ptxas's report has no register or stack count: is this ptxas too new?".into());
        return problems;
    };
    if !promise.may_spill && usage.stack.max(usage.spill_stores).max(usage.spill_loads) > 0 {
        problems.push(format!(
            "has {} bytes of stack, {} of spill stores, {} of spill loads: keep fewer values alive, use more threads or \
             a smaller tile",
            usage.stack, usage.spill_stores, usage.spill_loads
        ));
    }
    problems.extend(usage.warnings.iter().map(|warning| {
        format!("ptxas says `{warning}`: for wgmma, wait for all before the loop's end and fence before each group")
    }));
    problems
}

fn find_row(symbol: &str) -> Option<Kernel> {
    Kernel::ALL.iter().copied().find(|kernel| kernel.symbol() == symbol)
}

fn print_table(architecture: Architecture, built: &[Built]) {
    println!(
        "{:<40} {:>9} {:>12} {:>12} {:>7} {:>13} {:>13} {:>8}",
        architecture.name(),
        "registers",
        "dynamic smem",
        "static smem",
        "stack",
        "spill stores",
        "spill loads",
        "barriers"
    );
    for kernel in built {
        let usage = Usage::parse(&kernel.report).unwrap_or_default();
        let dynamic_shared = find_row(&kernel.symbol).map_or("?".into(), |row| row.shared_bytes().to_string());
        println!(
            "{:<40} {:>9} {:>12} {:>12} {:>7} {:>13} {:>13} {:>8}",
            kernel.symbol,
            usage.registers,
            dynamic_shared,
            usage.static_shared,
            usage.stack,
            usage.spill_stores,
            usage.spill_loads,
            ptx::count_block_barriers(&kernel.ptx)
        );
    }
}

/// What both backends make of the same kernels.
fn print_comparison(architecture: Architecture, by_llvm: &[Built], by_nvvm: &[Built]) {
    println!(
        "{:<40} {:>17} {:>17} {:>19} {:>18}",
        format!("{}: llvm / nvvm", architecture.name()),
        "registers",
        "stack",
        "spill stores",
        "spill loads"
    );
    for (llvm, nvvm) in
        by_llvm.iter().filter_map(|llvm| Some((llvm, by_nvvm.iter().find(|one| one.symbol == llvm.symbol)?)))
    {
        let [a, b] = [llvm, nvvm].map(|kernel| Usage::parse(&kernel.report).unwrap_or_default());
        let pair = |number: fn(&Usage) -> u32| format!("{} / {}", number(&a), number(&b));
        println!(
            "{:<40} {:>17} {:>17} {:>19} {:>18}",
            llvm.symbol,
            pair(|usage| usage.registers),
            pair(|usage| usage.stack),
            pair(|usage| usage.spill_stores),
            pair(|usage| usage.spill_loads)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROMISE: Promise = Promise { threads: 128, min_blocks: 2, block_barriers: 1, may_spill: false };
    const MODULE: &str = ".version 8.0
.visible .entry kernel()
.maxntid 128
.minnctapersm 2
{
    bar.sync 0;
    mbarrier.init.shared::cta.b64 [%r1], 1; // trap, panic, .local
    bar.warp.sync -1;
    ret;
}";
    const REPORT: &str = "ptxas info    : Function properties for kernel
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 24 registers, used 1 barriers";

    /// The one problem that a change to a good module or report makes must have these words.
    #[track_caller]
    fn assert_problem(module: &str, report: &str, words: &[&str]) {
        let problems = check_kernel(PROMISE, module, report);
        assert_eq!(problems.len(), 1, "{problems:?}");
        for word in words {
            assert!(problems[0].contains(word), "{word}: {}", problems[0]);
        }
    }

    fn with_instruction(instruction: &str) -> String {
        MODULE.replace("    ret;", &format!("    {instruction}\n    ret;"))
    }

    #[test]
    fn a_good_kernel_passes() {
        assert_eq!(check_kernel(PROMISE, MODULE, REPORT), Vec::<String>::new());
    }

    #[test]
    fn launch_bounds() {
        assert_problem(&MODULE.replace(".maxntid 128\n", ""), REPORT, &["launch bounds are missing", "128 threads"]);
        assert_problem(&MODULE.replace(".maxntid 128", ".maxntid 256"), REPORT, &["256 threads", "128 threads"]);
    }

    #[test]
    fn barriers() {
        assert_problem(&with_instruction("bar.sync 0;"), REPORT, &["2 block barriers", "table says 1"]);
        assert_problem(&MODULE.replace("bar.sync 0;", ""), REPORT, &["0 block barriers"]);
    }

    #[test]
    fn panics_and_formatting() {
        let panic = "call.uni _ZN4core9panicking18panic_bounds_check17h0123456789abcdefE;";
        assert!(check_kernel(PROMISE, &with_instruction(panic), REPORT)[0].contains("can panic"));
        assert_problem(&with_instruction("trap;"), REPORT, &["can panic", "`trap`"]);
        assert_problem(&with_instruction("mov.b64 %rd1, _ZN4core3fmt5write17hE;"), REPORT, &["core3fmt"]);
    }

    #[test]
    fn functions_that_were_not_inlined() {
        assert_problem(&with_instruction("@%p1 call.uni helper;"), REPORT, &["call.uni", "inline(always)"]);
        assert_problem(&with_instruction("mov.b64 %rd1, _RNvC5crate4name;"), REPORT, &["_RNvC5crate4name"]);
    }

    #[test]
    fn local_memory() {
        let module = with_instruction(".local .align 16 .b8 \t__local_depot0[1280];");
        assert_problem(&module, REPORT, &["local memory", "1280 bytes"]);
    }

    #[test]
    fn stack_and_spills() {
        for (line, unit) in [
            ("bytes stack frame", "bytes of stack"),
            ("bytes spill stores", "of spill stores"),
            ("bytes spill loads", "of spill loads"),
        ] {
            let report = REPORT.replace(&format!("0 {line}"), &format!("8 {line}"));
            assert_problem(MODULE, &report, &[&format!("8 {unit}")]);
            let lenient = Promise { may_spill: true, ..PROMISE };
            assert_eq!(check_kernel(lenient, MODULE, &report), Vec::<String>::new());
        }
    }

    #[test]
    fn serialized_wgmma() {
        let warning = "ptxas info    : (C7514) Potential Performance Loss: wgmma.mma_async instructions are serialized";
        assert_problem(MODULE, &format!("{warning}\n{REPORT}"), &["C7514"]);
    }

    #[test]
    fn a_report_that_is_not_understood() {
        assert_problem(MODULE, "ptxas info    : 0 bytes gmem", &["no register or stack count"]);
    }

    #[test]
    fn the_entries_are_those_of_the_table() {
        let problems = check(Architecture::Sm90a, Backend::Llvm, &[]);
        assert_eq!(problems.len(), Kernel::of(Architecture::Sm90a).count());
        assert_eq!(problems[0].kernel, Kernel::ALL[0].symbol());
        assert!(problems[0].text.contains("not in the PTX"));

        let other = Kernel::ALL.iter().find(|row| !row.family().exists_for(Architecture::Sm80));
        for symbol in ["stranger", other.expect("a kernel for Hopper alone").symbol()] {
            let problems =
                check(Architecture::Sm80, Backend::Llvm, &[Built { symbol: symbol.into(), ..Built::default() }]);
            assert_eq!(problems[0].kernel, symbol);
            assert!(problems[0].text.contains("not in the kernel table"));
        }
    }

    #[test]
    fn kernels_with_the_same_problem_are_listed_together() {
        let problem = |kernel: &str, text: &str| Problem { kernel: kernel.into(), text: text.into() };
        let problems = [problem("one", "spills"), problem("two", "panics"), problem("three", "spills")];
        assert_eq!(grouped(&problems), "\none\nthree\n    spills\ntwo\n    panics");
    }
}
