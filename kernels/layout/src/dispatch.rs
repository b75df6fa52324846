//! Which kernels run a call, on which GPU.
//!
//! [`choices`] is the one answer: the kernels for a GPU, a head dimension, an element type and [`Modes`], best first. A GPU
//! takes machine code of its own architecture, and PTX of older ones, which its driver compiles.

use core::fmt;

use crate::architecture::{Architecture, ComputeCapability};
use crate::kernel::{ElementType, Family, Kernel};
use crate::mode::{PvAccum, PvMode, QkMode};
use crate::scale::Granularity;

/// The options that decide which kernels run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Modes {
    /// What queries and keys become.
    pub query_key: QkMode,
    /// Whether queries are smoothed too, and their mean's scores added back.
    pub smooth_query: bool,
    /// How probabilities are multiplied with values.
    pub value: PvMode,
    /// Where those products are added up.
    pub accumulator: PvAccum,
    /// Whether sequences differ in length.
    pub ragged: bool,
    /// Whether scores are modified before the softmax: soft cap, bias, boolean mask.
    pub modified_scores: bool,
}

impl Modes {
    /// Modes without smoothed queries.
    pub const fn new(query_key: QkMode, value: PvMode, accumulator: PvAccum) -> Self {
        Self { query_key, smooth_query: false, value, accumulator, ragged: false, modified_scores: false }
    }

    /// The same with smoothed queries.
    pub const fn with_smoothed_queries(self) -> Self {
        Self { smooth_query: true, ..self }
    }

    /// The same for sequences of different lengths.
    pub const fn ragged(self) -> Self {
        Self { ragged: true, ..self }
    }

    /// The same with scores modified.
    pub const fn with_modified_scores(self) -> Self {
        Self { modified_scores: true, ..self }
    }
}

/// As `int8 Q·Kᵀ, fp8 P·V in fp32+fp16`.
impl fmt::Display for Modes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { query_key, smooth_query, value, accumulator, ragged, modified_scores } = self;
        let smoothed = if *smooth_query { " with smoothed queries" } else { "" };
        let modified = if *modified_scores { ", scores capped, biased or masked" } else { "" };
        let ragged = if *ragged { ", lengths that differ" } else { "" };
        let [query_key, value, accumulator] = [query_key.name(), value.name(), accumulator.name()];
        write!(formatter, "{query_key} Q·Kᵀ{smoothed}{modified}, {value} P·V in {accumulator}{ragged}")
    }
}

