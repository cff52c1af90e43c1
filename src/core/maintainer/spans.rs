//! The plan of a changefeed: every span, where it is worked on, and how far it has come.
//!
//! Kept with indexes, so that an event costs a logarithm for each span that it names. Indexes name a span by its
//! [`Slot`], a number of four bytes, and hold nothing twice: a million spans fit in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

use xxhash_rust::xxh3::xxh3_64;

pub(super) use crate::pages::Slot;
use crate::{
    model::{CaptureId, CommitTs, Incarnation, Instant, Span, SpanId, WriterEpoch},
    pages::Pages,
};

/// Where a span's dispatcher is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nobody works on it: it waits for a destination, not before this time.
    Queued { not_before: Instant },
    /// Its creation was ordered.
    Creating(Site),
    /// It works.
    Working(Site),
    /// Its stop was ordered, and what follows is decided. From here it only goes forward.
    Stopping(Site, Then),
}

/// A dispatcher at a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Site {
    pub(super) host: Arc<Incarnation>,
    pub(super) writer_epoch: WriterEpoch,
}

/// What follows a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// It goes on at any destination.
    Requeue,
    /// Its table is gone.
    Drop,
    /// It becomes two.
    Split,
}

impl Stage {
    pub(super) fn site(&self) -> Option<&Site> {
        match self {
            Self::Queued { .. } => None,
            Self::Working(at) | Self::Creating(at) | Self::Stopping(at, _) => Some(at),
        }
    }
}

/// A span of the plan.
#[derive(Debug, Clone)]
pub(super) struct Planned {
    pub(super) span: Span,
    pub(super) stage: Stage,
    pub(super) checkpoint_ts: CommitTs,
    /// How often an order for it had to be repeated, or was refused.
    pub(super) attempt: u16,
    /// How often its dispatcher failed since it last came forward.
    pub(super) failures: u16,
    /// Whether it is on the move from one capture to another.
    pub(super) moving: bool,
}

/// The spans of each table, by the hash of its name.
#[derive(Debug, Default)]
struct Tables {
    /// Most tables have one span.
    whole: BTreeMap<u64, Slot>,
    /// Others have several, by where they start.
    split: BTreeMap<u64, BTreeMap<Arc<[u8]>, Slot>>,
}

/// What is on a capture, in one life of it.
#[derive(Debug, Default)]
struct OnHost {
    working: BTreeSet<Slot>,
    /// In any other stage.
    ordered: BTreeSet<Slot>,
}

impl OnHost {
    fn len(&self) -> usize {
        self.working.len() + self.ordered.len()
    }
}

/// All spans of a changefeed.
#[derive(Debug, Default)]
pub(super) struct Spans {
    all: Pages<Planned>,
    by_id: BTreeMap<SpanId, Slot>,
    by_table: Tables,
    by_host: BTreeMap<Arc<Incarnation>, OnHost>,
    /// How many spans are at each checkpoint.
    checkpoints: BTreeMap<CommitTs, usize>,
    /// Those on the move are apart: the limit on their number is another.
    queued: BTreeSet<(Instant, Slot)>,
    queued_moves: BTreeSet<(Instant, Slot)>,
    /// When the order that was sent for a span is repeated, of those for which one was.
    due: BTreeMap<Slot, Instant>,
    by_due: BTreeSet<(Instant, Slot)>,
    moving: usize,
    creating: usize,
}

