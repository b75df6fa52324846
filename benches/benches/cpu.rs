//! The CPU engine against candle's f32 attention: time, peak memory, accuracy.
//!
//! Each contender runs in a process of its own, so that the kernel's high-water mark of its memory (`VmHWM`) is the
//! contender's. What it holds before the first call, its inputs included, is subtracted.

use std::error::Error;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use candle_core::{D, Device, Tensor};
use clap::Parser;
use half::f16;
use sage_measure::{Accuracy, Arguments, Case, Device as Where, Measurement, Mode, Part, Report};
use sage_tests::tensor::{Inputs, query_shape};
use sageattention::{AttentionOptions, AttentionProblem, DType, Mask, TensorLayout, testing};

const SHAPES: [([usize; 4], &str, Mask); 4] = [
    ([1, 8, 1024, 64], "full", Mask::None),
    ([1, 8, 4096, 64], "full", Mask::None),
    ([1, 8, 4096, 64], "causal", Mask::Causal),
    ([1, 8, 4096, 128], "full", Mask::None),
];
/// How many of the shapes `--quick` takes, and how long a contender is timed.
const QUICK: (usize, Duration) = (1, Duration::from_millis(500));
/// How long a contender is timed, at least; and the fewest calls.
const TIMED: Duration = Duration::from_secs(2);
const CALLS: usize = 3;
const CONTENDERS: [&str; 2] = ["candle", "sage"];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    sage_measure::exit_code(match &arguments[..] {
        [_, command, contender, shape, timed] if command == "run" => child(contender, shape, timed),
        _ => run(&Arguments::parse()),
    })
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let (shapes, timed) = if arguments.quick { QUICK } else { (SHAPES.len(), TIMED) };
    let cases = (0..shapes).flat_map(|shape| CONTENDERS.map(|contender| (shape, case(shape, contender))));
    let cases = arguments.choose("cpu", cases.collect(), |(_, case)| case.name());
    if cases.is_empty() {
        return Ok(());
    }
    arguments.make_out()?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let device = Where { name: format!("CPU, {threads} threads"), ..Default::default() };
    let mut report =
        Report { device, notes: vec!["inputs are f16; candle computes in f32".into()], ..Default::default() };
    println!("{threads} threads; median of at least {CALLS} calls; error against f64\n");
    println!("| shape | mask | engine | time, ms | range | GFLOP/s | peak memory, MiB | relative L1 |");
    println!("|---|---|---|---|---|---|---|---|");
    let program = std::env::current_exe()?;
    for (shape, case) in cases {
        let arguments = ["run", &case.contender, &shape.to_string(), &timed.as_secs_f64().to_string()];
        let child = Command::new(&program).args(arguments).stderr(std::process::Stdio::inherit()).output()?;
        if !child.status.success() {
            return Err(format!("{} failed ({})", case.name(), child.status).into());
        }
        let Measured { milliseconds, memory_mib, cosine, relative_l1, rmse } = serde_json::from_slice(&child.stdout)?;
        let (shape, mask, _) = SHAPES[shape];
        let [batch, heads, tokens, head_dim] = shape;
        let pairs = (batch * heads * tokens * tokens) as f64 * if mask == "full" { 1.0 } else { 0.5 };
        let operations = 4.0 * pairs * head_dim as f64;
        let name = case.name();
        let measured = Measurement::new(case.clone(), Mode::Sustained, &milliseconds, Some(operations), None);
        let sage_measure::Spread { min, median, max, .. } = measured.milliseconds;
        println!(
            "| {shape:?} | {mask} | {} | {median:.0} | {min:.0} to {max:.0} | {:.0} | {memory_mib:.1} | {relative_l1:.4} |",
            case.contender,
            operations / median / 1e6,
        );
        report.notes.push(format!("{name}: {memory_mib:.1} MiB at most, beyond the inputs"));
        report.measurements.push(measured);
        let case = Case { part: Part::Accuracy, ..case };
        report.accuracy.push(Accuracy { case, cosine, relative_l1, rmse });
    }
    println!();
    for file in report.write(&arguments.out, "cpu")? {
        println!("written: {}", file.display());
    }
    Ok(())
}

fn case(shape: usize, contender: &str) -> Case {
    let ([_, _, length, head_dim], mask, _) = SHAPES[shape];
    Case { engine: "cpu", head_dim, mask, length, part: Part::EndToEnd, contender: contender.into() }
}

