//! Speed on the GPU: the attention kernel alone, the quantization alone, and the whole call.
//!
//! `cargo bench -p sage-benches --bench gpu` prints tables of TOPS, and writes `gpu_bench.json` into the folder `$OUT` if
//! that is set.
//!
//! The sizes are those of SageAttention's papers: batch · length is 32768 tokens, 16 heads of 128 channels or 32 of 64. An
//! operation is a multiplication or an addition of the two matrix products, half of them for a causal mask; quantization
//! counts none. Timed in bursts: after 80 ms of rest and one call to warm up, about 12 ms of calls between two events,
//! so that the power limit does not blur the comparison; the median of seven bursts.

use cust::sys::CUevent;
use half::f16;
use sage_tests::tensor::Random;
use sageattention::gpu::launch::Part;
use sageattention::gpu::memory::{DeviceMemory, Stream};
use sageattention::gpu::raw;
use sageattention::{
    AttentionOptions, AttentionPlan, AttentionProblem, DType, Device, Error, Gpu, GpuBuffers, Mask, PreparedPlan,
    TensorLayout, attention,
};
use std::fmt::Write;
use std::time::{Duration, Instant};

/// Tokens of a batch, all sequences together.
const TOKENS: usize = 32768;
const LENGTHS: [usize; 6] = [1024, 2048, 4096, 8192, 16384, 32768];
const PARTS: [(Part, &str); 3] =
    [(Part::Attention, "attention kernel"), (Part::Quantization, "quantization"), (Part::All, "end to end")];

const BURSTS: usize = 7;
const REST: Duration = Duration::from_millis(80);
const BURST_MS: f32 = 12.0;

fn main() -> Result<(), Error> {
    let start = Instant::now();
    // `cargo bench` adds `--bench`; what is left is a filter of benchmarks by name.
    if std::env::args().skip(1).any(|argument| !argument.starts_with('-') && !"gpu".contains(&argument)) {
        return Ok(());
    }
    let gpu = match Gpu::open(0) {
        Ok(gpu) => gpu,
        Err(reason) => {
            println!("nothing measured: {reason}");
            return Ok(());
        }
    };
    let first_call = FirstCall::measure(start, gpu)?;
    println!("{}, compute capability {:?}, {} multiprocessors\n", gpu.name(), gpu.capability(), gpu.multiprocessors());
    println!("{first_call}\n");

    let mut measurements = Vec::new();
    for (head_dim, heads) in [(128, 16), (64, 32)] {
        let bench = Bench::new(gpu, heads, head_dim)?;
        for mask in [Mask::None, Mask::Causal] {
            println!("head_dim {head_dim}, {heads} heads, {}: TOPS (microseconds) by length", mask_name(mask));
            println!("{:>18} {}", "", LENGTHS.map(|length| format!("{length:>14}")).concat());
            for (part, part_name) in PARTS {
                let mut line = format!("{part_name:>18} ");
                for length in LENGTHS {
                    let measured = bench.measure(mask, length, part)?;
                    let cell = match part {
                        Part::Quantization => format!("({:.0})", measured.microseconds),
                        _ => format!("{:.0} ({:.0})", measured.tops, measured.microseconds),
                    };
                    write!(line, "{cell:>14}").expect("a String takes everything");
                    measurements.push(measured);
                }
                println!("{line}");
            }
            println!();
        }
    }
    write_json(gpu, &first_call, &measurements);
    Ok(())
}

fn mask_name(mask: Mask) -> &'static str {
    if mask == Mask::None { "non-causal" } else { "causal" }
}

/// How long a program waits for its first result.
struct FirstCall {
    /// From `main` to the first result of a call on host slices.
    result: Duration,
    /// Opening the GPU, the driver's and the context's start included.
    open: Duration,
    /// Loading the kernels of one plan.
    load: Duration,
}

