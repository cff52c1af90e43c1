//! Who may write which part of a mirror. Pure: what is there comes in, what has to be written goes out.
//!
//! A fence is a key that names a range, the writer that has it, and how far that has come. Fences of a table are cut so
//! that none overlaps the one of a later writer: the earlier writer's key is gone then, and what it had besides stays under
//! its writer epoch. So the highest writer epoch that a key ever had is known for good.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use capturedrain_core::model::{CommitTs, Span, SpanId, WriterEpoch};
use serde::{Deserialize, Serialize};

use crate::pipeline::table::KeyRange;

/// The version of what is persisted.
const VERSION: u32 = 1;

/// A range of a table, and its writer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fence {
    pub(super) range: KeyRange,
    pub(super) writer: WriterEpoch,
    /// Tells two dispatchers apart that were given the same writer epoch; 0: nobody writes by this fence any more.
    pub(super) nonce: u64,
    /// How often it was written: no two transactions of a writer leave the same value.
    pub(super) count: u64,
    /// Every row of the range up to here is in the mirror.
    pub(super) applied_ts: CommitTs,
    /// Parts of which more is there already, by earlier writers.
    pub(super) ahead: Vec<Ahead>,
}

/// A range of which every row up to a commit timestamp is in the mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ahead {
    pub(super) range: KeyRange,
    pub(super) applied_ts: CommitTs,
}

/// A fence that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) fence: Fence,
    /// At which its key was written last.
    pub(super) revision: i64,
}

/// What a new writer has to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Raise {
    /// Nothing more: it has its range, by this fence.
    Held(Found),
    /// Nothing: this later writer was there.
    Refused(WriterEpoch),
    /// Write these groups, its own fence first; each group at once. `None` deletes.
    Write(Vec<Vec<(SpanId, Option<Fence>)>>),
}

/// What is persisted of a fence.
#[derive(Debug, Serialize, Deserialize)]
struct FenceValue {
    version: u32,
    writer: WriterEpoch,
    nonce: String,
    count: u64,
    applied_ts: CommitTs,
    start_base64: String,
    end_base64: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ahead: Vec<AheadValue>,
}

#[derive(Debug, Serialize, Deserialize)]
struct AheadValue {
    start_base64: String,
    end_base64: String,
    applied_ts: CommitTs,
}

fn range_of(start: &str, end: &str) -> Option<KeyRange> {
    Some(KeyRange { start: BASE64_STANDARD.decode(start).ok()?, end: BASE64_STANDARD.decode(end).ok()? })
}

impl Ahead {
    fn within(&self, range: &KeyRange) -> Option<Self> {
        Some(Self { range: self.range.shared(range)?, applied_ts: self.applied_ts })
    }
}

impl Fence {
    /// The fence of a new writer that starts after `start_ts` (0: with a snapshot, whatever was there).
    pub(super) fn new(range: KeyRange, writer: WriterEpoch, nonce: u64, start_ts: CommitTs, found: &[Found]) -> Self {
        let known = found.iter().flat_map(|Found { fence, .. }| {
            let whole = Ahead { range: fence.range.clone(), applied_ts: fence.applied_ts };
            std::iter::once(whole).chain(fence.ahead.iter().cloned())
        });
        let further = |ahead: &Ahead| start_ts > 0 && ahead.applied_ts > start_ts;
        let mut ahead: Vec<_> = known.filter_map(|ahead| ahead.within(&range)).filter(further).collect();
        let whole = ahead.iter().filter(|ahead| ahead.range == range).map(|ahead| ahead.applied_ts).max();
        let applied_ts = whole.unwrap_or(start_ts);
        ahead.retain(|ahead| ahead.applied_ts > applied_ts);
        Self { range, writer, nonce, count: 0, applied_ts, ahead }
    }

    /// The same fence, once more is in the mirror.
    pub(super) fn advanced(&self, applied_ts: CommitTs) -> Self {
        let applied_ts = self.applied_ts.max(applied_ts);
        let mut ahead = self.ahead.clone();
        ahead.retain(|ahead| ahead.applied_ts > applied_ts);
        Self { count: self.count + 1, applied_ts, ahead, ..self.clone() }
    }

    /// Whether a row is in the mirror already.
    pub(super) fn has(&self, key: &[u8], commit_ts: CommitTs) -> bool {
        commit_ts <= self.applied_ts
            || self.ahead.iter().any(|ahead| commit_ts <= ahead.applied_ts && ahead.range.contains(key))
    }

    /// What is left of it outside of a range: nobody writes by it any more.
    fn without(&self, range: &KeyRange) -> Vec<Self> {
        let left = self.range.without(range).into_iter();
        left.map(|left| Self {
            ahead: self.ahead.iter().filter_map(|ahead| ahead.within(&left)).collect(),
            range: left,
            nonce: 0,
            ..self.clone()
        })
        .collect()
    }

