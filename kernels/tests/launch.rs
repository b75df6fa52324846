//! Bad launches in the SIMT executor are refused, or found at their first bad access.

use sage_kernels::entry::launch;
use sage_layout::kernel::Kernel;
use sage_layout::params::KeyMeanParams;
use simt::host::{Kind, Memory, Options, Schedule};

fn kind(kernel: Kernel, grid: [u32; 3], params: KeyMeanParams, memory: &Memory) -> Option<Kind> {
    let result = launch(kernel, grid, &params.into(), memory, &Options::new(Schedule::InOrder));
    result.err().map(|report| report.kind)
}

#[test]
fn parameters_must_be_the_kernels() {
    let mut memory = Memory::new();
    let sum = memory.upload("sum", &[0; 64 * 4]);
    let mean = memory.allocate("mean", 64 * 4);
    let params = KeyMeanParams { sum, mean, tokens: 10, reserved: 0 };
    assert_eq!(kind(Kernel::KeyMeanD64, [1, 1, 1], params, &memory), None);
    assert_eq!(memory.read(mean, 64 * 4), [0; 64 * 4]);
    assert!(memory.not_written_once(mean, 64 * 4).is_empty());

    assert_eq!(kind(Kernel::QuantizeKeyD64F16, [1, 1, 1], params, &memory), Some(Kind::Launch));
    assert_eq!(kind(Kernel::KeyMeanD64, [0, 1, 1], params, &memory), Some(Kind::Launch));
    assert_eq!(kind(Kernel::KeyMeanD64, [2, 1, 1], params, &memory), Some(Kind::OutOfBounds));
    assert_eq!(kind(Kernel::KeyMeanD128, [1, 1, 1], params, &memory), Some(Kind::OutOfBounds));
    assert_eq!(
        kind(Kernel::KeyMeanD64, [1, 1, 1], KeyMeanParams { sum: 0, ..params }, &memory),
        Some(Kind::OutOfBounds)
    );
    let unaligned = KeyMeanParams { sum: sum + 2, ..params };
    assert_eq!(kind(Kernel::KeyMeanD64, [1, 1, 1], unaligned, &memory), Some(Kind::Unaligned));
    let unwritten = KeyMeanParams { sum: memory.allocate("unwritten", 64 * 4), ..params };
    assert_eq!(kind(Kernel::KeyMeanD64, [1, 1, 1], unwritten, &memory), Some(Kind::Uninitialized));
}
