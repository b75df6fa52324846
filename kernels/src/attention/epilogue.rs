//! The end of a row: what its sums are divided by, and the output's way to memory, 16 rows of a warp, through its shared memory, in
//! whole rows.

use sage_layout::kernel::AttentionShared;
use sage_layout::params::AttentionParams;
use sage_layout::tile::{WARP_ROWS, WARPGROUP_ROWS};
use simt::{global, math, shared, warp};

use super::schedule::WorkItem;
use super::softmax::OnlineSoftmax;
use crate::element::Element;
use crate::sequences::Sequences;

/// Writes some channels of a warp's output, all or a multiple of 8: `values(element)` is accumulator register `element` of these.
///
/// # Safety
///
/// `buffer` is the warp's own shared memory of `16 · (2 · channels + 16)` bytes that nobody reads any more; the output
/// is writable.
#[inline(always)]
pub unsafe fn store_rows<E: Element, S: Sequences, const HEAD_DIM: u32>(
    params: &AttentionParams,
    [first, end]: [u32; 2],
    item: WorkItem<S>,
    first_row: u32,
    lane: u32,
    buffer: u32,
    values: impl Fn(usize) -> f32,
) {
    if params.output_is_f32 != 0 {
        // opaque, or what follows from it is kept in registers from one item to the next
        let lane = math::opaque(lane) % warp::LANES;
        // SAFETY: forwarded contract.
        unsafe { store_f32(params, [first, end], item, first_row, lane, values) };
        return;
    }
    let channels = end - first;
    let output = &params.output;
    let stride = 2 * channels + AttentionShared::OUTPUT_PADDING;
    let place = buffer + lane / 4 * stride + 4 * (lane % 4);
    for group in 0..channels / 8 {
        let element = 4 * group as usize;
        // SAFETY: the places are this lane's own, within the buffer.
        unsafe {
            let at = place + 16 * group;
            shared::store_u32(at, E::pack([values(element), values(element + 1)]));
            shared::store_u32(at + 8 * stride, E::pack([values(element + 2), values(element + 3)]));
        }
    }
    warp::sync_warp();

    let start = item.sequence.query_offset(output, item.head);
    let tokens = item.sequence.queries(output.tokens);
    let row_address =
        |row: u32| output.address.wrapping_add_signed(2 * (start + (first_row + row) as i64 * output.strides.token));
    let in_output = |row: u32| first_row + row < tokens;
    if output.vectorized != 0 {
        let chunks = channels / 8;
        let mut piece = lane;
        while piece < WARP_ROWS * chunks {
            let (row, chunk) = (piece / chunks, piece % chunks);
            if in_output(row) && first + chunk * 8 < output.head_dim {
                // SAFETY: the rows were written before the warp's barrier; the chunk is inside the output, aligned.
                unsafe {
                    let bytes = shared::load_u32x4(buffer + row * stride + 16 * chunk);
                    global::store_u32x4(row_address(row) + (2 * first + 16 * chunk) as u64, bytes);
                }
            }
            piece += warp::LANES;
        }
    } else {
        // the kernel's head dimension is at least the output's
        let existing = if end == HEAD_DIM { output.head_dim } else { end.min(output.head_dim) }.saturating_sub(first);
        // opaque, so that it is not unrolled: it is rare, and would be a third of the kernel's code
        let (mut row, rows) = (0, math::opaque(WARP_ROWS));
        while row < rows && in_output(row) {
            let mut channel = lane;
            while channel < existing {
                // SAFETY: as above; the element is inside the output.
                unsafe {
                    let bits = shared::load_u16(buffer + row * stride + 2 * channel);
                    global::store_u16(row_address(row) + 2 * (first + channel) as u64, bits);
                }
                channel += warp::LANES;
            }
            row += 1;
        }
    }
    warp::sync_warp();
}

