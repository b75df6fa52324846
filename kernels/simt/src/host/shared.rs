//! Shared memory with a shadow that knows who accessed what, and when.

use super::clock::{Agent, Epoch, Knowledge};
use super::executor::run;
use super::poison;
use super::report::{Kind, Problem, Site};
use std::panic::Location;

/// Address of the block's shared memory. Not 0, so that forgetting to add it shows.
pub const BASE: u32 = 1024;
/// Bytes that have one history: the smallest access.
const CELL_BYTES: u32 = 2;

/// The two ways to memory that only a proxy fence orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// Loads and stores of threads, and `cp.async`.
    Generic,
    /// Bulk copies and tensor cores.
    Async,
}

/// Who accessed a cell, when, from where.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    pub epoch: Epoch,
    pub proxy: Proxy,
    pub site: Site,
}

/// Reads since the last write that may still be unordered with the next.
#[derive(Clone, Debug, Default)]
enum Reads {
    #[default]
    None,
    One(Access),
    Many(Vec<Access>),
}

impl Reads {
    fn as_slice(&self) -> &[Access] {
        match self {
            Self::None => &[],
            Self::One(access) => std::slice::from_ref(access),
            Self::Many(accesses) => accesses,
        }
    }

    /// Adds a read and forgets those that its reader has heard of.
    fn add(&mut self, access: Access, knowledge: &Knowledge) {
        match self {
            Self::None => *self = Self::One(access),
            Self::One(one) if knowledge.seen.knows(one.epoch) => *one = access,
            Self::One(one) => *self = Self::Many(vec![*one, access]),
            Self::Many(accesses) => {
                accesses.retain(|old| !knowledge.seen.knows(old.epoch));
                accesses.push(access);
            }
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Cell {
    /// `None`: never written.
    write: Option<Access>,
    reads: Reads,
    /// A copy will write it.
    in_flight: bool,
    /// An mbarrier lies here.
    mbarrier: bool,
}

/// A block's shared memory.
#[derive(Debug)]
pub struct SharedMemory {
    bytes: Vec<u8>,
    cells: Vec<Cell>,
    threads: u32,
}

impl SharedMemory {
    pub fn new(bytes: u32, threads: u32) -> Self {
        let cells = vec![Cell::default(); bytes.div_ceil(CELL_BYTES) as usize];
        Self { bytes: vec![poison::BYTE; bytes as usize], cells, threads }
    }

    /// The bytes at an address that was checked.
    pub fn bytes(&self, address: u32, bytes: u32) -> &[u8] {
        &self.bytes[(address - BASE) as usize..][..bytes as usize]
    }

    /// The same to write.
    pub fn bytes_mut(&mut self, address: u32, bytes: u32) -> &mut [u8] {
        &mut self.bytes[(address - BASE) as usize..][..bytes as usize]
    }

    fn who(&self, agent: Agent) -> String {
        let (agent, warps) = (agent as u32, self.threads / 32);
        if agent < self.threads {
            format!("thread {agent}")
        } else if agent < self.threads + warps {
            format!("the tensor cores for warp {}", agent - self.threads)
        } else {
            "a copy".to_owned()
        }
    }

    /// Checks that a place is there and aligned.
    pub fn check(&self, what: &str, address: u32, bytes: u32, alignment: u32, site: Site) -> Result<(), Problem> {
        if !address.is_multiple_of(alignment) {
            let message = format!("{what} at shared address {address:#x}, not a multiple of {alignment}, at {site}");
            return Err(Problem::new(Kind::Unaligned, message));
        }
        let end = BASE as u64 + self.bytes.len() as u64;
        if address < BASE || address as u64 + bytes as u64 > end {
            let message = format!(
                "{what} of {bytes} bytes at shared address {address:#x}; the block has {BASE:#x} to {end:#x}, at {site}"
            );
            return Err(Problem::new(Kind::OutOfBounds, message));
        }
        Ok(())
    }

    /// What an access of a cell by `access` collides with.
    fn collision(
        &self,
        cell: usize,
        what: &str,
        access: &Access,
        knowledge: &Knowledge,
        writes: bool,
    ) -> Option<Problem> {
        let Cell { write, reads, in_flight, mbarrier } = &self.cells[cell];
        let place = BASE + cell as u32 * CELL_BYTES;
        let site = access.site;
        let problem = |kind, message: String| {
            Some(Problem::new(kind, format!("{what} of shared address {place:#x} at {site}: {message}")))
        };
        if *mbarrier {
            return problem(Kind::MBarrier, "an mbarrier lies there".to_owned());
        }
        if let (true, Some(write)) = (*in_flight, write) {
            return problem(Kind::CopyInFlight, format!("the copy issued at {} may still write it", write.site));
        }
        if let Some(write) = write {
            let who = self.who(write.epoch.agent);
            if !knowledge.seen.knows(write.epoch) {
                return problem(Kind::Race, format!("nothing orders it after the write by {who} at {}", write.site));
            }
            let crosses = access.proxy == Proxy::Async && write.proxy == Proxy::Generic;
            if crosses && !knowledge.fenced.knows(write.epoch) {
                let message = format!("no fence.proxy.async after the write by {who} at {}", write.site);
                return problem(Kind::ProxyFence, message);
            }
        } else if !writes {
            return problem(Kind::Uninitialized, "nobody wrote it".to_owned());
        }
        if writes {
            let read = reads.as_slice().iter().find(|read| !knowledge.is_over(read.epoch))?;
            let who = self.who(read.epoch.agent);
            return problem(Kind::Race, format!("nothing orders it after the read by {who} at {}", read.site));
        }
        None
    }

    fn cells(address: u32, bytes: u32) -> std::ops::Range<usize> {
        ((address - BASE) / CELL_BYTES) as usize..(address - BASE + bytes).div_ceil(CELL_BYTES) as usize
    }

    /// Records a read of a place that was checked.
    pub fn read(
        &mut self,
        what: &str,
        (address, bytes): (u32, u32),
        access: Access,
        knowledge: &Knowledge,
    ) -> Result<(), Problem> {
        for index in Self::cells(address, bytes) {
            if let Some(problem) = self.collision(index, what, &access, knowledge, false) {
                return Err(problem);
            }
            self.cells[index].reads.add(access, knowledge);
        }
        Ok(())
    }

    /// Records a write to a place that was checked; `in_flight` if it is yet to come.
    pub fn write(
        &mut self,
        what: &str,
        (address, bytes): (u32, u32),
        access: Access,
        knowledge: &Knowledge,
        in_flight: bool,
    ) -> Result<(), Problem> {
        for index in Self::cells(address, bytes) {
            if let Some(problem) = self.collision(index, what, &access, knowledge, true) {
                return Err(problem);
            }
            self.cells[index] = Cell { write: Some(access), in_flight, ..Cell::default() };
        }
        Ok(())
    }

    /// The copy to a place has arrived.
    pub fn land(&mut self, address: u32, content: &[u8]) {
        let bytes = content.len() as u32;
        self.bytes_mut(address, bytes).copy_from_slice(content);
        for cell in &mut self.cells[Self::cells(address, bytes)] {
            cell.in_flight = false;
        }
    }

    /// Makes a place an mbarrier's. It was checked, and written by its initialisation.
    pub fn place_mbarrier(&mut self, address: u32) {
        for cell in &mut self.cells[Self::cells(address, 8)] {
            cell.mbarrier = true;
        }
    }
}

pub fn dynamic() -> u32 {
    run(|_| Ok(BASE))
}

/// A value as bytes.
trait Value {
    type Bytes: AsRef<[u8]> + AsMut<[u8]> + Default;
    fn to_bytes(self) -> Self::Bytes;
    fn from_bytes(bytes: Self::Bytes) -> Self;
}

macro_rules! value {
    ($($type:ty, $bytes:literal;)*) => { $(
        impl Value for $type {
            type Bytes = [u8; $bytes];

            fn to_bytes(self) -> Self::Bytes {
                self.to_le_bytes()
            }

            fn from_bytes(bytes: Self::Bytes) -> Self {
                Self::from_le_bytes(bytes)
            }
        }
    )* };
}

value! {
    u16, 2;
    u32, 4;
    f32, 4;
}

impl Value for [u32; 2] {
    type Bytes = [u8; 8];

    fn to_bytes(self) -> Self::Bytes {
        u64::to_le_bytes(self[0] as u64 | (self[1] as u64) << 32)
    }

    fn from_bytes(bytes: Self::Bytes) -> Self {
        let all = u64::from_le_bytes(bytes);
        [all as u32, (all >> 32) as u32]
    }
}

impl Value for [u32; 4] {
    type Bytes = [u8; 16];

    fn to_bytes(self) -> Self::Bytes {
        u128::to_le_bytes(self.iter().rev().fold(0, |sum, &word| sum << 32 | word as u128))
    }

    fn from_bytes(bytes: Self::Bytes) -> Self {
        let all = u128::from_le_bytes(bytes);
        [0, 32, 64, 96].map(|shift| (all >> shift) as u32)
    }
}

#[track_caller]
fn load<V: Value>(address: u32) -> V {
    let site = Location::caller();
    run(|cta| {
        let mut bytes = V::Bytes::default();
        let len = bytes.as_ref().len() as u32;
        cta.shared.check("ld.shared", address, len, len, site)?;
        let access = cta.access(site);
        let thread = &cta.threads[cta.current as usize];
        cta.shared.read("ld.shared", (address, len), access, &thread.knowledge)?;
        bytes.as_mut().copy_from_slice(cta.shared.bytes(address, len));
        Ok(V::from_bytes(bytes))
    })
}

#[track_caller]
fn store<V: Value>(address: u32, value: V) {
    let site = Location::caller();
    run(|cta| {
        let bytes = value.to_bytes();
        let bytes = bytes.as_ref();
        let len = bytes.len() as u32;
        cta.shared.check("st.shared", address, len, len, site)?;
        let access = cta.access(site);
        let thread = &cta.threads[cta.current as usize];
        cta.shared.write("st.shared", (address, len), access, &thread.knowledge, false)?;
        cta.shared.bytes_mut(address, len).copy_from_slice(bytes);
        Ok(())
    })
}

macro_rules! accessors {
    ($($load:ident $store:ident $type:ty;)*) => { $(
        #[track_caller]
        pub unsafe fn $load(address: u32) -> $type {
            load(address)
        }

        #[track_caller]
        pub unsafe fn $store(address: u32, value: $type) {
            store(address, value)
        }
    )* };
}

#[track_caller]
pub unsafe fn load_f32(address: u32) -> f32 {
    load(address)
}

#[track_caller]
pub unsafe fn store_f32(address: u32, value: f32) {
    poison::check("st.shared", &[value]);
    store(address, value)
}

accessors! {
    load_u32 store_u32 u32;
    load_u16 store_u16 u16;
    load_u32x2 store_u32x2 [u32; 2];
    load_u32x4 store_u32x4 [u32; 4];
}
