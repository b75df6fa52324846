//! Attention to parts of the keys, merged: for ring attention, where each GPU has some of them. [`merge()`] does it in host memory,
//! [`MergePlan`] in a GPU's.

use crate::attention::AttentionOutput;
use crate::cache::kernels::{self, Launch};
use crate::cache::launch::load_cache_kernels;
use crate::element::Element;
use crate::error::{Error, Unsupported};
use crate::gpu::Gpu;
use crate::gpu::launch::{check_address, check_tensor, launch_kernel};
use crate::gpu::module::Function;
use crate::kernels::view;
use crate::options::AttentionOptions;
use crate::plan::{MAX_SIZE, at_most, supports};
use crate::tensor::{AttentionProblem, DType};
use rayon::prelude::*;
use sage_layout::kernel::{ElementType, Family, Kernel};
use sage_layout::params::MergeParams;
use sage_layout::tile;
use std::ffi::c_void;

/// Merges attention of the same queries to two parts of the keys into attention to all of them.
///
/// A part is the output, rows of `value_head_dim` channels one after the other, and each row's log-sum-exp (natural logarithm; −∞ for a
/// row that saw no key, whose output does not count). The result has the rows in the same order. More parts are merged one by
/// one; a sink belongs into one of them.
///
/// ```
/// use half::f16;
/// use sageattention::merge;
///
/// // one row of two channels: a key with logit 0 and value 1, and three keys with logit 0 and value 5
/// let parts = [[f16::from_f32(1.0); 2], [f16::from_f32(5.0); 2]];
/// let merged = merge([&parts[0], &parts[1]], [&[0.0], &[3.0f32.ln()]], 2)?;
/// assert_eq!(merged.output, [f16::from_f32(4.0); 2]);
/// assert!((merged.log_sum_exp.unwrap()[0] - 4.0f32.ln()).abs() < 1e-6);
/// # Ok::<(), sageattention::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::SliceLength`] for slices that are not equally many rows.
pub fn merge<T: Element>(
    outputs: [&[T]; 2],
    log_sum_exps: [&[f32]; 2],
    value_head_dim: usize,
) -> Result<AttentionOutput<T>, Error> {
    let rows = log_sum_exps[0].len();
    let needed = rows.saturating_mul(value_head_dim);
    let sizes = [
        ("log_sum_exps[1]", log_sum_exps[1].len(), rows),
        ("outputs[0]", outputs[0].len(), needed),
        ("outputs[1]", outputs[1].len(), needed),
    ];
    for (argument, got, needed) in sizes {
        if got != needed {
            return Err(Error::SliceLength { argument, got, needed });
        }
    }
    let mut output = crate::cpu::zeroed("output", needed)?;
    let log_sum_exp = log_sum_exps[0].iter().zip(log_sum_exps[1]).map(|(a, b)| weigh([*a, *b]).1).collect();
    output.par_chunks_mut(value_head_dim.max(1)).enumerate().for_each(|(row, output): (usize, &mut [T])| {
        let weights = weigh(log_sum_exps.map(|log_sum_exps| log_sum_exps[row])).0;
        for (channel, element) in output.iter_mut().enumerate() {
            // what has no weight may be anything
            let part = |part: usize| match weights[part] {
                0.0 => 0.0,
                weight => weight * outputs[part][row * value_head_dim + channel].to_f32(),
            };
            *element = T::from_f32(part(0) + part(1));
        }
    });
    Ok(AttentionOutput { output, log_sum_exp: Some(log_sum_exp) })
}

/// The parts' weights, and the log-sum-exp of both.
fn weigh([a, b]: [f32; 2]) -> ([f32; 2], f32) {
    let largest = if a > b || a.is_nan() { a } else { b };
    if largest == f32::NEG_INFINITY {
        return ([0.0; 2], largest);
    }
    let weights = [a, b].map(|log_sum_exp| (log_sum_exp - largest).exp());
    let sum = weights[0] + weights[1];
    (weights.map(|weight| weight / sum), largest + sum.ln())
}

/// Merging in a GPU's memory: two outputs of a problem, each attention of the same queries to some of the keys, and their
/// log-sum-exps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MergePlan {
    problem: AttentionProblem,
    padded_head_dim: u32,
    rows: u32,
}

/// Device addresses of a merge. The outputs have the problem's output shape and strides, and are multiples of 16 bytes; log-sum-exps
/// (natural logarithms) are f32, contiguous, in the order of the outputs' rows ([`GpuBuffers`](crate::GpuBuffers)), and multiples of 4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MergeBuffers {
    /// The parts' outputs. Rows whose log-sum-exp is −∞ do not count.
    pub outputs: [u64; 2],
    /// Their log-sum-exps.
    pub log_sum_exps: [u64; 2],
    /// The result, in memory of its own.
    pub output: u64,
    /// Its log-sum-exp, if it is wanted, in memory of its own.
    pub log_sum_exp: Option<u64>,
}

/// A [`MergePlan`] whose kernel is loaded on a GPU. A merge is one launch.
#[derive(Clone, Copy, Debug)]
pub struct PreparedMerge {
    plan: MergePlan,
    gpu: &'static Gpu,
    merge: Function,
}

impl MergePlan {
    /// Merging of a problem's outputs.
    ///
    /// # Errors
    ///
    /// What [`supports`] says of the problem; [`Unsupported::TooLarge`] for 2³⁰ rows and more.
    pub fn new(problem: AttentionProblem) -> Result<Self, Unsupported> {
        supports(&problem, &AttentionOptions::default())?;
        let [batch, heads, tokens, head_dim] = problem.output_shape();
        let rows = (batch as u64 * heads as u64).saturating_mul(tokens as u64);
        at_most("batch * query_heads * query_len", rows, MAX_SIZE)?;
        let padded_head_dim = tile::padded_head_dim(head_dim as u32).expect("supported");
        Ok(Self { problem, padded_head_dim, rows: rows as u32 })
    }

