//! Runs on the GPU, in buffers that show every stray read and write.

use crate::error::{Accuracy, assert_rows_near};
use crate::tensor::{Inputs, Outputs, ScoreTensors, gather, indices, offset, span};
use sageattention::gpu::launch::Part;
use sageattention::gpu::memory::{DeviceMemory, Stream};
use sageattention::{
    Architecture, AttendBuffers, AttentionOptions, AttentionPlan, AttentionProblem, Element, Error, Gpu, GpuBuffers,
    Operand, PreparedPlan, PvMode, QuantizeBuffers, RotaryTables, SequenceLengths,
};
use std::io::Write;
use std::sync::{Mutex, PoisonError};

/// GPU 0; or `None` where there is none, after one line that says why.
///
/// # Panics
///
/// If there is none, with `SAGE_REQUIRE_GPU=1`.
pub fn gpu() -> Option<&'static Gpu> {
    Gpu::open(0).map_err(|reason| skip("GPU tests", &reason.to_string())).ok()
}

/// GPU 1; or `None` where there is none, after one line that says why.
pub fn other_gpu() -> Option<&'static Gpu> {
    Gpu::open(1).map_err(|reason| say_skipped("tests of several GPUs", &reason.to_string())).ok()
}

/// Says, once, that some tests are skipped, and why.
///
/// # Panics
///
/// With `SAGE_REQUIRE_GPU=1`.
pub fn skip(tests: &'static str, reason: &str) {
    assert!(std::env::var_os("SAGE_REQUIRE_GPU").is_none_or(|value| value != "1"), "SAGE_REQUIRE_GPU=1, but {reason}");
    say_skipped(tests, reason);
}

fn say_skipped(tests: &'static str, reason: &str) {
    static SAID: Mutex<Vec<&str>> = Mutex::new(Vec::new());
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if !said.contains(&tests) {
        said.push(tests);
        // Not by a print macro: those of passing tests are kept back.
        let _ = std::io::stderr().write_all(format!("\n{tests} are skipped: {reason}\n").as_bytes());
    }
}

/// What stands, byte by byte, where nothing may be read, and where everything must be written: NaN in f16, bf16, f32
/// and e4m3.
pub const NAN_POISON: u8 = 0xff;
/// Another one, for what overlooks NaN, as a maximum does: some 61000 in f16, 1.3e36 in bf16 and f32, 352 in e4m3.
pub const LARGE_POISON: u8 = 0x7b;
/// Poison on each side of a buffer, in bytes.
const GUARD: usize = 4096;

/// Device memory between two poisoned guards.
#[derive(Debug)]
pub struct Guarded {
    memory: DeviceMemory,
    bytes: usize,
    poison: u8,
}

impl Guarded {
    /// A buffer full of poison.
    pub fn poisoned(gpu: &'static Gpu, bytes: usize, poison: u8, stream: &Stream) -> Result<Self, Error> {
        let mut memory = DeviceMemory::new(gpu, "a test's buffer", bytes + 2 * GUARD)?;
        memory.fill(poison, stream)?;
        Ok(Self { memory, bytes, poison })
    }

    /// A buffer that holds `content`.
    pub fn holding(gpu: &'static Gpu, content: &[u8], poison: u8, stream: &Stream) -> Result<Self, Error> {
        let mut buffer = Self::poisoned(gpu, content.len(), poison, stream)?;
        buffer.write(content, stream)?;
        Ok(buffer)
    }

    /// Where the buffer starts, after the first guard.
    pub fn address(&self) -> u64 {
        self.memory.address() + GUARD as u64
    }

    /// Fills it with poison again.
    pub fn poison(&mut self, stream: &Stream) -> Result<(), Error> {
        self.memory.fill(self.poison, stream)
    }

    /// Replaces what it holds.
    pub fn write(&mut self, content: &[u8], stream: &Stream) -> Result<(), Error> {
        assert_eq!(content.len(), self.bytes);
        self.memory.write(GUARD, content, stream)
    }

    /// What it holds; checks the guards.
    pub fn read(&self, stream: &Stream) -> Result<Vec<u8>, Error> {
        let mut all = vec![0; self.memory.bytes()];
        self.memory.read(0, &mut all, stream)?;
        let intact = |guard: &[u8]| guard.iter().all(|&byte| byte == self.poison);
        assert!(intact(&all[..GUARD]), "something was written before a buffer");
        assert!(intact(&all[GUARD + self.bytes..]), "something was written after a buffer");
        Ok(all[GUARD..GUARD + self.bytes].to_vec())
    }
}

