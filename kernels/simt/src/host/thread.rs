use std::panic::Location;

use super::executor::{Cta, Waiting, hesitate, run, suspend, synchronises};
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
    let site = Location::caller();
    if synchronises("bar.sync", site) {
        return;
    }
    if run(|cta| cta.arrive_at_barrier(site)) {
        suspend();
    } else {
        hesitate();
    }
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
    /// Whether the running thread must wait for others.
    fn arrive_at_barrier(&mut self, site: Site) -> Result<bool, Problem> {
        let first = self.current / 32 * 32;
        for lane in first..first + 32 {
            let other = &self.threads[lane as usize];
            if other.waiting == Waiting::Block && other.site != site {
                let message = format!(
                    "lane {} is at bar.sync at {site}, lane {} at {}",
                    self.current % 32,
                    lane % 32,
                    other.site
                );
                return Err(Problem::new(Kind::Divergence, message));
            }
        }
        self.at_barrier += 1;
        if (self.at_barrier as usize) < self.threads.len() {
            self.block(Waiting::Block, site);
            return Ok(true);
        }
        self.at_barrier = 0;
        let threads = 0..self.threads.len() as u32;
        self.meet(threads.clone());
        threads.for_each(|thread| self.wake(thread));
        Ok(false)
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
