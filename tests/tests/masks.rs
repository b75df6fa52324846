//! What must hold between masks, and for sinks, on the CPU and in the SIMT executor.

mod common {
    pub mod options;
}

use common::options::any_options;
use half::f16;
use proptest::prelude::*;
use sage_tests::modes::{PV_MODES, element_types};
use sage_tests::tensor::{Inputs, attend};
use sageattention::{
    AttentionOptions, AttentionOutput, AttentionProblem, CausalAlign, DType, Device, Mask, PvMode, ScoreInputs,
    TensorLayout, attention_with,
};

const ALIGNMENTS: [CausalAlign; 2] = [CausalAlign::TopLeft, CausalAlign::BottomRight];

fn problem(query_len: usize, key_len: usize) -> AttentionProblem {
    AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 2, query_len, 64], [2, key_len])
}

/// The call on the CPU and in the executor.
fn run(
    device: Device,
    problem: AttentionProblem,
    options: AttentionOptions,
    inputs: &Inputs<f16>,
    score_inputs: ScoreInputs,
) -> AttentionOutput<f16> {
    attention_with(device, problem, options, inputs.slices(), score_inputs).expect("a valid call")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_window_that_shows_all_is_none(query_len in 1..300usize, key_len in 1..400usize, options in any_options(), seed: u64) {
        let problem = problem(query_len, key_len);
        let inputs = Inputs::<f16>::random(&problem, seed);
        let all = attend(&problem, &AttentionOptions { mask: Mask::None, ..options }, &inputs);
        for align in ALIGNMENTS {
            for width in [(query_len + key_len) as u32, u32::MAX] {
                let mask = Mask::Window { left: Some(width), right: Some(width), align };
                prop_assert_eq!(&attend(&problem, &AttentionOptions { mask, ..options }, &inputs), &all);
            }
        }
    }

    #[test]
    fn a_window_that_ends_at_the_query_is_causal(query_len in 1..300usize, key_len in 1..400usize, options in any_options(), seed: u64) {
        let problem = problem(query_len, key_len);
        let inputs = Inputs::<f16>::random(&problem, seed);
        for align in ALIGNMENTS {
            let causal = AttentionOptions { mask: Mask::CausalAligned(align), ..options };
            let causal = attend(&problem, &causal, &inputs);
            for left in [None, Some((query_len + key_len) as u32)] {
                let mask = Mask::Window { left, right: Some(0), align };
                prop_assert_eq!(&attend(&problem, &AttentionOptions { mask, ..options }, &inputs), &causal);
            }
        }
    }

    /// A sink multiplies the output by what it leaves of the denominator.
    #[test]
    fn a_sink_takes_its_part(query_len in 1..100usize, key_len in 1..300usize, options in any_options(), sinks in any::<[i8; 2]>(), seed: u64) {
        let problem = problem(query_len, key_len);
        let inputs = Inputs::<f16>::random(&problem, seed);
        let options = AttentionOptions { return_lse: true, ..options };
        let without = attend(&problem, &options, &inputs);
        let sinks = sinks.map(|sink| f32::from(sink) / 8.0);
        let with = AttentionOptions { sinks: true, ..options };
        let with = run(Device::Cpu, problem, with, &inputs, ScoreInputs { sinks: Some(&sinks), ..Default::default() });
        let (output, log_sum_exps) = (with.output, with.log_sum_exp.expect("asked for"));
        for (row, (log_sum_exp, before)) in log_sum_exps.into_iter().zip(without.log_sum_exp).enumerate() {
            let sink = f64::from(sinks[row / query_len]);
            let before = f64::from(before);
            let expected = before.max(sink) + (-(before - sink).abs()).exp().ln_1p();
            prop_assert!((f64::from(log_sum_exp) - expected).abs() < 1e-4, "{} {}", log_sum_exp, expected);
            let channels = 64 * row..64 * (row + 1);
            for (got, without) in output[channels.clone()].iter().zip(&without.output[channels]) {
                let (got, expected) = (got.to_f64(), without * (before - expected).exp());
                prop_assert!((got - expected).abs() < 1e-3 * (0.1 + expected.abs()), "{} {}", got, expected);
            }
        }
    }
}

