use super::thread::needs_executor;

pub fn fence_proxy_async() {
    needs_executor!("fence.proxy.async")
}
