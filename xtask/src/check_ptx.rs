//! `cargo xtask check-ptx`: does the compiled code keep what the kernel table promises?
//!
//! None of it needs a GPU: it reads the PTX and ptxas's report.

use anyhow::{Result, bail};
use sage_layout::kernel::{Architecture, Kernel};

use crate::build_ptx::{self, Arguments, Built};
use crate::device_compiler;
use crate::ptx;
use crate::ptxas::Usage;

/// What a kernel's row in the table says about its compiled code.
#[derive(Clone, Copy)]
struct Promise {
    threads: u32,
    min_blocks: u32,
    block_barriers: u32,
    stack_budget: u32,
}

impl From<Kernel> for Promise {
    fn from(kernel: Kernel) -> Self {
        Self {
            threads: kernel.threads(),
            min_blocks: kernel.min_blocks(),
            block_barriers: kernel.block_barriers(),
            stack_budget: kernel.stack_budget(),
        }
    }
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut problems = Vec::new();
    for (architecture, built) in build_ptx::build(arguments)? {
        print_table(architecture, &built);
        problems.extend(check(&built));
    }
    if !problems.is_empty() {
        let doubt = device_compiler::find()?.doubt().map_or(String::new(), |doubt| format!("\n{doubt}"));
        bail!("check-ptx found {} problems{}{doubt}", problems.len(), grouped(&problems));
    }
    println!("check-ptx: every kernel is as the kernel table says");
    Ok(())
}

/// Builds and checks the kernels of every architecture for the host library to embed.
pub fn for_the_library() -> Result<()> {
    run(&Arguments::default())
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
fn check(built: &[Built]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for kernel in built {
        let found = match find_row(&kernel.symbol) {
            Some(row) => check_kernel(row.into(), &kernel.ptx, &kernel.report),
            None => vec!["is not in the kernel table: add a row in sage-layout, or remove the entry".into()],
        };
        problems.extend(found.into_iter().map(|text| Problem { kernel: kernel.symbol.clone(), text }));
    }
    let missing = Kernel::ALL.iter().filter(|row| built.iter().all(|kernel| kernel.symbol != row.symbol()));
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

    // The budget is for ptxas's spills. What the PTX itself declares was an array in the source.
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
    if usage.stack.max(usage.spill_stores).max(usage.spill_loads) > promise.stack_budget {
        problems.push(format!(
            "has {} bytes of stack, {} of spill stores, {} of spill loads, its budget is {}: keep fewer values alive, \
             use more threads or a smaller tile; or raise its stack_budget, with the measurement that justifies it",
            usage.stack, usage.spill_stores, usage.spill_loads, promise.stack_budget
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

#[cfg(test)]
mod tests {
    use super::*;

    const PROMISE: Promise = Promise { threads: 128, min_blocks: 2, block_barriers: 1, stack_budget: 0 };
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
        let with_budget = Promise { stack_budget: 2000, ..PROMISE };
        assert_eq!(check_kernel(with_budget, &module, REPORT).len(), 1, "the budget is for spills only");
    }

    #[test]
    fn stack_and_spills() {
        for (line, unit) in [
            ("bytes stack frame", "bytes of stack"),
            ("bytes spill stores", "of spill stores"),
            ("bytes spill loads", "of spill loads"),
        ] {
            let report = REPORT.replace(&format!("0 {line}"), &format!("8 {line}"));
            assert_problem(MODULE, &report, &[&format!("8 {unit}"), "budget is 0"]);
            assert!(check_kernel(Promise { stack_budget: 8, ..PROMISE }, MODULE, &report).is_empty());
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
        let problems = check(&[]);
        assert_eq!(problems.len(), Kernel::ALL.len());
        assert_eq!(problems[0].kernel, Kernel::ALL[0].symbol());
        assert!(problems[0].text.contains("not in the PTX"));

        let problems = check(&[Built { symbol: "stranger".into(), ..Built::default() }]);
        assert_eq!(problems[0].kernel, "stranger");
        assert!(problems[0].text.contains("not in the kernel table"));
    }

    #[test]
    fn kernels_with_the_same_problem_are_listed_together() {
        let problem = |kernel: &str, text: &str| Problem { kernel: kernel.into(), text: text.into() };
        let problems = [problem("one", "spills"), problem("two", "panics"), problem("three", "spills")];
        assert_eq!(grouped(&problems), "\none\nthree\n    spills\ntwo\n    panics");
    }
}
