use std::panic::Location;

use super::clock::Knowledge;
use super::executor::{Cta, hesitate, run, synchronises};
use super::report::{Kind, Problem, Site, ranges};
use super::warp::{Operation, collective};

/// Barriers of a block.
pub const BARRIERS: usize = 16;

/// A barrier of the block.
#[derive(Debug, Default)]
pub struct NamedBarrier {
    /// Threads that complete the phase, as the first warp said; 0 before it came.
    threads: u32,
    /// Where the first warp came.
    site: Option<Site>,
    /// Warps that came, a bit each.
    came: u32,
    /// Those of them that wait.
    waiting: Vec<usize>,
    /// What those know who came.
    incoming: Knowledge,
}

impl NamedBarrier {
    /// Threads that the phase lacks.
    fn missing(&self) -> u32 {
        self.threads - 32 * self.came.count_ones()
    }

    pub fn describe(&self) -> String {
        let came = (0..32).filter(|warp| self.came >> warp & 1 == 1);
        format!("{} more of {} threads; warps {} came", self.missing(), self.threads, ranges(came))
    }

    /// A barrier in the middle of a phase, when the kernel ends, was not waited for.
    pub fn check_end(&self, id: usize) -> Result<(), Problem> {
        let Some(site) = self.site else { return Ok(()) };
        let message = format!(
            "the kernel ends in the middle of a phase of barrier {id}, to which the first came at {site}: it lacks {}",
            self.describe()
        );
        Err(Problem::new(Kind::Barrier, message))
    }
}

impl Cta {
    /// A warp comes to a barrier. Returns whether it must wait for others.
    pub fn come_to_barrier(
        &mut self,
        warp: usize,
        (id, threads): (u32, u32),
        waits: bool,
        site: Site,
    ) -> Result<bool, Problem> {
        let problem = |message: String| Err(Problem::new(Kind::Barrier, format!("barrier {id} at {site}: {message}")));
        let block = self.threads.len() as u32;
        let Some(barrier) = self.barriers.get_mut(id as usize) else {
            return problem(format!("a block has barriers 0 to {}", BARRIERS - 1));
        };
        if threads == 0 || !threads.is_multiple_of(32) || threads > block {
            return problem(format!("{threads} threads; allowed are multiples of 32 up to the block's {block}"));
        }
        match barrier.site {
            None => (barrier.site, barrier.threads) = (Some(site), threads),
            Some(first) if barrier.threads != threads => {
                return problem(format!("{threads} threads, where {first} says {}", barrier.threads));
            }
            Some(_) => (),
        }
        if barrier.came >> warp & 1 == 1 {
            return problem(format!(
                "warp {warp} comes a second time in one phase, which lacks {}",
                barrier.describe()
            ));
        }
        barrier.came |= 1 << warp;
        for lane in &self.threads[32 * warp..32 * (warp + 1)] {
            barrier.incoming.join(&lane.knowledge);
        }
        if waits {
            barrier.waiting.push(warp);
        }
        if barrier.missing() > 0 {
            return Ok(waits);
        }
        let NamedBarrier { waiting, incoming, .. } = std::mem::take(barrier);
        for thread in waiting.into_iter().flat_map(|warp| 32 * warp..32 * (warp + 1)) {
            // it did nothing since it came
            self.threads[thread].knowledge.clone_from(&incoming);
            self.tick(thread as u32);
            self.wake(thread as u32);
        }
        Ok(false)
    }
}

/// Comes to the barrier of all threads of the block.
pub fn sync_block(site: Site) {
    let threads = run(|cta| Ok(cta.threads.len() as u32));
    collective(Operation::Barrier { id: 0, threads, waits: true }, [0; 4], site);
}

#[track_caller]
pub fn sync(id: u32, threads: u32) {
    collective(Operation::Barrier { id, threads, waits: true }, [0; 4], Location::caller());
}

#[track_caller]
pub fn arrive(id: u32, threads: u32) {
    collective(Operation::Barrier { id, threads, waits: false }, [0; 4], Location::caller());
}

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

/// Copies read what earlier launches wrote.
pub fn fence_proxy_async_global() {}
