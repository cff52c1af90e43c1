//! The time of day, for people and deadlines; never for fencing.

use std::time::{SystemTime, UNIX_EPOCH};

use capturedrain_core::model::UnixMillis;

/// Now.
pub fn wall() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