impl Spans {
    pub(super) fn find(&self, id: SpanId) -> Option<Slot> {
        self.by_id.get(&id).copied()
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&Planned> {
        self.all.get(slot)
    }

    /// Puts a new span into the plan. Where one of the same range is, it replaces it.
    pub(super) fn insert(&mut self, planned: Planned) -> Slot {
        let id = planned.span.id();
        if let Some(former) = self.find(id) {
            self.remove(former);
        }
        self.count_checkpoint(planned.checkpoint_ts);
        let (table, start) = (table_hash(&planned.span.table), planned.span.start.clone());
        let marks = Marks::of(&planned);
        let slot = self.all.insert(planned);
        self.by_id.insert(id, slot);
        self.add_to_table(table, start, slot);
        self.index(slot, &marks);
        slot
    }

    /// Takes a span out of the plan.
    pub(super) fn remove(&mut self, slot: Slot) -> Option<Planned> {
        let planned = self.all.remove(slot)?;
        self.by_id.remove(&planned.span.id());
        self.take_from_table(&planned.span);
        self.drop_checkpoint(planned.checkpoint_ts);
        self.unindex(slot, &Marks::of(&planned));
        self.forget_order(slot);
        Some(planned)
    }

    /// An order was sent for a span: it is repeated then, unless the span gets to another stage before.
    pub(super) fn repeat_at(&mut self, slot: Slot, due: Instant) {
        self.forget_order(slot);
        self.due.insert(slot, due);
        self.by_due.insert((due, slot));
    }

    fn forget_order(&mut self, slot: Slot) {
        if let Some(due) = self.due.remove(&slot) {
            self.by_due.remove(&(due, slot));
        }
    }

    /// Changes a span, but not its range. An order that was sent for its stage is not repeated in another.
    pub(super) fn change<R>(&mut self, slot: Slot, change: impl FnOnce(&mut Planned) -> R) -> Option<R> {
        let planned = self.all.get_mut(slot)?;
        let (before, from) = (Marks::of(planned), planned.checkpoint_ts);
        let result = change(planned);
        let (after, to) = (Marks::of(planned), planned.checkpoint_ts);
        if before != after {
            self.unindex(slot, &before);
            self.index(slot, &after);
            self.forget_order(slot);
        }
        if from != to {
            self.drop_checkpoint(from);
            self.count_checkpoint(to);
        }
        Some(result)
    }

    fn index(&mut self, slot: Slot, marks: &Marks) {
        if let Some(host) = &marks.host {
            let on = self.by_host.entry(host.clone()).or_default();
            if marks.kind == Kind::Working {
                on.working.insert(slot)
            } else {
                on.ordered.insert(slot)
            };
        }
        if let Some(not_before) = marks.queued {
            let queue = if marks.moving { &mut self.queued_moves } else { &mut self.queued };
            queue.insert((not_before, slot));
        }
        self.moving += usize::from(marks.moving);
        self.creating += usize::from(marks.kind == Kind::Creating && !marks.moving);
    }

    fn unindex(&mut self, slot: Slot, marks: &Marks) {
        if let Some(host) = &marks.host
            && let Some(on) = self.by_host.get_mut(host)
        {
            if marks.kind == Kind::Working {
                on.working.remove(&slot)
            } else {
                on.ordered.remove(&slot)
            };
            if on.len() == 0 {
                self.by_host.remove(host);
            }
        }
        if let Some(not_before) = marks.queued {
            let queue = if marks.moving { &mut self.queued_moves } else { &mut self.queued };
            queue.remove(&(not_before, slot));
        }
        self.moving -= usize::from(marks.moving);
        self.creating -= usize::from(marks.kind == Kind::Creating && !marks.moving);
    }

    fn count_checkpoint(&mut self, checkpoint_ts: CommitTs) {
        *self.checkpoints.entry(checkpoint_ts).or_default() += 1;
    }

    fn drop_checkpoint(&mut self, checkpoint_ts: CommitTs) {
        if let Some(count) = self.checkpoints.get_mut(&checkpoint_ts) {
            *count -= 1;
            if *count == 0 {
                self.checkpoints.remove(&checkpoint_ts);
            }
        }
    }

    fn add_to_table(&mut self, table: u64, start: Arc<[u8]>, slot: Slot) {
        let Tables { whole, split } = &mut self.by_table;
        if let Some(spans) = split.get_mut(&table) {
            spans.insert(start, slot);
        } else if let Some(first) = whole.remove(&table) {
            let first_start = self.all.get(first).map(|planned| planned.span.start.clone()).unwrap_or_default();
            split.insert(table, BTreeMap::from([(first_start, first), (start, slot)]));
        } else {
            whole.insert(table, slot);
        }
    }

    fn take_from_table(&mut self, span: &Span) {
        let table = table_hash(&span.table);
        let Tables { whole, split } = &mut self.by_table;
        match split.get_mut(&table) {
            Some(spans) => {
                spans.remove(&span.start);
                if spans.is_empty() {
                    split.remove(&table);
                }
            }
            None => drop(whole.remove(&table)),
        }
    }

    /// The spans of a table, by where they start.
    pub(super) fn of_table<'a>(&'a self, table: &'a str) -> impl Iterator<Item = Slot> + 'a {
        let hash = table_hash(table);
        let split = self.by_table.split.get(&hash).into_iter().flat_map(BTreeMap::values);
        let named = move |slot: &Slot| self.all.get(*slot).is_some_and(|planned| *planned.span.table == *table);
        self.by_table.whole.get(&hash).into_iter().chain(split).copied().filter(named)
    }

    /// Whether a table has any spans.
    pub(super) fn has_table(&self, table: &str) -> bool {
        self.of_table(table).next().is_some()
    }

    /// The spans that share rows with a range, by where they start. Spans of the plan never share rows with each other.
    pub(super) fn overlapping(&self, range: &Span) -> Vec<Slot> {
        let hash = table_hash(&range.table);
        let whole = self.by_table.whole.get(&hash).into_iter();
        let split = self.by_table.split.get(&hash).into_iter().flat_map(|spans| {
            let before = spans.range(..range.start.clone()).next_back();
            let within = spans.range((Bound::Included(range.start.clone()), Bound::Excluded(range.end.clone())));
            before.into_iter().chain(within).map(|(_, slot)| slot)
        });
        let overlaps = |slot: &Slot| self.all.get(*slot).is_some_and(|planned| planned.span.overlaps(range));
        whole.chain(split).copied().filter(overlaps).collect()
    }

    /// Spans whose dispatcher is on a host, in any stage: the first few.
    pub(super) fn on(&self, host: &Incarnation, count: usize) -> Vec<Slot> {
        let on = self.by_host.get(host);
        on.map(|on| on.ordered.iter().chain(&on.working).take(count).copied().collect()).unwrap_or_default()
    }

    /// The first spans that work on a host.
    pub(super) fn working_on(&self, host: &Incarnation, count: usize) -> Vec<Slot> {
        self.by_host.get(host).map(|on| on.working.iter().take(count).copied().collect()).unwrap_or_default()
    }

    /// Hosts that have something in any stage.
    pub(super) fn hosts(&self) -> impl Iterator<Item = &Arc<Incarnation>> {
        self.by_host.keys()
    }

    /// How many spans are on each capture, in any stage, those on their way to it included.
    pub(super) fn counts(&self) -> BTreeMap<CaptureId, u64> {
        let mut counts = BTreeMap::new();
        for (host, on) in &self.by_host {
            *counts.entry(host.capture.clone()).or_default() += on.len() as u64;
        }
        counts
    }

    pub(super) fn is_on(&self, capture: &CaptureId) -> bool {
        self.by_host.keys().any(|host| host.capture == *capture)
    }

    pub(super) fn count_on(&self, host: &Incarnation) -> usize {
        self.by_host.get(host).map_or(0, OnHost::len)
    }

    /// The queued span that may be placed first: one on the move, else any other.
    pub(super) fn next_queued(&self, now: Instant, only_moves: bool) -> Option<Slot> {
        let others = self.queued.first().filter(|_| !only_moves);
        let mut first = self.queued_moves.first().into_iter().chain(others);
        first.find(|(not_before, _)| *not_before <= now).map(|(_, slot)| *slot)
    }

    /// A span whose order is to be repeated.
    pub(super) fn next_due(&self, now: Instant) -> Option<Slot> {
        self.by_due.first().filter(|(due, _)| *due <= now).map(|(_, slot)| *slot)
    }

    /// When something is due.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.by_due.first().map(|(due, _)| *due)
    }

