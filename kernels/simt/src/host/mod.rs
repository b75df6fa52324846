//! What the vocabulary means on the host: the SIMT executor.
//!
//! [`launch`] runs a kernel as a GPU would, one fiber a thread, and looks for what a GPU does not tell: races, missing
//! waits and fences, divergent collectives, deadlocks, reads of what nobody wrote. `docs/testing.md` is the guide.
//!
//! | module | what |
//! |---|---|
//! | `executor` | blocks, fibers, deadlocks |
//! | `schedule`, `scheduler`, `search` | who goes next |
//! | `memory` | global memory: buffers with bounds, and which bytes were written |
//! | `shared` | shared memory, and the history of each cell |
//! | `clock` | vector clocks: which accesses are ordered |
//! | `blocks` | the same between blocks, in global memory |
//! | `warp`, `mbarrier`, `copy`, `mma`, `wgmma`, … | an instruction family each |
//! | `summation` | how `mma` and `wgmma` add products |
//! | `poison` | what stands where a result is yet to come |
//! | `report` | what is told about a mistake |

pub(crate) mod barrier;
pub(crate) mod convert;
pub(crate) mod copy;
pub(crate) mod global;
pub(crate) mod grid;
pub(crate) mod math;
pub(crate) mod mbarrier;
pub(crate) mod mma;
pub(crate) mod shared;
pub(crate) mod thread;
pub(crate) mod warp;
pub(crate) mod wgmma;

mod blocks;
mod clock;
mod executor;
mod memory;
mod poison;
mod report;
mod schedule;
mod scheduler;
mod search;
mod summation;

pub use executor::{Blocks, Launch, Options, Synchronisation, Trace, launch};
pub use memory::Memory;
pub use report::{Kind, Report};
pub use schedule::{Preemptions, SEED_VARIABLE, Schedule};
pub use search::{Searched, search};
pub use summation::Accumulation;

/// The guide's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../../../../docs/testing.md")]
mod guide {}
