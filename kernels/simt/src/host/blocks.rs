//! What blocks know of each other, in a launch whose blocks run together.
//!
//! Within a block, clocks say who has heard of what. Between blocks, word of it comes through atomics alone: a release
//! leaves all that a thread knows at the atomic's address, an acquire takes it from there.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use super::clock::{Clock, Epoch};
use super::executor::Cta;
use super::report::{Kind, Problem, Site};

/// Bytes that have one history: the smallest access.
const CELL_BYTES: u64 = 2;

/// What is known of blocks' threads.
#[derive(Clone, Debug, Default)]
pub struct Heard(Rc<BTreeMap<u64, Clock>>);

impl Heard {
    pub fn join(&mut self, other: &Self) {
        if Rc::ptr_eq(&self.0, &other.0) || other.0.is_empty() {
            return;
        }
        if self.0.is_empty() {
            self.0 = Rc::clone(&other.0);
            return;
        }
        let clocks = Rc::make_mut(&mut self.0);
        for (&block, clock) in other.0.iter() {
            clocks.entry(block).or_default().join(clock);
        }
    }

    fn knows(&self, moment: &Moment) -> bool {
        self.0.get(&moment.block).is_some_and(|clock| clock.knows(moment.epoch))
    }
}

/// How global memory is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Load,
    Store,
    AtomicLoad,
    AtomicAdd,
}

impl How {
    fn writes(self) -> bool {
        matches!(self, Self::Store | Self::AtomicAdd)
    }

    fn is_atomic(self) -> bool {
        matches!(self, Self::AtomicLoad | Self::AtomicAdd)
    }
}

/// An access of global memory.
#[derive(Clone, Copy, Debug)]
struct Moment {
    block: u64,
    epoch: Epoch,
    how: How,
    site: Site,
}

#[derive(Debug, Default)]
struct Cell {
    write: Option<Moment>,
    /// Reads since then.
    reads: Vec<Moment>,
}

/// Accesses of global memory by a launch.
#[derive(Debug, Default)]
pub struct History {
    cells: HashMap<u64, Cell>,
    /// What was released, by the atomic's address.
    released: HashMap<u64, Heard>,
}

/// The history that the blocks of a launch share; a launch whose blocks do not run together has none.
pub type SharedHistory = Option<Rc<RefCell<History>>>;

impl Cta {
    fn knows(&self, moment: &Moment) -> bool {
        let knowledge = &self.threads[self.current as usize].knowledge;
        if moment.block == self.index { knowledge.seen.knows(moment.epoch) } else { knowledge.others.knows(moment) }
    }

    fn race(&self, what: &str, place: u64, site: Site, earlier: &Moment) -> Problem {
        let Moment { block, epoch, how, site: there } = earlier;
        let earlier = if how.writes() { "write" } else { "read" };
        let who = format!("thread {} of block {block}", epoch.agent);
        let place = self.memory.place(place);
        let message = format!("{what} of {place} at {site}: nothing orders it after the {earlier} by {who} at {there}");
        Problem::new(Kind::Race, message)
    }

    /// Records an access of global memory by the running thread. Atomic ones need no order among themselves.
    pub fn access_global(
        &mut self,
        what: &str,
        (address, bytes): (u64, u64),
        how: How,
        site: Site,
    ) -> Result<(), Problem> {
        let Some(history) = &self.history else { return Ok(()) };
        let cells = &mut history.borrow_mut().cells;
        let moment = Moment { block: self.index, epoch: self.access(site).epoch, how, site };
        for cell in address / CELL_BYTES..(address + bytes) / CELL_BYTES {
            let Cell { write, reads } = cells.entry(cell).or_default();
            let unordered = |earlier: &&Moment| !(self.knows(earlier) || how.is_atomic() && earlier.how.is_atomic());
            let read = if how.writes() { reads.iter().find(unordered) } else { None };
            if let Some(earlier) = write.as_ref().filter(unordered).or(read) {
                return Err(self.race(what, cell * CELL_BYTES, site, earlier));
            }
            reads.retain(|read| !self.knows(read));
            if how.writes() {
                *write = Some(moment);
            } else {
                reads.push(moment);
            }
        }
        Ok(())
    }

    /// The running thread hears what was released at an address.
    pub fn acquire(&mut self, address: u64) {
        let Some(history) = self.history.clone() else { return };
        let Some(released) = history.borrow().released.get(&address).cloned() else { return };
        let index = self.index;
        let knowledge = &mut self.thread().knowledge;
        if let Some(own) = released.0.get(&index) {
            knowledge.seen.join(own);
        }
        knowledge.others.join(&released);
    }

    /// The running thread tells at an address what it knows.
    pub fn release(&mut self, address: u64) {
        let Some(history) = self.history.clone() else { return };
        let (index, current) = (self.index, self.current);
        let knowledge = &self.thread().knowledge;
        let own = Heard(Rc::new(BTreeMap::from([(index, knowledge.seen.clone())])));
        let mut history = history.borrow_mut();
        let released = history.released.entry(address).or_default();
        released.join(&knowledge.others);
        released.join(&own);
        // what the thread does from now on was not told
        self.tick(current);
    }
}
