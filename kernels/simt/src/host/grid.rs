//! Here kernels run one after the other.

pub fn allow_dependents() {}

pub fn wait_for_prerequisite() {}