/// The modes of each attention family; of several families for the same modes and architecture, the first is taken.
const FAMILIES: &[(Family, Modes)] = &[
    (Family::Attention, Modes::new(QkMode::Int8, PvMode::Fp8, PvAccum::F32)),
    (Family::Attention, Modes::new(QkMode::Int8, PvMode::Fp8, PvAccum::F32F32)),
    (Family::AttentionF16, Modes::new(QkMode::Int8, PvMode::F16, PvAccum::F32)),
    (Family::AttentionRagged, Modes::new(QkMode::Int8, PvMode::Fp8, PvAccum::F32).ragged()),
    (Family::AttentionRagged, Modes::new(QkMode::Int8, PvMode::Fp8, PvAccum::F32F32).ragged()),
    (Family::AttentionF16Ragged, Modes::new(QkMode::Int8, PvMode::F16, PvAccum::F32).ragged()),
    (Family::AttentionModified, Modes::new(QkMode::Int8, PvMode::Fp8, PvAccum::F32).with_modified_scores()),
    (Family::AttentionModified, Modes::new(QkMode::Int8, PvMode::Fp8, PvAccum::F32F32).with_modified_scores()),
    (Family::AttentionModifiedF16, Modes::new(QkMode::Int8, PvMode::F16, PvAccum::F32).with_modified_scores()),
    (Family::MmaF16F32, Modes::new(QkMode::Int8, PvMode::F16, PvAccum::F32)),
    (Family::MmaF16F16, Modes::new(QkMode::Int8, PvMode::F16, PvAccum::F16)),
    (Family::MmaF16F16F32, Modes::new(QkMode::Int8, PvMode::F16, PvAccum::F16F32)),
    (Family::TuringF16F32, Modes::new(QkMode::Int8, PvMode::F16, PvAccum::F32)),
    (Family::TuringF16F16, Modes::new(QkMode::Int8, PvMode::F16, PvAccum::F16)),
    (Family::TuringF16F16F32, Modes::new(QkMode::Int8, PvMode::F16, PvAccum::F16F32)),
    (Family::MmaFp8F32, Modes::new(QkMode::Int8, PvMode::Fp8, PvAccum::F32)),
    (Family::MmaFp8F32F32, Modes::new(QkMode::Int8, PvMode::Fp8, PvAccum::F32F32)),
    (Family::MmaFp8F32F16, Modes::new(QkMode::Int8, PvMode::Fp8, PvAccum::F32F16)),
    (Family::MmaF16F32, Modes::new(QkMode::Int8, PvMode::F16, PvAccum::F32).ragged()),
    (Family::MmaF16F16, Modes::new(QkMode::Int8, PvMode::F16, PvAccum::F16).ragged()),
    (Family::MmaF16F16F32, Modes::new(QkMode::Int8, PvMode::F16, PvAccum::F16F32).ragged()),
    (Family::MmaFp8F32, Modes::new(QkMode::Int8, PvMode::Fp8, PvAccum::F32).ragged()),
    (Family::MmaFp8F32F32, Modes::new(QkMode::Int8, PvMode::Fp8, PvAccum::F32F32).ragged()),
    (Family::MmaFp8F32F16, Modes::new(QkMode::Int8, PvMode::Fp8, PvAccum::F32F16).ragged()),
    (Family::MmaModifiedF16, Modes::new(QkMode::Int8, PvMode::F16, PvAccum::F32).with_modified_scores()),
    (Family::MmaModifiedF16, Modes::new(QkMode::Int8, PvMode::F16, PvAccum::F32).with_modified_scores().ragged()),
    (Family::MmaModifiedF16, Modes::new(QkMode::Int8, PvMode::F16, PvAccum::F16).with_modified_scores()),
    (Family::MmaModifiedF16, Modes::new(QkMode::Int8, PvMode::F16, PvAccum::F16).with_modified_scores().ragged()),
    (Family::MmaModifiedF16, Modes::new(QkMode::Int8, PvMode::F16, PvAccum::F16F32).with_modified_scores()),
    (Family::MmaModifiedF16, Modes::new(QkMode::Int8, PvMode::F16, PvAccum::F16F32).with_modified_scores().ragged()),
    (Family::MmaModifiedFp8, Modes::new(QkMode::Int8, PvMode::Fp8, PvAccum::F32).with_modified_scores()),
    (Family::MmaModifiedFp8, Modes::new(QkMode::Int8, PvMode::Fp8, PvAccum::F32).with_modified_scores().ragged()),
    (Family::MmaModifiedFp8, Modes::new(QkMode::Int8, PvMode::Fp8, PvAccum::F32F32).with_modified_scores()),
    (Family::MmaModifiedFp8, Modes::new(QkMode::Int8, PvMode::Fp8, PvAccum::F32F32).with_modified_scores().ragged()),
    (Family::MmaModifiedFp8, Modes::new(QkMode::Int8, PvMode::Fp8, PvAccum::F32F16).with_modified_scores()),
    (Family::MmaModifiedFp8, Modes::new(QkMode::Int8, PvMode::Fp8, PvAccum::F32F16).with_modified_scores().ragged()),
    (Family::MmaSmoothedF16F32, Modes::new(QkMode::Int8, PvMode::F16, PvAccum::F32).with_smoothed_queries()),
    (Family::MmaSmoothedF16F16, Modes::new(QkMode::Int8, PvMode::F16, PvAccum::F16).with_smoothed_queries()),
    (Family::MmaSmoothedF16F16F32, Modes::new(QkMode::Int8, PvMode::F16, PvAccum::F16F32).with_smoothed_queries()),
    (Family::MmaSmoothedFp8F32, Modes::new(QkMode::Int8, PvMode::Fp8, PvAccum::F32).with_smoothed_queries()),
    (Family::MmaSmoothedFp8F32F32, Modes::new(QkMode::Int8, PvMode::Fp8, PvAccum::F32F32).with_smoothed_queries()),
    (Family::MmaSmoothedFp8F32F16, Modes::new(QkMode::Int8, PvMode::Fp8, PvAccum::F32F16).with_smoothed_queries()),
    (Family::MmaInt4F16F32, Modes::new(QkMode::Int4, PvMode::F16, PvAccum::F32)),
    (Family::MmaInt4F16F32, Modes::new(QkMode::Int4, PvMode::F16, PvAccum::F32).with_smoothed_queries()),
    (Family::MmaInt4F16F16, Modes::new(QkMode::Int4, PvMode::F16, PvAccum::F16)),
    (Family::MmaInt4F16F16, Modes::new(QkMode::Int4, PvMode::F16, PvAccum::F16).with_smoothed_queries()),
    (Family::MmaInt4F16F16F32, Modes::new(QkMode::Int4, PvMode::F16, PvAccum::F16F32)),
    (Family::MmaInt4F16F16F32, Modes::new(QkMode::Int4, PvMode::F16, PvAccum::F16F32).with_smoothed_queries()),
    (Family::MmaInt4Fp8F32, Modes::new(QkMode::Int4, PvMode::Fp8, PvAccum::F32)),
    (Family::MmaInt4Fp8F32, Modes::new(QkMode::Int4, PvMode::Fp8, PvAccum::F32).with_smoothed_queries()),
    (Family::MmaInt4Fp8F32F32, Modes::new(QkMode::Int4, PvMode::Fp8, PvAccum::F32F32)),
    (Family::MmaInt4Fp8F32F32, Modes::new(QkMode::Int4, PvMode::Fp8, PvAccum::F32F32).with_smoothed_queries()),
    (Family::MmaInt4Fp8F32F16, Modes::new(QkMode::Int4, PvMode::Fp8, PvAccum::F32F16)),
    (Family::MmaInt4Fp8F32F16, Modes::new(QkMode::Int4, PvMode::Fp8, PvAccum::F32F16).with_smoothed_queries()),
];

