use std::panic::Location;

use super::clock::Epoch;
use super::executor::{Cta, Waiting, hesitate, run, suspend, synchronises};
use super::mma;
use super::poison;
use super::report::{Kind, Problem, Site, ranges};
use super::wgmma::{Shape, Tensor};

/// What lanes do together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    SyncWarp,
    VoteAny,
    ShuffleXor,
    Shuffle,
    SetRegisters { count: u32, more: bool },
    Fence,
    Commit,
    Wait { pending: u64 },
    Product { shape: Shape, accumulate: bool },
    Barrier { id: u32, threads: u32, waits: bool },
    LoadMatrices { matrices: u32, transposed: bool },
    Multiply(mma::Shape),
}

impl Operation {
    pub fn name(self) -> &'static str {
        match self {
            Self::SyncWarp => "bar.warp.sync",
            Self::VoteAny => "vote.sync.any",
            Self::ShuffleXor => "shfl.sync.bfly",
            Self::Shuffle => "shfl.sync.idx",
            Self::SetRegisters { more: true, .. } => "setmaxnreg.inc",
            Self::SetRegisters { more: false, .. } => "setmaxnreg.dec",
            Self::Fence => "wgmma.fence",
            Self::Commit => "wgmma.commit_group",
            Self::Wait { .. } => "wgmma.wait_group",
            Self::Product { .. } => "wgmma.mma_async",
            Self::LoadMatrices { .. } => "ldmatrix",
            Self::Multiply(_) => "mma.sync",
            Self::Barrier { waits: true, .. } => "bar.sync",
            Self::Barrier { waits: false, .. } => "bar.arrive",
        }
    }

    fn synchronises(self) -> bool {
        matches!(self, Self::SyncWarp | Self::Fence | Self::Commit | Self::Wait { .. } | Self::Barrier { .. })
    }
}

/// What each lane brings to a collective.
pub type Inputs = [[u64; 4]; 32];

/// A collective that not all lanes have come to.
#[derive(Debug)]
struct Gathering {
    operation: Operation,
    site: Site,
    present: u32,
    inputs: Inputs,
}

/// A warp.
#[derive(Debug)]
pub struct Warp {
    gathering: Option<Gathering>,
    pub tensor: Tensor,
    /// Registers of a thread.
    pub registers: u32,
    /// Registers of a thread that it waits for.
    pub wanted: Option<u32>,
}

impl Warp {
    pub fn new(registers: u32) -> Self {
        Self { gathering: None, tensor: Tensor::default(), registers, wanted: None }
    }

    /// The collective that lanes wait in.
    pub fn gathering(&self) -> &'static str {
        self.gathering.as_ref().map_or("a collective", |gathering| gathering.operation.name())
    }
}

/// Does something together with the other lanes.
pub fn collective(operation: Operation, input: [u64; 4], site: Site) -> u64 {
    if operation.synchronises() && synchronises(operation.name(), site) {
        return 0;
    }
    if run(|cta| cta.gather(operation, input, site)) {
        suspend();
    } else {
        hesitate();
    }
    run(|cta| Ok(cta.thread().result))
}

impl Cta {
    /// Whether the running lane must wait.
    fn gather(&mut self, operation: Operation, input: [u64; 4], site: Site) -> Result<bool, Problem> {
        let (warp, lane) = (self.current as usize / 32, self.current % 32);
        let new = || Gathering { operation, site, present: 0, inputs: [[0; 4]; 32] };
        let gathering = self.warps[warp].gathering.get_or_insert_with(new);
        if gathering.operation != operation || gathering.site != site {
            let message = format!(
                "lane {lane} does {} at {site}, lanes {} do {} at {}",
                operation.name(),
                ranges((0..32).filter(|lane| gathering.present >> lane & 1 == 1)),
                gathering.operation.name(),
                gathering.site
            );
            return Err(Problem::new(Kind::Divergence, message));
        }
        gathering.present |= 1 << lane;
        gathering.inputs[lane as usize] = input;
        if gathering.present != u32::MAX {
            self.block(Waiting::Lanes, site);
            return Ok(true);
        }
        let gathering = self.warps[warp].gathering.take().expect("all lanes are there");
        let first = self.current - lane;
        let waits = self.complete(warp, &gathering)?;
        match waits {
            Some(waiting) => {
                for thread in first..first + 32 {
                    self.threads[thread as usize].waiting = waiting;
                }
                self.block(waiting, site);
            }
            None => (first..first + 32).for_each(|thread| self.wake(thread)),
        }
        Ok(waits.is_some())
    }

