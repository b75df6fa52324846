//! Who knows of what: vector clocks.
//!
//! An *agent* is whatever accesses memory at its own pace: each thread, the tensor cores on behalf of each warp, the copies
//! that count towards each mbarrier, and the `cp.async` of each thread. An access is stamped with its agent's time
//! ([`Epoch`]); it is ordered before another one if that one's agent has heard of the time, through barriers, mbarriers,
//! warp barriers, `wgmma.wait_group` or `cp.async.wait_group`.

use super::blocks::Heard;

/// An agent's index: threads first, then the warps' tensor cores, then mbarriers and threads' copies in the order of their
/// first use.
pub type Agent = u16;

/// A moment in an agent's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch {
    pub agent: Agent,
    pub time: u32,
}

/// The latest time heard of from each agent.
#[derive(Clone, Debug, Default)]
pub struct Clock(Vec<u32>);

impl Clock {
    pub fn time(&self, agent: Agent) -> u32 {
        self.0.get(agent as usize).copied().unwrap_or(0)
    }

    pub fn knows(&self, epoch: Epoch) -> bool {
        self.time(epoch.agent) >= epoch.time
    }

    pub fn hear(&mut self, epoch: Epoch) {
        let index = epoch.agent as usize;
        if self.0.len() <= index {
            self.0.resize(index + 1, 0);
        }
        self.0[index] = self.0[index].max(epoch.time);
    }

    pub fn join(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (time, &other) in self.0.iter_mut().zip(&other.0) {
            *time = (*time).max(other);
        }
    }
}

/// What an agent knows.
#[derive(Clone, Debug, Default)]
pub struct Knowledge {
    /// Accesses that happened before whatever it does next.
    pub seen: Clock,
    /// Those of them that a proxy fence made visible to copies and tensor cores.
    pub fenced: Clock,
    /// Reads that are over, whatever else is known of their agents. A warp's shuffles and votes tell of no writes, but a
    /// lane comes to them with its loads done.
    pub over: Clock,
    /// What is known of other blocks.
    pub others: Heard,
}

impl Knowledge {
    /// Whether a read is over.
    pub fn is_over(&self, read: Epoch) -> bool {
        self.seen.knows(read) || self.over.knows(read)
    }

    pub fn join(&mut self, other: &Self) {
        self.seen.join(&other.seen);
        self.fenced.join(&other.fenced);
        self.over.join(&other.over);
        self.others.join(&other.others);
    }
}
