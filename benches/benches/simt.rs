//! The SIMT executor: time of a call's kernels on one core of the host.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use half::f16;
use sage_measure::{Arguments, Case, Device, Measurement, Mode, Part, Report};
use sage_tests::tensor::Inputs;
use sageattention::simt::{Execution, Options, Schedule};
use sageattention::{AttentionOptions, AttentionProblem, DType, TensorLayout};

const CALLS: usize = 5;
/// Queries, keys and head dimension.
const SHAPES: [[usize; 3]; 3] = [[128, 256, 64], [192, 1024, 64], [192, 1024, 128]];
const SCHEDULES: [Schedule; 4] =
    [Schedule::InOrder, Schedule::RandomWarps(1), Schedule::Random(2), Schedule::Random(1)];

fn main() -> ExitCode {
    sage_measure::exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let shapes = if arguments.quick { &SHAPES[..1] } else { &SHAPES };
    let cases = shapes.iter().flat_map(|&shape| SCHEDULES.map(|schedule| (shape, schedule)));
    let cases = arguments.choose("simt", cases.collect(), |(shape, schedule)| case(*shape, *schedule).name());
    if cases.is_empty() {
        return Ok(());
    }
    arguments.make_out()?;
    let device = Device { name: "one core of the CPU".into(), ..Default::default() };
    let mut report = Report { device, ..Default::default() };
    println!("| queries | keys | head_dim | schedule | all kernels, ms | range |");
    println!("|---|---|---|---|---|---|");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    for (shape, schedule) in cases {
        let [queries, keys, head_dim] = shape;
        let problem = AttentionProblem::cross(TensorLayout::Hnd, DType::F16, [1, 1, queries, head_dim], [1, keys]);
        let inputs = Inputs::<f16>::normal(&problem, 1);
        let call = || {
            let start = Instant::now();
            let options = AttentionOptions::default();
            Execution::new(&problem, &options, inputs.slices(), &Default::default(), &Options::new(schedule))
                .map(|_| start.elapsed().as_secs_f64() * 1e3)
                .map_err(|(kernel, report)| format!("{}: {report}", kernel.symbol()))
        };
        let times: Vec<f64> = pool.install(|| (0..CALLS).map(|_| call()).collect::<Result<_, _>>())?;
        let measured = Measurement::new(case(shape, schedule), Mode::Sustained, &times, None, None);
        let spread = measured.milliseconds;
        println!(
            "| {queries} | {keys} | {head_dim} | {schedule} | {:.0} | {:.0} to {:.0} |",
            spread.median, spread.min, spread.max
        );
        report.measurements.push(measured);
    }
    println!();
    for file in report.write(&arguments.out, "simt")? {
        println!("written: {}", file.display());
    }
    Ok(())
}

fn case([_, keys, head_dim]: [usize; 3], schedule: Schedule) -> Case {
    let contender = schedule.to_string();
    Case { engine: "simt", head_dim, mask: "full", length: keys, part: Part::EndToEnd, contender }
}
