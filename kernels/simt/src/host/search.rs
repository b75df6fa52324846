//! A search through schedules: every one with few preemptions.
//!
//! Most mistakes of synchronisation need one or two switches at the wrong moment (Musuvathi and Qadeer, "Iterative context
//! bounding", PLDI 2007). For small kernels all of them can be tried.

use super::executor::Trace;
use super::report::Report;
use super::schedule::{Preemptions, Schedule};

/// How far a search got without finding a mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Searched {
    /// Schedules tried.
    pub schedules: usize,
    /// Whether these were all within the bound.
    pub complete: bool,
}

/// Tries schedules with up to `preemptions` preemptions ([`Preemptions::MOST`] at most), those with fewer first, and up to
/// `limit` schedules. `attempt` runs the kernel under a schedule, with fresh memory.
///
/// # Errors
///
/// The first mistake found.
pub fn search(
    preemptions: usize,
    limit: usize,
    mut attempt: impl FnMut(Schedule) -> Result<Trace, Report>,
) -> Result<Searched, Report> {
    let mut schedules = 0;
    let mut level = vec![Preemptions::default()];
    for bound in 0..=preemptions.min(Preemptions::MOST) {
        let mut next = Vec::new();
        for taken in level {
            if schedules == limit {
                return Ok(Searched { schedules, complete: false });
            }
            schedules += 1;
            let Trace { alternatives, .. } = attempt(Schedule::Preempted(taken))?;
            if bound < preemptions.min(Preemptions::MOST) {
                let first = taken.last_step().map_or(0, |step| step as usize + 1);
                let steps = (0..).zip(alternatives).skip(first);
                let more = steps.flat_map(|(step, count)| (1..=count).map(move |choice| taken.and(step, choice)));
                // one too many tells that the search is not complete
                next.extend(more.take((limit + 1).saturating_sub(schedules + next.len())));
            }
        }
        level = next;
    }
    Ok(Searched { schedules, complete: true })
}