/// What a contender's process says, in JSON.
#[derive(serde::Serialize, serde::Deserialize)]
struct Measured {
    milliseconds: Vec<f64>,
    memory_mib: f64,
    cosine: f64,
    relative_l1: f64,
    rmse: f64,
}

/// A contender's process.
fn child(contender: &str, shape: &str, timed: &str) -> Result<(), Box<dyn Error>> {
    let (shape, _, mask) = *SHAPES.get(shape.parse::<usize>()?).ok_or("no such shape")?;
    let timed = Duration::from_secs_f64(timed.parse()?);
    let problem = AttentionProblem::new(TensorLayout::Hnd, DType::F16, shape);
    let options = AttentionOptions { mask, ..Default::default() };
    let inputs = Inputs::<f16>::normal(&problem, 1);
    let (milliseconds, memory_mib, output) = match contender {
        "candle" => candle(&problem, mask, &inputs, timed)?,
        _ => sage(&problem, &options, &inputs, timed),
    };
    let exact = testing::exact(&problem, &options, inputs.slices()).output;
    let testing::Accuracy { cosine, relative_l1, rmse, .. } = testing::Accuracy::of(output, &exact);
    println!("{}", serde_json::to_string(&Measured { milliseconds, memory_mib, cosine, relative_l1, rmse })?);
    Ok(())
}

/// Each call's milliseconds, peak memory in MiB, and the output.
type Timed = (Vec<f64>, f64, Vec<f64>);

fn measure<R>(timed: Duration, mut call: impl FnMut() -> R) -> (Vec<f64>, f64, R) {
    let before = status("VmRSS");
    let mut result = call();
    let memory = status("VmHWM").saturating_sub(before);
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.len() < CALLS || start.elapsed() < timed {
        let start = Instant::now();
        result = call();
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    (times, memory as f64 / 1024.0, result)
}

/// A field of `/proc/self/status` in KiB, after the high-water mark was put back; 0 where there is no such file.
fn status(field: &str) -> u64 {
    if field == "VmRSS" {
        // 5 resets the high-water mark (proc(5), clear_refs)
        let _ = std::fs::write("/proc/self/clear_refs", "5");
    }
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn sage(problem: &AttentionProblem, options: &AttentionOptions, inputs: &Inputs<f16>, timed: Duration) -> Timed {
    let (times, memory, output) = measure(timed, || {
        let mut output = vec![f16::ZERO; query_shape(problem).iter().product()];
        testing::attend(problem, options, inputs.slices(), &mut output, None);
        output
    });
    (times, memory, output.into_iter().map(f64::from).collect())
}

/// Matrix product, softmax, matrix product, in f32: candle's tensors as a model on the CPU uses them.
fn candle(problem: &AttentionProblem, mask: Mask, inputs: &Inputs<f16>, timed: Duration) -> candle_core::Result<Timed> {
    let device = Device::Cpu;
    let shape = query_shape(problem).to_vec();
    let tensor = |elements: &[f16]| {
        let wide: Vec<f32> = elements.iter().map(|element| element.to_f32()).collect();
        Tensor::from_vec(wide, shape.clone(), &device)
    };
    let [query, key, value] = inputs.slices();
    let (query, key, value) = (tensor(query)?, tensor(key)?, tensor(value)?);
    let tokens = problem.query_len;
    let bias = match mask {
        Mask::None => None,
        _ => {
            let bias =
                (0..tokens * tokens).map(|place| if place % tokens > place / tokens { f32::NEG_INFINITY } else { 0.0 });
            Some(Tensor::from_iter(bias, &device)?.reshape((1, 1, tokens, tokens))?)
        }
    };
    let attention = || -> candle_core::Result<Tensor> {
        let scores = (query.matmul(&key.t()?)? * (problem.head_dim as f64).powf(-0.5))?;
        let scores = match &bias {
            Some(bias) => scores.broadcast_add(bias)?,
            None => scores,
        };
        let exponentials = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        let probabilities = exponentials.broadcast_div(&exponentials.sum_keepdim(D::Minus1)?)?;
        probabilities.matmul(&value)
    };
    let (times, memory, output) = measure(timed, attention);
    let elements = output?.flatten_all()?.to_vec1::<f32>()?;
    Ok((times, memory, elements.into_iter().map(f64::from).collect()))
}
