//! Streams, repetition and CUDA graphs.

use crate::{DTYPES, LAYOUTS, mixed_options, modes, with_lse};
use cust::sys::{CUgraph, CUgraphExec, CUstreamCaptureMode};
use half::f16;
use sage_tests::gpu::NAN_POISON;
use sage_tests::gpu::{Call, attend, gpu};
use sage_tests::tensor::Inputs;
use sage_tests::varlen::Batch;
use sageattention::gpu::raw;
use sageattention::{AttentionOptions, AttentionProblem, Error, Gpu, Mask, PvMode};

fn problem() -> AttentionProblem {
    AttentionProblem::cross(LAYOUTS[0], DTYPES[0], [2, 8, 700, 128], [4, 1100])
}

#[test]
fn twenty_repeats_are_bit_equal() -> Result<(), Error> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for (index, length) in [1500, 700].into_iter().enumerate() {
        let problem = AttentionProblem::new(LAYOUTS[0], DTYPES[0], [2, 16, length, [64, 128][index]]);
        let inputs = Inputs::<f16>::random(&problem, 9);
        for pv_mode in PvMode::ALL {
            let options = AttentionOptions { pv_mode, ..mixed_options(3) };
            let first = attend(gpu, &problem, &options, &inputs);
            let mut call = Call::new(gpu, &problem, &options, &inputs)?;
            for _ in 0..20 {
                call.enqueue()?;
                assert!(call.outputs()? == first);
            }
        }
    }
    Ok(())
}

/// Calls that are long enough for attention to begin before everything is quantized: with inputs that change, so that it would show if
/// attention read what the call before had left; and as a graph.
#[test]
fn attention_that_begins_early_waits_for_its_operands() -> Result<(), Error> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for (index, options) in
        modes().into_iter().flat_map(|mode| [mode, AttentionOptions { mask: Mask::Causal, ..mode }]).enumerate()
    {
        let [heads, head_dim] = [[16, 128], [32, 64]][index % 2];
        let problem = AttentionProblem::new(LAYOUTS[0], DTYPES[0], [8, heads, 1024, head_dim]);
        let inputs = [14, 15].map(|seed| Inputs::<f16>::random(&problem, seed));
        let mut call = Call::new(gpu, &problem, &options, &inputs[0])?;
        let mut expected = Vec::new();
        for inputs in &inputs {
            call.set_inputs(inputs)?;
            call.enqueue_in_steps()?;
            expected.push(call.outputs()?);
        }
        for turn in 0..6 {
            call.set_inputs(&inputs[turn % 2])?;
            call.enqueue()?;
            assert!(call.outputs()? == expected[turn % 2], "turn {turn}, {options:?}");
        }
        let graph = Graph::capture(gpu, &mut call)?;
        for _ in 0..2 {
            graph.launch(gpu, &mut call)?;
        }
        assert!(call.outputs()? == expected[1], "as a graph, {options:?}");
    }
    Ok(())
}

/// The attention kernel leaves its counter of claimed items as it found it. Three items a multiprocessor, so that most
/// are claimed; and too few for that.
#[test]
fn attention_alone_repeats() -> Result<(), Error> {
    let Some(gpu) = gpu() else { return Ok(()) };
    for heads in [gpu.multiprocessors() as usize, 1] {
        for (mask, mode) in [Mask::None, Mask::Causal].into_iter().flat_map(|mask| modes().map(|mode| (mask, mode))) {
            let problem = AttentionProblem::new(LAYOUTS[0], DTYPES[0], [1, heads, 500, 64]);
            let options = AttentionOptions { mask, ..mode };
            let mut call = Call::new(gpu, &problem, &options, &Inputs::<f16>::random(&problem, 13))?;
            call.enqueue()?;
            let first = call.outputs()?;
            for _ in 0..2 {
                assert_eq!(call.workspace("counters")?[..4], [0; 4]);
                call.enqueue_attention()?;
                assert!(call.outputs()? == first, "{heads} heads, {options:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn two_streams_at_once() -> Result<(), Error> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let problem = problem();
    let options = [with_lse(), AttentionOptions { smooth_k: false, pv_mode: PvMode::F16, ..with_lse() }];
    let inputs = [10, 11].map(|seed| Inputs::<f16>::random(&problem, seed));
    let alone = [0, 1].map(|index| attend(gpu, &problem, &options[index], &inputs[index]));
    let mut first = Call::new(gpu, &problem, &options[0], &inputs[0])?;
    let mut second = Call::new(gpu, &problem, &options[1], &inputs[1])?;
    for _ in 0..50 {
        first.enqueue()?;
        second.enqueue()?;
    }
    assert!(first.outputs()? == alone[0]);
    assert!(second.outputs()? == alone[1]);
    Ok(())
}

/// Plans on many threads: contexts are per thread, kernels are loaded once.
#[test]
fn many_threads() {
    let Some(gpu) = gpu() else { return };
    let problem = problem();
    let inputs = Inputs::<f16>::random(&problem, 12);
    let expected = attend(gpu, &problem, &with_lse(), &inputs);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5 {
                    assert!(attend(gpu, &problem, &with_lse(), &inputs) == expected);
                }
            });
        }
    });
}

