//! Compute capabilities of GPUs, and the architectures that kernels are compiled for.

use core::fmt;

use crate::kernel::Family;

/// A GPU's compute capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ComputeCapability {
    /// The number before the point: the generation.
    pub major: u32,
    /// The number after the point.
    pub minor: u32,
}

impl ComputeCapability {
    /// The capability that is written `major.minor`.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }
}

impl fmt::Display for ComputeCapability {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

/// A GPU architecture that kernels are assembled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Turing: T4, RTX 20.
    Sm75,
    /// Data center Ampere: A100, A30.
    Sm80,
    /// Ampere: RTX 30, A40, A10. It converts between integers and floats faster than A100, and ptxas makes use of that.
    Sm86,
    /// Ada: RTX 40, L4, L40.
    Sm89,
    /// Hopper: H100, H200, GH200, with the features that only compute capability 9.0 has.
    Sm90a,
    /// Data center Blackwell: B200, B300.
    Sm100,
    /// RTX Blackwell: RTX 50, GB10.
    Sm120,
}

impl Architecture {
    /// Every architecture, oldest first.
    pub const ALL: [Self; 7] = [Self::Sm75, Self::Sm80, Self::Sm86, Self::Sm89, Self::Sm90a, Self::Sm100, Self::Sm120];

    /// The name that compilers know it by.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sm75 => "sm_75",
            Self::Sm80 => "sm_80",
            Self::Sm86 => "sm_86",
            Self::Sm89 => "sm_89",
            Self::Sm90a => "sm_90a",
            Self::Sm100 => "sm_100",
            Self::Sm120 => "sm_120",
        }
    }

    /// The architecture whose PTX its machine code is made from: its kernels need no newer instructions.
    pub const fn ptx(self) -> Self {
        match self {
            Self::Sm75 => Self::Sm75,
            Self::Sm80 | Self::Sm86 => Self::Sm80,
            Self::Sm89 | Self::Sm100 | Self::Sm120 => Self::Sm89,
            Self::Sm90a => Self::Sm90a,
        }
    }

    /// The PTX version of its modules, major and minor: the oldest that has the instructions of its kernels, as drivers
    /// refuse PTX that is newer than they are. 6.5 has `ldmatrix`; 7.4 has cache policies; 8.7 has e4m3 products summed in f16.
    pub const fn ptx_version(self) -> (u32, u32) {
        match self.ptx() {
            Self::Sm75 => (6, 5),
            Self::Sm80 => (7, 4),
            Self::Sm90a => (8, 0),
            _ => (8, 7),
        }
    }

    /// The GPUs that take its machine code, oldest first.
    pub const fn capabilities(self) -> &'static [ComputeCapability] {
        const fn gpu(major: u32, minor: u32) -> ComputeCapability {
            ComputeCapability { major, minor }
        }
        match self {
            Self::Sm75 => &const { [gpu(7, 5)] },
            Self::Sm80 => &const { [gpu(8, 0)] },
            Self::Sm86 => &const { [gpu(8, 6)] },
            Self::Sm89 => &const { [gpu(8, 9)] },
            Self::Sm90a => &const { [gpu(9, 0)] },
            Self::Sm100 => &const { [gpu(10, 0), gpu(10, 3)] },
            Self::Sm120 => &const { [gpu(12, 0), gpu(12, 1)] },
        }
    }

    /// Shared memory that a block may have, in bytes, on the least of the GPUs that run its PTX.
    pub const fn shared_bytes(self) -> u32 {
        match self {
            Self::Sm75 => 64 * 1024,
            Self::Sm90a => 227 * 1024,
            _ => 99 * 1024,
        }
    }

    /// Whether its kernels use features that later GPUs do not have.
    const fn is_specific(self) -> bool {
        matches!(self, Self::Sm90a)
    }

    /// Whether its machine code runs on a GPU.
    pub fn has_code_for(self, gpu: ComputeCapability) -> bool {
        self.capabilities().contains(&gpu)
    }

    /// Whether its kernels run on a GPU, whose driver may have to compile their PTX.
    pub fn runs_on(self, gpu: ComputeCapability) -> bool {
        let oldest = self.ptx().capabilities()[0];
        self.has_code_for(gpu) || (gpu >= oldest && !self.is_specific())
    }

    /// The kernel families that exist for it.
    pub fn families(self) -> impl Iterator<Item = Family> {
        Family::ALL.iter().copied().filter(move |family| family.exists_for(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn gpu(major: u32, minor: u32) -> ComputeCapability {
        ComputeCapability::new(major, minor)
    }

    #[test]
    fn names_say_the_oldest_capability() {
        let oldest = |architecture: Architecture| architecture.capabilities()[0];
        for architecture in Architecture::ALL {
            let ComputeCapability { major, minor } = oldest(architecture);
            let digits = architecture.name().strip_prefix("sm_").unwrap().trim_end_matches('a');
            assert_eq!(digits.parse(), Ok(10 * major + minor));
            assert_eq!(architecture.name().ends_with('a'), architecture.is_specific());
            assert!(architecture.capabilities().is_sorted());
        }
        assert!(Architecture::ALL.is_sorted_by_key(|&architecture| oldest(architecture)));
    }

    #[test]
    fn machine_code_is_made_from_ptx_that_its_gpus_take() {
        for architecture in Architecture::ALL {
            let ptx = architecture.ptx();
            assert_eq!(ptx.ptx(), ptx);
            assert!(architecture.capabilities().iter().all(|&gpu| ptx.runs_on(gpu)));
            assert_eq!(ptx.ptx_version(), architecture.ptx_version());
            assert_eq!(ptx.shared_bytes(), architecture.shared_bytes());
        }
    }

    #[test]
    fn a_gpu_has_machine_code_of_one_architecture() {
        for architecture in Architecture::ALL {
            for &gpu in architecture.capabilities() {
                assert_eq!(Architecture::ALL.into_iter().filter(|other| other.has_code_for(gpu)).count(), 1, "{gpu}");
            }
        }
    }

    #[test]
    fn ptx_runs_on_later_gpus_unless_it_is_specific() {
        use Architecture::*;
        for (architecture, gpus) in [
            (Sm75, &[gpu(7, 5), gpu(8, 0), gpu(9, 0)][..]),
            (Sm80, &[gpu(8, 0), gpu(8, 6), gpu(8, 7), gpu(9, 0), gpu(12, 1)]),
            (Sm89, &[gpu(8, 9), gpu(9, 0), gpu(10, 3), gpu(13, 0)]),
            (Sm90a, &[gpu(9, 0)]),
            (Sm100, &[gpu(10, 0), gpu(11, 0)]),
        ] {
            assert!(gpus.iter().all(|&gpu| architecture.runs_on(gpu)), "{architecture:?}");
        }
        for (architecture, gpu) in
            [(Sm75, gpu(7, 2)), (Sm80, gpu(7, 5)), (Sm89, gpu(8, 6)), (Sm90a, gpu(8, 9)), (Sm90a, gpu(10, 0))]
        {
            assert!(!architecture.runs_on(gpu), "{architecture:?} {gpu}");
        }
    }

    #[test]
    fn every_family_exists_for_some_architecture() {
        for family in Family::ALL {
            assert!(
                Architecture::ALL.into_iter().any(|architecture| architecture.families().any(|one| one == *family))
            );
        }
    }
}