    fn id(&self, table: &str) -> SpanId {
        let KeyRange { start, end } = &self.range;
        Span { table: table.into(), start: start.as_slice().into(), end: end.as_slice().into() }.id()
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let value = FenceValue {
            version: VERSION,
            writer: self.writer,
            nonce: format!("{:016x}", self.nonce),
            count: self.count,
            applied_ts: self.applied_ts,
            start_base64: BASE64_STANDARD.encode(&self.range.start),
            end_base64: BASE64_STANDARD.encode(&self.range.end),
            ahead: self.ahead.iter().map(AheadValue::of).collect(),
        };
        // It has nothing that JSON cannot say.
        serde_json::to_vec(&value).unwrap_or_default()
    }

    /// `None` when it is not a fence of this version.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let value: FenceValue = serde_json::from_slice(bytes).ok()?;
        let ahead = value.ahead.iter().map(|ahead| {
            let range = range_of(&ahead.start_base64, &ahead.end_base64)?;
            Some(Ahead { range, applied_ts: ahead.applied_ts })
        });
        let fence = Self {
            range: range_of(&value.start_base64, &value.end_base64)?,
            writer: value.writer,
            nonce: u64::from_str_radix(&value.nonce, 16).ok()?,
            count: value.count,
            applied_ts: value.applied_ts,
            ahead: ahead.collect::<Option<_>>()?,
        };
        (value.version == VERSION).then_some(fence)
    }
}

impl AheadValue {
    fn of(ahead: &Ahead) -> Self {
        Self {
            start_base64: BASE64_STANDARD.encode(&ahead.range.start),
            end_base64: BASE64_STANDARD.encode(&ahead.range.end),
            applied_ts: ahead.applied_ts,
        }
    }
}

