//! Bad launches in the SIMT executor are refused, or found at their first bad access.

use sage_kernels::entry::launch;
use sage_layout::kernel::Kernel;
use sage_layout::params::{QuantizeParams, RotaryParams, SequencesParams, Strides, TensorView};
use sage_layout::schedule::{ItemsPerHead, Order, QUERY_TILES, counter};
use simt::host::{Kind, Memory, Options, Schedule};

const CHANNELS: u32 = 64;
const TOKENS: u32 = 10;

fn kind(kernel: Kernel, grid: [u32; 3], params: QuantizeParams, memory: &Memory) -> Option<Kind> {
    let (counters, bytes) = (params.counters, 4 * counter::count(1, 1));
    memory.fill(counters, 0, bytes as usize);
    let result = launch(kernel, grid, &params.into(), memory, &Options::new(Schedule::InOrder));
    result.err().map(|report| report.kind)
}

/// One head with a tile each of queries, keys and values, all zeros.
fn params(memory: &mut Memory) -> QuantizeParams {
    let strides = Strides { batch: 0, head: 0, token: CHANNELS as i64 };
    let mut tensor = |name| TensorView {
        address: memory.upload(name, &[0; (2 * TOKENS * CHANNELS) as usize]),
        strides,
        heads: 1,
        tokens: TOKENS,
        head_dim: CHANNELS,
        vectorized: 1,
    };
    let (query, key, value) = (tensor("query"), tensor("key"), tensor("value"));
    let mut allocate = |name, bytes| memory.allocate(name, bytes);
    let per_head =
        ItemsPerHead { key_statistics: 1, value_statistics: 1, query: 3u32.div_ceil(QUERY_TILES), key: 1, value: 1 };
    QuantizeParams {
        query,
        key,
        value,
        query_rotary: RotaryParams::default(),
        key_rotary: RotaryParams::default(),
        query_codes: allocate("query_codes", 192 * 64),
        query_scales: allocate("query_scales", 96 * 4),
        query_mean: 0,
        key_codes: allocate("key_codes", 128 * 64),
        key_scales: allocate("key_scales", 4 * 4),
        key_mean: allocate("key_mean", 64 * 4),
        value_tiles: allocate("value_tiles", 128 * 64),
        value_scale: allocate("value_scale", 64 * 4),
        value_inverse_scale: allocate("value_inverse_scale", 64 * 4),
        value_mean: allocate("value_mean", 64 * 4),
        value_mean_codes: allocate("value_mean_codes", 64 * 4),
        log_sum_exp_shift: allocate("log_sum_exp_shift", 192 * 4),
        counters: allocate("counters", 4 * counter::count(1, 1) as usize),
        order: Order::new(1, per_head, 0),
        heads_per_key_head: 1,
        granularity: 3,
        softmax_scale: 1.0,
        score_scale: 1.0,
        largest_code: 127.0,
        code_row_bytes: 64,
        value_max: 448.0,
        smooth_v: 0,
        query_tiles: 3,
        key_tiles: 1,
        segments: 1,
        sequences: SequencesParams::default(),
        quantized_items: 0,
        multiprocessors: 0,
        padding: 0,
    }
}

#[test]
fn parameters_must_be_the_kernels() {
    let mut memory = Memory::new();
    let params = params(&mut memory);
    let kernel = Kernel::QuantizeD64F16;
    assert_eq!(kind(kernel, [2, 1, 1], params, &memory), None);
    assert_eq!(memory.read(params.key_mean, 64 * 4), [0; 64 * 4]);
    assert!(memory.not_written_once(params.key_mean, 64 * 4).is_empty());
    assert!(memory.not_written_once(params.query_codes, 192 * 64).is_empty());

    assert_eq!(kind(Kernel::AttentionD64F16, [1, 1, 1], params, &memory), Some(Kind::Launch));
    assert_eq!(kind(kernel, [0, 1, 1], params, &memory), Some(Kind::Launch));
    assert_eq!(kind(Kernel::QuantizeD128F16, [1, 1, 1], params, &memory), Some(Kind::OutOfBounds));
    assert_eq!(kind(kernel, [1, 1, 1], QuantizeParams { key_mean: 8, ..params }, &memory), Some(Kind::OutOfBounds));
    let unaligned = QuantizeParams { key_mean: params.key_mean + 2, ..params };
    assert_eq!(kind(kernel, [1, 1, 1], unaligned, &memory), Some(Kind::Unaligned));
    let unwritten = memory.allocate("unwritten", (2 * TOKENS * CHANNELS) as usize);
    let unwritten = QuantizeParams { query: TensorView { address: unwritten, ..params.query }, ..params };
    assert_eq!(kind(kernel, [1, 1, 1], unwritten, &memory), Some(Kind::Uninitialized));
}

/// Items that wait for a head's statistics wait for ever if nobody takes them.
#[test]
fn statistics_that_nobody_takes() {
    let mut memory = Memory::new();
    let params = params(&mut memory);
    let per_head = ItemsPerHead { key_statistics: 0, ..params.order.per_head };
    let without = QuantizeParams { order: Order::new(1, per_head, 0), ..params };
    assert_eq!(kind(Kernel::QuantizeD64F16, [3, 1, 1], without, &memory), Some(Kind::Deadlock));
}
