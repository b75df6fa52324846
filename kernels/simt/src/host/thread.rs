use std::panic::Location;

use super::barrier::sync_block;
use super::executor::{Cta, run};
use super::report::{Kind, Problem, Site};
use super::warp::{Operation, collective};

/// Registers of a multiprocessor, of which a block gets all.
pub const REGISTERS: u32 = 65536;
/// Registers of a thread at most.
const MAX_REGISTERS: u32 = 255;

/// Registers that a thread starts with, as many as the block's size allows.
pub fn initial_registers(threads: u32) -> u32 {
    (REGISTERS / threads).min(MAX_REGISTERS) / 8 * 8
}

pub fn thread_idx_x() -> u32 {
    run(|cta| Ok(cta.current))
}

pub fn block_idx_x() -> u32 {
    run(|cta| Ok(cta.block[0]))
}

/// As if each block had its own.
pub fn multiprocessor() -> u32 {
    block_idx_x()
}

pub fn block_idx_y() -> u32 {
    run(|cta| Ok(cta.block[1]))
}

pub fn block_idx_z() -> u32 {
    run(|cta| Ok(cta.block[2]))
}

pub fn grid_dim_x() -> u32 {
    run(|cta| Ok(cta.grid[0]))
}

#[track_caller]
pub fn sync_threads() {
    sync_block(Location::caller());
}

#[track_caller]
pub unsafe fn decrease_registers<const REGISTERS: u32>() {
    collective(Operation::SetRegisters { count: REGISTERS, more: false }, [0; 4], Location::caller());
}

#[track_caller]
pub unsafe fn increase_registers<const REGISTERS: u32>() {
    collective(Operation::SetRegisters { count: REGISTERS, more: true }, [0; 4], Location::caller());
}

impl Cta {
    /// `setmaxnreg` by a warp. Returns whether it must wait.
    pub fn set_registers(&mut self, warp: usize, count: u32, more: bool, site: Site) -> Result<bool, Problem> {
        let held = self.warps[warp].registers;
        let name = if more { "inc" } else { "dec" };
        let problem = |reason: &str| {
            let message = format!("setmaxnreg.{name} to {count} at {site}: {reason}; the warp holds {held} a thread");
            Err(Problem::new(Kind::Registers, message))
        };
        if !(24..=256).contains(&count) || !count.is_multiple_of(8) {
            return problem("not a multiple of 8 from 24 to 256");
        }
        if more && count < held || !more && count > held {
            return problem("that is the other direction");
        }
        let Some(warpgroup) = self.warpgroups.get_mut(warp / 4) else {
            return problem("the warp is not of a whole warpgroup");
        };
        warpgroup.set_registers(warp % 4, (count, more), site)?;
        if !more {
            self.warps[warp].registers = count;
            self.free_registers += (held - count) * 32;
            self.grant_registers();
            return Ok(false);
        }
        self.warps[warp].wanted = Some(count);
        self.grant_registers();
        Ok(self.warps[warp].wanted.is_some())
    }

    /// Gives free registers to the warps that wait for them, first come first served.
    fn grant_registers(&mut self) {
        for warp in 0..self.warps.len() {
            let Some(count) = self.warps[warp].wanted else { continue };
            let needed = (count - self.warps[warp].registers) * 32;
            if needed <= self.free_registers {
                self.free_registers -= needed;
                self.warps[warp].registers = count;
                self.warps[warp].wanted = None;
                (32 * warp as u32..32 * (warp as u32 + 1)).for_each(|thread| self.wake(thread));
            }
        }
    }
}