/// The same on both engines.
#[test]
fn masks_that_show_the_same_are_the_same() {
    let problem = problem(70, 300);
    let inputs = Inputs::<f16>::random(&problem, 1);
    for (device, pv_mode) in
        [Device::Cpu, Device::Simt].into_iter().flat_map(|device| PvMode::ALL.map(|mode| (device, mode)))
    {
        let with = |mask| {
            let options = AttentionOptions { pv_mode, mask, return_lse: true, ..Default::default() };
            run(device, problem, options, &inputs, ScoreInputs::default())
        };
        for align in ALIGNMENTS {
            assert_eq!(with(Mask::Window { left: Some(400), right: Some(400), align }), with(Mask::None));
            assert_eq!(with(Mask::Window { left: None, right: Some(0), align }), with(Mask::CausalAligned(align)));
        }
    }
}

/// With a sink of −∞ everything is as without; one far above all scores leaves nothing; and queries that see no key have its value.
#[test]
fn extreme_sinks() {
    let problem = problem(80, 30);
    let inputs = Inputs::<f16>::random(&problem, 2);
    let mask = Mask::CausalAligned(CausalAlign::BottomRight);
    for (device, (pv_mode, pv_accum)) in PV_MODES
        .into_iter()
        .map(|mode| (Device::Cpu, mode))
        .chain([PV_MODES[0], PV_MODES[3]].map(|mode| (Device::Simt, mode)))
    {
        let plain = AttentionOptions { pv_mode, pv_accum, mask, return_lse: true, ..Default::default() };
        assert!(element_types((pv_mode, pv_accum)).contains(&DType::F16));
        let options = AttentionOptions { sinks: true, ..plain };
        let with = |sink: f32| {
            run(device, problem, options, &inputs, ScoreInputs { sinks: Some(&[sink; 2]), ..Default::default() })
        };
        assert_eq!(with(f32::NEG_INFINITY), run(device, problem, plain, &inputs, ScoreInputs::default()));
        for sink in [300.0, 1e6, 3e38] {
            let result = with(sink);
            assert!(result.output.iter().all(|&element| element == f16::ZERO), "{device}, {sink}");
            assert!(result.log_sum_exp.expect("asked for").iter().all(|&sum| sum == sink), "{device}, {sink}");
        }
        for sink in [-3e38, -1e6, 1.25] {
            let result = with(sink);
            let log_sum_exp = result.log_sum_exp.expect("asked for");
            for (row, sum) in log_sum_exp.into_iter().enumerate() {
                let sees_none = row % 80 < 50;
                assert_eq!(sum == sink, sees_none, "{device}, {sink}: {sum} of row {row}");
                assert!(!sees_none || result.output[64 * row..][..64].iter().all(|&element| element == f16::ZERO));
            }
        }
    }
}

/// Tiles of 128 keys that no query sees are not read: without smoothing their keys may be anything, and so may their values
/// where values have no scale, with `PvMode::F16`.
#[test]
fn tiles_outside_of_every_window_leave_no_trace() {
    let problem = problem(60, 500);
    let mask = Mask::Window { left: Some(50), right: Some(0), align: CausalAlign::BottomRight };
    for (device, pv_mode) in
        [Device::Cpu, Device::Simt].into_iter().flat_map(|device| PvMode::ALL.map(|mode| (device, mode)))
    {
        let options = AttentionOptions { pv_mode, mask, smooth_k: false, return_lse: true, ..Default::default() };
        let clean = Inputs::<f16>::random(&problem, 3);
        let mut poisoned = clean.clone();
        for token in (0..2 * 500).filter(|token| token % 500 < 384) {
            poisoned.key[64 * token..64 * (token + 1)].fill(f16::MAX);
            if pv_mode == PvMode::F16 {
                poisoned.value[64 * token..64 * (token + 1)].fill(f16::MAX);
            }
        }
        let run = |inputs| run(device, problem, options, inputs, ScoreInputs::default());
        assert_eq!(run(&clean), run(&poisoned), "{device}, {pv_mode:?}");
    }
    // what the calls above refuse
    for poison in [f16::NAN, f16::INFINITY] {
        let options =
            AttentionOptions { pv_mode: PvMode::F16, mask, smooth_k: false, return_lse: true, ..Default::default() };
        let clean = Inputs::<f16>::random(&problem, 4);
        let mut poisoned = clean.clone();
        for token in (0..2 * 500).filter(|token| token % 500 < 384) {
            poisoned.key[64 * token..64 * (token + 1)].fill(poison);
            poisoned.value[64 * token..64 * (token + 1)].fill(poison);
        }
        assert_eq!(attend(&problem, &options, &clean), attend(&problem, &options, &poisoned));
    }
}
