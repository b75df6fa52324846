//! Who goes next: a schedule, applied to what can happen in a block.

use super::executor::{Cta, MAX_THREADS};
use super::schedule::{Preemptions, Random, Schedule};

/// How many times threads are picked until one of them gets another priority, on average.
const PICKS_PER_PRIORITY: usize = 256;

/// What the scheduler does next.
pub enum Step {
    Run(u32),
    Land(usize),
    Multiply(usize),
}

/// A set of threads.
#[derive(Default)]
pub struct ThreadSet([u64; MAX_THREADS as usize / 64]);

impl ThreadSet {
    pub fn insert(&mut self, thread: u32) {
        self.0[thread as usize / 64] |= 1 << (thread % 64);
    }

    pub fn remove(&mut self, thread: u32) {
        self.0[thread as usize / 64] &= !(1 << (thread % 64));
    }

    fn first(&self) -> Option<u32> {
        let index = self.0.iter().position(|&word| word != 0)?;
        Some(64 * index as u32 + self.0[index].trailing_zeros())
    }

    fn last(&self) -> Option<u32> {
        let index = self.0.iter().rposition(|&word| word != 0)?;
        Some(64 * index as u32 + 63 - self.0[index].leading_zeros())
    }

    fn first_of_warp(&self, warp: u32) -> Option<u32> {
        let lanes = (self.0[warp as usize / 2] >> (warp % 2 * 32)) as u32;
        (lanes != 0).then(|| 32 * warp + lanes.trailing_zeros())
    }

    fn contains(&self, thread: u32) -> bool {
        self.0[thread as usize / 64] >> (thread % 64) & 1 == 1
    }

    /// The first of a thread's warp, but for itself.
    fn other_of_warp(&self, thread: u32) -> Option<u32> {
        let mut others = Self(self.0);
        others.remove(thread);
        others.first_of_warp(thread / 32)
    }

    fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().enumerate().flat_map(|(index, &word)| {
            let rest = std::iter::successors(Some(word), |word| Some(word & word.wrapping_sub(1)));
            rest.take_while(|&word| word != 0).map(move |word| 64 * index as u32 + word.trailing_zeros())
        })
    }

    fn any(&self, random: &mut Random) -> Option<u32> {
        let count: u32 = self.0.iter().map(|word| word.count_ones()).sum();
        if count == 0 {
            return None;
        }
        let mut rank = random.below(count as usize) as u32;
        let index = self.0.iter().position(|word| {
            let here = rank < word.count_ones();
            rank -= if here { 0 } else { word.count_ones() };
            here
        })?;
        let word = (0..rank).fold(self.0[index], |word, _| word & (word - 1));
        Some(64 * index as u32 + word.trailing_zeros())
    }
}

impl Cta {
    /// What happens next; `None` if nothing can.
    pub fn pick(&mut self) -> Option<Step> {
        match self.options.schedule {
            Schedule::InOrder if !self.copies.is_empty() => Some(Step::Land(0)),
            Schedule::InOrder => self.ready.first().map(Step::Run),
            Schedule::Reverse => match self.ready.last() {
                Some(thread) => Some(Step::Run(thread)),
                None => self.copies.len().checked_sub(1).map(Step::Land),
            },
            Schedule::Random(_) => self.pick_any(),
            Schedule::RandomWarps(_) => match self.ready.first_of_warp(self.current / 32) {
                Some(thread) => Some(Step::Run(thread)),
                None => self.pick_any(),
            },
            Schedule::Preempted(preemptions) => self.pick_or_preempt(&preemptions),
        }
    }

    fn pick_or_preempt(&mut self, preemptions: &Preemptions) -> Option<Step> {
        let Self { current, ref ready, .. } = *self;
        let own_warp = current / 32;
        let other_warps = (0..self.warps.len() as u32).filter(|&warp| warp != own_warp);
        let mut possible: Vec<Step> = [ready.contains(current).then_some(current), ready.other_of_warp(current)]
            .into_iter()
            .chain(other_warps.map(|warp| ready.first_of_warp(warp)))
            .flatten()
            .map(Step::Run)
            .collect();
        possible.extend((0..self.copies.len()).map(Step::Land));
        if !possible.is_empty() {
            let busy = self.warps.iter().enumerate().filter(|(_, warp)| warp.tensor.is_busy());
            possible.extend(busy.map(|(index, _)| Step::Multiply(index)));
        }
        let choice = preemptions.choice(self.trace.alternatives.len() as u32) as usize;
        self.trace.alternatives.push(possible.len().saturating_sub(1) as u32);
        possible.into_iter().nth(choice)
    }

    fn pick_any(&mut self) -> Option<Step> {
        let Self { random, priorities, copies, warps, ready, .. } = self;
        let random = random.as_mut()?;
        let thread = if priorities.is_empty() {
            ready.any(random)
        } else {
            let first = ready.iter().max_by_key(|&thread| priorities[thread as usize]);
            first.inspect(|&thread| {
                if random.below(PICKS_PER_PRIORITY) == 0 {
                    priorities[thread as usize] = random.bits();
                }
            })
        };
        if thread.is_none() && !copies.is_empty() || random.below(16) == 0 {
            let busy = || warps.iter().enumerate().filter(|(_, warp)| warp.tensor.is_busy()).map(|(index, _)| index);
            let products = busy().count();
            if copies.len() + products > 0 {
                let choice = random.below(copies.len() + products);
                return match choice.checked_sub(copies.len()) {
                    None => Some(Step::Land(choice)),
                    Some(rank) => busy().nth(rank).map(Step::Multiply),
                };
            }
        }
        thread.map(Step::Run)
    }
}
