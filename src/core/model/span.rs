//! Key ranges of a changefeed: tables, and the spans that they are cut into.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use xxhash_rust::xxh3::Xxh3;

/// A commit timestamp of the source; for an etcd source its revision.
pub type CommitTs = u64;

/// A key range `start..end` of one table. `end` is exclusive.
///
/// The table `""` holds the keys of the changefeed's prefix that have no further path segment, so its range covers
/// those of the other tables: a key belongs to a span when it is in the range *and* of the table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Span {
    /// The path segment below the changefeed's prefix, `""` for keys without one.
    pub table: Arc<str>,
    /// First key.
    pub start: Arc<[u8]>,
    /// First key after it.
    pub end: Arc<[u8]>,
}

impl Span {
    /// The name of the range: a hash of its bounds, the same in every process.
    pub fn id(&self) -> SpanId {
        let mut hash = Xxh3::new();
        for part in [self.table.as_bytes(), &self.start] {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.update(&self.end);
        SpanId(hash.digest())
    }

    /// The size of its names, in bytes.
    pub fn bytes(&self) -> usize {
        self.table.len() + self.start.len() + self.end.len()
    }

    /// Whether the two can share a row.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.table == other.table && self.start < other.end && other.start < self.end
    }
}

/// The name of a span, and of the dispatcher that works on it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpanId(pub u64);

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SpanId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

impl Serialize for SpanId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SpanId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