impl FirstCall {
    /// Runs the process's first call, on a GPU that was opened just now.
    fn measure(start: Instant, gpu: &'static Gpu) -> Result<Self, Error> {
        let open = start.elapsed();
        let problem = AttentionProblem::new(TensorLayout::Hnd, DType::F16, [1, 1, 1024, 128]);
        let options = AttentionOptions::default();
        let loading = Instant::now();
        AttentionPlan::new(problem, options)?.prepare(gpu)?;
        let load = loading.elapsed();
        let tensor = vec![f16::ONE; 1024 * 128];
        attention(Device::Gpu(0), problem, options, &tensor, &tensor, &tensor)?;
        Ok(Self { result: start.elapsed(), open, load })
    }
}

impl std::fmt::Display for FirstCall {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "first result {:.1?} after the start: {:.1?} to open the GPU (driver and context), {:.1?} to load a plan's \
             kernels",
            self.result, self.open, self.load
        )
    }
}

/// One cell of the tables.
struct Measurement {
    head_dim: usize,
    mask: &'static str,
    part: &'static str,
    length: usize,
    microseconds: f64,
    /// 10¹² operations a second; 0 for the quantization.
    tops: f64,
}

/// The inputs of one head dimension. Each length takes the same elements for other sequences.
struct Bench {
    gpu: &'static Gpu,
    stream: Stream,
    heads: usize,
    head_dim: usize,
    query: DeviceMemory,
    key: DeviceMemory,
    value: DeviceMemory,
    output: DeviceMemory,
}

impl Bench {
    /// Normal tensors; the keys with an offset by channel, as trained models have.
    fn new(gpu: &'static Gpu, heads: usize, head_dim: usize) -> Result<Self, Error> {
        let stream = Stream::new(gpu)?;
        let mut random = Random(head_dim as u64);
        // A prime number of them, so that no two rows are made alike.
        let normal: Vec<f32> = (0..1_048_573).map(|_| random.normal()).collect();
        let offsets: Vec<f32> = (0..head_dim).map(|_| 2.0 * random.normal()).collect();
        let elements = TOKENS * heads * head_dim;
        let mut tensor = |argument, offset: f32| {
            let start = random.bits() as usize % normal.len();
            let tensor: Vec<f16> = (0..elements)
                .map(|index| f16::from_f32(normal[(start + index) % normal.len()] + offset * offsets[index % head_dim]))
                .collect();
            let mut memory = DeviceMemory::new(gpu, argument, 2 * elements)?;
            memory.write(0, bytemuck::cast_slice(&tensor), &stream)?;
            Ok::<_, Error>(memory)
        };
        let (query, key, value) = (tensor("query", 0.0)?, tensor("key", 1.0)?, tensor("value", 0.0)?);
        let output = DeviceMemory::new(gpu, "output", 2 * elements)?;
        Ok(Self { gpu, stream, heads, head_dim, query, key, value, output })
    }

    fn measure(&self, mask: Mask, length: usize, part: Part) -> Result<Measurement, Error> {
        let shape = [TOKENS / length, self.heads, length, self.head_dim];
        let problem = AttentionProblem::new(TensorLayout::Hnd, DType::F16, shape);
        let plan = AttentionPlan::new(problem, AttentionOptions { mask, ..Default::default() })?;
        let prepared = plan.prepare(self.gpu)?;
        let workspace = DeviceMemory::new(self.gpu, "workspace", plan.workspace_bytes() as usize)?;
        let buffers = GpuBuffers {
            query: self.query.address(),
            key: self.key.address(),
            value: self.value.address(),
            output: self.output.address(),
            log_sum_exp: None,
            workspace: workspace.address(),
            workspace_bytes: plan.workspace_bytes(),
        };
        self.time(&prepared, &buffers, Part::All, 1)?;
        let calls = (BURST_MS / self.time(&prepared, &buffers, part, 1)?).round().clamp(1.0, 200.0) as usize;
        let mut bursts = [0.0; BURSTS];
        for burst in &mut bursts {
            std::thread::sleep(REST);
            *burst = self.time(&prepared, &buffers, part, calls)?;
        }
        bursts.sort_by(f32::total_cmp);
        let seconds = f64::from(bursts[BURSTS / 2]) / 1e3;
        let pairs = (TOKENS * self.heads * length) as f64 * if mask == Mask::None { 1.0 } else { 0.5 };
        let operations = if part == Part::Quantization { 0.0 } else { 4.0 * pairs * self.head_dim as f64 };
        let part = PARTS.iter().find(|(other, _)| *other == part).map_or("", |(_, name)| name);
        Ok(Measurement {
            head_dim: self.head_dim,
            mask: mask_name(mask),
            part,
            length,
            microseconds: seconds * 1e6,
            tops: operations / seconds / 1e12,
        })
    }

