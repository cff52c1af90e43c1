//! The plan of a changefeed: every span, where it is worked on, and how far it has come.
//!
//! Kept with indexes, so that an event costs a logarithm for each span that it names.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{CaptureId, CommitTs, Incarnation, Instant, Span, SpanId, WriterEpoch};
use std::sync::Arc;

/// Where a span's dispatcher is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nobody works on it: it waits for a destination, not before this time.
    Queued { not_before: Instant },
    /// Its creation was ordered.
    Creating { at: Site },
    /// It works.
    Working { at: Site },
    /// Its stop was ordered, and what follows is decided. From here it only goes forward.
    Stopping { at: Site, then: Then },
}

/// A dispatcher at a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Site {
    pub(super) host: Incarnation,
    pub(super) writer_epoch: WriterEpoch,
}

/// What follows a stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Then {
    /// It goes on at any destination.
    Requeue,
    /// Its table is gone.
    Drop,
    /// It becomes two.
    Split(Arc<[u8]>),
}

impl Stage {
    pub(super) fn site(&self) -> Option<&Site> {
        match self {
            Self::Queued { .. } => None,
            Self::Creating { at } | Self::Working { at } | Self::Stopping { at, .. } => Some(at),
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
    pub(super) attempt: u32,
    /// How often its dispatcher failed since it last came forward.
    pub(super) failures: u32,
    /// When its order is repeated.
    pub(super) due: Option<Instant>,
    /// Whether it is on the move from one capture to another.
    pub(super) moving: bool,
}

/// All spans of a changefeed.
#[derive(Debug, Default)]
pub(super) struct Spans {
    all: BTreeMap<SpanId, Planned>,
    by_host: BTreeMap<CaptureId, BTreeSet<SpanId>>,
    working: BTreeMap<CaptureId, BTreeSet<SpanId>>,
    by_table: BTreeMap<Arc<str>, BTreeSet<SpanId>>,
    by_checkpoint: BTreeSet<(CommitTs, SpanId)>,
    queued: BTreeSet<(Instant, SpanId)>,
    due: BTreeSet<(Instant, SpanId)>,
    moving: usize,
    creating: usize,
}

impl Spans {
    pub(super) fn get(&self, id: SpanId) -> Option<&Planned> {
        self.all.get(&id)
    }

    /// Puts a span into the plan, or a changed one back.
    pub(super) fn put(&mut self, planned: Planned) {
        let id = planned.span.id();
        self.take(id);
        self.by_table.entry(planned.span.table.clone()).or_default().insert(id);
        self.by_checkpoint.insert((planned.checkpoint_ts, id));
        if let Some(due) = planned.due {
            self.due.insert((due, id));
        }
        if let Stage::Queued { not_before } = planned.stage {
            self.queued.insert((not_before, id));
        }
        if let Some(site) = planned.stage.site() {
            self.by_host.entry(site.host.capture.clone()).or_default().insert(id);
        }
        if let Stage::Working { at } = &planned.stage {
            self.working.entry(at.host.capture.clone()).or_default().insert(id);
        }
        self.moving += usize::from(planned.moving);
        self.creating += usize::from(matches!(planned.stage, Stage::Creating { .. }));
        self.all.insert(id, planned);
    }

    /// Takes a span out of the plan.
    pub(super) fn take(&mut self, id: SpanId) -> Option<Planned> {
        let planned = self.all.remove(&id)?;
        remove(&mut self.by_table, &planned.span.table, id);
        self.by_checkpoint.remove(&(planned.checkpoint_ts, id));
        if let Some(due) = planned.due {
            self.due.remove(&(due, id));
        }
        if let Stage::Queued { not_before } = planned.stage {
            self.queued.remove(&(not_before, id));
        }
        if let Some(site) = planned.stage.site() {
            remove(&mut self.by_host, &site.host.capture, id);
            remove(&mut self.working, &site.host.capture, id);
        }
        self.moving -= usize::from(planned.moving);
        self.creating -= usize::from(matches!(planned.stage, Stage::Creating { .. }));
        Some(planned)
    }

    /// The spans of a table.
    pub(super) fn of_table(&self, table: &str) -> Vec<SpanId> {
        self.by_table.get(table).map(|ids| ids.iter().copied().collect()).unwrap_or_default()
    }

    /// The tables that have spans.
    pub(super) fn tables(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_table.keys()
    }

    /// All spans whose dispatcher is on a capture, in any stage.
    pub(super) fn on(&self, capture: &CaptureId) -> Vec<SpanId> {
        self.by_host.get(capture).map(|ids| ids.iter().copied().collect()).unwrap_or_default()
    }

    /// The first spans that work on a capture.
    pub(super) fn working_on(&self, capture: &CaptureId, count: usize) -> Vec<SpanId> {
        self.working.get(capture).map(|ids| ids.iter().take(count).copied().collect()).unwrap_or_default()
    }

    /// Captures that have something in any stage.
    pub(super) fn hosts(&self) -> Vec<CaptureId> {
        self.by_host.keys().cloned().collect()
    }

    /// How many spans are on each capture, in any stage, those on their way to it included.
    pub(super) fn counts(&self) -> BTreeMap<CaptureId, u64> {
        self.by_host.iter().map(|(id, spans)| (id.clone(), spans.len() as u64)).collect()
    }

    pub(super) fn count_on(&self, capture: &CaptureId) -> usize {
        self.by_host.get(capture).map_or(0, BTreeSet::len)
    }

    /// The queued span that may be placed first.
    pub(super) fn next_queued(&self, now: Instant) -> Option<SpanId> {
        self.queued.first().filter(|(not_before, _)| *not_before <= now).map(|(_, id)| *id)
    }

    /// A span whose order is to be repeated.
    pub(super) fn next_due(&self, now: Instant) -> Option<SpanId> {
        self.due.first().filter(|(due, _)| *due <= now).map(|(_, id)| *id)
    }

    /// When something is due.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// When the first queued span may be placed.
    pub(super) fn queue_at(&self) -> Option<Instant> {
        self.queued.first().map(|(not_before, _)| *not_before)
    }

    pub(super) fn moving(&self) -> usize {
        self.moving
    }

    pub(super) fn creating(&self) -> usize {
        self.creating
    }

    /// Whether every span works.
    pub(super) fn all_work(&self) -> bool {
        self.queued.is_empty() && self.creating == 0 && self.moving == 0
    }

    /// The lowest checkpoint of all spans.
    pub(super) fn lowest(&self) -> Option<CommitTs> {
        self.by_checkpoint.first().map(|(ts, _)| *ts)
    }

    /// The lowest checkpoint of the spans that work, for a broken version only.
    pub(super) fn lowest_working(&self) -> Option<CommitTs> {
        let working = |(_, id): &&(CommitTs, SpanId)| {
            self.all.get(id).is_some_and(|planned| matches!(planned.stage, Stage::Working { .. }))
        };
        self.by_checkpoint.iter().find(working).map(|(ts, _)| *ts)
    }

    /// The parts of a range of a table that no span covers.
    pub(super) fn gaps(&self, whole: &Span) -> Vec<Span> {
        let mut covered: Vec<&Span> = self
            .of_table(&whole.table)
            .into_iter()
            .filter_map(|id| self.all.get(&id).map(|planned| &planned.span))
            .filter(|span| span.overlaps(whole))
            .collect();
        covered.sort_by(|a, b| a.start.cmp(&b.start));
        let mut gaps = Vec::new();
        let mut from = whole.start.clone();
        for span in covered {
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

fn remove<K: Ord>(index: &mut BTreeMap<K, BTreeSet<SpanId>>, key: &K, id: SpanId) {
    if let Some(ids) = index.get_mut(key) {
        ids.remove(&id);
        if ids.is_empty() {
            index.remove(key);
        }
    }
}
