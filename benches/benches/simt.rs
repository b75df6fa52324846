//! The SIMT executor: time of a call's kernels on one core of the host.

use std::time::Instant;

use half::f16;
use sage_tests::tensor::Inputs;
use sageattention::simt::{Execution, Options, Schedule};
use sageattention::{AttentionOptions, AttentionProblem, DType, TensorLayout};

const CALLS: usize = 5;

fn main() {
    // `cargo bench` adds `--bench`; what is left is a filter of benchmarks by name.
    if std::env::args().skip(1).any(|argument| !argument.starts_with('-') && !"simt".contains(&argument)) {
        return;
    }
    println!("| queries | keys | head_dim | schedule | all kernels, ms |");
    println!("|---|---|---|---|---|");
    for (queries, keys, head_dim) in [(128, 256, 64), (192, 1024, 64), (192, 1024, 128)] {
        let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 1, queries, head_dim], [1, keys]);
        let inputs = Inputs::<f16>::normal(&problem, 1);
        for schedule in [Schedule::InOrder, Schedule::RandomWarps(1), Schedule::Random(2), Schedule::Random(1)] {
            let call = || {
                let start = Instant::now();
                let options = AttentionOptions::default();
                Execution::new(&problem, &options, inputs.slices(), &Options::new(schedule)).expect("no mistake");
                start.elapsed().as_secs_f64() * 1e3
            };
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
            let mut times: Vec<f64> = pool.install(|| (0..CALLS).map(|_| call()).collect());
            times.sort_by(f64::total_cmp);
            println!("| {queries} | {keys} | {head_dim} | {schedule} | {:.0} |", times[CALLS / 2]);
        }
    }
}