/// One call with buffers and a stream of its own.
#[derive(Debug)]
pub struct Call<T> {
    prepared: PreparedPlan,
    /// The stream that [`enqueue`](Self::enqueue) uses.
    pub stream: Stream,
    inputs: Inputs<T>,
    query: Guarded,
    key: Guarded,
    value: Guarded,
    output: Guarded,
    log_sum_exp: Option<Guarded>,
    sinks: Option<Guarded>,
    lengths: SequenceLengths<Guarded>,
    bias: Option<Guarded>,
    boolean_mask: Option<Guarded>,
    rotary: Option<RotaryTables<Guarded>>,
    workspace: Guarded,
}

impl<T: Element> Call<T> {
    /// Uploads the inputs; everything else is NaN.
    pub fn new(
        gpu: &'static Gpu,
        problem: &AttentionProblem,
        options: &AttentionOptions,
        inputs: &Inputs<T>,
    ) -> Result<Self, Error> {
        Self::with_poison(gpu, problem, options, inputs, NAN_POISON)
    }

    /// Uploads the inputs; everything else is poison.
    pub fn with_poison(
        gpu: &'static Gpu,
        problem: &AttentionProblem,
        options: &AttentionOptions,
        inputs: &Inputs<T>,
        poison: u8,
    ) -> Result<Self, Error> {
        Self::with_kernels(gpu, None, problem, options, inputs, poison)
    }

    /// The same with kernels of an architecture.
    pub fn with_kernels(
        gpu: &'static Gpu,
        architecture: Option<Architecture>,
        problem: &AttentionProblem,
        options: &AttentionOptions,
        inputs: &Inputs<T>,
        poison: u8,
    ) -> Result<Self, Error> {
        Self::with_lengths(gpu, architecture, problem, options, SequenceLengths::Uniform, inputs, poison)
    }

    /// The same with sequences of these lengths.
    pub fn with_lengths(
        gpu: &'static Gpu,
        architecture: Option<Architecture>,
        problem: &AttentionProblem,
        options: &AttentionOptions,
        lengths: SequenceLengths<&[i32]>,
        inputs: &Inputs<T>,
        poison: u8,
    ) -> Result<Self, Error> {
        let plan = AttentionPlan::new(*problem, *options)?;
        let stream = Stream::new(gpu)?;
        let upload = |tensor: &[T]| Guarded::holding(gpu, bytemuck::cast_slice(tensor), poison, &stream);
        let poisoned = |bytes| Guarded::poisoned(gpu, bytes, poison, &stream);
        let score_tensors = ScoreTensors::of(problem, options);
        let sinks = score_tensors.sinks.as_deref().map(bytemuck::cast_slice);
        let held = |bytes: Option<&[u8]>| bytes.map(|bytes| Guarded::holding(gpu, bytes, poison, &stream)).transpose();
        let lse = || poisoned(plan.log_sum_exp_len() * size_of::<f32>());
        Ok(Self {
            prepared: match architecture {
                None => plan.prepare(gpu)?,
                Some(_) => plan.prepare_for(gpu, architecture)?,
            },
            query: upload(&inputs.query)?,
            key: upload(&inputs.key)?,
            value: upload(&inputs.value)?,
            output: poisoned(span(problem.output_strides, problem.output_shape()) * size_of::<T>())?,
            log_sum_exp: options.return_lse.then(lse).transpose()?,
            sinks: held(sinks)?,
            bias: held(score_tensors.bias_bytes())?,
            boolean_mask: held(score_tensors.boolean_mask.as_deref())?,
            rotary: (score_tensors.rotary.as_ref())
                .map(|RotaryTables { cos, sin }| {
                    let tables = RotaryTables { cos, sin };
                    tables.try_map(|_, table| Guarded::holding(gpu, bytemuck::cast_slice(table), poison, &stream))
                })
                .transpose()?,
            lengths: lengths
                .try_map(|_, lengths| Guarded::holding(gpu, bytemuck::cast_slice(lengths), poison, &stream))?,
            workspace: poisoned(plan.workspace_bytes() as usize)?,
            inputs: inputs.clone(),
            stream,
        })
    }

