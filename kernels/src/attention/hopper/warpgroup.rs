//! What a consumer warpgroup does whatever its values are: it takes items, waits for tiles, and multiplies queries by keys.

use sage_layout::kernel::AttentionShared;
use sage_layout::params::AttentionParams;
use sage_layout::scale::{KEY_SCALES_PER_TILE, QUERY_SCALES_PER_TILE, QUERY_SCALES_PER_WARP};
use sage_layout::swizzle;
use sage_layout::tile::{
    KEY_CHUNK, VALUE_ROW_BYTES, WARP_ROWS, WARPGROUP_ROWS, key_tile_bytes, query_tile_bytes, stored_head_dim,
};
use simt::wgmma::{self, Descriptor};
use simt::{barrier, global, math, shared, thread, warp};

use super::pipeline::{Position, Signal, Signals};
use super::producer::NO_ITEM;
use crate::attention::epilogue;
use crate::attention::modifier::{Modifier, Place, Shown};
use crate::attention::schedule::WorkItem;
use crate::attention::softmax::Scores;
use crate::element::Element;
use crate::quantize::query_key::key_head_of;
use crate::sequences::Sequences;

/// Threads of a warpgroup.
const WARPGROUP_THREADS: u32 = 128;
/// Channels of a 32-byte step of the INT8 product.
const STEP_BYTES: u32 = 32;

/// What a consumer warpgroup keeps for the whole kernel.
pub struct Warpgroup<'a, const HEAD_DIM: u32> {
    /// Of the kernel.
    pub params: &'a AttentionParams,
    /// Offsets in shared memory, from `base` on.
    memory: AttentionShared,
    /// Address of shared memory.
    base: u32,
    signals: Signals,
    /// Which consumer warpgroup of the CTA.
    pub index: u32,
    /// Warp of the warpgroup.
    pub warp: u32,
    /// Lane of the warp.
    pub lane: u32,
    /// The next tile's.
    pub position: Position,
    query_phase: u32,
}

impl<'a, const HEAD_DIM: u32> Warpgroup<'a, HEAD_DIM> {
    /// Bytes of a row of queries or keys: those of all stored channels.
    const ROW_BYTES: u32 = stored_head_dim(HEAD_DIM);

    /// At the beginning, for warpgroup `warpgroup`'s threads.
    #[inline(always)]
    pub fn new(
        params: &'a AttentionParams,
        memory: AttentionShared,
        base: u32,
        signals: Signals,
        warpgroup: u32,
    ) -> Self {
        let thread = thread::thread_idx_x() % WARPGROUP_THREADS;
        Self {
            params,
            memory,
            base,
            signals,
            index: warpgroup,
            warp: warp::broadcast(thread / warp::LANES),
            lane: thread % warp::LANES,
            position: Position::new(memory.stages),
            query_phase: 0,
        }
    }

    /// Waits for the next item and its queries.
    ///
    /// # Safety
    ///
    /// For all methods: the barriers are initialised, the operands as the parameters say, and the whole warpgroup calls
    /// them. Here: the last item's queries were released.
    #[inline(always)]
    pub unsafe fn next_item<S: Sequences>(&mut self) -> Option<WorkItem<S>> {
        // SAFETY: the producer writes the item before it signals, and again only after all four warps released their queries,
        // by which time each has its own copy.
        let index = unsafe {
            self.signals.of(Signal::QueryFull(self.index)).wait(self.query_phase);
            self.query_phase ^= 1;
            if S::RAGGED {
                return self.next_ragged_item();
            }
            warp::broadcast(shared::load_u32(self.base + self.memory.items + 4 * self.index))
        };
        // SAFETY: all sequences are equally long.
        let sequence = |_| unsafe { (S::of_index(&self.params.sequences, 0), 0) };
        (index != NO_ITEM).then(|| WorkItem::nth(self.params, index, self.memory.queries(), sequence))
    }

    #[inline(always)]
    unsafe fn next_ragged_item<S: Sequences>(&mut self) -> Option<WorkItem<S>> {
        // SAFETY: the item was announced. The warp's own place was read by all lanes for the last time before they met.
        unsafe {
            let place = self.base + self.memory.ragged_items + 16 * self.index;
            let [head, first_query, sequence, _] = shared::load_u32x4(place).map(warp::broadcast);
            if head == NO_ITEM {
                return None;
            }
            if self.lane == 0 {
                shared::store_u32x4(self.own_item(), [head, first_query, sequence, self.query_phase]);
            }
            warp::sync_warp();
            let item: WorkItem<S> = self.item_of_words(head, first_query, sequence);
            Some(WorkItem { sequence: item.sequence.same_in_all_lanes(), ..item })
        }
    }

