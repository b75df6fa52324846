use std::panic::Location;

use super::clock::Epoch;
use super::executor::{Cta, hesitate, run};
use super::poison;
use super::report::{Kind, Problem, Site};
use super::schedule::Schedule;
use super::shared::{Access, Proxy};

/// A copy in flight.
#[derive(Debug)]
pub struct BulkCopy {
    destination: u32,
    source: u64,
    bytes: u32,
    mbarrier: u32,
    pub site: Site,
}

#[track_caller]
pub unsafe fn bulk_to_shared(destination: u32, source: u64, bytes: u32, mbarrier: u32) {
    let site = Location::caller();
    run(|cta| cta.issue_copy(BulkCopy { destination, source, bytes, mbarrier, site }));
    hesitate();
}

impl Cta {
    fn issue_copy(&mut self, copy: BulkCopy) -> Result<(), Problem> {
        let BulkCopy { destination, source, bytes, mbarrier, site } = copy;
        let what = "cp.async.bulk";
        if bytes == 0 || !bytes.is_multiple_of(16) {
            let message = format!("{what} of {bytes} bytes, not a positive multiple of 16, at {site}");
            return Err(Problem::new(Kind::Unaligned, message));
        }
        self.shared.check(what, destination, bytes, 16, site)?;
        let mut content = vec![0; bytes as usize];
        self.memory.load(what, source, &mut content, 16, site)?;
        let barrier = self.mbarrier(what, mbarrier, site)?;
        if !barrier.visible_to_copies {
            let message =
                format!("{what} at {site} signals an mbarrier without fence.mbarrier_init after {}", barrier.site);
            return Err(Problem::new(Kind::MBarrier, message));
        }
        // whoever waits for the current phase will have heard of the copy
        let epoch = Epoch { agent: barrier.agent, time: barrier.phase + 1 };
        let access = Access { epoch, proxy: Proxy::Async, site };
        let knowledge = &self.threads[self.current as usize].knowledge;
        self.shared.write(what, (destination, bytes), access, knowledge, true)?;
        self.shared.bytes_mut(destination, bytes).fill(poison::BYTE);
        self.copies.push(copy);
        if self.options.schedule == Schedule::InOrder {
            self.land(self.copies.len() - 1);
        }
        Ok(())
    }

    /// Completes a copy.
    pub fn land(&mut self, index: usize) {
        let BulkCopy { destination, source, bytes, mbarrier, site } = self.copies.swap_remove(index);
        let mut content = vec![0; bytes as usize];
        // A source that changed since the issue was reported by who changed it, if it can be at all.
        let _ = self.memory.load("cp.async.bulk", source, &mut content, 16, site);
        self.shared.land(destination, &content);
        self.complete_bytes(mbarrier, bytes);
    }
}
