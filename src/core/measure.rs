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
    /// The hook of a pod has ended, and said so to this coordinator.
    HookEnded {
        /// How, as one of a bounded number of words.
        outcome: &'static str,
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        model::{DrainEnd, DrainRecord, NoPeersPolicy, NodeEpoch, OnDeadline, UnixMillis, VALUE_VERSION, WorkCount},
        view::Kept,
    };

    fn who(id: &str) -> Incarnation {
        Incarnation { capture: id.parse().unwrap(), node_epoch: NodeEpoch(1) }
    }

    /// A view with these ended drains of `target`: epoch, how, and the revision at which.
    fn view(ends: &[(u64, DrainOutcome, Revision)]) -> View {
        let end = |(epoch, outcome, created): &(u64, DrainOutcome, Revision)| {
            let record = DrainRecord {
                version: VALUE_VERSION,
                epoch: DrainEpoch(*epoch),
                target: who("target").capture,
                node_epoch: who("target").node_epoch,
                pod_uid: None,
                requesters: Vec::new(),
                reason: String::new(),
                started_at_ms: UnixMillis(1000),
                initial: WorkCount::default(),
                deadline_ms: None,
                on_deadline: OnDeadline::Hold,
                no_peers_policy: NoPeersPolicy::Hold,
                hook_deadline_ms: None,
                hook_report: None,
                avoid: Vec::new(),
                unknown: BTreeMap::new(),
            };
            let ended_at_ms = UnixMillis(1000 + created);
            let value = DrainEnd { version: VALUE_VERSION, outcome: *outcome, ended_at_ms, record };
            (DrainEpoch(*epoch), Kept { value, created: *created, modified: *created })
        };
        let mut view = View::default();
        view.history.extend(ends.iter().map(end));
        view
    }

    /// The epochs that a capture counts, one view after the other.
    fn check(me: &str, office: Option<Revision>, views: &[View], expected: &[u64]) {
        let mut ends = Ends::default();
        let counted = views.iter().flat_map(|view| ends.new_ones(view, Some(&who(me)), office));
        let counted: Vec<_> = counted
            .map(|measured| match measured {
                Measurement::DrainEnded { epoch, .. } => epoch.0,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(counted, expected);
    }

    const DRAINED: DrainOutcome = DrainOutcome::Drained;

    #[test]
    fn an_end_is_counted_once_by_whose_time_in_office_it_falls_into() {
        let (one, two) = (view(&[(1, DRAINED, 4)]), view(&[(1, DRAINED, 4), (2, DrainOutcome::TargetGone, 9)]));
        check("a", Some(3), std::slice::from_ref(&two), &[1, 2]);
        check("a", Some(3), &[one, two], &[1, 2]);
        // Its view skipped what its predecessor saw and counted.
        let both = view(&[(1, DRAINED, 4), (2, DRAINED, 9)]);
        check("b", Some(6), &[both], &[2]);
        check("follower", None, &[view(&[(1, DRAINED, 4)])], &[]);
    }

    #[test]
    fn an_exception_is_counted_by_the_target_that_took_it() {
        let exception = || view(&[(1, DrainOutcome::NoPeers, 4)]);
        check("target", None, &[exception()], &[1]);
        check("target", Some(6), &[exception()], &[1]);
        check("a", Some(3), &[exception()], &[]);
    }

    #[test]
    fn ends_are_counted_on_when_old_ones_are_deleted_or_the_store_went_back() {
        let later = view(&[(3, DRAINED, 12)]);
        check("a", Some(3), &[view(&[(1, DRAINED, 4), (2, DRAINED, 9)]), later], &[1, 2, 3]);
        let restored = [view(&[(5, DRAINED, 40)]), view(&[(1, DRAINED, 4)]), view(&[(1, DRAINED, 4), (2, DRAINED, 6)])];
        check("a", Some(3), &restored, &[5, 2]);
    }

    #[test]
    fn a_drain_lasted_from_its_persisted_start_to_its_persisted_end() {
        let ended = Ends::default().new_ones(&view(&[(1, DRAINED, 250)]), Some(&who("a")), Some(3));
        let took = Duration::from_millis(250);
        assert_eq!(ended, [Measurement::DrainEnded { epoch: DrainEpoch(1), outcome: DRAINED, took }]);
    }
}
