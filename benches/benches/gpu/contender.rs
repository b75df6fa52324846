//! Who is timed: a part of our call, or a peer in the child process.

use half::f16;
use sage_measure::peers::{Peer, Request, Timing};
use sage_measure::{Case, Part};
use sage_tests::tensor::Random;
use sageattention::gpu::launch::Part as Kernels;
use sageattention::gpu::memory::{DeviceMemory, Event, Stream};
use sageattention::{
    AttentionOptions, AttentionPlan, AttentionProblem, DType, Error, Gpu, GpuBuffers, Mask, PreparedPlan,
    SequenceLengths, TensorLayout,
};

use crate::{BURST, MIXED_LENGTHS, Setting, Variant};

/// The tensors of a head dimension. Each length takes the same elements for other sequences.
pub struct Tensors {
    gpu: &'static Gpu,
    stream: Stream,
    tokens: usize,
    pub heads: usize,
    pub head_dim: usize,
    query: DeviceMemory,
    key: DeviceMemory,
    value: DeviceMemory,
    output: DeviceMemory,
}

impl Tensors {
    /// Normal tensors; the keys with an offset by channel, as trained models have.
    pub fn new(gpu: &'static Gpu, tokens: usize, heads: usize, head_dim: usize) -> Result<Self, Error> {
        let stream = Stream::new(gpu)?;
        let mut random = Random(head_dim as u64);
        // A prime number of them, so that no two rows are made alike.
        let normal: Vec<f32> = (0..1_048_573).map(|_| random.normal()).collect();
        let offsets: Vec<f32> = (0..head_dim).map(|_| 2.0 * random.normal()).collect();
        let elements = tokens * heads * head_dim;
        let mut tensor = |argument, offset: f32| {
            let start = random.bits() as usize % normal.len();
            let tensor: Vec<f16> = (0..elements)
                .map(|index| f16::from_f32(normal[(start + index) % normal.len()] + offset * offsets[index % head_dim]))
                .collect();
            let mut memory = DeviceMemory::new(gpu, argument, DType::F16.bytes() * elements)?;
            memory.write(0, bytemuck::cast_slice(&tensor), &stream)?;
            Ok::<_, Error>(memory)
        };
        let (query, key, value) = (tensor("query", 0.0)?, tensor("key", 1.0)?, tensor("value", 0.0)?);
        let output = DeviceMemory::new(gpu, "output", DType::F16.bytes() * elements)?;
        Ok(Self { gpu, stream, tokens, heads, head_dim, query, key, value, output })
    }

    fn shape(&self, length: usize) -> [usize; 4] {
        [self.tokens / length, self.heads, length, self.head_dim]
    }
}

/// Who is timed.
pub enum Contender<'a> {
    Ours(Box<Ours<'a>>),
    /// What to ask the child for.
    Peer(Request),
}

impl<'a> Contender<'a> {
    pub fn ours(tensors: &'a Tensors, case: &Case, variant: &Variant) -> Result<Self, Error> {
        Ours::new(tensors, case, variant).map(|ours| Self::Ours(Box::new(ours)))
    }

    pub fn peer(tensors: &Tensors, case: &Case, Peer { backend, dtype, .. }: Peer) -> Self {
        let [batch, heads, length, head_dim] = tensors.shape(case.length);
        let causal = Setting::of(case).mask == Mask::Causal;
        Self::Peer(Request { backend, dtype, batch, heads, length, head_dim, causal, timing: BURST })
    }
}

/// A part of our call.
pub struct Ours<'a> {
    tensors: &'a Tensors,
    prepared: PreparedPlan,
    /// Of packed sequences.
    starts: Option<DeviceMemory>,
    workspace: DeviceMemory,
    kernels: Kernels,
    /// About how long a call takes.
    call_ms: f64,
}

impl<'a> Ours<'a> {
    fn new(tensors: &'a Tensors, case: &Case, variant: &Variant) -> Result<Self, Error> {
        let setting = Setting::of(case);
        let mut problem = AttentionProblem::new(TensorLayout::Hnd, DType::F16, tensors.shape(case.length));
        let mut starts = None;
        if setting.is_mixed {
            let Tensors { gpu, stream, tokens, heads, head_dim, .. } = tensors;
            let total = [*tokens, *heads];
            problem = AttentionProblem::packed(DType::F16, MIXED_LENGTHS.len(), [total[0], total[1], *head_dim], total);
            let mut end = 0;
            let ends = MIXED_LENGTHS.map(|length| {
                end += length as i32;
                end
            });
            let mut memory = DeviceMemory::new(gpu, "cu_seqlens", size_of_val(&ends) + 4)?;
            memory.write(0, bytemuck::cast_slice(&[&[0], &ends[..]].concat()), stream)?;
            starts = Some(memory);
        }
        let options = AttentionOptions { mask: setting.mask, ..variant.options() };
        let plan = AttentionPlan::new(problem, options)?;
        let prepared = plan.prepare_for(tensors.gpu, variant.architecture)?;
        let workspace = DeviceMemory::new(tensors.gpu, "workspace", plan.workspace_bytes() as usize)?;
        let mut ours = Self { tensors, prepared, starts, workspace, kernels: Kernels::All, call_ms: f64::INFINITY };
        // The attention kernel alone needs what the quantization leaves.
        ours.run(1)?;
        ours.kernels = match case.part {
            Part::Attention => Kernels::Attention,
            Part::Quantization => Kernels::Quantization,
            Part::EndToEnd | Part::Accuracy => Kernels::All,
        };
        ours.call_ms = ours.samples(Timing { samples: 1, ..BURST })?[0];
        Ok(ours)
    }

    /// Milliseconds of a call, the mean of each sample's calls.
    pub fn samples(&mut self, timing: Timing) -> Result<Vec<f64>, Error> {
        let _current = self.tensors.gpu.enter()?;
        let calls = |milliseconds: f64| (milliseconds / self.call_ms).round().clamp(1.0, 1e6) as usize;
        self.run(calls(timing.warm_up_ms))?;
        let calls = calls(timing.sample_ms);
        let mut events = vec![Event::record(&self.tensors.stream)?];
        for _ in 0..timing.samples {
            self.run(calls)?;
            events.push(Event::record(&self.tensors.stream)?);
        }
        let sample = |pair: &[Event]| Ok(f64::from(pair[1].milliseconds_since(&pair[0])?) / calls as f64);
        events.windows(2).map(sample).collect()
    }

    /// Enqueues some calls.
    fn run(&self, calls: usize) -> Result<(), Error> {
        let Tensors { stream, query, key, value, output, .. } = self.tensors;
        let buffers = GpuBuffers {
            query: query.address(),
            key: key.address(),
            value: value.address(),
            output: output.address(),
            lengths: match &self.starts {
                None => SequenceLengths::Uniform,
                Some(starts) => {
                    SequenceLengths::Packed { cu_seqlens_q: starts.address(), cu_seqlens_k: starts.address() }
                }
            },
            workspace: self.workspace.address(),
            workspace_bytes: self.workspace.bytes() as u64,
            ..Default::default()
        };
        for _ in 0..calls {
            // SAFETY: the buffers have the problem's sizes, and outlive the stream's work: freeing one waits for it.
            // `new` has run all kernels once.
            unsafe { self.prepared.enqueue_part(self.kernels, stream.raw(), &buffers)? };
        }
        Ok(())
    }
}
