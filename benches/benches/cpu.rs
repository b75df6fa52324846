//! The CPU engine against candle's f32 attention: time, peak memory, accuracy.
//!
//! Each contender runs in a process of its own, so that the kernel's high-water mark of its memory (`VmHWM`) is the
//! contender's. What it holds before the first call, its inputs included, is subtracted.

use std::process::Command;
use std::time::{Duration, Instant};

use candle_core::{D, Device, Tensor};
use half::f16;
use sage_tests::error::Accuracy;
use sage_tests::tensor::{Inputs, query_shape};
use sageattention::{AttentionOptions, AttentionProblem, DType, Mask, TensorLayout, testing};

const SHAPES: [([usize; 4], Mask); 4] = [
    ([1, 8, 1024, 64], Mask::None),
    ([1, 8, 4096, 64], Mask::None),
    ([1, 8, 4096, 64], Mask::Causal),
    ([1, 8, 4096, 128], Mask::None),
];
const CONTENDERS: [&str; 2] = ["candle", "sage"];
/// How long a contender is timed, at least; and the fewest calls.
const TIMED: Duration = Duration::from_secs(2);
const CALLS: usize = 3;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, command, contender, shape] = &arguments[..]
        && command == "run"
    {
        return run(contender, shape.parse().expect("a number"));
    }
    // `cargo bench` adds `--bench`; what is left is a filter of benchmarks by name.
    if arguments.iter().skip(1).any(|argument| !argument.starts_with('-') && !"cpu".contains(argument)) {
        return;
    }
    println!("{} threads; median of at least {CALLS} calls; error against f64\n", num_threads());
    println!("| shape | mask | engine | time, ms | GFLOP/s | peak memory, MiB | relative L1 |");
    println!("|---|---|---|---|---|---|---|");
    let program = std::env::current_exe().expect("this program");
    for shape in 0..SHAPES.len() {
        for contender in CONTENDERS {
            let status = Command::new(&program).args(["run", contender, &shape.to_string()]).status();
            assert!(status.is_ok_and(|status| status.success()), "{contender} failed");
        }
    }
}

fn num_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Prints one row of the table.
fn run(contender: &str, shape: usize) {
    let (shape, mask) = SHAPES[shape];
    let problem = AttentionProblem::new(TensorLayout::Hnd, DType::F16, shape);
    let options = AttentionOptions { mask, ..Default::default() };
    let inputs = Inputs::<f16>::normal(&problem, 1);
    let (times, memory, output) = match contender {
        "candle" => candle(&problem, mask, &inputs),
        _ => sage(&problem, &options, &inputs),
    };
    let exact = testing::exact(&problem, &options, inputs.slices()).output;
    let error = Accuracy::of(output, &exact).relative_l1;
    let [batch, heads, tokens, head_dim] = shape;
    let operations =
        (4 * batch * heads * tokens * tokens * head_dim) as f64 / if mask == Mask::None { 1.0 } else { 2.0 };
    let time = times[times.len() / 2].as_secs_f64();
    println!(
        "| {shape:?} | {mask:?} | {contender} | {:.0} | {:.0} | {:.1} | {error:.4} |",
        time * 1e3,
        operations / time / 1e9,
        memory as f64 / 1024.0,
    );
}

/// Sorted times, peak memory in KiB, and the output.
type Measured = (Vec<Duration>, u64, Vec<f64>);

fn measure<R>(mut call: impl FnMut() -> R, output: impl FnOnce(R) -> Vec<f64>) -> Measured {
    let before = status("VmRSS");
    let mut result = call();
    let memory = status("VmHWM").saturating_sub(before);
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.len() < CALLS || start.elapsed() < TIMED {
        let start = Instant::now();
        result = call();
        times.push(start.elapsed());
    }
    times.sort();
    (times, memory, output(result))
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

fn sage(problem: &AttentionProblem, options: &AttentionOptions, inputs: &Inputs<f16>) -> Measured {
    let call = || {
        let mut output = vec![f16::ZERO; query_shape(problem).iter().product()];
        testing::attend(problem, options, inputs.slices(), &mut output, None);
        output
    };
    measure(call, |output| output.into_iter().map(f64::from).collect())
}

/// Matrix product, softmax, matrix product, in f32: candle's tensors as a model on the CPU uses them.
fn candle(problem: &AttentionProblem, mask: Mask, inputs: &Inputs<f16>) -> Measured {
    let device = Device::Cpu;
    let shape = query_shape(problem);
    let [query, key, value] = inputs.slices().map(|elements| {
        let wide: Vec<f32> = elements.iter().map(|element| element.to_f32()).collect();
        Tensor::from_vec(wide, shape.to_vec(), &device).expect("a tensor")
    });
    let tokens = problem.query_len;
    let bias = (mask == Mask::Causal).then(|| {
        let bias =
            (0..tokens * tokens).map(|place| if place % tokens > place / tokens { f32::NEG_INFINITY } else { 0.0 });
        Tensor::from_iter(bias, &device).and_then(|bias| bias.reshape((1, 1, tokens, tokens))).expect("a mask")
    });
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
    measure(
        || attention().expect("candle's attention"),
        |output| {
            let elements = output.flatten_all().and_then(|output| output.to_vec1::<f32>()).expect("elements");
            elements.into_iter().map(f64::from).collect()
        },
    )
}
