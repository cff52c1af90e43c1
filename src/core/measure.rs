//! What has come to an end and is worth counting: a measurement is said once, and the driver adds it up.

use std::time::Duration;

use crate::{
    model::{DrainEpoch, DrainOutcome, Incarnation},
    store::Revision,
    view::View,
};

/// What happened, and how long it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measurement {
    /// A drain has ended. One capture of the cluster says so.
    DrainEnded {
        /// Which.
        epoch: DrainEpoch,
        /// How.
        outcome: DrainOutcome,
        /// From its persisted start to its persisted end.
        took: Duration,
    },
    /// Every registered capture has heard of a drain.
    DrainAcknowledged {
        /// Since this coordinator first told of it.
        took: Duration,
    },
    /// A move has ended.
    MoveEnded {
        /// What moved.
        kind: MoveKind,
        /// How it ended.
        outcome: MoveOutcome,
        /// Since its stop was ordered.
        took: Duration,
    },
}

/// What can move from one capture to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MoveKind {
    /// A maintainer.
    Maintainer,
    /// A dispatcher.
    Dispatcher,
}

impl MoveKind {
    /// Each of them.
    pub const ALL: [Self; 2] = [Self::Maintainer, Self::Dispatcher];

    /// The word that people and programs see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Maintainer => "maintainer",
            Self::Dispatcher => "dispatcher",
        }
    }
}

/// How a move can end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MoveOutcome {
    /// It arrived, and every order for it was given once.
    Done,
    /// It arrived after an order for it had to be repeated, or another destination be found.
    Retried,
    /// What moved is not wanted any more: its changefeed or its table is gone, or rests.
    Dropped,
}

impl MoveOutcome {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::Done, Self::Retried, Self::Dropped];

    /// The word that people and programs see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Retried => "retried",
            Self::Dropped => "dropped",
        }
    }

    /// How a move that arrived has ended.
    pub(crate) fn arrived(repeated: bool) -> Self {
        if repeated { Self::Retried } else { Self::Done }
    }
}

/// Says of each drain that it has ended, so that all captures together say it once.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    /// The last end that was looked at.
    seen: DrainEpoch,
}

impl Ends {
    /// The ends that are new in the view and this capture's to count: those since it took office, and the exception that
    /// it took for itself. An end is in one term only, so nobody else counts it, however late anybody sees it.
    pub(crate) fn new_ones(
        &mut self,
        view: &View,
        me: Option<&Incarnation>,
        office: Option<Revision>,
    ) -> Vec<Measurement> {
        let new = view.history.range(self.seen.next()..);
        let mine = new.filter(|(_, end)| match end.value.outcome {
            DrainOutcome::NoPeers => me == Some(&end.value.record.incarnation()),
            _ => office.is_some_and(|since| end.created > since),
        });
        let ended = mine.map(|(epoch, end)| {
            let took_ms = end.value.ended_at_ms.0.saturating_sub(end.value.record.started_at_ms.0);
            let (epoch, outcome) = (*epoch, end.value.outcome);
            Measurement::DrainEnded { epoch, outcome, took: Duration::from_millis(took_ms) }
        });
        let ended = ended.collect();
        // The newest stays in the history; a store that was restored may have an older one.
        self.seen = view.history.last_key_value().map(|(epoch, _)| *epoch).unwrap_or_default();
        ended
    }
}