    #[inline(always)]
    unsafe fn item_of_words<S: Sequences>(&self, head: u32, first_query: u32, sequence: u32) -> WorkItem<S> {
        let key_head = key_head_of(head, self.params.heads_per_key_head);
        // SAFETY: the sequence is one of the table's.
        let sequence = unsafe { S::of_index(&self.params.sequences, sequence) };
        WorkItem { head, key_head, first_query, sequence }
    }

    /// Where the warp keeps the item of a ragged batch, and the phase of the next one's queries.
    #[inline(always)]
    fn own_item(&self) -> u32 {
        self.base + self.memory.own_items + 16 * (4 * self.index + self.warp)
    }

    /// The item that [`next_item`](Self::next_item) gave: of a ragged batch looked up again, rather than kept in registers.
    ///
    /// # Safety
    ///
    /// See [`next_item`](Self::next_item).
    #[inline(always)]
    pub unsafe fn again<S: Sequences>(&mut self, item: WorkItem<S>) -> WorkItem<S> {
        if !S::RAGGED {
            return item;
        }
        // SAFETY: the place is the warp's own.
        unsafe {
            let [head, first_query, sequence, query_phase] = shared::load_u32x4(self.own_item());
            let query_phase = warp::broadcast(query_phase);
            warp::sync_warp();
            self.query_phase = query_phase;
            self.item_of_words(head, first_query, sequence)
        }
    }

    /// The lane, of a ragged batch unknown to the compiler: what follows from it is computed at an item's end rather than kept
    /// in registers all the time.
    #[inline(always)]
    pub fn lane_at_the_end<S: Sequences>(&self) -> u32 {
        if S::RAGGED { math::opaque(self.lane) % warp::LANES } else { self.lane }
    }

    /// First query of the warp.
    #[inline(always)]
    pub fn first_row<S>(&self, item: WorkItem<S>) -> u32 {
        item.first_query + self.index * WARPGROUP_ROWS + self.warp * WARP_ROWS
    }