/// The same in f32, without shared memory: four lanes have 32 bytes of a row, as many as memory takes at a time.
///
/// # Safety
///
/// The output is writable.
#[inline(always)]
unsafe fn store_f32<S: Sequences>(
    params: &AttentionParams,
    [first, end]: [u32; 2],
    item: WorkItem<S>,
    first_row: u32,
    lane: u32,
    values: impl Fn(usize) -> f32,
) {
    let groups = (end - first) / 8;
    let output = &params.output;
    let start = item.sequence.query_offset(output, item.head);
    let tokens = item.sequence.queries(output.tokens);
    let first = first + 2 * (lane % 4);
    for half in 0..2 {
        let row = first_row + lane / 4 + 8 * half;
        let place = start + row as i64 * output.strides.token + first as i64;
        let address = output.address.wrapping_add_signed(4 * place);
        // opaque, or the sums of the output's address and each channel's are kept in registers from one item to the next
        let [low, high] = [address as u32, (address >> 32) as u32].map(math::opaque);
        let address = (high as u64) << 32 | low as u64;
        let end = if row < tokens { output.head_dim } else { 0 };
        for group in 0..groups {
            for part in 0..2 {
                let channel = 8 * group + part;
                if first + channel < end {
                    let value = values((4 * group + 2 * half + part) as usize);
                    // SAFETY: the element is inside the output.
                    unsafe { global::store_f32(address + 4 * channel as u64, value) };
                }
            }
        }
    }
}

/// How a lane's two rows end: what their sums are divided by, and their log-sum-exps.
///
/// What this takes of memory is loaded by [`new`](Self::new), before it is needed.
pub struct RowEnds {
    /// Index of the lane's first row over all heads; the other is 8 further on.
    first: u64,
    /// Whether this lane writes a row's log-sum-exp.
    stores: [bool; 2],
    /// What smoothed keys took out of the rows' logits.
    shift: [f32; 2],
    /// The head's sink; −∞ for none.
    sink: f32,
}

impl RowEnds {
    /// For the lane of a warp whose first row is `first_row`.
    ///
    /// # Safety
    ///
    /// The parameters' buffers are there.
    #[inline(always)]
    pub unsafe fn new<S: Sequences>(params: &AttentionParams, item: WorkItem<S>, first_row: u32, lane: u32) -> Self {
        let WorkItem { head, sequence, .. } = item;
        let tokens = sequence.queries(params.output.tokens);
        let row = first_row + lane / 4;
        let exists = [row < tokens, row + 8 < tokens];
        let stores = exists.map(|exists| exists && params.log_sum_exp != 0 && lane.is_multiple_of(4));
        let first_tile = sequence.first_query_tile(head as u64, S::query_places(params));
        let shifts = params.log_sum_exp_shift + 4 * (first_tile * WARPGROUP_ROWS as u64 + row as u64);
        let mut shift = [0.0; 2];
        for index in 0..2 {
            if exists[index] && params.log_sum_exp_shift != 0 {
                // SAFETY: the row is one of the head's.
                shift[index] = unsafe { global::load_written_f32(shifts + 32 * index as u64) };
            }
        }
        let mut sink = f32::NEG_INFINITY;
        if params.sinks != 0 {
            let (_, head) = math::div_rem(head, params.output.heads);
            // SAFETY: there is a sink for each head.
            sink = unsafe { global::load_f32(params.sinks + 4 * head as u64) };
        }
        Self { first: sequence.log_sum_exp_offset(params, head) + row as u64, stores, shift, sink }
    }

    /// What the rows' sums are divided by, from the sums of their probabilities.
    #[inline(always)]
    pub fn denominators(&self, softmax: &OnlineSoftmax, row_sum: [f32; 2]) -> [f32; 2] {
        [0, 1].map(|row| softmax.denominator(row, row_sum[row], self.sink - self.shift[row]))
    }

    /// Writes the log-sum-exps, if they are wanted.
    ///
    /// # Safety
    ///
    /// As for [`new`](Self::new).
    #[inline(always)]
    pub unsafe fn store(&self, params: &AttentionParams, softmax: &OnlineSoftmax, denominators: [f32; 2]) {
        for row in 0..2 {
            if self.stores[row] {
                let at = params.log_sum_exp + 4 * (self.first + 8 * row as u64);
                let no_keys_count = denominators[row] == 0.0 || denominators[row] == f32::INFINITY;
                let of_keys = softmax.log_sum_exp(row, denominators[row]) + self.shift[row];
                // SAFETY: the row is one of the head's.
                unsafe { global::store_f32(at, if no_keys_count { self.sink } else { of_keys }) };
            }
        }
    }
}

/// Factors that divide by denominators; 0 for a row that nothing counts for.
#[inline(always)]
pub fn inverse(denominators: [f32; 2]) -> [f32; 2] {
    denominators.map(|sum| if sum == 0.0 { 0.0 } else { math::reciprocal(sum) })
}
