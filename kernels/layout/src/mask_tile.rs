//! What a boolean mask shows of a key tile to the queries of an item: a word for each, so that tiles which it hides whole are neither
//! fetched nor multiplied, and where it shows all, nobody reads it.

/// No query sees any of its keys.
pub const HIDDEN: u32 = 0;
/// Some queries see some.
pub const MIXED: u32 = 1;
/// Every query sees every key.
pub const WHOLE: u32 = 2;
