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
}

/// The environment variable with the random schedule to replay: a seed, with `warps:` before it for
/// [`Schedule::RandomWarps`].
pub const SEED_VARIABLE: &str = "SAGE_SIMT_SEED";

impl Schedule {
    /// The schedule that the environment asks to replay.
    pub fn replayed() -> Option<Self> {
        let text = std::env::var(SEED_VARIABLE).ok()?;
        let (kind, seed): (fn(u64) -> Self, _) = match text.strip_prefix("warps:") {
            Some(seed) => (Self::RandomWarps, seed),
            None => (Self::Random, text.as_str()),
        };
        Some(kind(seed.parse().unwrap_or_else(|_| panic!("{SEED_VARIABLE} is no seed: {text}"))))
    }

    /// In order, reverse, and as many random ones of each kind; or the replayed one alone.
    pub fn several(seeds: u64) -> Vec<Self> {
        if let Some(replayed) = Self::replayed() {
            return vec![replayed];
        }
        let random = (0..seeds).flat_map(|seed| [Self::Random(seed), Self::RandomWarps(seed)]);
        [Self::InOrder, Self::Reverse].into_iter().chain(random).collect()
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InOrder => formatter.write_str("the schedule in order"),
            Self::Reverse => formatter.write_str("the reverse schedule"),
            Self::Random(seed) => write!(formatter, "{SEED_VARIABLE}={seed}"),
            Self::RandomWarps(seed) => write!(formatter, "{SEED_VARIABLE}=warps:{seed}"),
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
