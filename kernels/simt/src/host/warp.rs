use super::thread::needs_executor;

pub fn sync_warp() {
    needs_executor!("bar.warp.sync")
}

pub fn any(_predicate: bool) -> bool {
    needs_executor!("vote.sync.any")
}

pub fn shuffle_xor(_value: f32, _mask: u32) -> f32 {
    needs_executor!("shfl.sync.bfly")
}

pub fn broadcast(_value: u32) -> u32 {
    needs_executor!("shfl.sync.idx")
}
