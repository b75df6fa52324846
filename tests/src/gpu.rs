//! Runs on the GPU, in buffers that show every stray read and write.

use crate::error::Accuracy;
use crate::tensor::{Inputs, Outputs, gather, query_shape, span};
use sageattention::gpu::memory::{DeviceMemory, Stream};
use sageattention::{AttentionOptions, AttentionPlan, AttentionProblem, Element, Error, Gpu, GpuBuffers, PreparedPlan};
use std::io::Write;
use std::sync::Once;

/// GPU 0; or `None` where there is none, after one line that says why.
///
/// # Panics
///
/// If there is none, with `SAGE_REQUIRE_GPU=1`.
pub fn gpu() -> Option<&'static Gpu> {
    match Gpu::open(0) {
        Ok(gpu) => Some(gpu),
        Err(reason) if std::env::var_os("SAGE_REQUIRE_GPU").is_some_and(|value| value == "1") => {
            panic!("SAGE_REQUIRE_GPU=1, but {reason}")
        }
        Err(reason) => {
            static SAY_IT_ONCE: Once = Once::new();
            SAY_IT_ONCE.call_once(|| {
                // Not by a print macro: those of passing tests are kept back.
                let line = format!("\nGPU tests are skipped: {reason}\n");
                let _ = std::io::stderr().write_all(line.as_bytes());
            });
            None
        }
    }
}

/// NaN in f16, bf16, f32 and e4m3: what stands where nothing may be read, and where everything must be written.
const POISON: u8 = 0xff;
/// Poison on each side of a buffer, in bytes.
const GUARD: usize = 4096;

/// Device memory between two poisoned guards.
#[derive(Debug)]
pub struct Guarded {
    memory: DeviceMemory,
    bytes: usize,
}

impl Guarded {
    /// A buffer full of poison.
    pub fn poisoned(gpu: &'static Gpu, bytes: usize, stream: &Stream) -> Result<Self, Error> {
        let mut memory = DeviceMemory::new(gpu, "a test's buffer", bytes + 2 * GUARD)?;
        memory.fill(POISON, stream)?;
        Ok(Self { memory, bytes })
    }

    /// A buffer that holds `content`.
    pub fn holding(gpu: &'static Gpu, content: &[u8], stream: &Stream) -> Result<Self, Error> {
        let mut buffer = Self::poisoned(gpu, content.len(), stream)?;
        buffer.write(content, stream)?;
        Ok(buffer)
    }

