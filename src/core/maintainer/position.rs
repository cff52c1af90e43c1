//! How far the changefeed has come: computed over the whole plan, never lowered, persisted under the placement's fence.

use super::{Maintainer, Output};
use crate::{
    model::{CommitTs, Instant, KeyName, Position, VALUE_VERSION, encode},
    mutant::Mutant,
    store::{Compare, Op, Revision, Txn, TxnOutcome},
};

/// What is known of the persisted position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Persisted {
    /// It is being read; after that it may be written from `next` on.
    Reading { next: Instant },
    /// This, at that modification revision; 0: nothing.
    Known { checkpoint_ts: CommitTs, revision: Revision, next: Instant },
    /// A write of this is under way.
    Writing { checkpoint_ts: CommitTs },
}

impl Maintainer {
    pub(super) fn take_position(&mut self, position: Option<(Position, Revision)>) {
        let Persisted::Reading { next } = self.persisted else { return };
        let (checkpoint_ts, revision) =
            position.map_or((0, 0), |(position, revision)| (position.checkpoint_ts, revision));
        self.checkpoint_ts = self.checkpoint_ts.max(checkpoint_ts);
        self.resolved_ts = self.resolved_ts.max(checkpoint_ts);
        self.persisted = Persisted::Known { checkpoint_ts, revision, next: next.max(self.now) };
    }

    pub(super) fn take_outcome(&mut self, outcome: TxnOutcome) {
        let Persisted::Writing { checkpoint_ts } = self.persisted else { return };
        let next = self.now + self.options.heartbeat;
        self.persisted = match outcome {
            TxnOutcome::Committed(revision) => Persisted::Known { checkpoint_ts, revision, next },
            TxnOutcome::Refused(_) | TxnOutcome::Unknown => {
                self.outputs.push(Output::ReadPosition);
                Persisted::Reading { next }
            }
        };
    }

    /// The lowest of all spans, from their planning on, and of the table trigger.
    pub(super) fn raise_checkpoint(&mut self) {
        let spans = if self.mutants.has(Mutant::CheckpointSkipsPlanned) {
            self.spans.lowest_working()
        } else {
            self.spans.lowest()
        };
        let lowest = spans.unwrap_or(CommitTs::MAX).min(self.resolved_ts);
        self.checkpoint_ts = self.checkpoint_ts.max(lowest);
        while self.samples.len() > 1 && self.samples.get(1).is_some_and(|(ts, _)| *ts <= self.checkpoint_ts) {
            self.samples.pop_front();
        }
        if let Some((_, at_ms)) = self.samples.front().filter(|(ts, _)| *ts <= self.checkpoint_ts) {
            self.checkpoint_at_ms = *at_ms;
        }
    }

    /// When the position shall be persisted, if it has to be.
    pub(super) fn persist_at(&self) -> Option<Instant> {
        match self.persisted {
            Persisted::Known { checkpoint_ts, next, .. } if self.running && checkpoint_ts < self.checkpoint_ts => {
                Some(next)
            }
            _ => None,
        }
    }

    /// Persists the position, comparing the placement: a maintainer that was replaced cannot.
    pub(super) fn persist(&mut self) {
        let Persisted::Known { revision, .. } = self.persisted else { return };
        if self.persist_at().is_none_or(|at| at > self.now) {
            return;
        }
        let name = KeyName::Position(self.changefeed.clone());
        let position = Position { version: VALUE_VERSION, checkpoint_ts: self.checkpoint_ts };
        let place = KeyName::ChangefeedPlace(self.changefeed.clone());
        let mut compares = vec![Compare::Modified(place.key(), self.place_revision)];
        compares.push(Compare::Modified(name.key(), revision));
        if self.mutants.has(Mutant::PositionUnfenced) {
            compares.clear();
        }
        let ops = vec![Op::Put { key: name.key(), value: encode(&position), lease: None }];
        self.persisted = Persisted::Writing { checkpoint_ts: self.checkpoint_ts };
        self.outputs.push(Output::Write(Txn { compares, ops }));
    }
}
