const ALL_LANES: u32 = u32::MAX;

unsafe extern "C" {
    #[link_name = "llvm.nvvm.bar.warp.sync"]
    safe fn bar_warp_sync(mask: u32);
    #[link_name = "llvm.nvvm.vote.any.sync"]
    safe fn vote_any_sync(mask: u32, predicate: bool) -> bool;
    #[link_name = "llvm.nvvm.shfl.sync.bfly.f32"]
    safe fn shfl_sync_bfly(mask: u32, value: f32, lane_mask: u32, clamp: u32) -> f32;
    #[link_name = "llvm.nvvm.shfl.sync.idx.i32"]
    safe fn shfl_sync_idx(mask: u32, value: u32, lane: u32, clamp: u32) -> u32;
}

#[inline(always)]
pub fn sync_warp() {
    bar_warp_sync(ALL_LANES)
}

#[inline(always)]
pub fn any(predicate: bool) -> bool {
    vote_any_sync(ALL_LANES, predicate)
}

#[inline(always)]
pub fn shuffle_xor(value: f32, mask: u32) -> f32 {
    shfl_sync_bfly(ALL_LANES, value, mask, 31)
}

#[inline(always)]
pub fn shuffle(value: u32, lane: u32) -> u32 {
    shfl_sync_idx(ALL_LANES, value, lane, 31)
}

#[inline(always)]
pub fn broadcast(value: u32) -> u32 {
    shfl_sync_idx(ALL_LANES, value, 0, 31)
}
