//! PTX as text: cutting a module into one module a kernel, and reading what `check-ptx` wants to know.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};

use crate::registers;

/// A PTX module, cut at its top level.
#[derive(Debug)]
pub struct Module {
    /// `.version`, `.target` and `.address_size`.
    header: String,
    /// Declarations and definitions, in the module's order.
    items: Vec<Item>,
}

/// A variable, function or kernel: its declaration or definition.
#[derive(Debug)]
pub struct Item {
    /// Its symbol.
    pub name: String,
    /// All of its text.
    pub text: String,
    is_entry: bool,
}

impl Module {
    /// Reads a module as LLVM writes it.
    pub fn parse(text: &str) -> Result<Self> {
        let mut header = String::new();
        let mut items = Vec::new();
        let mut item = String::new();
        let mut depth = 0_usize;
        for line in text.lines() {
            let code = without_comment(line).trim();
            if item.is_empty() {
                if code.is_empty() {
                    continue;
                }
                if [".version", ".target", ".address_size"].contains(&words(code).next().unwrap_or_default()) {
                    header += &format!("{code}\n");
                    continue;
                }
            }
            item += &format!("{line}\n");
            for character in code.chars() {
                match character {
                    '{' => depth += 1,
                    '}' => depth = depth.checked_sub(1).context("PTX has a `}` too many")?,
                    _ => {}
                }
            }
            if depth == 0 && code.ends_with([';', '}']) {
                items.push(Item::new(std::mem::take(&mut item))?);
            }
        }
        ensure!(item.is_empty(), "PTX ends within: {item}");
        Ok(Self { header, items })
    }

    /// Makes the PTX version `major.minor`. What the compiler wrote may be older, as instructions of `asm!`, which LLVM does
    /// not read, need a newer one than its own; or newer than need be. ptxas checks that the version has every instruction.
    pub fn set_version(&mut self, (major, minor): (u32, u32)) -> Result<()> {
        let line = self.header.lines().find(|line| line.starts_with(".version ")).context("PTX has no version")?;
        self.header = self.header.replace(line, &format!(".version {major}.{minor}"));
        Ok(())
    }

    /// The kernels.
    pub fn entries(&self) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(|item| item.is_entry)
    }

    /// A module of one kernel and what it uses, directly or not.
    pub fn only(&self, entry: &Item) -> String {
        let mut wanted = BTreeSet::new();
        let mut open = vec![entry.name.as_str()];
        while let Some(name) = open.pop() {
            if wanted.insert(name) {
                let definitions = self.items.iter().filter(|item| item.name == name);
                let used = definitions.flat_map(|item| code_lines(&item.text)).flat_map(words);
                open.extend(used.filter(|word| self.items.iter().any(|item| item.name == *word && !item.is_entry)));
            }
        }
        let items = self.items.iter().filter(|item| wanted.contains(item.name.as_str()));
        items.fold(self.header.clone(), |module, item| module + "\n" + &item.text)
    }
}

impl Item {
    fn new(text: String) -> Result<Self> {
        let declaration: String = code_lines(&text).collect::<Vec<_>>().join(" ");
        let is_entry = words(&declaration).any(|word| word == ".entry");
        let is_function = words(&declaration).any(|word| word == ".func");
        let is_variable = words(&declaration).any(|word| [".global", ".const", ".shared"].contains(&word));
        if !(is_entry || is_function || is_variable) {
            bail!("PTX has something at its top level that is no variable, function or kernel: {text}");
        }
        // `.func (.param .b32 result) name (...)`: the result comes first.
        let after_result = match declaration.split_once(".func") {
            Some((_, rest)) if rest.trim_start().starts_with('(') => {
                rest.split_once(')').map_or(rest, |(_, rest)| rest)
            }
            _ => &declaration,
        };
        let name = words(after_result)
            .find(|word| !word.starts_with(|first: char| first == '.' || first.is_ascii_digit()))
            .with_context(|| format!("PTX has a nameless item: {text}"))?
            .to_string();
        Ok(Self { name, text, is_entry })
    }
}

/// Puts a kernel's launch bounds into its module: threads of a block, and blocks that a multiprocessor must hold.
///
/// rustc has no attribute for them. ptxas needs them to allot registers.
pub fn with_launch_bounds(module: &str, (threads, min_blocks): (u32, u32)) -> Result<String> {
    let entry = module.find(".entry").context("the module has no kernel")?;
    let body = entry + module[entry..].find('{').context("the kernel has no body")?;
    let (head, body) = module.split_at(body);
    ensure!(launch_bounds(module).is_none(), "the kernel has launch bounds already");
    Ok(format!("{head}.maxntid {threads}\n.minnctapersm {min_blocks}\n{body}"))
}

/// The launch bounds in a kernel's module: threads of a block, and blocks that a multiprocessor must hold.
pub fn launch_bounds(module: &str) -> Option<(u32, u32)> {
    let words: Vec<_> = code_lines(module).flat_map(words).collect();
    let after = |directive: &str| words.iter().skip_while(|word| **word != directive).nth(1)?.parse().ok();
    Some((after(".maxntid")?, after(".minnctapersm")?))
}

/// How many instructions in the text make a block's threads wait for each other.
pub fn count_block_barriers(text: &str) -> u32 {
    let is_block_barrier = |opcode: &&str| {
        let mut parts = opcode.split('.').filter(|part| *part != "cta");
        matches!(parts.next(), Some("bar" | "barrier")) && parts.next() == Some("sync")
    };
    opcodes(text).filter(is_block_barrier).count().try_into().expect("few barriers")
}

