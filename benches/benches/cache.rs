//! Decoding on a cache of quantized keys and values: time of a step's attention and append on the GPU.
//!
//! Gigabytes are those of the cache that attention reads, each block once; beside them, those that a copy within the GPU's memory
//! reads and writes. Bursts as in the benchmark `gpu`: after a rest and a call to warm up, about 12 ms of calls between two events.

use std::error::Error;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use clap::Parser;
use half::f16;
use sage_measure::{Arguments, Case, Device as Where, Measurement, Mode, Part, Report};
use sage_tests::tensor::Random;
use sageattention::gpu::memory::{DeviceMemory, Event, Stream};
use sageattention::{
    AppendBuffers, CacheAttentionBuffers, CacheOptions, CachePlan, CacheProblem, DType, Error as SageError, Gpu,
    PreparedCachePlan, TensorLayout,
};

/// Sequences, query heads, key heads, queries, channels, tokens in the cache of each.
const SHAPES: [[usize; 6]; 7] = [
    [32, 64, 8, 1, 128, 32768],
    [32, 64, 8, 1, 128, 4096],
    [1, 64, 8, 1, 128, 32768],
    [32, 32, 32, 1, 128, 8192],
    [32, 64, 8, 1, 64, 32768],
    [16, 16, 4, 1, 256, 32768],
    [4, 64, 8, 32, 128, 32768],
];
/// Tokens that are appended at a time to fill the cache.
const CHUNK: usize = 512;
const REST: Duration = Duration::from_millis(80);
const BURST_MS: f64 = 12.0;

fn main() -> ExitCode {
    sage_measure::exit_code(run(&Arguments::parse()))
}