    /// Does what the lanes came for. Returns what they must still wait for.
    fn complete(&mut self, warp: usize, gathering: &Gathering) -> Result<Option<Waiting>, Problem> {
        let Gathering { operation, site, ref inputs, .. } = *gathering;
        let first = 32 * warp;
        let mut results = [0; 32];
        match operation {
            Operation::SyncWarp => self.meet(first as u32..first as u32 + 32),
            Operation::VoteAny => results = [inputs.iter().any(|input| input[0] != 0) as u64; 32],
            Operation::Shuffle => results = std::array::from_fn(|lane| inputs[(inputs[lane][1] & 31) as usize][0]),
            Operation::ShuffleXor => {
                results = std::array::from_fn(|lane| inputs[lane ^ (inputs[lane][1] & 31) as usize][0]);
            }
            Operation::LoadMatrices { matrices, transposed } => {
                self.load_matrices(warp, (matrices, transposed), inputs, site)?;
            }
            Operation::Multiply(shape) => shape.multiply(inputs, self.options.accumulation),
            Operation::SetRegisters { count, more } => {
                return Ok(self.set_registers(warp, count, more, site)?.then_some(Waiting::Registers));
            }
            Operation::Barrier { id, threads, waits } => {
                if self.come_to_barrier(warp, (id, threads), waits, site)? {
                    return Ok(Some(Waiting::Barrier { id }));
                }
            }
            Operation::Fence => self.warps[warp].tensor.fence(),
            Operation::Commit => self.warps[warp].tensor.commit(),
            Operation::Wait { pending } => self.wait_products(warp, pending),
            Operation::Product { shape, accumulate } => self.issue_product(warp, shape, accumulate, inputs, site)?,
        }
        self.finish_reads(first as u32..first as u32 + 32);
        for (thread, result) in self.threads[first..first + 32].iter_mut().zip(results) {
            thread.result = result;
        }
        Ok(None)
    }

    /// Tells each of some threads what the others know.
    pub fn meet(&mut self, threads: std::ops::Range<u32>) {
        let mut all = std::mem::take(&mut self.threads[threads.start as usize].knowledge);
        for thread in threads.clone().skip(1) {
            all.join(&self.threads[thread as usize].knowledge);
        }
        for thread in threads {
            self.threads[thread as usize].knowledge.clone_from(&all);
            self.tick(thread);
        }
    }

    /// Tells each of some threads that the others' reads are over.
    fn finish_reads(&mut self, threads: std::ops::Range<u32>) {
        for reader in threads.clone() {
            let agent = reader as u16;
            let read = Epoch { agent, time: self.threads[reader as usize].knowledge.seen.time(agent) };
            for thread in threads.clone() {
                self.threads[thread as usize].knowledge.over.hear(read);
            }
            self.tick(reader);
        }
    }
}

#[track_caller]
pub fn sync_warp() {
    collective(Operation::SyncWarp, [0; 4], Location::caller());
}

#[track_caller]
pub fn any(predicate: bool) -> bool {
    collective(Operation::VoteAny, [predicate as u64, 0, 0, 0], Location::caller()) != 0
}

#[track_caller]
pub fn shuffle_xor(value: f32, mask: u32) -> f32 {
    poison::check("shfl.sync.bfly", &[value]);
    let bits = collective(Operation::ShuffleXor, [value.to_bits() as u64, mask as u64, 0, 0], Location::caller());
    f32::from_bits(bits as u32)
}

#[track_caller]
pub fn shuffle(value: u32, lane: u32) -> u32 {
    collective(Operation::Shuffle, [value as u64, lane as u64, 0, 0], Location::caller()) as u32
}

#[track_caller]
pub fn broadcast(value: u32) -> u32 {
    shuffle(value, 0)
}
