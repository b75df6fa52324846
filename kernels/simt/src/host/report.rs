//! What the executor found.

use std::fmt;
use std::panic::Location;

use super::schedule::Schedule;

/// A place in a kernel's source.
pub type Site = &'static Location<'static>;

/// What kind of mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A launch that no GPU would take, or parameters of another kernel.
    Launch,
    /// Two accesses of memory, one a write, that nothing orders; or `ld.global.nc` of what the launch writes.
    Race,
    /// Lanes of a warp that should do one thing together do different things.
    Divergence,
    /// Nobody can go on.
    Deadlock,
    /// An access outside of shared memory or of a buffer.
    OutOfBounds,
    /// An address that is not a multiple of the access's size.
    Unaligned,
    /// A read of memory that was never written.
    Uninitialized,
    /// Copies or tensor cores access what threads wrote, without `fence.proxy.async` in between.
    ProxyFence,
    /// Memory that a copy is still writing is accessed, or a kernel ends before its copies.
    CopyInFlight,
    /// A barrier of the block that is used in a way that its state does not allow.
    Barrier,
    /// An mbarrier that is used in a way that its state does not allow.
    MBarrier,
    /// A product of the tensor cores that is not fenced, committed, waited for or settled as it must be.
    Product,
    /// The registers of a product in flight are used.
    Poison,
    /// `setmaxnreg` with a number that the state does not allow.
    Registers,
    /// The kernel panicked.
    Panic,
}

/// A mistake of a kernel: what, where, by whom, and under which schedule.
#[derive(Clone)]
pub struct Report {
    /// What kind of mistake.
    pub kind: Kind,
    /// In words, with the places in the source.
    pub message: String,
    /// The block.
    pub block: [u32; 3],
    /// The thread, if it is one thread's.
    pub thread: Option<u32>,
    /// The schedule, which finds it again.
    pub schedule: Schedule,
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, message, block: [x, y, z], thread, schedule } = self;
        write!(formatter, "{kind:?}: {message}\n  in block ({x}, {y}, {z})")?;
        if let Some(thread) = thread {
            write!(formatter, ", thread {thread} (warp {}, lane {})", thread / 32, thread % 32)?;
        }
        write!(formatter, ", under {schedule}")
    }
}

/// As [`Display`](fmt::Display), so that a test that fails by `?` or `unwrap` tells how to replay it.
impl fmt::Debug for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl std::error::Error for Report {}

/// A mistake before it is known whose.
#[derive(Debug)]
pub struct Problem {
    pub kind: Kind,
    pub message: String,
}

impl Problem {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// `0-3, 7, 9-31`.
pub fn ranges(numbers: impl IntoIterator<Item = u32>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let text =
        ranges.iter().map(|&(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") });
    text.collect::<Vec<_>>().join(", ")
}