    /// When the first queued span may be placed, of those that have to wait until then.
    pub(super) fn queue_after(&self, now: Instant) -> Option<Instant> {
        let after = |queue: &BTreeSet<(Instant, Slot)>| {
            let waiting = (Bound::Excluded((now, Slot::LAST)), Bound::Unbounded);
            queue.range(waiting).next().map(|(not_before, _)| *not_before)
        };
        after(&self.queued).into_iter().chain(after(&self.queued_moves)).min()
    }

    pub(super) fn moving(&self) -> usize {
        self.moving
    }

    /// Creations under way, those of moves left out.
    pub(super) fn creating(&self) -> usize {
        self.creating
    }

    /// Whether every span works.
    pub(super) fn all_work(&self) -> bool {
        self.queued.is_empty() && self.creating == 0 && self.moving == 0
    }

    /// The lowest checkpoint of all spans.
    pub(super) fn lowest(&self) -> Option<CommitTs> {
        self.checkpoints.keys().next().copied()
    }

    /// The lowest checkpoint of the spans that work, for a broken version only.
    pub(super) fn lowest_working(&self) -> Option<CommitTs> {
        let working = self.by_host.values().flat_map(|on| &on.working);
        working.filter_map(|slot| self.all.get(*slot).map(|planned| planned.checkpoint_ts)).min()
    }