fn case([batch, query_heads, key_heads, queries, head_dim, length]: [usize; 6], what: &str) -> Case {
    let contender = format!("{what}-batch{batch}-heads{query_heads}/{key_heads}-queries{queries}");
    Case { engine: "cache", head_dim, mask: "full", length, part: Part::Attention, contender }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let bursts = if arguments.quick { 3 } else { 7 };
    let shapes = arguments.choose("cache", SHAPES.to_vec(), |shape| case(*shape, "attention").name());
    if shapes.is_empty() {
        return Ok(());
    }
    let gpu = match Gpu::open(0) {
        Ok(gpu) => gpu,
        Err(SageError::NoGpu { reason, .. }) => {
            println!("cache: nothing was measured on a GPU: {reason}");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    arguments.make_out()?;
    let device = Where { name: gpu.name().into(), multiprocessors: Some(gpu.multiprocessors()), ..Default::default() };
    let mut report = Report { device, ..Default::default() };
    println!("{}: bursts, median", gpu.name());
    println!(
        "| batch | heads | queries | channels | keys | parts | attention, ms | range | cache, GB/s | copy, GB/s | share | append of one token, ms |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    for shape in shapes {
        let step = Decoding::new(gpu, shape)?;
        let bytes = step.bytes();
        let (mut attention, mut append, mut copy) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..bursts {
            attention.push(step.burst(|| step.attend())?);
            append.push(step.burst(|| step.append())?);
            copy.push(step.burst(|| step.copy())?);
        }
        let of = |what, samples: &[f64], bytes: f64| {
            Measurement::new(case(shape, what), Mode::Burst, samples, None, Some(bytes))
        };
        let copied = 2.0 * step.copies[0].bytes() as f64;
        let [attention, append, copy] =
            [of("attention", &attention, bytes), of("append", &append, step.new_bytes()), of("copy", &copy, copied)];
        let rate = |bytes: f64, milliseconds: f64| bytes / milliseconds / 1e6;
        let (found, copied) = (rate(bytes, attention.milliseconds.median), rate(copied, copy.milliseconds.median));
        let [batch, query_heads, key_heads, queries, head_dim, length] = shape;
        println!(
            "| {batch} | {query_heads}/{key_heads} | {queries} | {head_dim} | {length} | {} | {:.4} | {:.4} to {:.4} | {found:.0} | {copied:.0} | {:.0} % | {:.4} |",
            step.attention.plan().splits(),
            attention.milliseconds.median,
            attention.milliseconds.min,
            attention.milliseconds.max,
            100.0 * found / copied,
            append.milliseconds.median,
        );
        report.measurements.extend([attention, append, copy]);
    }
    println!();
    for file in report.write(&arguments.out, "cache")? {
        println!("written: {}", file.display());
    }
    Ok(())
}

/// A step of decoding on a full cache.
struct Decoding {
    gpu: &'static Gpu,
    stream: Stream,
    attention: PreparedCachePlan,
    tensors: [DeviceMemory; 4],
    cache: DeviceMemory,
    lengths: [DeviceMemory; 2],
    workspace: DeviceMemory,
    /// What a copy reads and writes.
    copies: [DeviceMemory; 2],
    tokens: usize,
}

impl Decoding {
    fn new(gpu: &'static Gpu, shape: [usize; 6]) -> Result<Self, SageError> {
        let [batch, query_heads, key_heads, queries, head_dim, length] = shape;
        let stream = Stream::new(gpu)?;
        let problem = |tokens| {
            CacheProblem::new(TensorLayout::Hnd, DType::F16, [batch, query_heads, tokens, head_dim], key_heads, length)
        };
        let plan = CachePlan::new(problem(queries), CacheOptions::default())?;
        let filling = CachePlan::new(problem(CHUNK), CacheOptions::default())?.prepare(gpu)?;
        let mut random = Random(1);
        let normal: Vec<f16> = (0..1_048_573).map(|_| f16::from_f32(random.normal())).collect();
        let mut tensor = |argument, heads: usize, tokens: usize| {
            let start = random.bits() as usize % normal.len();
            let elements: Vec<f16> =
                (0..batch * heads * tokens * head_dim).map(|index| normal[(start + index) % normal.len()]).collect();
            let mut memory = DeviceMemory::new(gpu, argument, elements.len() * 2)?;
            memory.write(0, bytemuck::cast_slice(&elements), &stream)?;
            Ok::<_, SageError>(memory)
        };
        let tensors = [
            tensor("query", query_heads, queries)?,
            tensor("key", key_heads, CHUNK)?,
            tensor("value", key_heads, CHUNK)?,
            tensor("output", query_heads, queries)?,
        ];
        let cache = DeviceMemory::new(gpu, "cache", plan.cache_bytes() as usize)?;
        let mut lengths =
            [DeviceMemory::new(gpu, "lengths", 4 * batch)?, DeviceMemory::new(gpu, "lengths", 4 * batch)?];
        for before in (0..length).step_by(CHUNK) {
            lengths[0].write(0, bytemuck::cast_slice(&vec![before as i32; batch]), &stream)?;
            let buffers = AppendBuffers {
                key: tensors[1].address(),
                value: tensors[2].address(),
                cache: cache.address(),
                lengths: lengths[0].address(),
                ..Default::default()
            };
            // SAFETY: the buffers are as large as the plan says, and outlive the stream's work.
            unsafe { filling.enqueue_append(stream.raw(), &buffers)? };
        }
        lengths[0].write(0, bytemuck::cast_slice(&vec![length as i32; batch]), &stream)?;
        lengths[1].write(0, bytemuck::cast_slice(&vec![(length - queries) as i32; batch]), &stream)?;
        let workspace = DeviceMemory::new(gpu, "workspace", plan.workspace_bytes() as usize)?;
        const COPIED: usize = 1 << 30;
        let copies = [DeviceMemory::new(gpu, "copy", COPIED)?, DeviceMemory::new(gpu, "copy", COPIED)?];
        let attention = plan.prepare(gpu)?;
        Ok(Self { gpu, stream, attention, tensors, cache, lengths, workspace, copies, tokens: length })
    }

    /// Bytes of the cache that a step reads.
    fn bytes(&self) -> f64 {
        let problem = self.attention.plan().problem();
        self.cache.bytes() as f64 * self.tokens as f64 / problem.capacity() as f64
    }

    /// Bytes that an append reads and writes, at least.
    fn new_bytes(&self) -> f64 {
        let problem = self.attention.plan().problem();
        (problem.batch * problem.key_heads * problem.tokens * problem.head_dim * 6) as f64
    }

    fn attend(&self) -> Result<(), SageError> {
        let [query, _, _, output] = &self.tensors;
        let buffers = CacheAttentionBuffers {
            query: query.address(),
            output: output.address(),
            cache: self.cache.address(),
            lengths: self.lengths[0].address(),
            workspace: self.workspace.address(),
            workspace_bytes: self.workspace.bytes() as u64,
            ..Default::default()
        };
        // SAFETY: as in `new`.
        unsafe { self.attention.enqueue_attention(self.stream.raw(), &buffers) }
    }

    fn append(&self) -> Result<(), SageError> {
        let [_, key, value, _] = &self.tensors;
        let buffers = AppendBuffers {
            key: key.address(),
            value: value.address(),
            cache: self.cache.address(),
            lengths: self.lengths[1].address(),
            ..Default::default()
        };
        // SAFETY: as in `new`; the tensors are larger than a step's.
        unsafe { self.attention.enqueue_append(self.stream.raw(), &buffers) }
    }

    fn copy(&self) -> Result<(), SageError> {
        self.copies[0].copy_to(&self.copies[1], &self.stream)
    }

    /// Milliseconds of a call in a burst.
    fn burst(&self, call: impl Fn() -> Result<(), SageError>) -> Result<f64, SageError> {
        let _current = self.gpu.enter()?;
        let timed = |calls: usize| {
            let start = Event::record(&self.stream)?;
            (0..calls).try_for_each(|_| call())?;
            Ok::<_, SageError>(f64::from(Event::record(&self.stream)?.milliseconds_since(&start)?) / calls as f64)
        };
        sleep(REST);
        let one = timed(1)?;
        timed((BURST_MS / one).clamp(1.0, 1e4) as usize)
    }
}
