//! The store's behaviour in memory.

/// A store in memory.
#[derive(Debug, Default)]
pub struct Model {}