    /// The buffers' addresses.
    pub fn buffers(&self) -> GpuBuffers {
        GpuBuffers {
            query: self.query.address(),
            key: self.key.address(),
            value: self.value.address(),
            output: self.output.address(),
            log_sum_exp: self.log_sum_exp.as_ref().map(Guarded::address),
            sinks: self.sinks.as_ref().map(Guarded::address),
            lengths: self.lengths.as_ref().map(|_, lengths| lengths.address()),
            bias: self.bias.as_ref().map(Guarded::address),
            boolean_mask: self.boolean_mask.as_ref().map(Guarded::address),
            rotary: (self.rotary.as_ref())
                .map(|RotaryTables { cos, sin }| RotaryTables { cos: cos.address(), sin: sin.address() }),
            workspace: self.workspace.address(),
            workspace_bytes: self.prepared.plan().workspace_bytes(),
        }
    }

    /// Puts the call on its stream.
    pub fn enqueue(&mut self) -> Result<(), Error> {
        // SAFETY: the buffers are this call's own and live as long as it; freeing them waits.
        unsafe { self.enqueue_with(&self.buffers()) }
    }

    /// The same with these buffers.
    ///
    /// # Safety
    ///
    /// As for [`PreparedPlan::enqueue`].
    pub unsafe fn enqueue_with(&mut self, buffers: &GpuBuffers) -> Result<(), Error> {
        // SAFETY: forwarded contract; the stream is this call's own.
        unsafe { self.prepared.enqueue(self.stream.raw(), buffers) }
    }

    /// Puts only the attention kernel on the stream, for the operands of an earlier [`enqueue`](Self::enqueue), with its
    /// results poisoned first.
    pub fn enqueue_attention(&mut self) -> Result<(), Error> {
        for buffer in [Some(&mut self.output), self.log_sum_exp.as_mut()].into_iter().flatten() {
            buffer.poison(&self.stream)?;
        }
        // SAFETY: as in `enqueue`; without operands in the workspace, numbers are wrong, but no address is.
        unsafe { self.prepared.enqueue_part(Part::Attention, self.stream.raw(), &self.buffers()) }
    }

    /// The same in steps, each operand quantized by itself into memory of its own; with the results poisoned first. Waits, and checks
    /// that nothing was written beside any buffer.
    pub fn enqueue_in_steps(&mut self) -> Result<(), Error> {
        for buffer in [Some(&mut self.output), self.log_sum_exp.as_mut()].into_iter().flatten() {
            buffer.poison(&self.stream)?;
        }
        let (prepared, stream) = (&self.prepared, self.stream.raw());
        let (gpu, plan) = (prepared.gpu(), prepared.plan());
        let poisoned = |bytes: u64| Guarded::poisoned(gpu, bytes as usize, self.workspace.poison, &self.stream);
        let mut quantized = Vec::new();
        for operand in Operand::ALL {
            quantized.push(poisoned(plan.quantized_format(operand)?.bytes())?);
        }
        let scratch = poisoned(plan.scratch_bytes())?;
        let (scratch_address, scratch_bytes) = (scratch.address(), plan.scratch_bytes());
        let of = |operand: Operand, tensor: &Guarded| QuantizeBuffers {
            tensor: tensor.address(),
            quantized: quantized[operand as usize].address(),
            quantized_bytes: quantized[operand as usize].bytes as u64,
            scratch: scratch_address,
            scratch_bytes,
        };
        let GpuBuffers { output, log_sum_exp, sinks, bias, boolean_mask, .. } = self.buffers();
        let results =
            AttendBuffers { output, log_sum_exp, sinks, bias, boolean_mask, scratch: scratch_address, scratch_bytes };
        // SAFETY: the stream and the buffers are this call's own and live as long as it; freeing them waits.
        unsafe {
            let key = prepared.quantize_key(stream, &of(Operand::Key, &self.key))?;
            let value = prepared.quantize_value(stream, &of(Operand::Value, &self.value))?;
            let queries = of(Operand::Query, &self.query);
            let query = match prepared.quantize_query(stream, &queries, None) {
                Err(Error::CallInput { argument: "key", wanted: true }) => {
                    prepared.quantize_query(stream, &queries, Some(&key))?
                }
                result => result?,
            };
            prepared.attend_quantized(stream, [&query, &key, &value], &results)?;
        }
        quantized.iter().chain([&scratch]).try_for_each(|buffer| buffer.read(&self.stream).map(|_| ()))
    }