/// Bytes of a thread's local memory that the text declares: what LLVM could not keep in registers.
pub fn local_bytes(text: &str) -> u64 {
    let statements = code_lines(text).flat_map(|line| line.split([';', '{', '}']));
    let declarations = statements.filter(|statement| words(statement).next() == Some(".local"));
    // `.local .align 16 .b8 name[1280]`, as LLVM writes all of it.
    let bytes = |declaration: &str| declaration.split_once('[')?.1.split_once(']')?.0.trim().parse().ok();
    declarations.map(|declaration| bytes(declaration).unwrap_or(1)).sum()
}

/// Every instruction's opcode with its modifiers, such as `bar.sync`.
pub fn opcodes(text: &str) -> impl Iterator<Item = &str> {
    let statements = code_lines(text).flat_map(|line| line.split([';', '{', '}']));
    statements.filter_map(|statement| {
        statement.split_whitespace().find(|word| !word.starts_with('@') && !word.ends_with(':'))
    })
}

/// Every word of the text: symbols, registers, directives, opcodes and numbers.
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    let is_part = |character: char| character.is_ascii_alphanumeric() || "_$.%".contains(character);
    text.split(move |character| !is_part(character)).filter(|word| !word.is_empty())
}

/// The text's lines without their comments.
pub fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(without_comment)
}

/// The same code for drivers: without comments and indentation, and with [other names of registers](registers).
pub fn compact(text: &str) -> String {
    let lines: String =
        code_lines(text).map(str::trim).filter(|line| !line.is_empty()).flat_map(|line| [line, "\n"]).collect();
    registers::renamed(&lines)
}

fn without_comment(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _)| code)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULE: &str = "\
//
// Generated by LLVM NVPTX Back-End
//

.version 8.0
.target sm_90a
.address_size 64

.func  (.param .b32 func_retval0) helper
(
\t.param .b32 helper_param_0
)
;
.extern .shared .align 1024 .b8 memory[];
.global .align 4 .b8 table[8] = {1, 2, 3, 4,
5, 6, 7, 8};
.global .align 1 .b8 unused[1];

\t// .globl\tfirst { not code
.visible .entry first(
\t.param .u64 .ptr .align 1 first_param_0
)
{
\t.reg .b32 \t%r<3>;
\tmov.u32 %r1, memory;
\t{ .reg .pred p; @p bar.sync 1, 128; }
$L__BB0_1: barrier.cta.sync.aligned 0;
\tbar.warp.sync -1; // bar.sync
\tbar.sync 0;
\tret;
}
.visible .entry second()
{
\tcall.uni (retval0), helper, (param0);
\tret;
}
.func  (.param .b32 func_retval0) helper(
\t.param .b32 helper_param_0
)
{
\tmov.b64 %rd1, table;
\tret;
}
";

    #[test]
    fn a_module_is_cut_into_one_a_kernel() {
        let mut module = Module::parse(MODULE).unwrap();
        module.set_version((8, 7)).unwrap();
        let names: Vec<_> = module.entries().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["first", "second"]);

        let [first, second] = [0, 1].map(|index| module.only(module.entries().nth(index).unwrap()));
        for text in [&first, &second] {
            assert!(text.starts_with(".version 8.7\n.target sm_90a\n.address_size 64\n"), "{text}");
            assert_eq!(text.matches(".entry").count(), 1);
            assert!(!text.contains("unused"));
        }
        assert!(first.contains("memory[]") && !first.contains("helper") && !first.contains("table"));
        assert!(second.contains("table[8]") && !second.contains("memory"));
        assert_eq!(second.matches(".func").count(), 2, "declaration and definition");
    }

    #[test]
    fn compact_code_is_the_same_code() {
        let compacted = compact(MODULE);
        let [before, after] = [MODULE, &compacted].map(|text| Module::parse(text).unwrap());
        let names = |module: &Module| module.entries().map(|entry| entry.name.clone()).collect::<Vec<_>>();
        assert_eq!((names(&before), &before.header), (names(&after), &after.header));
        assert!(compacted.contains("\nmov.u32 %r1, memory;\n{ .reg .pred p; @p bar.sync 1, 128; }\n"), "{compacted}");
        assert!(!compacted.contains("//") && !compacted.contains("\n\n"));
    }

    #[test]
    fn broken_modules_are_refused() {
        assert!(Module::parse(".visible .entry cut(\n").is_err());
        assert!(Module::parse("}\n").is_err());
        assert!(Module::parse(".section .debug_str { .b8 0 }\n").is_err());
    }

    #[test]
    fn launch_bounds_stand_between_parameters_and_body() {
        let module = Module::parse(MODULE).unwrap();
        let first = module.only(module.entries().next().unwrap());
        assert_eq!(launch_bounds(&first), None);
        let bounded = with_launch_bounds(&first, (384, 1)).unwrap();
        assert!(bounded.contains("first_param_0\n)\n.maxntid 384\n.minnctapersm 1\n{"), "{bounded}");
        assert_eq!(launch_bounds(&bounded), Some((384, 1)));
        assert!(with_launch_bounds(&bounded, (384, 1)).is_err());
    }

    #[test]
    fn local_memory_is_what_is_declared() {
        assert_eq!(local_bytes(MODULE), 0);
        assert_eq!(local_bytes("st.local.b32 [%r1], %r2; // .local .b8 comment[8];"), 0);
        assert_eq!(local_bytes("{ .local .align 16 .b8 \t__local_depot0[1280];\n.local .b8 more[20];"), 1300);
        assert_eq!(local_bytes(".local .b32 scalar;"), 1, "unknown, not none");
    }

    #[test]
    fn block_barriers_are_counted_and_warp_barriers_are_not() {
        assert_eq!(count_block_barriers(MODULE), 3);
        assert_eq!(
            count_block_barriers("bar.arrive 1, 64; barrier.cluster.arrive; mbarrier.init.shared.b64 [x], 1;"),
            0
        );
    }
}