    /// Where the buffer starts, after the first guard.
    pub fn address(&self) -> u64 {
        self.memory.address() + GUARD as u64
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
        let intact = |guard: &[u8]| guard.iter().all(|&byte| byte == POISON);
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
    workspace: Guarded,
}

impl<T: Element> Call<T> {
    /// Uploads the inputs; everything else is poison.
    pub fn new(
        gpu: &'static Gpu,
        problem: &AttentionProblem,
        options: &AttentionOptions,
        inputs: &Inputs<T>,
    ) -> Result<Self, Error> {
        let plan = AttentionPlan::new(*problem, *options)?;
        let stream = Stream::new(gpu)?;
        let upload = |tensor: &[T]| Guarded::holding(gpu, bytemuck::cast_slice(tensor), &stream);
        let poisoned = |bytes| Guarded::poisoned(gpu, bytes, &stream);
        let lse = || poisoned(plan.log_sum_exp_len() * size_of::<f32>());
        Ok(Self {
            prepared: plan.prepare(gpu)?,
            query: upload(&inputs.query)?,
            key: upload(&inputs.key)?,
            value: upload(&inputs.value)?,
            output: poisoned(span(problem.output_strides, query_shape(problem)) * size_of::<T>())?,
            log_sum_exp: options.return_lse.then(lse).transpose()?,
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
            workspace: self.workspace.address(),
            workspace_bytes: self.prepared.plan().workspace_bytes(),
        }
    }

    /// Puts the call on its stream.
    pub fn enqueue(&mut self) -> Result<(), Error> {
        // SAFETY: the stream and the buffers are this call's own and live as long as it; freeing them waits.
        unsafe { self.prepared.enqueue(self.stream.raw(), &self.buffers()) }
    }

    /// Replaces the inputs by others of the same sizes.
    pub fn set_inputs(&mut self, inputs: &Inputs<T>) -> Result<(), Error> {
        self.query.write(bytemuck::cast_slice(&inputs.query), &self.stream)?;
        self.key.write(bytemuck::cast_slice(&inputs.key), &self.stream)?;
        self.value.write(bytemuck::cast_slice(&inputs.value), &self.stream)?;
        self.inputs = inputs.clone();
        Ok(())
    }

    /// Waits for the result. Checks that all of it was written, and nothing else.
    pub fn outputs(&self) -> Result<Outputs, Error> {
        let problem = self.prepared.plan().problem();
        for (buffer, tensor) in
            [(&self.query, &self.inputs.query), (&self.key, &self.inputs.key), (&self.value, &self.inputs.value)]
        {
            assert!(buffer.read(&self.stream)? == bytemuck::cast_slice::<T, u8>(tensor), "an input was written to");
        }
        self.workspace.read(&self.stream)?;
        let elements: Vec<T> = bytemuck::pod_collect_to_vec(&self.output.read(&self.stream)?);
        let output = gather(&elements, problem.output_strides, query_shape(problem));
        assert!(output.iter().all(|element| !element.is_nan()), "an element of the output is NaN or was not written");
        let written = elements.iter().filter(|element| !element.to_f32().is_nan()).count();
        assert_eq!(written, output.len(), "something was written between the output's rows");
        let log_sum_exp: Vec<f32> = match &self.log_sum_exp {
            Some(buffer) => bytemuck::pod_collect_to_vec(&buffer.read(&self.stream)?),
            None => Vec::new(),
        };
        assert!(log_sum_exp.iter().all(|value| !value.is_nan()), "a log-sum-exp is NaN or was not written");
        Ok(Outputs { output, log_sum_exp })
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
    let run = || {
        let mut call = Call::new(gpu, problem, options, inputs)?;
        call.enqueue()?;
        call.outputs()
    };
    run().unwrap_or_else(|error: Error| panic!("{error}\n{problem:?}\n{options:?}"))
}

/// Least cosine between two engines' outputs. They round probabilities to e4m3 at different references: a relative
/// error of about 2.6 % each, independent from one probability to the next.
const COSINE: f64 = 0.9995;
/// Largest relative L1 distance of two engines' outputs.
const RELATIVE_L1: f64 = 0.035;
/// Largest mean distance of two engines' log-sum-exps.
const MEAN_LOG_SUM_EXP: f64 = 1e-2;
/// Largest distance of two log-sum-exps: that of a row whose sum is one probability, rounded to e4m3.
const MAX_LOG_SUM_EXP: f64 = 7e-2;

/// Panics unless two engines' outputs are as near as two roundings of the probabilities let them be.
pub fn assert_near(result: &Outputs, expected: &Outputs, what: impl std::fmt::Display) {
    if expected.output.iter().all(|&element| element == 0.0) {
        assert!(result.output.iter().all(|&element| element == 0.0), "{what}: not zero");
    } else {
        let accuracy = Accuracy::of(result.output.iter().copied(), &expected.output);
        assert!(accuracy.cosine > COSINE && accuracy.relative_l1 < RELATIVE_L1, "{what}: {accuracy:?}");
    }
    assert_eq!(result.log_sum_exp.len(), expected.log_sum_exp.len(), "{what}");
    let mut sum = 0.0;
    for (row, (&result, &expected)) in result.log_sum_exp.iter().zip(&expected.log_sum_exp).enumerate() {
        // Equal where a query sees no key: both are −∞.
        let distance = if result == expected { 0.0 } else { f64::from(result - expected).abs() };
        assert!(distance < MAX_LOG_SUM_EXP, "{what}: log_sum_exp of row {row} is {result}, expected {expected}");
        sum += distance;
    }
    assert!(sum <= MEAN_LOG_SUM_EXP * result.log_sum_exp.len() as f64, "{what}: log_sum_exp differs");
}
