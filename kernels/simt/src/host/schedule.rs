//! In which order things happen that a program leaves open.

use std::fmt;

/// Which thread runs next, and when asynchronous work gets done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Schedule {
    /// Threads in order, each as far as it gets; copies and products are done as soon as they are issued.
    InOrder,
    /// The last threads first; copies are done when nobody can go on without them, products when they are waited for.
    Reverse,
    /// All by chance, thread by thread: the lanes of a warp may drift apart as far as their collectives let them. The same
    /// seed gives the same order. With an odd seed, threads have priorities, which change now and then, so that some
    /// starve.
    Random(u64),
    /// All by chance, warp by warp: each warp's lanes go as far as they get before another warp's turn.
    RandomWarps(u64),
    /// A thread goes as far as it gets, then the next of its warp, then the first that can; copies and products are done as
    /// late as they may. At the given steps something else happens ([`search`](super::search()) tries all).
    Preempted(Preemptions),
}

/// Steps of a block at which not the default happens, at most [`Self::MOST`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Preemptions([Option<Preemption>; Self::MOST]);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Preemption {
    step: u32,
    /// Of what could happen there; 0 is the default.
    choice: u32,
}

impl Preemptions {
    /// The longest list.
    pub const MOST: usize = 3;

    /// One more, after the others; there must be room.
    #[must_use]
    pub fn and(mut self, step: u32, choice: u32) -> Self {
        let room = self.0.iter_mut().find(|place| place.is_none()).expect("at most three preemptions");
        *room = Some(Preemption { step, choice });
        self
    }

    /// The step of the last one.
    pub fn last_step(&self) -> Option<u32> {
        self.0.iter().flatten().map(|preemption| preemption.step).max()
    }

    /// What is to happen at a step.
    pub fn choice(&self, step: u32) -> u32 {
        self.0.iter().flatten().find(|preemption| preemption.step == step).map_or(0, |preemption| preemption.choice)
    }

    /// From what [`Display`](fmt::Display) makes.
    fn parse(text: &str) -> Option<Self> {
        let mut preemptions = Self::default();
        for pair in text.split(',').filter(|pair| !pair.is_empty()) {
            let (step, choice) = pair.split_once('.')?;
            preemptions.0.last()?.is_none().then_some(())?;
            preemptions = preemptions.and(step.parse().ok()?, choice.parse().ok()?);
        }
        Some(preemptions)
    }
}

impl fmt::Display for Preemptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Preemption { step, choice }) in self.0.iter().flatten().enumerate() {
            write!(formatter, "{}{step}.{choice}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// The environment variable with the schedule to replay: a seed, with `warps:` before it for
/// [`Schedule::RandomWarps`]; `preempted:` and a list of preemptions; `in-order` or `reverse`.
pub const SEED_VARIABLE: &str = "SAGE_SIMT_SEED";

impl Schedule {
    /// The schedule that the environment asks to replay.
    pub fn replayed() -> Option<Self> {
        let text = std::env::var(SEED_VARIABLE).ok()?;
        Some(Self::parse(&text).unwrap_or_else(|| panic!("{SEED_VARIABLE} is no schedule: {text}")))
    }

    fn parse(text: &str) -> Option<Self> {
        match text.split_once(':') {
            None if text == "in-order" => Some(Self::InOrder),
            None if text == "reverse" => Some(Self::Reverse),
            None => text.parse().ok().map(Self::Random),
            Some(("warps", seed)) => seed.parse().ok().map(Self::RandomWarps),
            Some(("preempted", list)) => Preemptions::parse(list).map(Self::Preempted),
            Some(_) => None,
        }
    }

    /// In order, reverse, and as many random ones of each kind; or the replayed one alone.
    pub fn several(seeds: u64) -> Vec<Self> {
        Self::with((0..seeds).flat_map(|seed| [Self::Random(seed), Self::RandomWarps(seed)]))
    }

    /// In order, reverse, and others; or the replayed one alone.
    pub fn with(others: impl IntoIterator<Item = Self>) -> Vec<Self> {
        match Self::replayed() {
            Some(replayed) => vec![replayed],
            None => [Self::InOrder, Self::Reverse].into_iter().chain(others).collect(),
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{SEED_VARIABLE}=")?;
        match self {
            Self::InOrder => formatter.write_str("in-order"),
            Self::Reverse => formatter.write_str("reverse"),
            Self::Random(seed) => seed.fmt(formatter),
            Self::RandomWarps(seed) => write!(formatter, "warps:{seed}"),
            Self::Preempted(preemptions) => write!(formatter, "preempted:{preemptions}"),
        }
    }
}

/// Random numbers (SplitMix64).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64, block: u64) -> Self {
        let mut random = Self(seed ^ block.wrapping_mul(0xd134_2543_de82_ef95));
        random.bits();
        random
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Uniform in `0 .. end`.
    pub fn below(&mut self, end: usize) -> usize {
        (((self.bits() >> 32) * end as u64) >> 32) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_report_shows_can_be_replayed() {
        let preemptions = Preemptions::default().and(3, 1).and(17, 4);
        for schedule in [
            Schedule::InOrder,
            Schedule::Reverse,
            Schedule::Random(7),
            Schedule::RandomWarps(u64::MAX),
            Schedule::Preempted(Preemptions::default()),
            Schedule::Preempted(preemptions),
        ] {
            let text = schedule.to_string();
            let (_, value) = text.split_once('=').unwrap();
            assert_eq!(Schedule::parse(value), Some(schedule));
        }
        for bad in ["", "x", "warps:", "threads:1", "preempted:1", "preempted:1.2,2.1,3.1,4.1", "preempted:1.-1"] {
            assert_eq!(Schedule::parse(bad), None, "{bad}");
        }
        assert_eq!((preemptions.choice(17), preemptions.choice(4), preemptions.last_step()), (4, 0, Some(17)));
    }
}
