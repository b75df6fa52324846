//! Speed on the GPU: the attention kernel alone, the quantization alone, and the whole call; and how exact it is.
//!
//! The sizes are those of SageAttention's papers: batch · length is 32768 tokens, 16 heads of 128 or 96 channels, 32 of 64, 8 of
//! 256 or 10 of 192. An operation is a multiplication or an addition of the two matrix products, half of them for a causal mask. For the
//! quantization, gigabytes are those that it can't do without: each tensor read once, its codes written once.
//!
//! Each case is timed in two ways. In *bursts*: after 80 ms of rest and one call to warm up, about 12 ms of calls between
//! two events, so that the power limit does not blur the comparison; the contenders take turns, burst by burst. After all
//! of them, *sustained*: calls without a pause until the clock has settled, then a second more, a sample each 50 ms.

mod contender;

use std::error::Error;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Parser;
use contender::{Contender, Tensors};
use half::f16;
use sage_measure::peers::{PEERS, Peer, Peers, Request, Timing};
use sage_measure::{Accuracy, Arguments, Case, Device as Where, Measurement, Mode, Part, Report, table};
use sage_tests::gpu::attend_with;
use sage_tests::tensor::Inputs;
use sageattention::{
    Architecture, AttentionOptions, AttentionPlan, AttentionProblem, CausalAlign, DType, Device, Error as SageError,
    Gpu, Mask, PvAccum, PvMode, QkMode, TensorLayout, attention, devices, testing,
};

/// A way to compute attention of ours.
struct Variant {
    name: &'static str,
    qk_mode: QkMode,
    smooth_q: bool,
    pv_mode: PvMode,
    pv_accum: PvAccum,
    /// Whose kernels; none for the best.
    architecture: Option<Architecture>,
}

const VARIANTS: &[Variant] = &[
    Variant::new("int8-fp8", PvMode::Fp8, PvAccum::F32, None),
    Variant::new("int8-f16", PvMode::F16, PvAccum::F32, None),
    Variant::new("mma-f16-f32", PvMode::F16, PvAccum::F32, Some(Architecture::Sm80)),
    Variant::new("mma-f16-f16", PvMode::F16, PvAccum::F16, Some(Architecture::Sm80)),
    Variant::new("mma-f16-f16f32", PvMode::F16, PvAccum::F16F32, Some(Architecture::Sm80)),
    Variant::new("mma-fp8-f32", PvMode::Fp8, PvAccum::F32, Some(Architecture::Sm89)),
    Variant::new("mma-fp8-f32f32", PvMode::Fp8, PvAccum::F32F32, Some(Architecture::Sm89)),
    Variant::new("mma-fp8-f32f16", PvMode::Fp8, PvAccum::F32F16, Some(Architecture::Sm89)),
    Variant::new("mma-smoothed-f16-f32", PvMode::F16, PvAccum::F32, Some(Architecture::Sm80)).smoothed(QkMode::Int8),
    Variant::new("mma-int4-f16-f32", PvMode::F16, PvAccum::F32, Some(Architecture::Sm80)).smoothed(QkMode::Int4),
];

impl Variant {
    const fn new(name: &'static str, pv_mode: PvMode, pv_accum: PvAccum, architecture: Option<Architecture>) -> Self {
        Self { name, qk_mode: QkMode::Int8, smooth_q: false, pv_mode, pv_accum, architecture }
    }

    /// The same with smoothed queries.
    const fn smoothed(self, qk_mode: QkMode) -> Self {
        Self { qk_mode, smooth_q: true, ..self }
    }

    fn options(&self) -> AttentionOptions {
        let Self { qk_mode, smooth_q, pv_mode, pv_accum, .. } = *self;
        AttentionOptions { qk_mode, smooth_q, pv_mode, pv_accum, ..Default::default() }
    }

    /// Bytes of a code: of queries, keys and values.
    fn code_bytes(&self) -> [f64; 3] {
        let query_key = match self.qk_mode {
            QkMode::Int8 => 1.0,
            QkMode::Int4 => 0.5,
        };
        let value = match self.pv_mode {
            PvMode::Fp8 => 1.0,
            PvMode::F16 => 2.0,
        };
        [query_key, query_key, value]
    }

