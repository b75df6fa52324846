use std::panic::Location;

use super::executor::{hesitate, run, synchronises};

#[track_caller]
pub fn fence_proxy_async() {
    if synchronises("fence.proxy.async", Location::caller()) {
        return;
    }
    run(|cta| {
        let current = cta.current;
        let knowledge = &mut cta.thread().knowledge;
        knowledge.fenced.join(&knowledge.seen);
        // what the thread writes from now on is not fenced
        cta.tick(current);
        Ok(())
    });
    hesitate();
}
