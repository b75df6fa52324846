//! The ring of tiles and its signals.

use sage_layout::kernel::AttentionShared;
use simt::mbarrier::Barrier;

/// Warps of a consumer warpgroup. Each releases for itself: a warp's wait tells only of its own reads.
const WARPS: u32 = 4;

/// An mbarrier of the kernel: who arrives, who waits.
#[derive(Clone, Copy)]
pub enum Signal {
    /// A warpgroup's queries, and the index of the item that they belong to, are in shared memory.
    /// Arrives: the producer, once, with the bytes of the copy. Waits: the warpgroup.
    QueryFull(u32),
    /// A warpgroup has read its queries for the last time, and no output is on its way through their memory.
    /// Arrive: its four warps. Waits: the producer.
    QueryEmpty(u32),
    /// A slot's key and value tiles are in shared memory.
    /// Arrives: the producer, once, with the bytes of both copies. Wait: the consumers.
    TilesFull(u32),
    /// A slot's tiles have been read for the last time.
    /// Arrive: all consumer warps. Waits: the producer.
    TilesEmpty(u32),
}

/// The kernel's mbarriers.
#[derive(Clone, Copy)]
pub struct Signals {
    /// Address of the first.
    first: u32,
    warpgroups: u32,
    stages: u32,
}

impl Signals {
    /// Those of shared memory at `base`.
    #[inline(always)]
    pub fn new(base: u32, memory: AttentionShared) -> Self {
        Self { first: base + memory.barriers, warpgroups: memory.warpgroups, stages: memory.stages }
    }

    /// The mbarrier of a signal.
    #[inline(always)]
    pub fn of(self, signal: Signal) -> Barrier {
        let index = match signal {
            Signal::QueryFull(warpgroup) => warpgroup,
            Signal::QueryEmpty(warpgroup) => self.warpgroups + warpgroup,
            Signal::TilesFull(stage) => 2 * self.warpgroups + stage,
            Signal::TilesEmpty(stage) => 2 * self.warpgroups + self.stages + stage,
        };
        Barrier(self.first + 8 * index)
    }

    /// Sets the arrivals of all.
    ///
    /// # Safety
    ///
    /// As for [`Barrier::init`].
    #[inline(always)]
    pub unsafe fn init(self) {
        // SAFETY: forwarded contract.
        unsafe {
            for warpgroup in 0..self.warpgroups {
                self.of(Signal::QueryFull(warpgroup)).init(1);
                self.of(Signal::QueryEmpty(warpgroup)).init(WARPS);
            }
            for stage in 0..self.stages {
                self.of(Signal::TilesFull(stage)).init(1);
                self.of(Signal::TilesEmpty(stage)).init(WARPS * self.warpgroups);
            }
        }
    }
}

/// A position in the ring: the slot, and the parity of the round that a consumer waits for there.
#[derive(Clone, Copy)]
pub struct Position {
    /// Slot.
    pub stage: u32,
    /// Parity of the round.
    pub phase: u32,
    stages: u32,
}

impl Position {
    /// The first slot of the first round, of so many slots.
    #[inline(always)]
    pub fn new(stages: u32) -> Self {
        Self { stage: 0, phase: 0, stages }
    }

    /// This one if `condition`, else `other`. Field by field, or the compiler packs two into a register.
    #[inline(always)]
    pub fn only_if(self, condition: bool, other: Self) -> Self {
        let Self { stages, .. } = self;
        let stage = if condition { self.stage } else { other.stage };
        Self { stage, phase: if condition { self.phase } else { other.phase }, stages }
    }

    /// Whether both are of the same slot, whatever the round.
    #[inline(always)]
    pub fn is_same_slot(self, other: Self) -> bool {
        self.stage == other.stage
    }

    /// Moves to the next slot.
    #[inline(always)]
    pub fn advance(&mut self) {
        self.stage += 1;
        if self.stage == self.stages {
            self.stage = 0;
            self.phase ^= 1;
        }
    }
}