/// What a call enqueues, as a CUDA graph.
struct Graph(CUgraphExec);

impl Graph {
    fn capture(gpu: &'static Gpu, call: &mut Call<f16>) -> Result<Self, Error> {
        let _current = gpu.enter()?;
        let stream = call.stream.raw().cast();
        // Thread-local: other tests may allocate meanwhile.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let (mut graph, mut executable): (CUgraph, CUgraphExec) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the stream is alive, and what is captured uses the call's buffers, which outlive the graph.
        unsafe {
            success(raw::cuStreamBeginCapture_v2(stream, mode));
            let enqueued = call.enqueue();
            success(raw::cuStreamEndCapture(stream, &mut graph));
            enqueued?;
            success(raw::cuGraphInstantiateWithFlags(&mut executable, graph, 0));
            success(raw::cuGraphDestroy(graph));
        }
        Ok(Self(executable))
    }

    fn launch(&self, gpu: &'static Gpu, call: &mut Call<f16>) -> Result<(), Error> {
        let _current = gpu.enter()?;
        // SAFETY: graph and stream are alive.
        unsafe { success(raw::cuGraphLaunch(self.0, call.stream.raw().cast())) };
        Ok(())
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: the graph is alive.
        let _ = unsafe { raw::cuGraphExecDestroy(self.0) };
    }
}

#[track_caller]
fn success(code: u32) {
    assert_eq!(code, 0);
}

#[test]
fn a_graph_replays_with_new_values() -> Result<(), Error> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let causal = AttentionOptions { mask: Mask::Causal, smooth_k: false, ..Default::default() };
    for options in modes().into_iter().chain([causal]) {
        let problem = AttentionProblem::new(LAYOUTS[1], DTYPES[0], [1, 8, 900, 64]);
        let mut call = Call::new(gpu, &problem, &options, &Inputs::<f16>::random(&problem, 20))?;
        let graph = Graph::capture(gpu, &mut call)?;
        for seed in [20, 21, 22] {
            let inputs = Inputs::random(&problem, seed);
            call.set_inputs(&inputs)?;
            graph.launch(gpu, &mut call)?;
            assert!(call.outputs()? == attend(gpu, &problem, &options, &inputs), "seed {seed}");
        }
    }
    Ok(())
}

/// The host never looks at lengths: a graph of packed sequences takes others, for as many tokens.
#[test]
fn a_graph_replays_with_new_lengths() -> Result<(), Error> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let batches = [
        [[300, 200], [0, 0], [600, 1300], [100, 500]],
        [[1, 1], [999, 1], [0, 1998], [0, 0]],
        [[250, 500], [250, 500], [250, 500], [250, 500]],
    ];
    for options in modes() {
        let first = Batch::packed(DTYPES[0], &batches[0], [4, 2, 128]);
        let inputs = Inputs::<f16>::random(&first.problem, 30);
        let call = |batch: &Batch| {
            Call::with_lengths(gpu, None, &batch.problem, &options, batch.slices(), &inputs, NAN_POISON)
        };
        let mut replayed = call(&first)?;
        let graph = Graph::capture(gpu, &mut replayed)?;
        for sequences in batches {
            let batch = Batch::packed(DTYPES[0], &sequences, [4, 2, 128]);
            replayed.set_lengths(batch.slices())?;
            graph.launch(gpu, &mut replayed)?;
            let mut anew = call(&batch)?;
            anew.enqueue()?;
            assert!(replayed.outputs()? == anew.outputs()?, "{batch:?}");
        }
    }
    Ok(())
}
