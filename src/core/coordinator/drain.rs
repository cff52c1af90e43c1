//! How a drain comes along and how it ends: the proof, and the ends that need none.

use super::{Coordinator, Output, standing::Standing};
use crate::{
    log::Line,
    measure::Measurement,
    model::{
        DrainEnd, DrainOutcome, DrainRecord, KeyName, Liveness, LivenessMark, Now, OnDeadline, VALUE_VERSION,
        WorkCount, encode,
    },
    mutant::Mutant,
    store::Op,
    view::View,
    write::Draft,
};

impl Coordinator {
    /// Ends the drain when its target is gone, or proven empty.
    pub(super) fn end_drain(&mut self, view: &View, now: Now) -> Option<Draft> {
        let record = &view.record.as_ref()?.value;
        if !view.is_registered(&record.incarnation()) && !self.mutants.has(Mutant::WaitsForTheGone) {
            self.announced.push(Line::warn("drain ended: target gone").drain(record));
            return Some(self.finish(view, record, DrainOutcome::TargetGone, now));
        }
        if !self.is_proven(view, record) {
            return None;
        }
        self.announced.push(Line::info("drain ended: target proven empty").drain(record));
        Some(self.finish(view, record, DrainOutcome::Drained, now))
    }

    /// The write that ends a drain: the record becomes history, and the target's liveness what follows from it.
    pub(super) fn finish(&self, view: &View, record: &DrainRecord, outcome: DrainOutcome, now: Now) -> Draft {
        let end = DrainEnd { version: VALUE_VERSION, outcome, ended_at_ms: now.wall, record: record.clone() };
        let (liveness, history) = (KeyName::Liveness(record.target.clone()), KeyName::DrainHistory(record.epoch));
        let draft = self.draft().require_same(view, &KeyName::Capture(record.target.clone()));
        let mark = LivenessMark {
            version: VALUE_VERSION,
            liveness: Liveness::Stopping,
            node_epoch: record.node_epoch,
            drain_epoch: record.epoch,
            unknown: std::collections::BTreeMap::new(),
        };
        if self.mutants.has(Mutant::CompletionIgnoresRecord) && outcome == DrainOutcome::Drained {
            let mark = Op::Put { key: liveness.key(), value: encode(&mark), lease: None };
            let end = Op::Put { key: history.key(), value: encode(&end), lease: None };
            return draft.operations(vec![mark, end]).delete_unseen(&KeyName::DrainRecord);
        }
        let draft = draft.put(view, &history, &end).delete(view, &KeyName::DrainRecord);
        let draft = if outcome == DrainOutcome::Drained {
            draft.put(view, &liveness, &mark)
        } else {
            draft.delete(view, &liveness)
        };
        let surplus = (view.history.len() + 1).saturating_sub(self.options.history_max);
        let oldest = view.history.keys().take(surplus.min(8));
        oldest.fold(draft, |draft, epoch| draft.delete(view, &KeyName::DrainHistory(*epoch)))
    }

    /// The positive proof, for this very drain: the sealed target says that it has nothing, and the present maintainer of
    /// every running changefeed says that it has nothing there and nothing on the way.
    fn is_proven(&self, view: &View, record: &DrainRecord) -> bool {
        if !self.is_ready() || view.liveness(&record.target) != Some(Liveness::Draining) {
            return false;
        }
        let heard = self.peers.get(&record.target).and_then(|peer| peer.report.as_ref());
        let empty =
            heard.is_some_and(|report| report.echo == self.state.stamp && report.inventory == WorkCount::default());
        let maintainers_agree = view.infos.keys().filter(|feed| Self::shall_run(view, feed)).all(|feed| {
            let Standing::Running(_, m) = self.standing(view, feed) else { return false };
            m.stamp == self.state.stamp
                && m.in_flight == 0
                && m.dispatchers.as_ref().is_some_and(|by_capture| !by_capture.contains_key(&record.target))
        });
        (empty || self.mutants.has(Mutant::ProofWithoutInventory))
            && (maintainers_agree || self.mutants.has(Mutant::ProofWithoutMaintainers))
    }

    /// Whether every registered capture has heard of the latest drain by now.
    fn follow_echoes(&mut self, now: Now) {
        let Some((told, since)) = self.unechoed else { return };
        if self.peers.values().all(|peer| peer.report.as_ref().is_some_and(|report| report.echo >= told)) {
            self.unechoed = None;
            let took = now.monotonic.since(since);
            self.outputs.push(Output::Measured(Measurement::DrainAcknowledged { took }));
        }
    }

    /// Watches the drain come along, and tells people.
    pub(super) fn follow_progress(&mut self, view: &View, now: Now) {
        self.follow_echoes(now);
        let Some(record) = view.record.as_ref().map(|kept| &kept.value) else { return };
        let remaining = self.remaining(record).map(|work| work.maintainers + work.dispatchers);
        let phase = self.phase(view, record);
        let blocked = self.blockers(view, record, now);
        let Some(progress) = &mut self.progress else { return };
        if remaining.is_some() && (progress.remaining.is_none() || remaining < progress.remaining) {
            progress.remaining = remaining;
            progress.moved_at = now.wall;
        }
        if progress.phase != Some(phase) {
            progress.phase = Some(phase);
            self.outputs.push(Output::Log(Line::info("drain phase").drain(record).with("phase", phase.as_str())));
        }
        if progress.blocked != blocked {
            let line = match blocked.first() {
                Some(reason) => Line::warn("drain is held up").with("error", &reason.to_string()),
                None => Line::info("drain goes on"),
            };
            progress.blocked = blocked;
            self.outputs.push(Output::Log(line.drain(record)));
        }
    }

    /// Whether the deadline has passed and the policy lets the pod go.
    pub(super) fn proceeds(record: &DrainRecord, now: Now) -> bool {
        record.overdue(now.wall) && record.on_deadline == OnDeadline::Proceed
    }
}
