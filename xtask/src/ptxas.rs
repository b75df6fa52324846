//! What ptxas says about a kernel (`ptxas --verbose`).

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use sage_layout::architecture::Architecture;

use crate::ptx;

/// Assembles a PTX file to a cubin and returns ptxas's report.
pub fn assemble(ptxas: &Path, architecture: Architecture, input: &Path, output: &Path) -> Result<String> {
    let mut command = Command::new(ptxas);
    command
        .arg("--verbose")
        .arg(format!("--gpu-name={}", architecture.name()))
        .arg(input)
        .arg("--output-file")
        .arg(output);
    let result = command.output()?;
    let report = String::from_utf8_lossy(&result.stdout) + String::from_utf8_lossy(&result.stderr);
    if !result.status.success() {
        bail!("ptxas can't assemble {}:\n{}", input.display(), report.trim_end());
    }
    Ok(report.into_owned())
}

/// What a kernel takes of the GPU.
#[derive(Debug, Default, PartialEq)]
pub struct Usage {
    /// Registers of each thread.
    pub registers: u32,
    /// Statically allocated shared memory of a block, in bytes.
    pub static_shared: u32,
    /// Stack of each thread, in bytes.
    pub stack: u32,
    /// Spilled registers that each thread stores, in bytes.
    pub spill_stores: u32,
    /// Spilled registers that each thread loads, in bytes.
    pub spill_loads: u32,
    /// Lines that say that the code is wrong or slow.
    pub warnings: Vec<String>,
}

impl Usage {
    /// Reads the report on a module of one kernel. `None` if the numbers aren't there.
    pub fn parse(report: &str) -> Option<Self> {
        let mut usage = Self::default();
        let mut has_registers = false;
        let mut has_stack = false;
        for line in report.lines() {
            if line.contains("bytes stack frame") {
                has_stack = true;
                // A function that was not inlined has a line of its own.
                usage.stack = usage.stack.max(number_before(line, "bytes stack frame")?);
                usage.spill_stores = usage.spill_stores.max(number_before(line, "bytes spill stores")?);
                usage.spill_loads = usage.spill_loads.max(number_before(line, "bytes spill loads")?);
            }
            if let Some((_, used)) = line.split_once("Used ") {
                has_registers = true;
                usage.registers = number_before(used, "registers")?;
                usage.static_shared = number_before(used, "bytes smem").unwrap_or(0);
                usage.stack = usage.stack.max(number_before(used, "bytes cumulative stack size").unwrap_or(0));
            }
            if line.contains("(C75") || line.contains("Potential Performance Loss") || line.starts_with("ptxas warning")
            {
                usage.warnings.push(line.to_string());
            }
        }
        (has_registers && has_stack).then_some(usage)
    }
}

/// The number that stands before `unit`, as 16 in `16 bytes smem`.
fn number_before(line: &str, unit: &str) -> Option<u32> {
    let before = &line[..line.find(unit)?];
    ptx::words(before).last()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clean_report() {
        let report = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'attn128' for 'sm_90a'
ptxas info    : Function properties for attn128
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 1040 bytes smem
ptxas info    : Compile time = 284.576 ms
";
        let expected = Usage { registers: 168, static_shared: 1040, ..Usage::default() };
        assert_eq!(Usage::parse(report), Some(expected));
    }

    #[test]
    fn spills_stack_and_warnings() {
        let report = "\
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to ill formed pipeline
ptxas info    : Function properties for attn128
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 160 registers, used 1 barriers, 16 bytes cumulative stack size
";
        let usage = Usage::parse(report).unwrap();
        assert_eq!((usage.registers, usage.stack, usage.spill_stores, usage.spill_loads), (160, 16, 4, 12));
        assert_eq!(usage.warnings.len(), 1);
    }

    #[test]
    fn a_report_without_numbers_is_none() {
        assert_eq!(Usage::parse("ptxas info    : 0 bytes gmem\n"), None);
    }
}
