//! The kernels with each of their synchronisations taken away: the SIMT executor finds every one that matters.

use std::collections::BTreeSet;

use half::f16;
use sage_tests::tensor::Inputs;
use sageattention::simt::{Execution, Options, Schedule, Synchronisation};
use sageattention::{
    AttentionOptions, AttentionProblem, CausalAlign, ComputeCapability, DType, Mask, PvMode, TensorLayout,
};

/// Synchronisations whose removal changes nothing that can be observed, one a line of source: instruction, file, and why.
const REDUNDANT: [(&str, &str, &str); 1] = [(
    "bar.warp.sync",
    "epilogue.rs",
    "the next item's index comes by a shuffle, and lanes come to it with their loads done",
)];

type Call = (AttentionProblem, AttentionOptions);

fn options(pv_mode: PvMode, smooth_v: bool) -> AttentionOptions {
    let mask = Mask::CausalAligned(CausalAlign::BottomRight);
    AttentionOptions { return_lse: true, pv_mode, mask, smooth_v, ..Default::default() }
}

/// More tiles than slots, more items than CTAs, warpgroups with fewer tiles than others and with none, and sums that are
/// flushed and read again.
fn many_items(pv_mode: PvMode) -> Call {
    (AttentionProblem::new(TensorLayout::Hnd, DType::F16, [1, 2, 600, 64]), options(pv_mode, false))
}

/// Two warpgroups that only wait for tiles and release them, for four rounds of up to six slots.
fn idle_warpgroups(pv_mode: PvMode) -> Call {
    let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 1, 1, 64], [1, 3000]);
    // queries wait for keys' statistics only if the log-sum-exp is wanted
    (problem, AttentionOptions { return_lse: false, ..options(pv_mode, true) })
}

fn execute((problem, attention): Call, options: &Options) -> Result<Execution, String> {
    execute_on(ComputeCapability::new(9, 0), (problem, attention), options)
}

fn execute_on(gpu: ComputeCapability, (problem, attention): Call, options: &Options) -> Result<Execution, String> {
    let inputs = Inputs::<f16>::random(&problem, 1);
    Execution::of_gpu(gpu, &problem, &attention, inputs.slices(), &Default::default(), options)
        .map_err(|(kernel, report)| format!("{}: {report}", kernel.symbol()))
}

#[test]
fn every_removal_is_found() {
    every_removal_of(PvMode::Fp8);
}

#[test]
fn every_removal_is_found_with_16_bit_values() {
    every_removal_of(PvMode::F16);
}

fn every_removal_of(pv_mode: PvMode) {
    let complete = [many_items(pv_mode), idle_warpgroups(pv_mode)]
        .map(|call| execute(call, &Options::new(Schedule::InOrder)).expect("the kernel as it is").synchronisations);
    let places: BTreeSet<Synchronisation> = complete.into_iter().flatten().collect();
    let mut missed = Vec::new();
    for place in places {
        let by_warps = [Schedule::InOrder, Schedule::Reverse].into_iter().chain((0..3).map(Schedule::RandomWarps));
        let by_threads = (0..10).map(Schedule::Random);
        let found = by_warps
            .map(|schedule| (many_items(pv_mode), schedule))
            .chain(by_threads.map(|schedule| (idle_warpgroups(pv_mode), schedule)))
            .map(|(call, schedule)| execute(call, &Options { without: Some(place), ..Options::new(schedule) }))
            .find_map(Result::err);
        let Synchronisation { instruction, site } = place;
        match found {
            Some(report) => println!("{instruction} at {site}:\n    {report}"),
            None => missed.push(place),
        }
    }
    println!("not found: {missed:#?}");
    let missed = missed.iter().map(|place| (place.instruction, place.site.file().rsplit(['/', '\\']).next().unwrap()));
    let redundant = REDUNDANT.iter().map(|&(instruction, file, _)| (instruction, file));
    assert!(missed.eq(redundant), "not found are others than the redundant ones: see the output");
}

/// What the `mma.sync` kernels have beyond the quantizer: several chunks of keys, warps that see fewer than others.
#[test]
fn every_removal_is_found_with_mma() {
    // the copies' wait, and the block's barriers
    every_removal_on(ComputeCapability::new(8, 0), 3);
}

/// Two barriers around the copies, and one before the output's rows are put together.
#[test]
fn every_removal_is_found_on_turing() {
    every_removal_on(ComputeCapability::new(7, 5), 3);
}

fn every_removal_on(gpu: ComputeCapability, least: usize) {
    // the last of three chunks is where the output's rows are put together
    let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 1, 200, 64], [1, 150]);
    let call = (problem, options(PvMode::F16, false));
    let complete = execute_on(gpu, call, &Options::new(Schedule::InOrder)).expect("the kernel as it is");
    let places: BTreeSet<Synchronisation> = complete.synchronisations.into_iter().collect();
    let mut found = 0;
    for place in places.into_iter().filter(|place| place.site.file().contains("attention")) {
        let schedules = [Schedule::InOrder, Schedule::Reverse].into_iter();
        let schedules = schedules.chain((0..3).map(Schedule::RandomWarps)).chain((0..5).map(Schedule::Random));
        let options = schedules.map(|schedule| Options { without: Some(place), ..Options::new(schedule) });
        let report = options.map(|options| execute_on(gpu, call, &options)).find_map(Result::err);
        let Synchronisation { instruction, site } = place;
        println!("{instruction} at {site}:\n    {report:?}");
        found += usize::from(report.is_some());
        let redundant = instruction == "bar.warp.sync" && site.file().contains("epilogue");
        assert!(report.is_some() || redundant, "nobody misses {instruction} at {site}");
    }
    assert!(found >= least, "found only {found}");
}