    /// Where the lane's scores are.
    #[inline(always)]
    pub fn place<S: Sequences>(&self, item: WorkItem<S>, shown: Shown) -> Place<'a, S> {
        Place { params: self.params, item, first_row: self.first_row(item), lane: self.lane, shown }
    }

    /// What the boolean mask shows of a key tile.
    ///
    /// # Safety
    ///
    /// As for [`Shown::of_tile`].
    #[inline(always)]
    pub unsafe fn shown<M: Modifier, S: Sequences>(&self, item: WorkItem<S>, tile: u32) -> Shown {
        // SAFETY: forwarded contract.
        unsafe { Shown::of_tile::<M, S>(self.params, item, self.memory.queries(), tile) }
    }

    /// Address of the warp's part of shared memory.
    #[inline(always)]
    pub fn region(&self) -> u32 {
        self.base + self.memory.region + (4 * self.index + self.warp) * self.memory.region_stride
    }

    /// The lane's query scale.
    ///
    /// # Safety
    ///
    /// See [`next_item`](Self::next_item).
    #[inline(always)]
    pub unsafe fn query_scale<S: Sequences>(&self, item: WorkItem<S>) -> f32 {
        let first_tile = item.sequence.first_query_tile(item.head as u64, S::query_places(self.params));
        let tile = item.query_tile(self.params, self.memory.queries(), self.index);
        let tile = first_tile + tile as u64;
        let place = tile * QUERY_SCALES_PER_TILE as u64 + (self.warp * QUERY_SCALES_PER_WARP + self.lane / 4) as u64;
        // SAFETY: scales hold a row for each query tile.
        unsafe { global::load_f32(self.params.query_scale + 4 * place) }
    }

    /// The lane's scale of a slot's key tile.
    ///
    /// # Safety
    ///
    /// The slot's tiles are there.
    #[inline(always)]
    pub unsafe fn key_scale(&self, position: Position) -> f32 {
        let scales = self.base + self.memory.key_scales + position.stage * AttentionShared::KEY_SCALES_BYTES;
        // SAFETY: forwarded contract.
        unsafe { shared::load_f32(scales + 4 * (self.lane % KEY_SCALES_PER_TILE)) }
    }

    /// A tile with a query or key a row.
    #[inline(always)]
    fn rows(tile: u32) -> Descriptor {
        Descriptor::with_stride(tile, Self::ROW_BYTES.min(swizzle::LONGEST), swizzle::PERIOD * Self::ROW_BYTES)
    }

    /// 64 keys of a key tile.
    #[inline(always)]
    pub fn key_chunk(&self, position: Position, chunk: u32) -> Descriptor {
        let first = Self::rows(self.base + self.memory.key);
        first.nth(position.stage, key_tile_bytes(Self::ROW_BYTES)).nth(chunk, KEY_CHUNK * Self::ROW_BYTES)
    }

    /// Address of a value tile.
    #[inline(always)]
    pub fn value_tile(&self, position: Position) -> u32 {
        self.base + self.memory.value + position.stage * self.memory.value_stride
    }

    /// 64 keys of a value tile in e4m3. Keys are its columns, one byte each.
    #[inline(always)]
    pub fn value_chunk(&self, position: Position, chunk: u32) -> Descriptor {
        let first = Descriptor::new(self.base + self.memory.value, VALUE_ROW_BYTES);
        first.nth(position.stage, self.memory.value_stride).nth(chunk, KEY_CHUNK)
    }

    /// `scores` = query · keyᵀ for 64 keys.
    ///
    /// # Safety
    ///
    /// The queries and the keys are there; as for [`wgmma::m64n64k32_s32_s8`].
    #[inline(always)]
    pub unsafe fn multiply_query_key(&self, scores: &mut Scores, key: Descriptor) {
        let query = self.base + self.memory.query + self.index * query_tile_bytes(Self::ROW_BYTES);
        let query = Self::rows(query);
        // SAFETY: forwarded contract.
        unsafe {
            wgmma::m64n64k32_s32_s8::<false>(scores, query, key);
            for step in 1..HEAD_DIM / STEP_BYTES {
                let offset = swizzle::offset(0, step * STEP_BYTES, Self::ROW_BYTES);
                let (query, key) = (query.advance(offset), key.advance(offset));
                wgmma::m64n64k32_s32_s8::<true>(scores, query, key);
            }
        }
    }

    /// The same, waited for. Nothing else is in flight.
    ///
    /// # Safety
    ///
    /// As for [`multiply_query_key`](Self::multiply_query_key).
    #[inline(always)]
    pub unsafe fn query_key(&self, scores: &mut Scores, key: Descriptor) {
        // SAFETY: forwarded contract.
        unsafe {
            wgmma::fence();
            self.multiply_query_key(scores, key);
            wgmma::commit();
            wgmma::wait::<0>();
            wgmma::settle(scores);
        }
    }

    /// Waits for the tiles of a slot.
    ///
    /// # Safety
    ///
    /// See [`next_item`](Self::next_item).
    #[inline(always)]
    pub unsafe fn wait_tiles(&self, position: Position) {
        // SAFETY: forwarded contract.
        unsafe { self.signals.of(Signal::TilesFull(position.stage)).wait(position.phase) };
    }

    /// Gives a slot back. Each warp does, once, after its last read.
    ///
    /// # Safety
    ///
    /// See [`next_item`](Self::next_item).
    #[inline(always)]
    pub unsafe fn release_tiles(&self, position: Position) {
        // SAFETY: forwarded contract.
        unsafe { self.release_tiles_if(true, position) }
    }

    /// The same under a condition.
    ///
    /// # Safety
    ///
    /// See [`next_item`](Self::next_item).
    #[inline(always)]
    pub unsafe fn release_tiles_if(&self, condition: bool, position: Position) {
        // SAFETY: forwarded contract.
        unsafe { self.signals.of(Signal::TilesEmpty(position.stage)).arrive_if(condition && self.lane == 0) };
    }

    /// Gives back what the item has before this warpgroup's tiles.
    ///
    /// # Safety
    ///
    /// See [`next_item`](Self::next_item).
    #[inline(always)]
    pub unsafe fn release_tiles_before<M: Modifier, S: Sequences>(&mut self, item: WorkItem<S>) {
        let [before, _] = self.unused_tiles(item);
        // SAFETY: forwarded contract.
        unsafe { self.release_next_tiles::<M, S>(item, before) }
    }

    /// Gives back what the item has after this warpgroup's tiles, and its queries, unless the output goes through their memory.
    ///
    /// # Safety
    ///
    /// See [`next_item`](Self::next_item).
    #[inline(always)]
    pub unsafe fn release_item<M: Modifier, S: Sequences>(&mut self, item: WorkItem<S>) {
        let [_, after] = self.unused_tiles(item);
        // SAFETY: forwarded contract.
        unsafe {
            if !self.memory.reuses_queries() {
                self.release_queries();
            }
            self.release_next_tiles::<M, S>(item, after);
        }
    }

    #[inline(always)]
    unsafe fn release_queries(&self) {
        // SAFETY: forwarded contract.
        unsafe { self.signals.of(Signal::QueryEmpty(self.index)).arrive_if(self.lane == 0) };
    }

    /// Writes the warp's output through its region: `values(element)` is accumulator register `element`.
    ///
    /// # Safety
    ///
    /// See [`next_item`](Self::next_item). The item's tiles were multiplied, and nobody reads the region any more.
    #[inline(always)]
    pub unsafe fn store_output<E: Element, S: Sequences>(
        &self,
        item: WorkItem<S>,
        first_row: u32,
        lane: u32,
        values: impl Fn(usize) -> f32,
    ) {
        let channels = self.memory.output_channels;
        for part in 0..HEAD_DIM / channels {
            let first = part * channels;
            // opaque, or what each part computes of them is kept in registers for the next, or from one item to the next
            let [first_row, lane, region] = match self.memory.reuses_queries() {
                true => [first_row, lane, self.region()].map(math::opaque),
                false => [first_row, lane, self.region()],
            };
            let values = |element| values((first / 2) as usize + element);
            // SAFETY: forwarded contract.
            unsafe {
                let channels = [first, first + channels];
                epilogue::store_rows::<E, S, HEAD_DIM>(self.params, channels, item, first_row, lane, region, values);
            }
        }
    }

    /// Before the output, where it goes through the memory of queries: waits until all warps have multiplied them.
    #[inline(always)]
    pub fn wait_for_region(&self) {
        if self.memory.reuses_queries() {
            // barrier 0 is the block's
            barrier::sync(1 + self.index, WARPGROUP_THREADS);
        }
    }

    /// After the output, where it went through the memory of queries: gives that back.
    ///
    /// # Safety
    ///
    /// See [`next_item`](Self::next_item).
    #[inline(always)]
    pub unsafe fn release_region(&self) {
        if self.memory.reuses_queries() {
            // copies write there next
            barrier::fence_proxy_async();
            warp::sync_warp();
            // SAFETY: forwarded contract.
            unsafe { self.release_queries() };
        }
    }

    /// The item's tiles that come before and after those that this warpgroup needs: the first, and how many.
    #[inline(always)]
    fn unused_tiles<S: Sequences>(&self, item: WorkItem<S>) -> [[u32; 2]; 2] {
        // opaque, or what is computed here is kept in registers from one call to the next
        let item = WorkItem { first_query: math::opaque(item.first_query), ..item };
        let (of_item, tiles) =
            (item.key_tiles(self.params, self.memory.queries()), item.warpgroup_key_tiles(self.params, self.index));
        // a warpgroup without tiles has none before them
        let before = tiles.first.saturating_sub(of_item.first);
        let needed = before + tiles.count();
        [[of_item.first, before], [of_item.first + needed, of_item.count() - needed]]
    }

    #[inline(always)]
    unsafe fn release_next_tiles<M: Modifier, S: Sequences>(&mut self, item: WorkItem<S>, [first, count]: [u32; 2]) {
        for index in 0..count {
            // SAFETY: forwarded contract.
            if M::MODIFIES && unsafe { self.shown::<M, S>(item, first + index).nothing } {
                continue;
            }
            // SAFETY: forwarded contract.
            unsafe {
                self.wait_tiles(self.position);
                // elsewhere the products' waits keep the lanes together
                warp::sync_warp();
                self.release_tiles(self.position);
            }
            self.position.advance();
        }
    }
}
