//! Time as the decisions see it: it arrives with each event, nobody asks a clock.

use std::{ops, time::Duration};

use serde::{Deserialize, Serialize};

/// A moment on the monotonic clock of one process, counted from a start of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(pub Duration);

impl ops::Add<Duration> for Instant {
    type Output = Self;

    fn add(self, later: Duration) -> Self {
        Self(self.0.saturating_add(later))
    }
}

impl Instant {
    /// The time since `earlier`, or zero when that lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// A moment that outlives a process: milliseconds since 1970, UTC. For people and deadlines, never for fencing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMillis(pub u64);

/// Both clocks, read together when an event arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// For intervals and trust.
    pub monotonic: Instant,
    /// For what is persisted.
    pub wall: UnixMillis,
}
