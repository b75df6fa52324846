#[cfg(target_feature = "sm_90")]
use core::arch::asm;

#[inline(always)]
pub fn allow_dependents() {
    #[cfg(target_feature = "sm_90")]
    // SAFETY: it touches no memory.
    unsafe {
        asm!("griddepcontrol.launch_dependents;", options(nostack))
    }
}

#[inline(always)]
pub fn wait_for_prerequisite() {
    #[cfg(target_feature = "sm_90")]
    // SAFETY: it touches no memory.
    unsafe {
        asm!("griddepcontrol.wait;", options(nostack))
    }
}