    /// Milliseconds of a call, the mean of `calls` after one that is not counted.
    fn time(&self, prepared: &PreparedPlan, buffers: &GpuBuffers, part: Part, calls: usize) -> Result<f32, Error> {
        let _current = self.gpu.enter()?;
        // SAFETY: the buffers have the problem's sizes and outlive the stream's work, which the second event waits for;
        // the caller has run all parts once.
        let call = || unsafe { prepared.enqueue_part(part, self.stream.raw(), buffers) };
        call()?;
        let start = Event::record(&self.stream);
        for _ in 0..calls {
            call()?;
        }
        let stop = Event::record(&self.stream);
        Ok(stop.milliseconds_since(&start) / calls as f32)
    }
}

/// A moment in a stream's work. The GPU's context must be current.
struct Event(CUevent);

impl Event {
    fn record(stream: &Stream) -> Self {
        let mut event = std::ptr::null_mut();
        // SAFETY: the stream is alive.
        unsafe {
            success(raw::cuEventCreate(&mut event, 0));
            success(raw::cuEventRecord(event, stream.raw().cast()));
        }
        Self(event)
    }

    /// Waits for this event.
    fn milliseconds_since(&self, start: &Self) -> f32 {
        let mut milliseconds = 0.0;
        // SAFETY: both events are alive and recorded.
        unsafe {
            success(raw::cuEventSynchronize(self.0));
            success(raw::cuEventElapsedTime(&mut milliseconds, start.0, self.0));
        }
        milliseconds
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event is alive.
        let _ = unsafe { raw::cuEventDestroy_v2(self.0) };
    }
}

#[track_caller]
fn success(code: u32) {
    assert_eq!(code, 0);
}

/// Everything that was measured, if `$OUT` says where to.
fn write_json(gpu: &Gpu, first_call: &FirstCall, measurements: &[Measurement]) {
    let Some(folder) = std::env::var_os("OUT") else { return };
    let [result, open, load] =
        [first_call.result, first_call.open, first_call.load].map(|duration| duration.as_secs_f64() * 1e3);
    let rows: Vec<String> = measurements
        .iter()
        .map(|Measurement { head_dim, mask, part, length, microseconds, tops }| {
            format!(
                "    {{\"head_dim\": {head_dim}, \"mask\": {mask:?}, \"part\": {part:?}, \"length\": {length}, \
                 \"microseconds\": {microseconds:.2}, \"tops\": {tops:.1}}}"
            )
        })
        .collect();
    let text = format!(
        "{{\n  \"gpu\": {:?},\n  \"first_result_ms\": {result:.2},\n  \"open_ms\": {open:.2},\n  \
         \"load_ms\": {load:.2},\n  \"bursts\": [\n{}\n  ]\n}}\n",
        gpu.name(),
        rows.join(",\n")
    );
    let path = std::path::Path::new(&folder).join("gpu_bench.json");
    match std::fs::write(&path, text) {
        Ok(()) => println!("written to {}", path.display()),
        Err(error) => println!("{} can't be written: {error}", path.display()),
    }
}
