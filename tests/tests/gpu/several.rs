//! Several GPUs of one machine. Where there is one alone, these tests say that they are skipped.

use crate::{DTYPES, LAYOUTS, mixed_options, modes, with_lse};
use half::f16;
use sage_tests::gpu::{Call, attend, gpu, other_gpu};
use sage_tests::tensor::Inputs;
use sageattention::{AttentionProblem, Error, GpuBuffers};

fn problem() -> AttentionProblem {
    AttentionProblem::cross(LAYOUTS[0], DTYPES[0], [2, 8, 700, 128], [4, 1100])
}

#[test]
fn the_same_bits_on_each() -> Result<(), Error> {
    let (Some(first), Some(second)) = (gpu(), other_gpu()) else { return Ok(()) };
    let problem = AttentionProblem::new(LAYOUTS[0], DTYPES[0], [2, 8, 900, 128]);
    for index in 0..6 {
        let options = mixed_options(index);
        let inputs = Inputs::<f16>::random(&problem, index as u64);
        let expected = attend(first, &problem, &options, &inputs);
        assert!(attend(second, &problem, &options, &inputs) == expected, "{options:?}");
    }
    Ok(())
}

/// Streams of one thread on both, and a thread for each.
#[test]
fn both_at_once() -> Result<(), Error> {
    let (Some(first), Some(second)) = (gpu(), other_gpu()) else { return Ok(()) };
    let options = modes();
    let inputs = [40, 41].map(|seed| Inputs::<f16>::random(&problem(), seed));
    let alone = [0, 1].map(|index| attend(first, &problem(), &options[index], &inputs[index]));
    let mut calls = Vec::new();
    for (index, gpu) in [first, second].into_iter().enumerate() {
        calls.push(Call::new(gpu, &problem(), &options[index], &inputs[index])?);
    }
    for _ in 0..50 {
        calls.iter_mut().try_for_each(Call::enqueue)?;
    }
    for (call, expected) in calls.iter().zip(&alone) {
        assert!(call.outputs()? == *expected);
    }
    std::thread::scope(|scope| {
        for (index, gpu) in [first, second, first, second].into_iter().enumerate() {
            let (inputs, alone, options) = (&inputs, &alone, &options);
            scope.spawn(move || {
                for _ in 0..5 {
                    assert!(attend(gpu, &problem(), &options[index % 2], &inputs[index % 2]) == alone[index % 2]);
                }
            });
        }
    });
    Ok(())
}

/// Memory of another GPU is an error that names the argument, and nothing is launched.
#[test]
fn memory_of_another() -> Result<(), Error> {
    let (Some(first), Some(second)) = (gpu(), other_gpu()) else { return Ok(()) };
    let inputs = Inputs::<f16>::random(&problem(), 42);
    let mut here = Call::new(first, &problem(), &with_lse(), &inputs)?;
    let other = Call::new(second, &problem(), &with_lse(), &inputs)?;
    let (near, there) = (here.buffers(), other.buffers());
    let wrong = [
        ("query", there.query, GpuBuffers { query: there.query, ..near }),
        ("key", there.key, GpuBuffers { key: there.key, ..near }),
        ("output", there.output, GpuBuffers { output: there.output, ..near }),
        ("workspace", there.workspace, GpuBuffers { workspace: there.workspace, ..near }),
    ];
    for (argument, address, buffers) in wrong {
        let error = Error::WrongGpu { argument, address, got: second.ordinal(), expected: first.ordinal() };
        // SAFETY: both calls' buffers are alive.
        assert_eq!(unsafe { here.enqueue_with(&buffers) }, Err(error));
    }
    here.enqueue()?;
    assert!(here.outputs()? == attend(first, &problem(), &with_lse(), &inputs));
    Ok(())
}
