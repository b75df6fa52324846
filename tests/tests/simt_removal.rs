//! The kernels with each of their synchronisations taken away: the SIMT executor finds every one that matters.

use half::f16;
use sage_tests::tensor::Inputs;
use sageattention::simt::{Execution, Options, Schedule};
use sageattention::{AttentionOptions, AttentionProblem, CausalAlign, DType, Mask, TensorLayout};

/// Synchronisations whose removal changes nothing that can be observed, by instruction and file, and why.
const REDUNDANT: [(&str, &str, &str); 1] = [(
    "bar.warp.sync",
    "epilogue.rs",
    "the next item's index comes by a shuffle, and lanes come to it with their loads done",
)];

/// More tiles than slots, more items than CTAs, warpgroups with fewer tiles than others and with none.
fn many_items() -> AttentionProblem {
    AttentionProblem::new(TensorLayout::Hnd, DType::F16, [1, 2, 600, 64])
}

/// Two warpgroups that only wait for tiles and release them, many times.
fn idle_warpgroups() -> AttentionProblem {
    AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 1, 1, 64], [1, 1500])
}

fn execute(problem: AttentionProblem, return_lse: bool, options: &Options) -> Result<Execution, String> {
    let mask = Mask::CausalAligned(CausalAlign::BottomRight);
    let attention = AttentionOptions { return_lse, mask, ..Default::default() };
    let inputs = Inputs::<f16>::random(&problem, 1);
    Execution::new(&problem, &attention, inputs.slices(), options).map_err(|(_, report)| report.to_string())
}

#[test]
fn every_removal_is_found() {
    let complete = execute(many_items(), true, &Options::new(Schedule::InOrder)).expect("the kernel as it is");
    let mut missed = Vec::new();
    for (kernel, place) in &complete.synchronisations {
        let by_warps = [Schedule::InOrder, Schedule::Reverse].into_iter().chain((0..3).map(Schedule::RandomWarps));
        let by_threads = (0..10).map(Schedule::Random);
        let found = by_warps
            .map(|schedule| (many_items(), true, schedule))
            // queries wait for keys' statistics only if the log-sum-exp is wanted
            .chain(by_threads.map(|schedule| (idle_warpgroups(), false, schedule)))
            .map(|(problem, return_lse, schedule)| {
                execute(problem, return_lse, &Options { without: Some(*place), ..Options::new(schedule) })
            })
            .find_map(Result::err);
        match found {
            Some(report) => println!("{} {} at {}:\n    {}", kernel.symbol(), place.instruction, place.site, report),
            None if REDUNDANT.iter().any(|(instruction, file, _)| {
                place.instruction == *instruction && place.site.file().ends_with(file)
            }) => {}
            None => missed.push(format!("{} {} at {}", kernel.symbol(), place.instruction, place.site)),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:#?}");
}
