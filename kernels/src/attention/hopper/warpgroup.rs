//! What a consumer warpgroup does whatever its values are: it takes items, waits for tiles, and multiplies queries by keys.

use sage_layout::kernel::AttentionShared;
use sage_layout::params::AttentionParams;
use sage_layout::scale::{KEY_SCALES_PER_TILE, QUERY_SCALES_PER_WARP};
use sage_layout::swizzle;
use sage_layout::tile::{
    KEY_CHUNK, KEY_TILE, VALUE_ROW_BYTES, WARP_ROWS, WARPGROUP_ROWS, key_tile_bytes, query_tile_bytes, stored_head_dim,
};
use simt::wgmma::{self, Descriptor};
use simt::{barrier, math, shared, thread, warp};

use super::pipeline::{Position, Signal, Signals};
use super::producer::NO_ITEM;
use crate::attention::epilogue;
use crate::attention::mask::{ChunkMask, VisibleKeys};
use crate::attention::modifier::{Modifier, Place, Shown};
use crate::attention::schedule::{KeyTiles, WorkItem};
use crate::attention::softmax::{Scores, Visible};
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
        unsafe {
            self.signals.of(Signal::QueryFull(self.index)).wait(self.query_phase);
            self.query_phase ^= 1;
            if S::RAGGED {
                return self.next_ragged_item();
            }
            // what the loops' bounds follow from is the same in all lanes; of more words than one ptxas does not see it
            let first_query = warp::broadcast(shared::load_u32(self.item()));
            (first_query != NO_ITEM).then(|| self.item_from(first_query))
        }
    }

    #[inline(always)]
    unsafe fn next_ragged_item<S: Sequences>(&mut self) -> Option<WorkItem<S>> {
        // SAFETY: the item was announced. The warp's own place was read by all lanes for the last time before they met.
        unsafe {
            let words = shared::load_u32x4(self.item()).map(warp::broadcast);
            let [first_query, head, key_head, sequence] = words;
            if first_query == NO_ITEM {
                return None;
            }
            if self.lane == 0 {
                shared::store_u32x4(self.own_item(), [first_query, head, sequence, self.query_phase]);
            }
            warp::sync_warp();
            let sequence = S::of_index(&self.params.sequences, sequence).same_in_all_lanes();
            Some(WorkItem { head, key_head, first_query, sequence })
        }
    }

    /// Where the producer announces the warpgroup's items.
    #[inline(always)]
    fn item(&self) -> u32 {
        self.base + self.memory.items + 16 * self.index
    }

    /// The item with equally long sequences whose first query is known.
    #[inline(always)]
    unsafe fn item_from<S: Sequences>(&self, first_query: u32) -> WorkItem<S> {
        // SAFETY: the item was announced, and its queries are not released yet. All sequences are equally long.
        unsafe {
            let [head, key_head] = [4, 8].map(|offset| shared::load_u32(self.item() + offset));
            WorkItem { head, key_head, first_query, sequence: S::of_index(&self.params.sequences, 0) }
        }
    }

    /// Where the warp keeps the item of a ragged batch, and the phase of the next one's queries.
    #[inline(always)]
    fn own_item(&self) -> u32 {
        self.base + self.memory.own_items + 16 * (4 * self.index + self.warp)
    }

    /// The item that [`next_item`](Self::next_item) gave, looked up again, rather than kept in registers.
    ///
    /// # Safety
    ///
    /// See [`next_item`](Self::next_item). Its queries are not released yet.
    #[inline(always)]
    pub unsafe fn again<S: Sequences>(&mut self, item: WorkItem<S>) -> WorkItem<S> {
        // SAFETY: forwarded contract; the warp's own place is its own.
        unsafe {
            if !S::RAGGED {
                let item = self.item_from(item.first_query);
                // all lanes have read it
                warp::sync_warp();
                return item;
            }
            let [first_query, head, sequence, query_phase] = shared::load_u32x4(self.own_item());
            let query_phase = warp::broadcast(query_phase);
            warp::sync_warp();
            self.query_phase = query_phase;
            let key_head = key_head_of(head, self.params.heads_per_key_head);
            WorkItem { head, key_head, first_query, sequence: S::of_index(&self.params.sequences, sequence) }
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
    pub unsafe fn query_scale(&self) -> f32 {
        let scales = self.base + self.memory.query_scales + self.index * AttentionShared::QUERY_SCALES_BYTES;
        // SAFETY: the queries are there.
        unsafe { shared::load_f32(scales + 4 * (self.warp * QUERY_SCALES_PER_WARP + self.lane / 4)) }
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

    /// What is visible of the first 64 keys of its tiles. Where they are seen whole there is nothing to compute.
    #[inline(always)]
    pub fn first_visible<S: Sequences>(&self, item: WorkItem<S>, tiles: KeyTiles) -> Visible {
        let mut mask = ChunkMask::ALL;
        if !tiles.is_whole(tiles.first) {
            let first_row = self.first_row(item);
            mask = VisibleKeys::new(self.params, item.sequence, first_row, self.lane).of_chunk(tiles.first * KEY_TILE);
        }
        Visible::Some(mask)
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
