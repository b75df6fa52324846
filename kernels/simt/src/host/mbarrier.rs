use super::thread::needs_executor;

pub unsafe fn init(_barrier: u32, _arrivals: u32) {
    needs_executor!("mbarrier.init")
}

pub unsafe fn arrive_expect_bytes(_barrier: u32, _bytes: u32) {
    needs_executor!("mbarrier.arrive.expect_tx")
}

pub unsafe fn arrive_if(_barrier: u32, _predicate: bool) {
    needs_executor!("mbarrier.arrive")
}

pub unsafe fn wait(_barrier: u32, _parity: u32) {
    needs_executor!("mbarrier.try_wait")
}

pub fn fence_init() {
    needs_executor!("fence.mbarrier_init")
}