/// The GPUs that are known, for a human, oldest first.
pub const GPUS: [(ComputeCapability, &str); 11] = [
    (ComputeCapability::new(7, 5), "T4, RTX 20"),
    (ComputeCapability::new(8, 0), "A100, A30"),
    (ComputeCapability::new(8, 6), "RTX 30, A40, A10"),
    (ComputeCapability::new(8, 7), "Orin"),
    (ComputeCapability::new(8, 9), "RTX 40, L40, L4"),
    (ComputeCapability::new(9, 0), "H100, H200, GH200"),
    (ComputeCapability::new(10, 0), "B200, GB200"),
    (ComputeCapability::new(10, 3), "B300, GB300"),
    (ComputeCapability::new(11, 0), "Thor"),
    (ComputeCapability::new(12, 0), "RTX 50, RTX PRO"),
    (ComputeCapability::new(12, 1), "GB10"),
];

/// SageAttention's options for a GPU, where it has some (SageAttention 2.2, `sageattn`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// How many queries and keys share a scale.
    pub granularity: Granularity,
    /// Formats and accumulators.
    pub modes: Modes,
}

/// What SageAttention does on a GPU if it is not told; on Hopper, what our kernel does best.
///
/// 8.6, where SageAttention runs a Triton kernel, and 7.5 and 8.7, which it refuses, get what 8.0 does;
/// those from 10.0 to 11.0, which it refuses too, what it does on Hopper. GPUs newer than all that are known get what the newest does.
pub const fn defaults(gpu: ComputeCapability) -> Defaults {
    use Granularity::{PerThread, PerWarp};
    let (granularity, value, accumulator) = match (gpu.major, gpu.minor) {
        (8, 9) => (PerThread, PvMode::Fp8, PvAccum::F32F16),
        (..=8, _) => (PerThread, PvMode::F16, PvAccum::F32),
        (9, _) => (PerThread, PvMode::Fp8, PvAccum::F32),
        (10..=11, _) => (PerThread, PvMode::Fp8, PvAccum::F32F32),
        (12.., _) => (PerWarp, PvMode::Fp8, PvAccum::F32F16),
    };
    Defaults { granularity, modes: Modes::new(QkMode::Int8, value, accumulator) }
}

/// The architectures whose kernels run on a GPU, best first: its own, then newer PTX before older.
pub fn architectures(gpu: ComputeCapability) -> impl Iterator<Item = Architecture> {
    let own = Architecture::ALL.into_iter().filter(move |architecture| architecture.has_code_for(gpu));
    let older = Architecture::ALL.into_iter().rev().filter(move |architecture| {
        architecture.ptx() == *architecture && architecture.runs_on(gpu) && !architecture.has_code_for(gpu)
    });
    own.chain(older)
}