    /// Replaces the inputs by others of the same sizes.
    pub fn set_inputs(&mut self, inputs: &Inputs<T>) -> Result<(), Error> {
        self.query.write(bytemuck::cast_slice(&inputs.query), &self.stream)?;
        self.key.write(bytemuck::cast_slice(&inputs.key), &self.stream)?;
        self.value.write(bytemuck::cast_slice(&inputs.value), &self.stream)?;
        self.inputs = inputs.clone();
        Ok(())
    }

    /// Replaces the lengths by others of the same kind, for as many sequences.
    pub fn set_lengths(&mut self, lengths: SequenceLengths<&[i32]>) -> Result<(), Error> {
        match (&mut self.lengths, lengths) {
            (SequenceLengths::PaddedKeys { kv_lens }, SequenceLengths::PaddedKeys { kv_lens: new }) => {
                kv_lens.write(bytemuck::cast_slice(new), &self.stream)
            }
            (
                SequenceLengths::Packed { cu_seqlens_q, cu_seqlens_k },
                SequenceLengths::Packed { cu_seqlens_q: new_q, cu_seqlens_k: new_k },
            ) => {
                cu_seqlens_q.write(bytemuck::cast_slice(new_q), &self.stream)?;
                cu_seqlens_k.write(bytemuck::cast_slice(new_k), &self.stream)
            }
            (ours, other) => panic!("{:?} instead of {:?}", other.kind(), ours.kind()),
        }
    }

    /// Waits for the call, whatever it computes, and checks that nothing was written beside its buffers.
    pub fn check_guards(&self) -> Result<(), Error> {
        let buffers = [&self.query, &self.key, &self.value, &self.output, &self.workspace];
        buffers.into_iter().chain(&self.log_sum_exp).try_for_each(|buffer| buffer.read(&self.stream).map(|_| ()))
    }

    /// Waits for the result. Checks that all of it was written (where the poison is NaN), and nothing else.
    pub fn outputs(&self) -> Result<Outputs, Error> {
        let problem = self.prepared.plan().problem();
        for (buffer, tensor) in
            [(&self.query, &self.inputs.query), (&self.key, &self.inputs.key), (&self.value, &self.inputs.value)]
        {
            assert!(buffer.read(&self.stream)? == bytemuck::cast_slice::<T, u8>(tensor), "an input was written to");
        }
        let workspace = self.workspace.read(&self.stream)?;
        let regions = self.prepared.plan().workspace_regions();
        let starts = regions.iter().skip(1).map(|(_, range)| range.start as usize).chain([workspace.len()]);
        for ((region, range), next) in regions.iter().zip(starts) {
            let gap = &workspace[range.end as usize..next];
            assert!(gap.iter().all(|&byte| byte == self.workspace.poison), "something was written after {region}");
        }
        let mut elements: Vec<T> = bytemuck::pod_collect_to_vec(&self.output.read(&self.stream)?);
        let output = gather(&elements, problem.output_strides, problem.output_shape());
        assert!(output.iter().all(|element| !element.is_nan()), "an element of the output is NaN or was not written");
        let poison = bytemuck::pod_read_unaligned(&vec![self.output.poison; size_of::<T>()]);
        for index in indices(problem.output_shape()) {
            elements[offset(problem.output_strides, index)] = poison;
        }
        let gaps: &[u8] = bytemuck::cast_slice(&elements);
        assert!(gaps.iter().all(|&byte| byte == self.output.poison), "something was written between the output's rows");
        let log_sum_exp: Vec<f32> = match &self.log_sum_exp {
            Some(buffer) => bytemuck::pod_collect_to_vec(&buffer.read(&self.stream)?),
            None => Vec::new(),
        };
        assert!(log_sum_exp.iter().all(|value| !value.is_nan()), "a log-sum-exp is NaN or was not written");
        Ok(Outputs { output, log_sum_exp })
    }