    /// The parts that are timed: those that other variants have not.
    fn parts(&self) -> &'static [Part] {
        match self.architecture {
            None => &[Part::Attention, Part::Quantization, Part::EndToEnd],
            Some(_) if self.smooth_q => &[Part::Attention, Part::Quantization],
            Some(_) => &[Part::Attention],
        }
    }
}

/// Tokens of a batch, all sequences together.
const TOKENS: usize = 32768;
/// Head dimension, and how many heads.
const HEADS: [(usize, usize); 5] = [(128, 16), (64, 32), (256, 8), (96, 16), (192, 10)];

/// What else a call does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extra {
    /// Nothing.
    Nothing,
    /// Rotates queries and keys, half-split, all channels.
    Rotary,
    /// A soft cap.
    SoftCap,
    /// A bias in f16, one for all heads.
    Bias,
    /// A boolean mask, one for all heads: a sequence is documents of [`DOCUMENT`] tokens, which see themselves.
    Documents,
}

/// Which keys queries see, and how.
#[derive(Clone, Copy)]
struct Setting {
    name: &'static str,
    mask: Mask,
    extra: Extra,
    /// The shortest length that is measured, and the longest.
    lengths: [usize; 2],
    /// Whether sequences are packed, and of [`MIXED_LENGTHS`].
    is_mixed: bool,
    /// Whether peers and all kernels of ours are measured, or the best of ours alone; and how exact they are.
    is_main: bool,
}

/// Keys of a sliding window, the query's own among them.
const WINDOW: usize = 4096;
/// Lengths of packed sequences: as many tokens as of equally long ones.
const MIXED_LENGTHS: [usize; 9] = [100, 156, 256, 512, 1024, 2048, 4096, 8192, 16384];

/// Tokens of a document.
const DOCUMENT: usize = 2048;

const SETTINGS: &[Setting] = &[
    Setting { is_main: true, ..Setting::new("full", Mask::None, [0, usize::MAX]) },
    Setting { is_main: true, ..Setting::new("causal", Mask::Causal, [0, usize::MAX]) },
    Setting::new(
        "window",
        Mask::Window { left: Some(WINDOW as u32 - 1), right: Some(0), align: CausalAlign::TopLeft },
        [2 * WINDOW, usize::MAX],
    ),
    Setting { is_mixed: true, ..Setting::new("mixed", Mask::None, [16384, 16384]) },
    Setting { extra: Extra::SoftCap, ..Setting::new("soft-cap", Mask::None, [4096, 16384]) },
    Setting { extra: Extra::Bias, ..Setting::new("bias", Mask::None, [4096, 16384]) },
    Setting { extra: Extra::Documents, ..Setting::new("documents", Mask::None, [4096, 16384]) },
    Setting { extra: Extra::Rotary, ..Setting::new("rotary", Mask::None, [4096, 16384]) },
];

impl Setting {
    /// Whether a kernel of ours is timed in it: the best ones, and of the others all in a main setting, of those that modify scores one for
    /// each kind of values.
    fn times(&self, variant: &Variant) -> bool {
        let modifies = matches!(self.extra, Extra::SoftCap | Extra::Bias | Extra::Documents);
        let is_plain_int8 = variant.qk_mode == QkMode::Int8 && !variant.smooth_q;
        let modifies_with = modifies && is_plain_int8 && variant.pv_accum == PvAccum::F32;
        variant.architecture.is_none() || self.is_main || modifies_with
    }

    const fn new(name: &'static str, mask: Mask, lengths: [usize; 2]) -> Self {
        Self { name, mask, extra: Extra::Nothing, lengths, is_mixed: false, is_main: false }
    }