/// The attention families of an architecture, each with its modes.
pub fn families(architecture: Architecture) -> impl Iterator<Item = (Family, Modes)> {
    FAMILIES.iter().copied().filter(move |(family, _)| family.exists_for(architecture))
}

/// Whether an architecture has attention kernels, and not just what goes with them.
pub fn is_used(architecture: Architecture) -> bool {
    families(architecture).next().is_some()
}

/// Kernels that run a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The architecture that they are compiled for.
    pub architecture: Architecture,
    /// What rounds f32 for the quantizer, and rotates queries and keys that it does not.
    pub prepare: Kernel,
    /// What looks through a boolean mask, if there is one, before attention.
    pub mask_tiles: Option<Kernel>,
    /// The quantizer.
    pub quantize: Kernel,
    /// The attention kernel.
    pub attention: Kernel,
}

/// The kernels that run a call of so many channels on a GPU, best first; none if there are none. Each is the smallest of its family that
/// has as many: so operands are stored as the quantizer's padded head dimension says, of which attention may leave some channels alone.
/// `rotated`, the quantizer rotates queries and keys.
pub fn choices(
    gpu: ComputeCapability,
    modes: Modes,
    rotated: bool,
    head_dim: u32,
    element: ElementType,
) -> impl Iterator<Item = Choice> {
    let families = architectures(gpu)
        .flat_map(|architecture| families(architecture).map(move |(family, served)| (architecture, family, served)));
    // kernels that serve them with sums in f32 have bfloat16 too
    let sums_in_f16 = modes.value == PvMode::F16 && modes.accumulator != PvAccum::F32;
    let is_served = move |served: &Modes| *served == modes && !(sums_in_f16 && element == ElementType::Bf16);
    families.filter(move |(.., served)| is_served(served)).filter_map(move |(architecture, family, _)| {
        let kernel = |family| Kernel::find(family, head_dim, element.rounded());
        Some(Choice {
            architecture,
            prepare: Kernel::find(Family::Prepare, head_dim, element)?,
            mask_tiles: family.modifies_scores().then_some(Kernel::MaskTilesD64F16),
            quantize: kernel(family.quantizer(modes.ragged, rotated))?,
            attention: kernel(family)?,
        })
    })
}

/// The modes that some kernel has on a GPU, each once.
pub fn modes(gpu: ComputeCapability, head_dim: u32, element: ElementType) -> impl Iterator<Item = Modes> {
    let is_served = move |modes: &Modes| choices(gpu, *modes, false, head_dim, element).next().is_some();
    all_modes().filter(is_served)
}

