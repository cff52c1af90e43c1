//! Which protocol versions captures speak, and what they have in common.
//!
//! One number covers what captures say to each other and what they persist. A build speaks its own version and the one
//! before, so that a cluster is upgraded one capture at a time.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{CaptureId, ValueError};

/// The protocol versions that this build speaks with other captures, both ends included.
pub const PROTOCOL: ProtocolRange = ProtocolRange { min: 1, max: 1 };

/// The protocol versions that a capture speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtocolRange {
    /// Oldest.
    pub min: u32,
    /// Newest.
    pub max: u32,
}

impl ProtocolRange {
    /// Whether there is a version that both speak.
    pub fn meets(self, other: Self) -> bool {
        self.min.max(other.min) <= self.max.min(other.max)
    }

    /// The newest version that all of them speak. Who shares none with this one does not count: it reads nothing that is
    /// written here.
    pub fn common_version(self, peers: impl IntoIterator<Item = Self>) -> u32 {
        let known = peers.into_iter().filter(|peer| self.meets(*peer));
        known.fold(self.max, |newest, peer| newest.min(peer.max))
    }
}

impl fmt::Display for ProtocolRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max { write!(f, "{}", self.max) } else { write!(f, "{} to {}", self.min, self.max) }
    }
}

/// Why a capture has to end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Halt {
    /// The store holds something that this build cannot read.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// A capture that was there first speaks another protocol.
    #[error(
        "capture {peer}, release {release}, speaks protocol {theirs}, this build {PROTOCOL}: use a release that is \
         next to it, or end {peer} first"
    )]
    Protocol {
        /// Who.
        peer: CaptureId,
        /// What it runs.
        release: String,
        /// What it speaks.
        theirs: ProtocolRange,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn range(min: u32, max: u32) -> ProtocolRange {
        ProtocolRange { min, max }
    }

    #[test]
    fn ranges_meet_in_a_version_that_both_speak() {
        for (one, other, meet) in [
            (range(1, 1), range(1, 1), true),
            (range(1, 2), range(2, 3), true),
            (range(1, 1), range(2, 3), false),
            (range(1, 4), range(2, 3), true),
            (range(2, 3), range(4, 5), false),
        ] {
            assert_eq!((one.meets(other), other.meets(one)), (meet, meet), "{one} and {other}");
        }
    }

    #[test]
    fn values_are_written_in_the_newest_version_that_everybody_reads() {
        let ours = range(2, 3);
        assert_eq!(ours.common_version([]), 3, "alone");
        assert_eq!(ours.common_version([range(2, 3), range(3, 4)]), 3, "all as new");
        assert_eq!(ours.common_version([range(2, 3), range(1, 2)]), 2, "one is not upgraded yet");
        assert_eq!(ours.common_version([range(2, 3), range(1, 1)]), 3, "one that shares no version");
    }
}
