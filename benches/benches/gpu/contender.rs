//! Who is timed: a part of our call, or a peer in the child process.

use half::f16;
use sage_measure::peers::{Peer, Request, Timing};
use sage_measure::{Case, Part};
use sage_tests::tensor::Random;
use sageattention::gpu::launch::Part as Kernels;
use sageattention::gpu::memory::{DeviceMemory, Event, Stream};
use sageattention::{
    AttentionOptions, AttentionPlan, AttentionProblem, Bias, BiasType, DType, Error, Gpu, GpuBuffers, Mask,
    PreparedPlan, Rotary, RotaryPairs, RotaryTables, ScoreStrides, SequenceLengths, TensorLayout,
};

use crate::{BURST, DOCUMENT, Extra, MIXED_LENGTHS, Setting, Variant};

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

    /// What a call of sequences of `length` tokens takes beside its tensors: a normal bias, a mask, or tables of cosines and sines.
    fn extra(&self, extra: Extra, length: usize) -> Result<Option<DeviceMemory>, Error> {
        let bytes: Vec<u8> = match extra {
            Extra::Nothing | Extra::SoftCap => return Ok(None),
            Extra::Rotary => {
                let half = self.head_dim / 2;
                let angle = |index: usize| {
                    let frequency = 10_000f32.powf(-((index % half) as f32) / half as f32);
                    (index / half) as f32 * frequency
                };
                let angles = || (0..length * half).map(angle);
                angles().map(f32::cos).chain(angles().map(f32::sin)).flat_map(f32::to_le_bytes).collect()
            }
            Extra::Bias => {
                let mut random = Random(length as u64);
                let normal: Vec<f16> = (0..65_537).map(|_| f16::from_f32(random.normal())).collect();
                let elements = normal.iter().cycle().take(length * length);
                elements.flat_map(|element| element.to_le_bytes()).collect()
            }
            Extra::Documents => {
                let row = |query: usize| (0..length).map(move |key| u8::from(query / DOCUMENT == key / DOCUMENT));
                (0..length).flat_map(row).collect()
            }
        };
        let mut memory = DeviceMemory::new(self.gpu, "extra", bytes.len())?;
        memory.write(0, &bytes, &self.stream)?;
        Ok(Some(memory))
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
    /// See [`Tensors::extra`].
    extra: Option<DeviceMemory>,
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
        let strides = ScoreStrides::broadcast([1, 1, case.length, case.length]);
        let rotary = Rotary {
            dim: tensors.head_dim,
            pairs: RotaryPairs::HalfSplit,
            positions: case.length,
            query_offset: 0,
            key_offset: 0,
        };
        let options = match setting.extra {
            Extra::Nothing => options,
            Extra::Rotary => AttentionOptions { rotary: Some(rotary), ..options },
            Extra::SoftCap => AttentionOptions { soft_cap: Some(50.0), ..options },
            Extra::Bias => AttentionOptions { bias: Some(Bias { dtype: BiasType::F16, strides }), ..options },
            Extra::Documents => AttentionOptions { boolean_mask: Some(strides), ..options },
        };
        let extra = tensors.extra(setting.extra, case.length)?;
        let plan = AttentionPlan::new(problem, options)?;
        let prepared = plan.prepare_for(tensors.gpu, variant.architecture)?;
        let workspace = DeviceMemory::new(tensors.gpu, "workspace", plan.workspace_bytes() as usize)?;
        let (kernels, call_ms) = (Kernels::All, f64::INFINITY);
        let mut ours = Self { tensors, prepared, starts, extra, workspace, kernels, call_ms };
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
        let extra = self.extra.as_ref().map(DeviceMemory::address);
        let options = self.prepared.plan().options();
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
            bias: options.bias.and(extra),
            boolean_mask: options.boolean_mask.and(extra),
            rotary: options.rotary.and(extra).map(|cos| {
                let table = options.rotary.map_or(0, |rotary| rotary.positions * rotary.dim / 2 * size_of::<f32>());
                RotaryTables { cos, sin: cos + table as u64 }
            }),
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
