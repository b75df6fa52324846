//! `sage devices`: where attention can run.

use crate::table::{self, Column};
use anyhow::Result;
use sage_layout::architecture::{Architecture, ComputeCapability};
use sage_layout::dispatch;
use sage_layout::kernel::ElementType;
use sage_layout::mode::{PvAccum, PvMode, QkMode};
use sageattention::{Device, Error, Gpu, GpuInfo, device, devices, gpu};
use std::io::Write;

/// The head dimension and, with f16, the element type that have the most kernels.
const HEAD_DIM: u32 = 128;

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
    table::write(out, ["device", "what", "state"].map(Column::Left), &rows)?;

    writeln!(
        out,
        "\nThere are kernels for these GPUs and options; of several kernels the default takes the first. \
         Scores are modified by a soft cap, a bias or a boolean mask."
    )?;
    let columns =
        ["compute capability", "GPUs", "kernels", "Q·Kᵀ", "fp8 P·V in", "16-bit P·V in", "scores modified", "default"];
    Ok(table::write(out, columns.map(Column::Left), &dispatch::GPUS.map(|(gpu, names)| support(gpu, names)))?)
}

/// What runs on a GPU: compute capability, names, kernels, types of queries and keys, accumulators of both types of
/// values, which values soft caps, biases and boolean masks go with, default.
fn support(gpu: ComputeCapability, names: &str) -> [String; 8] {
    let default = dispatch::defaults(gpu).modes;
    let mut modes: Vec<_> = dispatch::modes(gpu, HEAD_DIM, ElementType::F16).collect();
    modes.sort_by_key(|modes| *modes != default);
    let kernels = modes.iter().filter_map(|modes| {
        let architecture = dispatch::choices(gpu, *modes, false, HEAD_DIM, ElementType::F16).next()?.architecture;
        let ptx = if architecture.has_code_for(gpu) { "" } else { "PTX of " };
        Some(format!("{ptx}{}", architecture.name()))
    });
    let accumulators = |value| {
        let modes = modes.iter().filter(move |modes| modes.value == value);
        listed(
            PvAccum::ALL
                .into_iter()
                .filter(|one| modes.clone().any(|modes| modes.accumulator == *one))
                .map(PvAccum::name),
        )
    };
    let query_key = QkMode::ALL.into_iter().filter(|one| modes.iter().any(|modes| modes.query_key == *one));
    let modified =
        PvMode::ALL.into_iter().filter(|one| modes.iter().any(|modes| modes.modified_scores && modes.value == *one));
    [
        gpu.to_string(),
        names.to_owned(),
        listed(kernels),
        listed(query_key.map(QkMode::name)),
        accumulators(PvMode::Fp8),
        accumulators(PvMode::F16),
        listed(modified.map(PvMode::name)),
        format!("{} P·V in {}", default.value.name(), default.accumulator.name()),
    ]
}

/// The words, each once; a dash if there are none.
fn listed(words: impl Iterator<Item = impl Into<String>>) -> String {
    let mut list: Vec<String> = Vec::new();
    for word in words.map(Into::into) {
        if !list.contains(&word) {
            list.push(word);
        }
    }
    if list.is_empty() { "–".to_owned() } else { list.join(", ") }
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
        Ok(()) => {
            let used = dispatch::architectures(gpu.capability).filter(|one| dispatch::is_used(*one));
            format!("can be used, runs {}", listed(used.map(Architecture::name)))
        }
        Err(reason) => reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hopper_runs_its_own_kernels_and_turing_those_for_f16_values() {
        let [capability, names, kernels, query_key, fp8, half, modified, default] =
            support(ComputeCapability::new(9, 0), "H100");
        assert_eq!((capability.as_str(), names.as_str()), ("9.0", "H100"));
        assert!(kernels.starts_with("sm_90a"), "{kernels}");
        assert!(query_key.starts_with("int8") && fp8.starts_with("fp32") && half.starts_with("fp32"));
        assert_eq!((modified.as_str(), default.as_str()), ("fp8, 16-bit", "fp8 P·V in fp32"));
        let turing = support(ComputeCapability::new(7, 5), "T4");
        assert_eq!(turing[2..7], ["sm_75", "int8", "–", "fp32, fp16, fp16+fp32", "–"]);
        assert_eq!(support(ComputeCapability::new(7, 0), "V100")[2..7], ["–"; 5]);
    }
}