    /// The names of the workspace's regions.
    pub fn regions(&self) -> Vec<&'static str> {
        self.prepared.plan().workspace_regions().into_iter().map(|(name, _)| name).collect()
    }

    /// What the kernels left in a region of the workspace, by its name in `AttentionPlan::workspace_regions`.
    pub fn workspace(&self, name: &str) -> Result<Vec<u8>, Error> {
        let regions = self.prepared.plan().workspace_regions();
        let (_, range) = regions.into_iter().find(|(region, _)| *region == name).expect("a region of the plan");
        Ok(self.workspace.read(&self.stream)?[range.start as usize..range.end as usize].to_vec())
    }
}

/// Runs one call in poisoned buffers.
///
/// # Panics
///
/// On any error, and on any stray write.
pub fn attend<T: Element>(
    gpu: &'static Gpu,
    problem: &AttentionProblem,
    options: &AttentionOptions,
    inputs: &Inputs<T>,
) -> Outputs {
    attend_with(gpu, None, problem, options, inputs)
}

/// [`attend`] with kernels of an architecture.
///
/// # Panics
///
/// As [`attend`].
pub fn attend_with<T: Element>(
    gpu: &'static Gpu,
    architecture: Option<Architecture>,
    problem: &AttentionProblem,
    options: &AttentionOptions,
    inputs: &Inputs<T>,
) -> Outputs {
    let run = || {
        let mut call = Call::with_kernels(gpu, architecture, problem, options, inputs, NAN_POISON)?;
        call.enqueue()?;
        call.outputs()
    };
    run().unwrap_or_else(|error: Error| panic!("{error}\n{problem:?}\n{options:?}"))
}

/// How near two engines' outputs must be.
struct Nearness {
    /// Least cosine.
    cosine: f64,
    /// Largest relative L1 distance.
    relative_l1: f64,
    /// Largest mean distance of log-sum-exps.
    mean_log_sum_exp: f64,
    /// Largest distance of two log-sum-exps.
    max_log_sum_exp: f64,
    /// Largest relative L1 distance of one row, and what Σ|difference| of a row may have on top: with one channel, a row's
    /// output may be next to zero.
    row: [f64; 2],
}

/// Probabilities in e4m3 at different references: a relative error of about 2.6 % each, independent from one to the next.
/// The largest distance of log-sum-exps is that of a row whose sum is one probability. Two references on the CPU make a
/// row's distance up to .055, for 16 channels .09, and need .07 on top.
const FP8: Nearness =
    Nearness { cosine: 0.9995, relative_l1: 0.035, mean_log_sum_exp: 1e-2, max_log_sum_exp: 7e-2, row: [0.15, 0.15] };

/// Probabilities and outputs in 16 bits, of which bf16 keeps 8. Sums are taken before rounding.
const F16: Nearness =
    Nearness { cosine: 0.99999, relative_l1: 0.004, mean_log_sum_exp: 1e-4, max_log_sum_exp: 1e-3, row: [0.02, 0.02] };

/// Panics unless two engines' outputs are as near as two roundings of the probabilities let them be, as a whole and row by
/// row.
pub fn assert_near(
    result: &Outputs,
    expected: &Outputs,
    head_dim: usize,
    pv_mode: PvMode,
    what: impl std::fmt::Display,
) {
    let Nearness { cosine, relative_l1, mean_log_sum_exp, max_log_sum_exp, row } = match pv_mode {
        PvMode::F16 => F16,
        _ => FP8,
    };
    if expected.output.iter().all(|&element| element == 0.0) {
        assert!(result.output.iter().all(|&element| element == 0.0), "{what}: not zero");
    } else {
        let accuracy = Accuracy::of(result.output.iter().copied(), &expected.output);
        assert!(accuracy.cosine > cosine && accuracy.relative_l1 < relative_l1, "{what}: {accuracy:?}");
        assert_rows_near(&result.output, &expected.output, head_dim, row, &what);
    }
    assert_eq!(result.log_sum_exp.len(), expected.log_sum_exp.len(), "{what}");
    let mut sum = 0.0;
    for (row, (&result, &expected)) in result.log_sum_exp.iter().zip(&expected.log_sum_exp).enumerate() {
        // Equal where a query sees no key: both are −∞.
        let distance = if result == expected { 0.0 } else { f64::from(result - expected).abs() };
        assert!(distance < max_log_sum_exp, "{what}: log_sum_exp of row {row} is {result}, expected {expected}");
        sum += distance;
    }
    assert!(sum <= mean_log_sum_exp * result.log_sum_exp.len() as f64, "{what}: log_sum_exp differs");
}
