use super::thread::needs_executor;

pub fn fence() {
    needs_executor!("wgmma.fence")
}

pub fn commit() {
    needs_executor!("wgmma.commit_group")
}

pub fn wait<const PENDING: u64>() {
    needs_executor!("wgmma.wait_group")
}

pub fn settle_scores(_accumulator: &mut [i32; 32]) {}

pub fn settle_n72(_accumulator: &mut [f32; 36]) {}

pub fn settle_n136(_accumulator: &mut [f32; 68]) {}

pub unsafe fn m64n64k32_s32_s8<const ACCUMULATE: bool>(_scores: &mut [i32; 32], _query: u64, _key: u64) {
    needs_executor!("wgmma.mma_async.m64n64k32.s32.s8.s8")
}

pub unsafe fn m64n72k32_f32_e4m3(_accumulator: &mut [f32; 36], _probabilities: &[u32; 4], _value: u64) {
    needs_executor!("wgmma.mma_async.m64n72k32.f32.e4m3.e4m3")
}

pub unsafe fn m64n136k32_f32_e4m3(_accumulator: &mut [f32; 68], _probabilities: &[u32; 4], _value: u64) {
    needs_executor!("wgmma.mma_async.m64n136k32.f32.e4m3.e4m3")
}
