//! In which order things happen that a program leaves open.

use std::fmt;

/// Which thread runs next, and when asynchronous work gets done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Schedule {
    /// Threads in order, each as far as it gets; copies and products are done as soon as they are issued.
    InOrder,
    /// The last threads first; copies are done when nobody can go on without them, products when they are waited for.
    Reverse,
    /// All by chance. The same seed gives the same order.
    Random(u64),
}

/// The environment variable with the seed of a random schedule to replay.
pub const SEED_VARIABLE: &str = "SAGE_SIMT_SEED";

impl Schedule {
    /// In order, reverse and `random` random schedules; if [`SEED_VARIABLE`] is set, only that seed's.
    pub fn several(random: u64) -> Vec<Self> {
        match std::env::var(SEED_VARIABLE) {
            Ok(seed) => {
                vec![Self::Random(seed.parse().unwrap_or_else(|_| panic!("{SEED_VARIABLE} is not a number: {seed}")))]
            }
            Err(_) => [Self::InOrder, Self::Reverse].into_iter().chain((0..random).map(Self::Random)).collect(),
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InOrder => formatter.write_str("the schedule in order"),
            Self::Reverse => formatter.write_str("the reverse schedule"),
            Self::Random(seed) => write!(formatter, "{SEED_VARIABLE}={seed}"),
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
        ((self.bits() >> 32) * end as u64 >> 32) as usize
    }
}