    /// Loads the kernel on a GPU, if it is not there yet. It runs on GPUs of compute capability 8.0 and up.
    ///
    /// # Errors
    ///
    /// As [`CachePlan::prepare`](crate::CachePlan::prepare).
    pub fn prepare(&self, gpu: &'static Gpu) -> Result<PreparedMerge, Error> {
        load_cache_kernels(gpu, gpu.named_architecture()?, |architecture| {
            Ok(PreparedMerge { plan: *self, gpu, merge: gpu.function(architecture, self.kernel())? })
        })
    }

    pub(crate) fn kernel(&self) -> Kernel {
        let element = ElementType::from(self.problem.dtype).rounded();
        Kernel::find(Family::Merge, self.padded_head_dim, element).expect("a row of the kernel table")
    }

    /// What is launched.
    pub(crate) fn launch(&self, buffers: &MergeBuffers) -> Launch {
        let MergeBuffers { outputs, log_sum_exps, output, log_sum_exp } = *buffers;
        let tensor = |address| view(address, self.problem.output_shape(), self.problem.output_strides);
        // the parts are two places of any distance
        let distance = |[first, second]: [u64; 2]| second.wrapping_sub(first) as i64;
        let is_f32 = (self.problem.dtype == DType::F32).into();
        kernels::merge(MergeParams {
            parts: tensor(outputs[0]),
            part_stride: distance(outputs),
            log_sum_exps: log_sum_exps[0],
            log_sum_exp_stride: distance(log_sum_exps),
            output: tensor(output),
            log_sum_exp: log_sum_exp.unwrap_or(0),
            sinks: 0,
            count: 2,
            parts_are_f32: is_f32,
            output_is_f32: is_f32,
            rows: self.rows,
        })
    }
}

impl PreparedMerge {
    /// Enqueues a merge on a stream and returns. Nothing is allocated and nothing is waited for, so that it can be captured into a CUDA
    /// graph.
    ///
    /// # Errors
    ///
    /// Addresses that are null or not aligned; [`Error::WrongGpu`], if there are several, for memory of another than this one's;
    /// [`Error::Driver`] if the launch is refused, which also reports failures of earlier work.
    ///
    /// # Safety
    ///
    /// `stream` is one of this GPU's primary context; until its work is done each address leads to as much memory as
    /// [`MergeBuffers`] says, nobody else writes to the parts or accesses the result, which overlaps nothing.
    pub unsafe fn enqueue(&self, stream: *mut c_void, buffers: &MergeBuffers) -> Result<(), Error> {
        let MergePlan { problem, rows, .. } = self.plan;
        let tensors =
            [("outputs[0]", buffers.outputs[0]), ("outputs[1]", buffers.outputs[1]), ("output", buffers.output)];
        for (argument, address) in tensors {
            check_tensor(argument, address, problem.dtype, problem.output_shape(), problem.output_strides)?;
        }
        let [first, second] = buffers.log_sum_exps;
        let log_sum_exps =
            [("log_sum_exps[0]", Some(first)), ("log_sum_exps[1]", Some(second)), ("log_sum_exp", buffers.log_sum_exp)];
        let log_sum_exps = log_sum_exps.into_iter().filter_map(|(argument, address)| Some((argument, address?)));
        for (argument, address) in log_sum_exps.clone() {
            check_address(argument, address, rows as u64 * 4, 4)?;
        }
        let _current = self.gpu.enter()?;
        for (argument, address) in tensors.into_iter().chain(log_sum_exps) {
            self.gpu.check(argument, address)?;
        }
        let (_, grid, params) = self.plan.launch(buffers);
        // SAFETY: the addresses are as large as the plan says, by the caller's promise and the checks.
        unsafe { launch_kernel(self.merge, stream, grid, &params) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn a_part_without_keys_does_not_count() {
        let part = [f16::from_f32(2.0), f16::from_f32(3.0)];
        let nothing = [f16::NAN; 2];
        for (outputs, log_sum_exps) in
            [([&part, &nothing], [1.5, f32::NEG_INFINITY]), ([&nothing, &part], [f32::NEG_INFINITY, 1.5])]
        {
            let merged = merge(outputs.map(|output| &output[..]), [&log_sum_exps[..1], &log_sum_exps[1..]], 2).unwrap();
            assert_eq!((merged.output, merged.log_sum_exp), (part.to_vec(), Some(vec![1.5])));
        }
        let merged = merge([&nothing, &nothing], [&[f32::NEG_INFINITY], &[f32::NEG_INFINITY]], 2).unwrap();
        assert_eq!((merged.output, merged.log_sum_exp), (vec![f16::ZERO; 2], Some(vec![f32::NEG_INFINITY])));
        let merged = merge([&nothing, &part], [&[f32::NAN], &[1.0]], 2).unwrap();
        assert!(merged.output.iter().all(|element| element.is_nan()));
    }

    #[test]
    fn sizes_must_agree() {
        let part = [f16::ONE; 4];
        let sizes = merge([&part, &part[..2]], [&[0.0; 2], &[0.0; 2]], 2).unwrap_err();
        assert_eq!(sizes, Error::SliceLength { argument: "outputs[1]", got: 2, needed: 4 });
        assert!(merge([&part, &part], [&[0.0; 2], &[0.0; 1]], 2).is_err());
        assert!(merge::<f16>([&[], &[]], [&[], &[]], 0).unwrap().output.is_empty());
    }
}
