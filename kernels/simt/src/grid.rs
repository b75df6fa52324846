//! Kernels that overlap: a *dependent* one may begin while the one before it on the stream, its *prerequisite*, still runs, if it is launched
//! so (programmatic dependent launch). Otherwise these do nothing, as before compute capability 9.0.

use crate::arch;

/// Lets a dependent kernel begin once every block of this one has come here, or has ended (`griddepcontrol.launch_dependents`). What this
/// kernel writes, before or after, is not ordered before anything in that one by this.
#[inline(always)]
pub fn allow_dependents() {
    arch::grid::allow_dependents()
}

/// Waits until the prerequisite has ended, and what it wrote is visible (`griddepcontrol.wait`).
#[inline(always)]
pub fn wait_for_prerequisite() {
    arch::grid::wait_for_prerequisite()
}
