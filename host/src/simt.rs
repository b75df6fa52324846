//! A call's GPU kernels in the SIMT executor.

use crate::Element;
use crate::gpu::GpuBuffers;
use crate::kernels::{self, Call};
use crate::merge::{MergeBuffers, MergePlan};
use crate::options::{AttentionOptions, CallInputs, RotaryTables};
use crate::plan::AttentionPlan;
use crate::quantized::Operand;
use crate::tensor::{AttentionProblem, extent};
use sage_layout::architecture::ComputeCapability;
use sage_layout::dispatch::Choice;
use sage_layout::kernel::{Family, Kernel};
use sage_layout::params::Params;
use sage_layout::tile::{KEY_TILE, VALUE_ROW_BYTES, value_tile_bytes};
use sage_layout::{swizzle, value_tile};
use simt::host::Memory;

pub use simt::host::{Accumulation, Kind, Options, Report, SEED_VARIABLE, Schedule, Synchronisation};

/// CTAs at a time: few, so that each takes several items.
const MULTIPROCESSORS: u32 = 3;

/// What is launched for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steps {
    /// The kernels of [`PreparedPlan::enqueue`](crate::PreparedPlan::enqueue).
    Call,
    /// The same as if attention began before everything is quantized, which the plan's kernel must be able to. Here it begins after.
    Overlapping,
    /// Those that quantize keys, values and queries each by themselves, and attend to them.
    EachOperand,
    /// Those of [`Call`](Self::Call). Before attention, stored channels are overwritten that its kernel does not have.
    OverwrittenChannels,
}

/// The GPU whose kernels are executed if none is named.
pub(crate) const HOPPER: ComputeCapability = ComputeCapability::new(9, 0);

/// The kernels of a plan on a GPU.
pub(crate) fn choice(gpu: ComputeCapability, plan: &AttentionPlan) -> Option<Choice> {
    kernels::choices(gpu, plan).next()
}

/// How a device executes: under the schedule that the environment names, or else in order.
pub(crate) fn replayed() -> Options {
    Options::new(Schedule::replayed().unwrap_or(Schedule::InOrder))
}

/// A call that was executed.
#[derive(Debug)]
pub struct Execution {
    plan: AttentionPlan,
    memory: Memory,
    buffers: GpuBuffers,
    output_bytes: usize,
    /// Queries of a CTA of the attention kernel.
    pub cta_queries: u32,
    /// Where the kernels synchronise.
    pub synchronisations: Vec<Synchronisation>,
}

impl Execution {
    /// Executes all kernels of a call on slices that fit its strides, those that Hopper runs. The plan must be sound, and there
    /// must be kernels for it.
    ///
    /// # Errors
    ///
    /// What the executor found, and in which kernel.
    pub fn new<T: Element>(
        problem: &AttentionProblem,
        options: &AttentionOptions,
        inputs: [&[T]; 3],
        call_inputs: &CallInputs,
        execution: &Options,
    ) -> Result<Self, (Kernel, Report)> {
        Self::of_gpu(HOPPER, problem, options, inputs, call_inputs, execution)
    }