    /// The parts of a range of a table that no span covers.
    pub(super) fn gaps(&self, whole: &Span) -> Vec<Span> {
        let mut gaps = Vec::new();
        let mut from = whole.start.clone();
        for slot in self.overlapping(whole) {
            let Some(Planned { span, .. }) = self.all.get(slot) else { continue };
            if span.start > from {
                gaps.push(Span { table: whole.table.clone(), start: from.clone(), end: span.start.clone() });
            }
            from = from.max(span.end.clone());
        }
        if from < whole.end {
            gaps.push(Span { table: whole.table.clone(), start: from, end: whole.end.clone() });
        }
        gaps
    }
}

/// A stage without what belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Queued,
    Creating,
    Working,
    Stopping,
}

/// What the indexes know of a span.
#[derive(Debug, PartialEq, Eq)]
struct Marks {
    host: Option<Arc<Incarnation>>,
    kind: Kind,
    queued: Option<Instant>,
    moving: bool,
}

impl Marks {
    fn of(planned: &Planned) -> Self {
        Self {
            host: planned.stage.site().map(|at| at.host.clone()),
            kind: match planned.stage {
                Stage::Queued { .. } => Kind::Queued,
                Stage::Creating(_) => Kind::Creating,
                Stage::Working(_) => Kind::Working,
                Stage::Stopping(..) => Kind::Stopping,
            },
            queued: match planned.stage {
                Stage::Queued { not_before } => Some(not_before),
                _ => None,
            },
            moving: planned.moving,
        }
    }
}

fn table_hash(name: &str) -> u64 {
    xxh3_64(name.as_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    fn span(table: &str, start: &str, end: &str) -> Span {
        Span { table: table.into(), start: start.as_bytes().into(), end: end.as_bytes().into() }
    }

    fn plan(ranges: &[(&str, &str)]) -> Spans {
        let mut spans = Spans::default();
        for (start, end) in ranges {
            let stage = Stage::Queued { not_before: Instant::default() };
            let planned = Planned {
                span: span("t", start, end),
                stage,
                checkpoint_ts: 1,
                attempt: 0,
                failures: 0,
                moving: false,
            };
            spans.insert(planned);
        }
        spans
    }

    fn check(ranges: &[(&str, &str)], whole: (&str, &str), gaps: &[(&str, &str)]) {
        let found = plan(ranges).gaps(&span("t", whole.0, whole.1));
        let expected: Vec<_> = gaps.iter().map(|(start, end)| span("t", start, end)).collect();
        assert_eq!(found, expected, "{ranges:?} in {whole:?}");
    }

    #[test]
    fn gaps_are_what_no_span_covers() {
        check(&[], ("a", "z"), &[("a", "z")]);
        check(&[("a", "z")], ("a", "z"), &[]);
        check(&[("c", "f")], ("a", "z"), &[("a", "c"), ("f", "z")]);
        check(&[("a", "c"), ("f", "h"), ("h", "z")], ("a", "z"), &[("c", "f")]);
        check(&[("a", "m"), ("p", "t")], ("c", "q"), &[("m", "p")]);
        check(&[("a", "b"), ("y", "z")], ("c", "d"), &[("c", "d")]);
    }

    #[test]
    fn a_span_is_small() {
        assert!(size_of::<Option<Planned>>() <= 96, "{} bytes", size_of::<Option<Planned>>());
    }

    #[test]
    fn indexes_follow_each_change_and_end_empty() {
        let mut spans = plan(&[("a", "c"), ("c", "f"), ("f", "z")]);
        let host =
            Arc::new(Incarnation { capture: CaptureId::new("c").unwrap(), node_epoch: crate::model::NodeEpoch(1) });
        let slots: Vec<_> = spans.of_table("t").collect();
        for slot in &slots {
            let at = Site { host: host.clone(), writer_epoch: WriterEpoch::default() };
            spans.change(*slot, |planned| planned.stage = Stage::Creating(at.clone()));
            spans.repeat_at(*slot, Instant::default());
            assert_eq!((spans.creating(), spans.next_due(Instant::default())), (1, Some(*slot)));
            spans.change(*slot, |planned| {
                planned.stage = Stage::Working(at);
                planned.checkpoint_ts += 1;
            });
        }
        assert!(spans.all_work());
        assert_eq!((spans.lowest(), spans.count_on(&host)), (Some(2), 3));
        for slot in slots {
            assert!(spans.remove(slot).is_some());
        }
        assert_eq!((spans.lowest(), spans.count_on(&host), spans.has_table("t")), (None, 0, false));
        assert_eq!((spans.wake_at(), spans.counts().len()), (None, 0));
    }
}
