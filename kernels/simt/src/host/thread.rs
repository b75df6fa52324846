/// Panics: the operation named needs the SIMT executor.
macro_rules! needs_executor {
    ($instruction:literal) => {
        unimplemented!(concat!($instruction, " needs the SIMT executor"))
    };
}
pub(super) use needs_executor;

pub fn thread_idx_x() -> u32 {
    needs_executor!("%tid.x")
}

pub fn block_idx_x() -> u32 {
    needs_executor!("%ctaid.x")
}

pub fn block_idx_y() -> u32 {
    needs_executor!("%ctaid.y")
}

pub fn block_idx_z() -> u32 {
    needs_executor!("%ctaid.z")
}

pub fn grid_dim_x() -> u32 {
    needs_executor!("%nctaid.x")
}

pub fn sync_threads() {
    needs_executor!("bar.sync")
}

pub unsafe fn decrease_registers<const REGISTERS: u32>() {
    needs_executor!("setmaxnreg.dec")
}

pub unsafe fn increase_registers<const REGISTERS: u32>() {
    needs_executor!("setmaxnreg.inc")
}
