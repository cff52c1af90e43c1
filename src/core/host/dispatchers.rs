//! The dispatchers that run here, of one changefeed, found by their spans.

use std::{collections::BTreeMap, ops::Bound};

use crate::{
    model::{CommitTs, Span, SpanId, WriterEpoch},
    pages::{Pages, Slot},
};

/// A dispatcher that runs here.
#[derive(Debug)]
pub(super) struct Dispatcher {
    pub(super) span: Span,
    pub(super) writer_epoch: WriterEpoch,
    pub(super) checkpoint_ts: CommitTs,
    pub(super) state: DispatcherState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DispatcherState {
    Starting,
    Working,
    Stopping,
}

/// The dispatchers of one changefeed, by their spans.
#[derive(Debug, Default)]
pub(super) struct Dispatchers {
    all: Pages<Dispatcher>,
    by_span: BTreeMap<SpanId, Slot>,
}

impl Dispatchers {
    pub(super) fn len(&self) -> usize {
        self.by_span.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_span.is_empty()
    }

    pub(super) fn get(&self, span: SpanId) -> Option<&Dispatcher> {
        self.all.get(*self.by_span.get(&span)?)
    }

    pub(super) fn get_mut(&mut self, span: SpanId) -> Option<&mut Dispatcher> {
        self.all.get_mut(*self.by_span.get(&span)?)
    }

    pub(super) fn insert(&mut self, span: SpanId, dispatcher: Dispatcher) {
        let slot = self.all.insert(dispatcher);
        self.by_span.insert(span, slot);
    }

    /// Takes one out, if it is the one that is meant.
    pub(super) fn remove(&mut self, span: SpanId, writer_epoch: WriterEpoch) -> Option<Dispatcher> {
        self.get(span).filter(|dispatcher| dispatcher.writer_epoch == writer_epoch)?;
        self.all.remove(self.by_span.remove(&span)?)
    }

    /// Those after a span, in the order of their spans.
    pub(super) fn after(&self, span: Option<SpanId>) -> impl Iterator<Item = (SpanId, &Dispatcher)> {
        let from = span.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = self.by_span.range((from, Bound::Unbounded));
        rest.filter_map(|(span, slot)| Some((*span, self.all.get(*slot)?)))
    }
}
