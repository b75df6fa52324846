use std::panic::Location;

use super::clock::{Agent, Epoch};
use super::executor::{Cta, hesitate, run, synchronises};
use super::poison;
use super::report::{Kind, Problem, Site};
use super::schedule::Schedule;
use super::shared::{Access, Proxy};

/// Bytes that `cp.async` writes.
const ASYNC_BYTES: u32 = 16;

/// A copy in flight.
#[derive(Debug)]
pub struct AsyncCopy {
    destination: u32,
    bytes: u32,
    source: u64,
    /// The rest is filled with zeros.
    source_bytes: u32,
    signal: Signal,
    pub site: Site,
}

/// Who is told that a copy is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signal {
    /// Whoever waits for the mbarrier at an address.
    MBarrier(u32),
    /// A thread that waits for one of its groups.
    Group { thread: u32, group: u32 },
}

impl AsyncCopy {
    fn instruction(&self) -> &'static str {
        match self.signal {
            Signal::MBarrier(_) => "cp.async.bulk",
            Signal::Group { .. } => "cp.async",
        }
    }
}

/// The `cp.async` of a thread.
#[derive(Debug, Default)]
pub struct Groups {
    /// Who makes them.
    agent: Option<Agent>,
    /// Groups committed.
    committed: u32,
    /// Groups that were waited for.
    done: u32,
    /// The last copy: its group, and where it was issued.
    last: Option<(u32, Site)>,
}

impl Groups {
    pub fn check_end(&self, thread: usize) -> Result<(), Problem> {
        match self.last {
            Some((group, site)) if group > self.done => {
                let message =
                    format!("the kernel ends before thread {thread} waited for its cp.async issued at {site}");
                Err(Problem::new(Kind::CopyInFlight, message))
            }
            _ => Ok(()),
        }
    }
}

#[track_caller]
pub unsafe fn bulk_to_shared(destination: u32, source: u64, bytes: u32, mbarrier: u32) {
    let site = Location::caller();
    let signal = Signal::MBarrier(mbarrier);
    run(|cta| {
        cta.issue_bulk_copy(AsyncCopy { destination, bytes, source, source_bytes: bytes, signal, site }, mbarrier)
    });
    hesitate();
}

#[track_caller]
pub unsafe fn async16(destination: u32, source: u64, source_bytes: u32) {
    let site = Location::caller();
    run(|cta| cta.issue_async16(destination, source, source_bytes, site));
    hesitate();
}

#[track_caller]
pub fn commit_group() {
    if synchronises("cp.async.commit_group", Location::caller()) {
        return;
    }
    run(|cta| {
        cta.thread().copies.committed += 1;
        Ok(())
    });
}

#[track_caller]
pub fn wait_group<const PENDING: u32>() {
    if synchronises("cp.async.wait_group", Location::caller()) {
        return;
    }
    run(|cta| {
        cta.wait_copies(PENDING);
        Ok(())
    });
    hesitate();
}

impl Cta {
    fn issue_bulk_copy(&mut self, copy: AsyncCopy, mbarrier: u32) -> Result<(), Problem> {
        let AsyncCopy { destination, bytes, site, .. } = copy;
        let what = copy.instruction();
        if bytes == 0 || !bytes.is_multiple_of(16) {
            let message = format!("{what} of {bytes} bytes, not a positive multiple of 16, at {site}");
            return Err(Problem::new(Kind::Unaligned, message));
        }
        self.shared.check(what, destination, bytes, 16, site)?;
        let barrier = self.mbarrier(what, mbarrier, site)?;
        if !barrier.visible_to_copies {
            let message =
                format!("{what} at {site} signals an mbarrier without fence.mbarrier_init after {}", barrier.site);
            return Err(Problem::new(Kind::MBarrier, message));
        }
        // whoever waits for the current phase will have heard of the copy
        let epoch = Epoch { agent: barrier.agent, time: barrier.phase + 1 };
        self.issue_copy(copy, Access { epoch, proxy: Proxy::Async, site })
    }

    fn issue_async16(&mut self, destination: u32, source: u64, source_bytes: u32, site: Site) -> Result<(), Problem> {
        let what = "cp.async";
        if source_bytes > ASYNC_BYTES {
            let message = format!("{what} of {ASYNC_BYTES} bytes from a source of {source_bytes}, at {site}");
            return Err(Problem::new(Kind::OutOfBounds, message));
        }
        self.shared.check(what, destination, ASYNC_BYTES, ASYNC_BYTES, site)?;
        let thread = self.current;
        let agent = match self.thread().copies.agent {
            Some(agent) => agent,
            None => self.new_agent(),
        };
        let copies = &mut self.thread().copies;
        let group = copies.committed + 1;
        (copies.agent, copies.last) = (Some(agent), Some((group, site)));
        let signal = Signal::Group { thread, group };
        let copy = AsyncCopy { destination, bytes: ASYNC_BYTES, source, source_bytes, signal, site };
        // the thread hears of the copy when it waits for the group
        let epoch = Epoch { agent, time: group };
        self.issue_copy(copy, Access { epoch, proxy: Proxy::Generic, site })
    }

    /// Issues a copy to a place that was checked.
    fn issue_copy(&mut self, copy: AsyncCopy, access: Access) -> Result<(), Problem> {
        let place = (copy.destination, copy.bytes);
        self.read_source(&copy)?;
        let knowledge = &self.threads[self.current as usize].knowledge;
        self.shared.write(copy.instruction(), place, access, knowledge, true)?;
        self.shared.bytes_mut(place.0, place.1).fill(poison::BYTE);
        self.copies.push(copy);
        if self.options.schedule == Schedule::InOrder {
            self.land(self.copies.len() - 1);
        }
        Ok(())
    }

    /// What a copy will write.
    fn read_source(&self, copy: &AsyncCopy) -> Result<Vec<u8>, Problem> {
        let &AsyncCopy { source, site, .. } = copy;
        let mut content = vec![0; copy.bytes as usize];
        let from_source = &mut content[..copy.source_bytes as usize];
        if from_source.is_empty() && !source.is_multiple_of(16) {
            let message = format!("cp.async at global address {source:#x}, not a multiple of 16, at {site}");
            return Err(Problem::new(Kind::Unaligned, message));
        }
        if !from_source.is_empty() {
            self.memory.load(copy.instruction(), source, from_source, 16, site)?;
        }
        Ok(content)
    }

    /// Completes a copy.
    pub fn land(&mut self, index: usize) {
        let copy = self.copies.swap_remove(index);
        // A source that changed since the issue was reported by who changed it, if it can be at all.
        let content = self.read_source(&copy).unwrap_or_else(|_| vec![0; copy.bytes as usize]);
        self.shared.land(copy.destination, &content);
        if let Signal::MBarrier(address) = copy.signal {
            self.complete_bytes(address, copy.bytes);
        }
    }

    /// Waits until at most the last `pending` groups of the running thread are in flight.
    fn wait_copies(&mut self, pending: u32) {
        let thread = self.current;
        let copies = &mut self.thread().copies;
        copies.done = copies.done.max(copies.committed.saturating_sub(pending));
        let (agent, done) = (copies.agent, copies.done);
        let is_done = |signal| matches!(signal, Signal::Group { thread: of, group } if of == thread && group <= done);
        for index in (0..self.copies.len()).rev() {
            if is_done(self.copies[index].signal) {
                self.land(index);
            }
        }
        if let Some(agent) = agent {
            self.thread().knowledge.seen.hear(Epoch { agent, time: done });
        }
    }
}
