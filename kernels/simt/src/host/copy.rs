use super::thread::needs_executor;

pub unsafe fn bulk_to_shared(_destination: u32, _source: u64, _bytes: u32, _barrier: u32) {
    needs_executor!("cp.async.bulk")
}
