//! The project's verbs: `cargo xtask <verb>`.
fn main() {}
