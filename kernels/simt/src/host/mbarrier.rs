use std::panic::Location;

use super::clock::{Agent, Epoch, Knowledge};
use super::executor::{Cta, Waiting, hesitate, run, suspend, synchronises};
use super::report::{Kind, Problem, Site};

/// An mbarrier.
#[derive(Debug)]
pub struct MBarrier {
    /// Arrivals of a phase.
    arrivals: u32,
    /// Arrivals that the current phase lacks.
    missing: u32,
    /// Bytes that the current phase still expects.
    bytes: i64,
    /// Phases that are complete.
    pub phase: u32,
    /// The copies that count towards it.
    pub agent: Agent,
    /// What those know who arrived in the current phase.
    incoming: Knowledge,
    /// What those know who arrived in complete phases.
    complete: Knowledge,
    /// Its initialisation.
    initialised: Epoch,
    pub site: Site,
    /// `fence.mbarrier_init` followed.
    pub visible_to_copies: bool,
    waiters: Vec<u32>,
}

impl MBarrier {
    pub fn describe(&self) -> String {
        let Self { arrivals, missing, bytes, phase, .. } = self;
        format!("in phase {phase}, {missing} of {arrivals} arrivals and {bytes} bytes missing")
    }

    /// An mbarrier in the middle of a phase, when the kernel ends, was arrived at too often or too seldom.
    pub fn check_end(&self, address: u32) -> Result<(), Problem> {
        if self.missing == self.arrivals && self.bytes == 0 {
            return Ok(());
        }
        let message = format!(
            "the kernel ends in the middle of a phase of the mbarrier at {address:#x}, initialised at {}: {}",
            self.site,
            self.describe()
        );
        Err(Problem::new(Kind::MBarrier, message))
    }

    fn is_complete(&self, parity: u32) -> bool {
        self.phase % 2 != parity
    }

    /// Ends the phase if nothing is missing. Returns who waited.
    fn advance(&mut self) -> Vec<u32> {
        if self.missing > 0 || self.bytes != 0 {
            return Vec::new();
        }
        self.phase += 1;
        self.missing = self.arrivals;
        self.complete.join(&std::mem::take(&mut self.incoming));
        self.complete.seen.hear(Epoch { agent: self.agent, time: self.phase });
        std::mem::take(&mut self.waiters)
    }
}

impl Cta {
    /// The mbarrier at an address, for a use by the running thread.
    pub fn mbarrier(&mut self, what: &str, address: u32, site: Site) -> Result<&mut MBarrier, Problem> {
        self.shared.check(what, address, 8, 8, site)?;
        let Some(mbarrier) = self.mbarriers.get_mut(&address) else {
            let message = format!("{what} at {site}: no mbarrier was initialised at {address:#x}");
            return Err(Problem::new(Kind::MBarrier, message));
        };
        if !self.threads[self.current as usize].knowledge.seen.knows(mbarrier.initialised) {
            let message = format!("{what} at {site}: nothing orders it after the initialisation at {}", mbarrier.site);
            return Err(Problem::new(Kind::Race, message));
        }
        Ok(mbarrier)
    }

    fn initialise(&mut self, address: u32, arrivals: u32, site: Site) -> Result<(), Problem> {
        self.shared.check("mbarrier.init", address, 8, 8, site)?;
        if arrivals == 0 || arrivals >= 1 << 20 {
            let message = format!("mbarrier.init with {arrivals} arrivals at {site}");
            return Err(Problem::new(Kind::MBarrier, message));
        }
        let access = self.access(site);
        let thread = &self.threads[self.current as usize];
        self.shared.write("mbarrier.init", (address, 8), access, &thread.knowledge, false)?;
        self.shared.place_mbarrier(address);
        let agent = self.new_agent();
        let mbarrier = MBarrier {
            arrivals,
            missing: arrivals,
            bytes: 0,
            phase: 0,
            agent,
            incoming: Knowledge::default(),
            complete: Knowledge::default(),
            initialised: access.epoch,
            site,
            visible_to_copies: false,
            waiters: Vec::new(),
        };
        self.mbarriers.insert(address, mbarrier);
        Ok(())
    }

    fn arrive(&mut self, address: u32, bytes: u32, site: Site) -> Result<(), Problem> {
        let current = self.current;
        let knowledge = self.thread().knowledge.clone();
        let mbarrier = self.mbarrier("mbarrier.arrive", address, site)?;
        if mbarrier.missing == 0 {
            let message = format!(
                "mbarrier.arrive at {site}: one arrival more than the {} that {} says",
                mbarrier.arrivals, mbarrier.site
            );
            return Err(Problem::new(Kind::MBarrier, message));
        }
        mbarrier.bytes += bytes as i64;
        mbarrier.missing -= 1;
        mbarrier.incoming.join(&knowledge);
        self.tick(current);
        self.advance(address);
        Ok(())
    }

    /// A copy's bytes have arrived.
    pub fn complete_bytes(&mut self, address: u32, bytes: u32) {
        self.mbarriers.get_mut(&address).expect("checked at issue").bytes -= bytes as i64;
        self.advance(address);
    }

    fn advance(&mut self, address: u32) {
        let mbarrier = self.mbarriers.get_mut(&address).expect("the caller found it there");
        for thread in mbarrier.advance() {
            self.wake(thread);
        }
    }

    /// Whether the phase of `parity` is complete; if not, the running thread waits.
    fn try_wait(&mut self, address: u32, parity: u32, site: Site) -> Result<bool, Problem> {
        let current = self.current;
        if parity > 1 {
            let message = format!("mbarrier.try_wait for parity {parity} at {site}");
            return Err(Problem::new(Kind::MBarrier, message));
        }
        let mbarrier = self.mbarrier("mbarrier.try_wait", address, site)?;
        if !mbarrier.is_complete(parity) {
            mbarrier.waiters.push(current);
            self.block(Waiting::MBarrier { address, parity }, site);
            return Ok(false);
        }
        let complete = &self.mbarriers[&address].complete;
        self.threads[current as usize].knowledge.join(complete);
        Ok(true)
    }
}

#[track_caller]
pub unsafe fn init(mbarrier: u32, arrivals: u32) {
    let site = Location::caller();
    run(|cta| cta.initialise(mbarrier, arrivals, site));
}

#[track_caller]
pub unsafe fn arrive_expect_bytes(mbarrier: u32, bytes: u32) {
    let site = Location::caller();
    if synchronises("mbarrier.arrive.expect_tx", site) {
        return;
    }
    run(|cta| cta.arrive(mbarrier, bytes, site));
    hesitate();
}

#[track_caller]
pub unsafe fn arrive_if(mbarrier: u32, predicate: bool) {
    let site = Location::caller();
    if synchronises("mbarrier.arrive", site) || !predicate {
        return;
    }
    run(|cta| cta.arrive(mbarrier, 0, site));
    hesitate();
}

#[track_caller]
pub unsafe fn wait(mbarrier: u32, parity: u32) {
    let site = Location::caller();
    if synchronises("mbarrier.try_wait", site) {
        return;
    }
    while !run(|cta| cta.try_wait(mbarrier, parity, site)) {
        suspend();
    }
}

#[track_caller]
pub fn fence_init() {
    if synchronises("fence.mbarrier_init", Location::caller()) {
        return;
    }
    run(|cta| {
        let seen = &cta.threads[cta.current as usize].knowledge.seen;
        for mbarrier in cta.mbarriers.values_mut() {
            mbarrier.visible_to_copies |= seen.knows(mbarrier.initialised);
        }
        Ok(())
    });
}