    fn of(case: &Case) -> &'static Self {
        SETTINGS.iter().find(|setting| setting.name == case.mask).unwrap_or(&SETTINGS[0])
    }

    /// Queries and keys that meet, of a head.
    fn pairs(&self, length: usize) -> f64 {
        let square = |length: usize| (length * length) as f64;
        match self.mask {
            _ if self.extra == Extra::Documents => (TOKENS * DOCUMENT) as f64,
            _ if self.is_mixed => MIXED_LENGTHS.into_iter().map(square).sum(),
            Mask::None => (TOKENS * length) as f64,
            Mask::Window { .. } => {
                (TOKENS / length) as f64 * (square(WINDOW) / 2.0 + ((length - WINDOW) * WINDOW) as f64)
            }
            _ => (TOKENS * length) as f64 / 2.0,
        }
    }
}
/// The call whose result is compared with the exact one.
const ACCURACY_HEADS: usize = 2;
const ACCURACY_LENGTH: usize = 4096;

const REST: Duration = Duration::from_millis(80);
const BURST: Timing = Timing { warm_up_ms: 0.0, sample_ms: 12.0, samples: 1 };

/// How much is measured.
struct Effort {
    lengths: &'static [usize],
    bursts: usize,
    sustained: Timing,
}

const FULL: Effort = Effort {
    lengths: &[1024, 2048, 4096, 8192, 16384, 32768],
    bursts: 7,
    sustained: Timing { warm_up_ms: 300.0, sample_ms: 50.0, samples: 20 },
};
const QUICK: Effort = Effort {
    lengths: &[1024, 4096, 16384],
    bursts: 3,
    sustained: Timing { warm_up_ms: 50.0, sample_ms: 25.0, samples: 6 },
};

fn main() -> ExitCode {
    sage_measure::exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let effort = if arguments.quick { QUICK } else { FULL };
    let cases = arguments.choose("gpu", cases(&effort, arguments.peers), Case::name);
    if cases.is_empty() {
        return Ok(());
    }
    let nothing = |reason: &str| {
        println!("gpu: nothing was measured on a GPU: {reason}");
        Ok(())
    };
    let gpu = match Gpu::open(0) {
        Ok(gpu) => gpu,
        Err(SageError::NoGpu { reason, .. }) => return nothing(&reason),
        Err(error @ SageError::UnsupportedGpu { .. }) => return nothing(&error.to_string()),
        Err(error) => return Err(error.into()),
    };
    let first_call = first_call(start, gpu)?;
    arguments.make_out()?;
    let clock_khz = devices().into_iter().find(|info| info.ordinal == gpu.ordinal()).map(|info| info.clock_khz);
    let device = Where {
        name: gpu.name().into(),
        multiprocessors: Some(gpu.multiprocessors()),
        clock_ghz: clock_khz.map(|clock| f64::from(clock) / 1e6),
    };
    println!("{}, compute capability {}, {} multiprocessors", device.name, gpu.capability(), gpu.multiprocessors());
    println!("{first_call}");

    let mut bench = Bench { gpu, effort, peers: None, report: Report { device, ..Default::default() } };
    bench.report.notes.push(first_call);
    if arguments.peers && cases.iter().any(|case| peer(case).is_some()) {
        match Peers::start(&arguments.python) {
            Ok(peers) => {
                bench.note(format!("peers: PyTorch {}", peers.version()));
                bench.peers = Some(peers);
            }
            Err(error) => bench.note(format!("no peers: {error}")),
        }
    }
    println!();
    let timed: Vec<_> = cases.iter().filter(|case| case.part != Part::Accuracy).collect();
    let is_wanted = |head_dim| timed.iter().any(|case| case.head_dim == head_dim);
    let tensors = HEADS.into_iter().filter(|(head_dim, _)| is_wanted(*head_dim));
    let tensors = tensors.map(|(head_dim, heads)| Tensors::new(gpu, TOKENS, heads, head_dim));
    let tensors = tensors.collect::<Result<Vec<_>, _>>()?;
    // All bursts first: what runs without a rest leaves a hot GPU.
    for mode in [Mode::Burst, Mode::Sustained] {
        for tensors in &tensors {
            bench.speed(mode, tensors, &timed)?;
        }
    }
    drop(tensors);
    let of_results: Vec<_> = cases.iter().filter(|case| case.part == Part::Accuracy).collect();
    bench.accuracy(&of_results)?;
    for file in bench.report.write(&arguments.out, "gpu")? {
        println!("written: {}", file.display());
    }
    Ok(())
}