/// What a new writer has to do about the fences of its table, all of them as they are at one moment. Done again after each
/// write until it is held: a writer that was interrupted goes on where it was.
pub(super) fn raise(table: &str, found: &[Found], mine: &Fence) -> Raise {
    let overlapping: Vec<_> = found.iter().filter(|found| found.fence.range.shared(&mine.range).is_some()).collect();
    let is_mine = |found: &Found| found.fence.writer == mine.writer && found.fence.nonce == mine.nonce;
    let held = overlapping.iter().find(|found| is_mine(found));
    let others = || overlapping.iter().filter(|found| !is_mine(found));
    if let Some(later) = others().map(|found| found.fence.writer).filter(|writer| *writer >= mine.writer).max() {
        return Raise::Refused(later);
    }
    let mut groups = Vec::new();
    if held.is_none() {
        groups.push(vec![(mine.id(table), Some(mine.clone()))]);
    }
    for Found { fence, .. } in others().filter(|found| found.fence.range != mine.range) {
        let mut group = vec![(fence.id(table), None)];
        for left in fence.without(&mine.range) {
            let id = left.id(table);
            let known = found.iter().find(|found| found.fence.range == left.range);
            // Who has just this range, as of a later writer, is not to be disturbed.
            if known.is_none_or(|known| known.fence.writer < left.writer) {
                group.push((id, Some(left)));
            }
        }
        groups.push(group);
    }
    match held {
        Some(held) if groups.is_empty() => Raise::Held((*held).clone()),
        _ => Raise::Write(groups),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic, reason = "a test")]

    use std::collections::BTreeMap;

    use capturedrain_core::model::ChangefeedEpoch;

    use super::*;

    fn writer(counter: u64) -> WriterEpoch {
        WriterEpoch { changefeed: ChangefeedEpoch(1), counter }
    }

    fn range(start: &str, end: &str) -> KeyRange {
        KeyRange { start: start.into(), end: end.into() }
    }

    /// A table's fences, as a store would keep them.
    #[derive(Default)]
    struct Table(BTreeMap<SpanId, Fence>);

    impl Table {
        fn found(&self) -> Vec<Found> {
            self.0.values().map(|fence| Found { fence: fence.clone(), revision: 1 }).collect()
        }

        /// A writer comes for a range; at most so many groups a write.
        fn open(&mut self, (start, end): (&str, &str), counter: u64, start_ts: CommitTs) -> Result<Fence, WriterEpoch> {
            for _ in 0..100 {
                let found = self.found();
                let mine = Fence::new(range(start, end), writer(counter), counter, start_ts, &found);
                match raise("t", &found, &mine) {
                    Raise::Held(held) => return Ok(held.fence),
                    Raise::Refused(by) => return Err(by),
                    Raise::Write(groups) => self.write(&groups[..1]),
                }
            }
            panic!("it never ends");
        }

        fn write(&mut self, groups: &[Vec<(SpanId, Option<Fence>)>]) {
            for (id, fence) in groups.iter().flatten().cloned() {
                match fence {
                    Some(fence) => drop(self.0.insert(id, fence)),
                    None => drop(self.0.remove(&id)),
                }
            }
        }

        /// Whether that writer could write now.
        fn is_valid(&self, fence: &Fence) -> bool {
            self.0.values().any(|there| there == fence)
        }
    }

    #[test]
    fn a_later_writer_fences_an_earlier_one_off_and_never_the_other_way() {
        let mut table = Table::default();
        let first = table.open(("a", "m"), 1, 5).unwrap_or_else(|_| panic!("refused"));
        assert!(table.is_valid(&first));
        let second = table.open(("a", "m"), 2, 7).unwrap_or_else(|_| panic!("refused"));
        assert!(table.is_valid(&second) && !table.is_valid(&first));
        assert_eq!(table.open(("a", "m"), 1, 5), Err(writer(2)));
        assert!(table.is_valid(&second));
    }

    #[test]
    fn parts_of_a_split_come_in_any_order() {
        for order in [[2, 3], [3, 2]] {
            let mut table = Table::default();
            let whole = table.open(("a", "z"), 1, 5).unwrap_or_else(|_| panic!("refused"));
            let parts: Vec<_> = order
                .iter()
                .map(|counter| {
                    let range = if *counter == 2 { ("a", "m") } else { ("m", "z") };
                    table.open(range, *counter, 5).unwrap_or_else(|by| panic!("{counter} is refused by {by}"))
                })
                .collect();
            assert!(!table.is_valid(&whole) && parts.iter().all(|part| table.is_valid(part)));
            assert_eq!(table.open(("a", "z"), 1, 5).map(|_| ()), Err(writer(3)));
            assert_eq!(table.0.len(), 2, "what was taken is not kept");
        }
    }

    #[test]
    fn what_a_later_writer_did_not_take_keeps_its_fence() {
        let mut table = Table::default();
        table.open(("a", "z"), 5, 9).unwrap_or_else(|_| panic!("refused"));
        table.open(("a", "m"), 6, 9).unwrap_or_else(|_| panic!("refused"));
        // An old part of the same range, from before the whole: late.
        assert_eq!(table.open(("m", "z"), 4, 9), Err(writer(5)));
        assert_eq!(table.open(("p", "q"), 4, 9), Err(writer(5)));
        assert!(table.open(("m", "z"), 7, 9).is_ok());
    }

    #[test]
    fn two_dispatchers_with_one_writer_epoch_do_not_share_a_range() {
        let mut table = Table::default();
        table.open(("a", "m"), 1, 5).unwrap_or_else(|_| panic!("refused"));
        let mine = Fence::new(range("a", "m"), writer(1), 99, 5, &table.found());
        assert_eq!(raise("t", &table.found(), &mine), Raise::Refused(writer(1)));
    }

    #[test]
    fn rows_that_are_there_are_known_also_after_merges() {
        let mut table = Table::default();
        for (counter, bounds, applied) in [(1, ("a", "m"), 20), (2, ("m", "z"), 30)] {
            let fence = table.open(bounds, counter, 5).unwrap_or_else(|_| panic!("refused")).advanced(applied);
            table.0.insert(fence.id("t"), fence);
        }
        let whole = table.open(("a", "z"), 3, 10).unwrap_or_else(|_| panic!("refused"));
        assert_eq!(whole.applied_ts, 10);
        for (key, ts, there) in [("b", 20, true), ("b", 21, false), ("n", 30, true), ("n", 31, false), ("n", 9, true)] {
            assert_eq!(whole.has(key.as_bytes(), ts), there, "{key} at {ts}");
        }
        // It dies; the next one knows the same, and so do parts.
        let again = table.open(("a", "z"), 4, 10).unwrap_or_else(|_| panic!("refused"));
        assert_eq!((again.applied_ts, &again.ahead), (10, &whole.ahead));
        let part = table.open(("m", "z"), 5, 10).unwrap_or_else(|_| panic!("refused"));
        assert_eq!((part.applied_ts, part.ahead.len()), (30, 0));
        assert_eq!(whole.advanced(25).ahead.len(), 1);
        // A snapshot begins from nothing.
        let snapshot = table.open(("m", "z"), 6, 0).unwrap_or_else(|_| panic!("refused"));
        assert_eq!((snapshot.applied_ts, snapshot.ahead.len()), (0, 0));
    }

    #[test]
    fn fences_read_back() {
        let mut fence = Fence::new(range("a", "\u{ff}"), writer(7), u64::MAX, 5, &[]);
        fence.ahead.push(Ahead { range: range("b", "c"), applied_ts: 9 });
        assert_eq!(Fence::decode(&fence.encode()), Some(fence));
        for bad in ["", "{}", "[]", "{\"version\":1}"] {
            assert_eq!(Fence::decode(bad.as_bytes()), None, "{bad}");
        }
    }
}
