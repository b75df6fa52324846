use std::panic::Location;

use super::blocks::How;
use super::executor::{Blocks, Cta, Waiting, hesitate, run, suspend, synchronises};
use super::poison;
use super::report::{Kind, Problem, Site};

#[track_caller]
fn load<const BYTES: usize>(address: u64) -> [u8; BYTES] {
    let site = Location::caller();
    run(|cta| {
        let mut bytes = [0; BYTES];
        cta.memory.load("ld.global.nc", address, &mut bytes, BYTES as u64, site)?;
        Ok(bytes)
    })
}

#[track_caller]
fn store<const BYTES: usize>(address: u64, bytes: [u8; BYTES]) {
    let site = Location::caller();
    run(|cta| {
        cta.memory.store(address, &bytes, site)?;
        cta.access_global("st.global", (address, BYTES as u64), How::Store, site)
    })
}

/// Words from bytes, lowest first.
fn split<const WORDS: usize>(bytes: &[u8]) -> [u32; WORDS] {
    std::array::from_fn(|index| u32::from_le_bytes(std::array::from_fn(|byte| bytes[4 * index + byte])))
}

/// Bytes from words, lowest first.
fn join<const BYTES: usize>(words: &[u32]) -> [u8; BYTES] {
    std::array::from_fn(|index| words[index / 4].to_le_bytes()[index % 4])
}

#[track_caller]
pub unsafe fn load_u8_if(condition: bool, address: u64) -> u8 {
    if condition { u8::from_le_bytes(load(address)) } else { 0 }
}

#[track_caller]
pub unsafe fn load_u16_if(condition: bool, address: u64) -> u16 {
    if condition { u16::from_le_bytes(load(address)) } else { 0 }
}

#[track_caller]
pub unsafe fn load_f32_if(condition: bool, address: u64) -> f32 {
    if condition { f32::from_le_bytes(load(address)) } else { 0.0 }
}

#[track_caller]
pub unsafe fn load_u16(address: u64) -> u16 {
    u16::from_le_bytes(load(address))
}

#[track_caller]
pub unsafe fn load_u32(address: u64) -> u32 {
    u32::from_le_bytes(load(address))
}

#[track_caller]
pub unsafe fn load_f32(address: u64) -> f32 {
    f32::from_le_bytes(load(address))
}

#[track_caller]
pub unsafe fn load_f32x2(address: u64) -> [f32; 2] {
    split(&load::<8>(address)).map(f32::from_bits)
}

#[track_caller]
pub unsafe fn load_u32x4(address: u64) -> [u32; 4] {
    split(&load::<16>(address))
}

#[track_caller]
pub unsafe fn store_u16(address: u64, value: u16) {
    store(address, value.to_le_bytes());
}

#[track_caller]
pub unsafe fn store_f32(address: u64, value: f32) {
    poison::check("st.global", &[value]);
    store(address, value.to_le_bytes());
}

#[track_caller]
pub unsafe fn store_u32(address: u64, value: u32) {
    store(address, value.to_le_bytes());
}

#[track_caller]
pub unsafe fn store_u32x2(address: u64, value: [u32; 2]) {
    store::<8>(address, join(&value));
}

#[track_caller]
pub unsafe fn store_u32x4(address: u64, value: [u32; 4]) {
    store::<16>(address, join(&value));
}

pub fn evict_first() -> u64 {
    0
}

#[track_caller]
pub unsafe fn load_u32x4_hint(address: u64, _: u64) -> [u32; 4] {
    split(&load::<16>(address))
}

#[track_caller]
pub unsafe fn store_u32x2_hint(address: u64, value: [u32; 2], _: u64) {
    store::<8>(address, join(&value));
}

#[track_caller]
pub unsafe fn store_u32x4_hint(address: u64, value: [u32; 4], _: u64) {
    store::<16>(address, join(&value));
}

#[track_caller]
fn load_written<const BYTES: usize>(address: u64) -> [u8; BYTES] {
    let site = Location::caller();
    run(|cta| {
        // where blocks run in no certain order, others write nothing that this one may read
        if cta.blocks == Blocks::Parallel {
            return Ok(None);
        }
        let mut bytes = [0; BYTES];
        cta.memory.load_written("ld.global", address, &mut bytes, site)?;
        cta.access_global("ld.global", (address, BYTES as u64), How::Load, site)?;
        Ok(Some(bytes))
    })
    .unwrap_or_else(|| load(address))
}

#[track_caller]
pub unsafe fn load_written_u32(address: u64) -> u32 {
    u32::from_le_bytes(load_written(address))
}

#[track_caller]
pub unsafe fn load_written_f32(address: u64) -> f32 {
    f32::from_le_bytes(load_written(address))
}

#[track_caller]
pub unsafe fn load_written_f32x2(address: u64) -> [f32; 2] {
    split(&load_written::<8>(address)).map(f32::from_bits)
}

#[track_caller]
pub unsafe fn load_written_u32x4(address: u64) -> [u32; 4] {
    split(&load_written::<16>(address))
}

/// Adds atomically; acquires before and releases after it, if it is to.
fn fetch_add(what: &str, (address, value): (u64, u32), [acquires, releases]: [bool; 2], site: Site) -> u32 {
    let before = run(|cta| {
        cta.atomics_allowed(what, site)?;
        if acquires {
            cta.acquire(address);
        }
        let before = cta.memory.fetch_add(what, address, value, site)?;
        cta.access_global(what, (address, 4), How::AtomicAdd, site)?;
        if releases {
            cta.release(address);
        }
        Ok(before)
    });
    hesitate();
    before
}

#[track_caller]
pub unsafe fn fetch_add_u32(address: u64, value: u32) -> u32 {
    fetch_add("atom.global.add", (address, value), [false; 2], Location::caller())
}

#[track_caller]
pub unsafe fn fetch_add_acq_rel_u32(address: u64, value: u32) -> u32 {
    let site = Location::caller();
    let orders = !synchronises("atom.acq_rel", site);
    fetch_add("atom.acq_rel.gpu.global.add", (address, value), [orders; 2], site)
}

#[track_caller]
pub unsafe fn add_release_u32(address: u64, value: u32) {
    let site = Location::caller();
    let releases = !synchronises("red.release", site);
    fetch_add("red.release.gpu.global.add", (address, value), [false, releases], site);
}

#[track_caller]
pub unsafe fn wait_until_u32(address: u64, value: u32) {
    let site = Location::caller();
    if synchronises("ld.acquire", site) {
        return;
    }
    let there = |cta: &mut Cta| {
        cta.atomics_allowed("ld.acquire.gpu.global", site)?;
        let there = cta.memory.word(address, site)? == value;
        if there {
            cta.acquire(address);
            cta.access_global("ld.acquire.gpu.global", (address, 4), How::AtomicLoad, site)?;
        } else {
            cta.block(Waiting::Word { address, value }, site);
        }
        Ok(there)
    };
    while !run(there) {
        suspend();
    }
    hesitate();
}

impl Cta {
    /// What blocks say to each other depends on which of them goes first, which only a launch knows that runs them in a
    /// certain order.
    fn atomics_allowed(&self, what: &str, site: Site) -> Result<(), Problem> {
        match self.blocks {
            Blocks::Parallel => {
                let message = format!("{what} at {site} by a launch whose blocks run in no certain order");
                Err(Problem::new(Kind::Launch, message))
            }
            Blocks::InOrder | Blocks::Together => Ok(()),
        }
    }
}
