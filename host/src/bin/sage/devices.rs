//! `sage devices`: where attention can run.

use crate::table::{self, Column};
use anyhow::Result;
use sageattention::{Device, Error, Gpu, GpuInfo, device, devices, gpu};
use std::io::Write;

/// Runs the verb.
pub fn run(out: &mut impl Write) -> Result<()> {
    let mut rows = vec![[Device::Cpu.to_string(), cpu_description(), "can be used".to_owned()]];
    let gpus = devices();
    rows.extend(gpus.iter().map(|gpu| [Device::Gpu(gpu.ordinal).to_string(), description(gpu), verdict(gpu)]));
    if let (true, Err(reason)) = (gpus.is_empty(), Gpu::open(0)) {
        let reason = match reason {
            Error::NoGpu { reason, .. } => reason,
            other => other.to_string(),
        };
        rows.push(["gpu".to_owned(), "none".to_owned(), reason]);
    }
    for (architecture, embedded) in gpu::embedded_kernels() {
        let verdict = embedded.map_or_else(|missing| missing.to_string(), |()| "in this build".to_owned());
        rows.push(["kernels".to_owned(), architecture.to_owned(), verdict]);
    }
    rows.push(["auto".to_owned(), "what runs if no device is named".to_owned(), Device::auto().to_string()]);
    Ok(table::write(out, ["device", "what", "state"].map(Column::Left), &rows)?)
}

/// The CPU as the library uses it.
pub fn cpu_description() -> String {
    let threads = rayon::current_num_threads();
    format!("{threads} thread{}, {}", if threads == 1 { "" } else { "s" }, device::cpu_instructions())
}

fn description(gpu: &GpuInfo) -> String {
    let GpuInfo { name, capability, multiprocessors, memory_bytes, .. } = gpu;
    let gibibytes = *memory_bytes as f64 / f64::from(1 << 30);
    format!("{name}, compute capability {capability}, {multiprocessors} multiprocessors, {gibibytes:.0} GiB")
}

fn verdict(gpu: &GpuInfo) -> String {
    match &gpu.usable {
        Ok(()) => "can be used".to_owned(),
        Err(reason) => reason.to_string(),
    }
}