    /// [`new`](Self::new) with the kernels that a GPU of this compute capability runs.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn of_gpu<T: Element>(
        gpu: ComputeCapability,
        problem: &AttentionProblem,
        options: &AttentionOptions,
        inputs: [&[T]; 3],
        call_inputs: &CallInputs,
        execution: &Options,
    ) -> Result<Self, (Kernel, Report)> {
        Self::in_steps(Steps::Call, gpu, problem, options, inputs, call_inputs, execution)
    }

    /// [`of_gpu`](Self::of_gpu) with what these steps launch.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn in_steps<T: Element>(
        steps: Steps,
        gpu: ComputeCapability,
        problem: &AttentionProblem,
        options: &AttentionOptions,
        [query, key, value]: [&[T]; 3],
        call_inputs: &CallInputs,
        execution: &Options,
    ) -> Result<Self, (Kernel, Report)> {
        let plan = AttentionPlan::new(*problem, *options).expect("a plan that can be made");
        let mut memory = Memory::new();
        let mut upload = |name, tensor: &[T]| memory.upload(name, bytemuck::cast_slice(tensor));
        let (query, key, value) = (upload("query", query), upload("key", key), upload("value", value));
        let sinks = call_inputs.sinks.map(|sinks| memory.upload("sinks", bytemuck::cast_slice(sinks)));
        let lengths = call_inputs.lengths.map(|name, lengths| memory.upload(name, bytemuck::cast_slice(lengths)));
        let bias = call_inputs.bias.map(|bias| memory.upload("bias", bias.bytes()));
        let boolean_mask = call_inputs.boolean_mask.map(|mask| memory.upload("boolean_mask", mask));
        let rotary = call_inputs.rotary.map(|RotaryTables { cos, sin }| RotaryTables {
            cos: memory.upload("rotary cos", bytemuck::cast_slice(cos)),
            sin: memory.upload("rotary sin", bytemuck::cast_slice(sin)),
        });
        let elements = extent(problem.output_shape(), problem.output_strides).expect("checked by the plan") as usize;
        let output_bytes = elements * size_of::<T>();
        let output = memory.allocate("output", output_bytes);
        let lse_bytes = plan.log_sum_exp_len() * size_of::<f32>();
        let log_sum_exp = options.return_lse.then(|| memory.allocate("log_sum_exp", lse_bytes));
        let workspace_bytes = plan.workspace_bytes();
        let workspace = memory.allocate("workspace", workspace_bytes as usize);
        let buffers = GpuBuffers {
            query,
            key,
            value,
            output,
            log_sum_exp,
            sinks,
            lengths,
            bias,
            boolean_mask,
            rotary,
            workspace,
            workspace_bytes,
        };

        let choice = choice(gpu, &plan).expect("kernels for the options");
        let mut synchronisations = Vec::new();
        let mut launch = |family: Family, grid, params: Params| {
            let kernel = match family {
                Family::Prepare => choice.prepare,
                Family::MaskTiles => choice.mask_tiles.expect("a kernel for each boolean mask"),
                _ if family.quantizes() => choice.quantize,
                _ => choice.attention,
            };
            let found = sage_kernels::entry::launch(kernel, grid, &params, &memory, execution);
            synchronisations.extend(found.map_err(|report| (kernel, report))?.synchronisations);
            Ok(())
        };
        let call = Call {
            plan: &plan,
            buffers: &buffers,
            workspace: plan.workspace.buffers(workspace),
            quantizer: choice.quantize,
            attention: choice.attention.family(),
            multiprocessors: MULTIPROCESSORS,
            overlaps: steps == Steps::Overlapping,
        };
        assert!(!call.overlaps || call.can_overlap());
        let (counters, bytes) = call.counters();
        let reset_counters = || memory.fill(counters, 0, bytes as usize);
        reset_counters();
        match steps {
            Steps::Call | Steps::Overlapping => call.quantize(&Operand::ALL, &mut launch)?,
            Steps::OverwrittenChannels => {
                call.quantize(&Operand::ALL, &mut launch)?;
                overwrite_channels(&call, choice.attention.head_dim(), &memory);
            }
            Steps::EachOperand => {
                // keys first, whose mean queries may need
                for operand in [Operand::Key, Operand::Value, Operand::Query] {
                    call.quantize(&[operand], &mut launch)?;
                    reset_counters();
                }
            }
        }
        call.attend(&mut launch)?;
        let cta_queries = call.cta_queries();
        Ok(Self { plan, memory, buffers, output_bytes, cta_queries, synchronisations })
    }

    /// The output, in the problem's strides; bytes 0xff where nobody wrote.
    pub fn output<T: Element>(&self) -> Vec<T> {
        bytemuck::pod_collect_to_vec(&self.memory.read(self.buffers.output, self.output_bytes))
    }

    /// Puts what the kernels wrote into `output`, and leaves the rest of it alone.
    pub(crate) fn copy_output<T: Element>(&self, output: &mut [T]) {
        let mut written = vec![true; self.output_bytes];
        self.output_not_written_once().into_iter().for_each(|byte| written[byte] = false);
        let places = output.iter_mut().zip(self.output()).zip(written.chunks_exact(size_of::<T>()));
        for ((place, element), written) in places {
            if written.iter().all(|&written| written) {
                *place = element;
            }
        }
    }

    /// The log-sum-exp; empty if not asked for.
    pub fn log_sum_exp(&self) -> Vec<f32> {
        let bytes = self.plan.log_sum_exp_len() * size_of::<f32>();
        self.buffers
            .log_sum_exp
            .map_or(Vec::new(), |address| bytemuck::pod_collect_to_vec(&self.memory.read(address, bytes)))
    }

    /// Offsets of the output's bytes that were not written exactly once.
    pub fn output_not_written_once(&self) -> Vec<usize> {
        self.memory.not_written_once(self.buffers.output, self.output_bytes)
    }

    /// What the kernels left in a region of the workspace, by its name in [`AttentionPlan::workspace_regions`].
    pub fn workspace(&self, name: &str) -> Option<Vec<u8>> {
        let (_, range) = self.plan.workspace_regions().into_iter().find(|(region, _)| *region == name)?;
        let bytes = (range.end - range.start) as usize;
        Some(self.memory.read(self.buffers.workspace + range.start, bytes))
    }
}