/// Everything that can be measured, grouped by what runs in turn.
fn cases(effort: &Effort, with_peers: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for (head_dim, _) in HEADS {
        for setting in SETTINGS {
            let mut add = |length, part, contender: &str| {
                let mask = setting.name;
                cases.push(Case { engine: "gpu", head_dim, mask, length, part, contender: contender.into() });
            };
            // of others than 64 and 128 channels, the best kernels
            let (is_main, is_there) = match head_dim {
                96 | 192 => (false, setting.is_main),
                256 => (false, true),
                _ => (setting.is_main, true),
            };
            let is_timed = move |variant: &&Variant| match head_dim {
                64 | 128 => setting.times(variant),
                _ => variant.architecture.is_none(),
            };
            let variants = || VARIANTS.iter().filter(is_timed);
            let [shortest, longest] = setting.lengths;
            let lengths = effort.lengths.iter().filter(|length| (shortest..=longest).contains(length));
            for &length in lengths.filter(|_| is_there) {
                for variant in variants() {
                    for &part in variant.parts() {
                        add(length, part, variant.name);
                    }
                }
                for peer in PEERS.iter().filter(|_| with_peers && is_main) {
                    add(length, Part::Attention, peer.name);
                }
            }
            for variant in variants().filter(|_| setting.is_main) {
                add(ACCURACY_LENGTH, Part::Accuracy, variant.name);
            }
        }
    }
    cases
}

fn variant(case: &Case) -> Option<&'static Variant> {
    VARIANTS.iter().find(|variant| variant.name == case.contender)
}

fn peer(case: &Case) -> Option<Peer> {
    PEERS.into_iter().find(|peer| peer.name == case.contender)
}

/// How long a program waits for its first result: the process's first call, on a GPU that was opened just now.
fn first_call(start: Instant, gpu: &'static Gpu) -> Result<String, SageError> {
    let open = start.elapsed();
    let problem = AttentionProblem::new(TensorLayout::Hnd, DType::F16, [1, 1, 1024, 128]);
    let options = AttentionOptions::default();
    let loading = Instant::now();
    AttentionPlan::new(problem, options)?.prepare(gpu)?;
    let load = loading.elapsed();
    let tensor = vec![f16::ONE; 1024 * 128];
    attention(Device::Gpu(gpu.ordinal()), problem, options, &tensor, &tensor, &tensor)?;
    Ok(format!(
        "first result {:.1?} after the start: {open:.1?} to open the GPU (driver and context), {load:.1?} to load a \
         plan's kernels",
        start.elapsed()
    ))
}

struct Bench {
    gpu: &'static Gpu,
    effort: Effort,
    peers: Option<Peers>,
    report: Report,
}

impl Bench {
    /// Says something that belongs to the results, once.
    fn note(&mut self, note: String) {
        if !self.report.notes.contains(&note) {
            println!("{note}");
            self.report.notes.push(note);
        }
    }

    /// Times the cases of a head dimension, and prints a table a mask.
    fn speed(&mut self, mode: Mode, tensors: &Tensors, cases: &[&Case]) -> Result<(), SageError> {
        for Setting { name: mask, .. } in SETTINGS {
            let first = self.report.measurements.len();
            for &length in self.effort.lengths {
                let size = (tensors.head_dim, *mask, length);
                let of_size = cases.iter().filter(|case| (case.head_dim, case.mask, case.length) == size);
                self.time(mode, tensors, of_size.copied())?;
            }
            let title = format!("head_dim {}, {} heads, {mask}", tensors.head_dim, tensors.heads);
            let table = table::render(&title, mode, &self.report.measurements[first..]);
            if !table.is_empty() {
                println!("{table}");
            }
        }
        Ok(())
    }