/// Every combination of modes. Queries are smoothed, and codes INT4, where all sequences are equally long.
pub fn all_modes() -> impl Iterator<Item = Modes> {
    let of_values = || {
        PvMode::ALL.into_iter().flat_map(|value| {
            PvAccum::of(value).iter().map(move |&accumulator| Modes::new(QkMode::Int8, value, accumulator))
        })
    };
    let uniform = move || {
        QkMode::ALL.into_iter().flat_map(move |query_key| {
            [false, true]
                .into_iter()
                .flat_map(move |smooth_query| of_values().map(move |modes| Modes { query_key, smooth_query, ..modes }))
        })
    };
    let unmodified = move || uniform().chain(of_values().map(Modes::ragged));
    unmodified().chain(unmodified().map(Modes::with_modified_scores))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tile::{MAX_HEAD_DIM, PADDED_HEAD_DIMS, stored_head_dim};

    extern crate std;
    use std::string::ToString;
    use std::vec::Vec;

    const HOPPER: ComputeCapability = ComputeCapability::new(9, 0);
    const FP8: Modes = Modes::new(QkMode::Int8, PvMode::Fp8, PvAccum::F32);

    fn is_uniform_and_unmodified(modes: &Modes) -> bool {
        !modes.ragged && !modes.modified_scores
    }

    fn is_plain_int8(modes: &Modes) -> bool {
        modes.query_key == QkMode::Int8 && !modes.smooth_query && !modes.modified_scores
    }

    fn capabilities() -> impl Iterator<Item = ComputeCapability> {
        let newer = [(9, 9), (12, 5), (13, 0), (20, 3)].map(|(major, minor)| ComputeCapability::new(major, minor));
        GPUS.into_iter().map(|(gpu, _)| gpu).chain(newer)
    }

    #[test]
    fn every_gpu_with_machine_code_is_known() {
        for gpu in Architecture::ALL.into_iter().flat_map(Architecture::capabilities) {
            assert!(GPUS.iter().any(|(known, _)| known == gpu), "{gpu}");
        }
        assert!(GPUS.is_sorted_by_key(|(gpu, _)| *gpu));
    }

    #[test]
    fn a_gpu_runs_its_own_code_then_newer_ptx_before_older() {
        use Architecture::*;
        for (major, minor, expected) in [
            (7, 0, &[][..]),
            (7, 5, &[Sm75]),
            (8, 0, &[Sm80, Sm75]),
            (8, 6, &[Sm86, Sm80, Sm75]),
            (8, 7, &[Sm80, Sm75]),
            (8, 9, &[Sm89, Sm80, Sm75]),
            (9, 0, &[Sm90a, Sm89, Sm80, Sm75]),
            (10, 3, &[Sm100, Sm89, Sm80, Sm75]),
            (11, 0, &[Sm89, Sm80, Sm75]),
            (12, 1, &[Sm120, Sm89, Sm80, Sm75]),
            (13, 0, &[Sm89, Sm80, Sm75]),
        ] {
            let found: Vec<_> = architectures(ComputeCapability::new(major, minor)).collect();
            assert_eq!(found, expected, "{major}.{minor}");
        }
    }

    #[test]
    fn choices_are_kernels_of_the_architecture_and_run_on_the_gpu() {
        for gpu in capabilities() {
            for modes in all_modes() {
                for (head_dim, element) in PADDED_HEAD_DIMS.map(|head_dim| (head_dim, ElementType::F16)) {
                    for Choice { architecture, prepare, quantize, attention, .. } in
                        choices(gpu, modes, false, head_dim, element)
                    {
                        assert!(architecture.runs_on(gpu), "{architecture:?} {gpu}");
                        let family = attention.family();
                        let rotates = Kernel::find(family.quantizer(modes.ragged, true), head_dim, element);
                        for kernel in [quantize, rotates.expect("a kernel"), attention] {
                            // at least its PTX
                            assert!(kernel.exists_for(architecture.ptx()), "{kernel:?} {architecture:?}");
                            assert_eq!((kernel.head_dim(), kernel.element()), (head_dim, element));
                        }
                        assert_eq!(prepare, Kernel::find(Family::Prepare, head_dim, element).expect("a kernel"));
                        assert_eq!(quantize.family(), family.quantizer(modes.ragged, false));
                        assert!(families(architecture).any(|found| found == (family, modes)));
                    }
                }
            }
        }
    }

    #[test]
    fn every_attention_family_is_chosen_on_a_gpu_of_its_own() {
        for &family in Family::ALL.iter().filter(|family| family.attends()) {
            let modes: Vec<_> =
                FAMILIES.iter().filter(|(served, _)| *served == family).map(|(_, modes)| *modes).collect();
            assert!(!modes.is_empty(), "{family:?} has no modes");
            let is_chosen = |architecture: &Architecture| {
                let first = |modes| choices(architecture.capabilities()[0], modes, false, 128, ElementType::F16).next();
                modes.iter().any(|&modes| first(modes).is_some_and(|choice| choice.attention.family() == family))
            };
            assert!(family.architectures().iter().any(is_chosen), "{family:?}");
        }
    }

    #[test]
    fn hopper_runs_its_own_kernels_first() {
        let first = choices(HOPPER, FP8, false, 128, ElementType::Bf16).next().expect("the Hopper kernel");
        assert_eq!((first.architecture, first.attention), (Architecture::Sm90a, Kernel::AttentionD128Bf16));
        assert!(choices(HOPPER, FP8, false, 257, ElementType::Bf16).next().is_none(), "no such head dimension");
    }

    #[test]
    fn attention_multiplies_no_more_channels_than_it_has_a_kernel_for() {
        let half = Modes::new(QkMode::Int8, PvMode::F16, PvAccum::F32);
        for (modes, native) in [
            (FP8, &[64, 96, 128, 192, 256][..]),
            (half, &[64, 96, 128, 192, 256]),
            (FP8.ragged(), &[64, 128, 256]),
            (FP8.with_modified_scores(), &[64, 128, 256]),
        ] {
            for head_dim in 1..=MAX_HEAD_DIM {
                let found = choices(HOPPER, modes, false, head_dim, ElementType::F16).next();
                let expected = native.iter().copied().find(|&native| native >= head_dim);
                assert_eq!(found.map(|choice| choice.attention.head_dim()), expected, "{modes}, {head_dim}");
            }
        }
    }

    /// Whatever the quantizer stores, attention reads: the choices are those of the padded head dimension but for attention's own.
    #[test]
    fn all_kernels_of_a_choice_have_the_same_operands() {
        for (gpu, modes) in capabilities().flat_map(|gpu| all_modes().map(move |modes| (gpu, modes))) {
            for head_dim in [1, 64, 65, 96, 97, 128, 129, 192, 193, 256] {
                let stored = stored_head_dim(head_dim);
                let stored_choices = choices(gpu, modes, false, stored, ElementType::F16);
                assert!(
                    choices(gpu, modes, false, head_dim, ElementType::F16)
                        .map(|choice| Choice {
                            attention: {
                                assert_eq!(stored_head_dim(choice.attention.head_dim()), stored);
                                Kernel::find(choice.attention.family(), stored, ElementType::F16).expect("a kernel")
                            },
                            ..choice
                        })
                        .eq(stored_choices),
                    "{gpu}, {modes}, {head_dim}"
                );
            }
        }
    }

    /// Sequences of different lengths have kernels wherever equally long ones have, in INT8 without smoothed queries, but on Turing.
    #[test]
    fn every_gpu_from_ampere_on_takes_ragged_batches() {
        for gpu in capabilities().filter(|gpu| gpu.major > 7) {
            let elements = [ElementType::F16, ElementType::Bf16, ElementType::F32];
            for (head_dim, element) in
                PADDED_HEAD_DIMS.into_iter().flat_map(|head_dim| elements.map(|element| (head_dim, element)))
            {
                let served = || modes(gpu, head_dim, element).filter(is_plain_int8);
                let uniform = served().filter(|modes| !modes.ragged).map(Modes::ragged);
                assert!(uniform.eq(served().filter(|modes| modes.ragged)), "{gpu} {head_dim} {element:?}");
            }
        }
    }

    /// Of sequences of different lengths too, up to 128 channels.
    #[test]
    fn hopper_takes_ragged_batches_with_its_own_kernels() {
        let first =
            |head_dim| choices(HOPPER, FP8.ragged(), false, head_dim, ElementType::F16).next().expect("a kernel");
        let Choice { quantize, attention, .. } = first(64);
        assert_eq!((quantize, attention), (Kernel::QuantizeRaggedD64F16, Kernel::AttentionRaggedD64F16));
        let Choice { architecture, quantize, attention, .. } = first(256);
        assert_eq!((quantize, attention), (Kernel::QuantizeRaggedD256F16, Kernel::MmaFp8F32D256F16));
        assert_eq!(architecture, Architecture::Sm89);
    }

    /// Of equally long sequences, with up to 128 channels; others run the kernels of older GPUs.
    #[test]
    fn hopper_modifies_scores_with_its_own_kernels() {
        let first = |modes: Modes, head_dim| {
            let choice = choices(HOPPER, modes.with_modified_scores(), false, head_dim, ElementType::Bf16).next();
            choice.map(|choice| choice.attention.family())
        };
        let half = Modes::new(QkMode::Int8, PvMode::F16, PvAccum::F32);
        assert_eq!(
            [FP8, half].map(|modes| first(modes, 128)),
            [Some(Family::AttentionModified), Some(Family::AttentionModifiedF16)]
        );
        for modes in [FP8, half] {
            let family = if modes == FP8 { Family::MmaModifiedFp8 } else { Family::MmaModifiedF16 };
            assert_eq!([first(modes, 129), first(modes.ragged(), 64)], [Some(family); 2]);
        }
    }

    /// Scores are modified wherever they are not, in INT8 without smoothed queries, but on Turing.
    #[test]
    fn every_gpu_from_ampere_on_modifies_scores() {
        for gpu in capabilities().filter(|gpu| gpu.major > 7) {
            let elements = [ElementType::F16, ElementType::Bf16, ElementType::F32];
            for (head_dim, element) in
                PADDED_HEAD_DIMS.into_iter().flat_map(|head_dim| elements.map(|element| (head_dim, element)))
            {
                let served = || modes(gpu, head_dim, element);
                let plain = served().filter(is_plain_int8).map(Modes::with_modified_scores);
                assert!(plain.eq(served().filter(|modes| modes.modified_scores)), "{gpu} {head_dim} {element:?}");
            }
        }
    }

    /// It is rounded first; all else is the same.
    #[test]
    fn f32_runs_wherever_f16_does() {
        for (gpu, modes) in capabilities().flat_map(|gpu| all_modes().map(move |modes| (gpu, modes))) {
            for head_dim in PADDED_HEAD_DIMS {
                let [f16, f32] =
                    [ElementType::F16, ElementType::F32].map(|element| choices(gpu, modes, false, head_dim, element));
                assert!(f32.eq(f16.map(|choice| {
                    let prepare = Kernel::find(Family::Prepare, head_dim, ElementType::F32).expect("a kernel");
                    assert!(prepare.family().exists_for(choice.architecture));
                    Choice { prepare, ..choice }
                })));
            }
        }
    }

    #[test]
    fn turing_multiplies_f16_values_alone() {
        let turing = ComputeCapability::new(7, 5);
        let accumulators: Vec<_> = modes(turing, 128, ElementType::F16).map(|modes| modes.accumulator).collect();
        assert_eq!(accumulators, [PvAccum::F32, PvAccum::F16, PvAccum::F16F32]);
        assert_eq!(modes(turing, 128, ElementType::Bf16).count(), 0);
    }

    #[test]
    fn later_gpus_run_turings_ptx_last() {
        for gpu in capabilities().filter(|gpu| gpu.major > 7) {
            let half = Modes::new(QkMode::Int8, PvMode::F16, PvAccum::F16);
            let last = choices(gpu, half, false, 64, ElementType::F16).last().expect("PTX of Turing");
            assert_eq!((last.architecture, last.attention), (Architecture::Sm75, Kernel::TuringF16F16D64F16), "{gpu}");
        }
    }

    #[test]
    fn defaults_are_among_the_modes_where_there_are_kernels() {
        for gpu in capabilities() {
            let mut served = modes(gpu, 64, ElementType::F16).peekable();
            let default = defaults(gpu).modes;
            assert!(served.peek().is_none() || served.any(|modes| modes == default), "{gpu}: {default}");
        }
    }

    /// Every combination on Ada and whatever is newer, if all sequences are equally long, but for INT4 and smoothed queries over 128
    /// channels; INT4 is slow there, and nobody's default.
    #[test]
    fn every_mode_runs_on_ada_and_later() {
        for gpu in capabilities().filter(|gpu| *gpu >= ComputeCapability::new(8, 9)) {
            for head_dim in PADDED_HEAD_DIMS {
                let served = modes(gpu, head_dim, ElementType::F16).filter(is_uniform_and_unmodified);
                let all = all_modes().filter(is_uniform_and_unmodified);
                assert_eq!(
                    served.count(),
                    all.filter(|modes| head_dim <= 128 || is_plain_int8(modes)).count(),
                    "{gpu}"
                );
            }
        }
        for gpu in capabilities() {
            let modes = defaults(gpu).modes;
            assert!(modes.query_key == QkMode::Int8 && !modes.smooth_query);
        }
    }

    #[test]
    fn modes_are_told_in_words() {
        let modes = Modes::new(QkMode::Int4, PvMode::Fp8, PvAccum::F32F16);
        assert_eq!(modes.to_string(), "int4 Q·Kᵀ, fp8 P·V in fp32+fp16");
        let modes = Modes { smooth_query: true, ..modes };
        assert_eq!(modes.to_string(), "int4 Q·Kᵀ with smoothed queries, fp8 P·V in fp32+fp16");
        assert_eq!(
            modes.ragged().to_string(),
            "int4 Q·Kᵀ with smoothed queries, fp8 P·V in fp32+fp16, lengths that differ"
        );
        let modes = Modes::new(QkMode::Int8, PvMode::F16, PvAccum::F32).with_modified_scores();
        assert_eq!(modes.to_string(), "int8 Q·Kᵀ, scores capped, biased or masked, 16-bit P·V in fp32");
        assert_eq!(all_modes().count(), 2 * (24 + 6));
    }
}