/// Overwrites the quantized operands' channels from `first` on, in units of which they are NaN or large.
fn overwrite_channels(call: &Call, first: u32, memory: &Memory) {
    let stored = call.plan.resolved.padded_head_dim;
    for (name, range) in call.plan.workspace.regions() {
        let channel = |offset: u64| match name {
            "query_codes" | "key_codes" => swizzle::position((offset % u64::from(KEY_TILE * stored)) as u32, stored).1,
            "value_codes" => (offset / u64::from(VALUE_ROW_BYTES)) as u32 % stored,
            "value_tiles" => value_tile::position((offset % u64::from(value_tile_bytes(stored))) as u32).0,
            "value_scale" | "value_mean_codes" => (offset / 4) as u32 % stored,
            _ => 0,
        };
        for offset in (0..range.end - range.start).filter(|&offset| channel(offset) >= first) {
            memory.fill(call.workspace[0] + range.start + offset, 0x7f, 1);
        }
    }
}

/// Executes the kernel that merges two parts, on slices that fit the problem's output strides; returns the output and the log-sum-exps.
///
/// # Errors
///
/// What the executor found.
pub fn merge<T: Element>(
    problem: AttentionProblem,
    outputs: [&[T]; 2],
    log_sum_exps: [&[f32]; 2],
    execution: &Options,
) -> Result<(Vec<T>, Vec<f32>), Report> {
    let plan = MergePlan::new(problem).expect("a plan that can be made");
    let mut memory = Memory::new();
    let outputs_at = outputs.map(|output| memory.upload("outputs", bytemuck::cast_slice(output)));
    let log_sum_exps_at = log_sum_exps.map(|sums| memory.upload("log_sum_exps", bytemuck::cast_slice(sums)));
    let [output_bytes, sums_bytes] = [size_of_val(outputs[0]), size_of_val(log_sum_exps[0])];
    let (output, log_sum_exp) = (memory.allocate("output", output_bytes), memory.allocate("log_sum_exp", sums_bytes));
    let buffers =
        MergeBuffers { outputs: outputs_at, log_sum_exps: log_sum_exps_at, output, log_sum_exp: Some(log_sum_exp) };
    let (_, grid, params) = plan.launch(&buffers);
    sage_kernels::entry::launch(plan.kernel(), grid, &params, &memory, execution)?;
    let read = |address, bytes| memory.read(address, bytes);
    Ok((
        bytemuck::pod_collect_to_vec(&read(output, output_bytes)),
        bytemuck::pod_collect_to_vec(&read(log_sum_exp, sums_bytes)),
    ))
}
