//! Where to compute: [`Device`].

use crate::cpu;
use crate::gpu::Gpu;

/// Where to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Device {
    /// On the processor's cores.
    #[default]
    Cpu,
    /// On the NVIDIA GPU that CUDA counts as this number.
    Gpu(usize),
    /// The GPU's kernels on the processor, in the SIMT executor: slow, and strict. For tests and debugging.
    #[cfg(feature = "simt")]
    Simt,
}

impl Device {
    /// GPU 0 if it can be used (there is a driver, the GPU is supported, this build holds its kernels), else the CPU.
    ///
    /// To learn why it is not the GPU, ask [`Gpu::open`].
    pub fn auto() -> Self {
        match Gpu::open(0) {
            Ok(_) => Self::Gpu(0),
            Err(reason) => {
                tracing::debug!(%reason, "using the CPU");
                Self::Cpu
            }
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => formatter.write_str("cpu"),
            Self::Gpu(ordinal) => write!(formatter, "gpu:{ordinal}"),
            #[cfg(feature = "simt")]
            Self::Simt => formatter.write_str("simt"),
        }
    }
}

/// The instructions that the CPU's inner loops use on this machine, for a human: `AVX-512`, `AVX2`, `portable`.
pub fn cpu_instructions() -> &'static str {
    cpu::instructions()
}
