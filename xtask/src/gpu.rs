//! The GPU of this machine, if there is one, as the driver's `nvidia-smi` describes it.

use std::process::Command;

use anyhow::{Context, Result};
use sage_layout::architecture::ComputeCapability;

use crate::process;

/// One GPU.
#[derive(Debug, PartialEq)]
pub struct Gpu {
    /// Product name.
    pub name: String,
    /// Compute capability.
    pub compute_capability: ComputeCapability,
    /// Driver version.
    pub driver: String,
}

/// The machine's GPUs; an error if there is no driver.
pub fn list() -> Result<Vec<Gpu>> {
    let query = "--query-gpu=name,compute_cap,driver_version";
    let text = process::read(Command::new("nvidia-smi").args([query, "--format=csv,noheader"]))?;
    text.lines().map(|line| parse(line).with_context(|| format!("nvidia-smi said `{line}`"))).collect()
}

fn parse(line: &str) -> Option<Gpu> {
    let mut fields = line.split(", ");
    let name = fields.next()?.to_string();
    let (major, minor) = fields.next()?.split_once('.')?;
    let compute_capability = ComputeCapability::new(major.parse().ok()?, minor.parse().ok()?);
    Some(Gpu { name, compute_capability, driver: fields.next()?.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nvidia_smi_lines_are_read() {
        let gpu = parse("NVIDIA H100 80GB HBM3, 9.0, 580.95.05").unwrap();
        assert_eq!(
            (gpu.name.as_str(), gpu.compute_capability),
            ("NVIDIA H100 80GB HBM3", ComputeCapability::new(9, 0))
        );
        assert_eq!(gpu.driver, "580.95.05");
        assert_eq!(parse("No devices were found"), None);
    }
}
