use std::panic::Location;

use super::executor::run;
use super::poison;
use super::report::{Kind, Problem};

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
    run(|cta| cta.memory.store(address, &bytes, site))
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
pub unsafe fn load_u16(address: u64) -> u16 {
    u16::from_le_bytes(load(address))
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

#[track_caller]
pub unsafe fn fetch_add_u32(address: u64, value: u32) -> u32 {
    let site = Location::caller();
    run(|cta| {
        if !cta.blocks_in_order {
            let message = format!("atom.global.add at {site} by a launch whose blocks do not run in order");
            return Err(Problem::new(Kind::Launch, message));
        }
        cta.memory.fetch_add(address, value, site)
    })
}