    /// Times cases of one size: bursts in turn, or each by itself without a rest.
    fn time<'a>(
        &mut self,
        mode: Mode,
        tensors: &Tensors,
        cases: impl Iterator<Item = &'a Case>,
    ) -> Result<(), SageError> {
        let mut contenders = Vec::new();
        for case in cases {
            let contender = match (variant(case), peer(case)) {
                (Some(variant), _) => Contender::ours(tensors, case, variant)?,
                (None, Some(peer)) => Contender::peer(tensors, case, peer),
                (None, None) => continue,
            };
            contenders.push((case, contender, Vec::new()));
        }
        // In a first round, which is not kept, peers make their inputs.
        let (rounds, timing) = match mode {
            Mode::Burst => (1 + self.effort.bursts, BURST),
            Mode::Sustained => (1, self.effort.sustained),
        };
        for round in 0..rounds {
            let mut stay = Vec::new();
            for (case, mut contender, mut samples) in contenders {
                if round > 0 {
                    sleep(REST);
                }
                if let Some(more) = self.samples(&mut contender, timing)? {
                    if round > 0 || mode == Mode::Sustained {
                        samples.extend(more);
                    }
                    stay.push((case, contender, samples));
                }
            }
            contenders = stay;
        }
        for (case, _, samples) in contenders {
            self.keep(tensors, case, mode, &samples);
        }
        Ok(())
    }

    /// Milliseconds of a call. None from a peer that can't, which is noted.
    fn samples(&mut self, contender: &mut Contender, timing: Timing) -> Result<Option<Vec<f64>>, SageError> {
        let refused = match contender {
            Contender::Ours(ours) => return ours.samples(timing).map(Some),
            Contender::Peer(request) => match &mut self.peers {
                Some(peers) => match peers.measure(&Request { timing, ..*request }) {
                    Ok(samples) => return Ok(Some(samples)),
                    Err(error) => error,
                },
                None => return Ok(None),
            },
        };
        self.note(format!("peers: {refused}"));
        if refused.is_final() {
            self.peers = None;
        }
        Ok(None)
    }

    fn keep(&mut self, tensors: &Tensors, case: &Case, mode: Mode, samples: &[f64]) {
        let pairs = tensors.heads as f64 * Setting::of(case).pairs(case.length);
        let operations = (case.part != Part::Quantization).then_some(4.0 * pairs * case.head_dim as f64);
        let bytes = variant(case).filter(|_| case.part == Part::Quantization).map(|variant| {
            let elements = TOKENS * tensors.heads * case.head_dim;
            variant.code_bytes().iter().map(|code| elements as f64 * (DType::F16.bytes() as f64 + code)).sum()
        });
        self.report.measurements.push(Measurement::new(case.clone(), mode, samples, operations, bytes));
    }

    /// Compares results with attention in f64.
    fn accuracy(&mut self, cases: &[&Case]) -> Result<(), SageError> {
        for (head_dim, _) in HEADS {
            for &Setting { name, mask, .. } in SETTINGS {
                let same_inputs = cases.iter().filter(|case| (case.head_dim, case.mask) == (head_dim, name));
                let same_inputs: Vec<_> = same_inputs.filter_map(|case| Some((*case, variant(case)?))).collect();
                if same_inputs.is_empty() {
                    continue;
                }
                let shape = [1, ACCURACY_HEADS, ACCURACY_LENGTH, head_dim];
                let problem = AttentionProblem::new(TensorLayout::Hnd, DType::F16, shape);
                let inputs = Inputs::<f16>::normal(&problem, 1);
                let with_mask = |options: AttentionOptions| AttentionOptions { mask, ..options };
                let exact = testing::exact(&problem, &with_mask(AttentionOptions::default()), inputs.slices()).output;
                for (case, variant) in same_inputs {
                    let options = with_mask(variant.options());
                    let result = attend_with(self.gpu, variant.architecture, &problem, &options, &inputs).output;
                    let near = testing::Accuracy::of(result, &exact);
                    println!("{}: relative L1 {:.4}, cosine {:.6}", case.name(), near.relative_l1, near.cosine);
                    let testing::Accuracy { cosine, relative_l1, rmse, .. } = near;
                    self.report.accuracy.push(Accuracy { case: case.clone(), cosine, relative_l1, rmse });
                }
            }
        }
        Ok(())
    }
}
