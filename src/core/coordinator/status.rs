//! What people and programs are shown of a drain: everything derived, nothing remembered.

use std::collections::BTreeMap;

use super::{Coordinator, HOOK_REPORTS_MAX, index::Mark, standing::Standing};
use crate::{
    model::{
        Blocker, CaptureId, ChangefeedId, ChangefeedStatus, DrainPhase, DrainRecord, DrainStatus, HookReport, Now,
        OnDeadline, WorkCount,
    },
    view::View,
};

impl Coordinator {
    /// What the target says that it has; unknown until it has heard of the drain.
    pub(super) fn remaining(&self, record: &DrainRecord) -> Option<WorkCount> {
        let told = self.progress.as_ref().filter(|progress| progress.epoch == record.epoch)?.told;
        let report = self.peers.get(&record.target)?.report.as_ref()?;
        (report.echo >= told).then_some(report.inventory)
    }

    pub(super) fn phase(&self, record: &DrainRecord) -> DrainPhase {
        let target = record.incarnation();
        let placed = self.index.hosted(&target).next().is_some();
        match self.remaining(record) {
            _ if placed => DrainPhase::MovingMaintainers,
            Some(work) if work.maintainers > 0 => DrainPhase::MovingMaintainers,
            Some(work) if work.dispatchers == 0 && self.index.in_flight() == 0 => DrainPhase::Proving,
            _ => DrainPhase::MovingDispatchers,
        }
    }

    /// What holds the drain up.
    pub(super) fn blockers(&self, view: &View, record: &DrainRecord, now: Now) -> Vec<Blocker> {
        let mut blockers = Vec::new();
        let others = view.captures.keys().filter(|id| **id != record.target);
        if !others.into_iter().any(|id| view.liveness(id) == Some(crate::model::Liveness::Alive)) {
            blockers.push(Blocker::NoDestination);
        }
        blockers.extend(self.unheard(now).into_iter().map(Blocker::UnheardCapture));
        if record.overdue(now.wall) && record.on_deadline == OnDeadline::Hold {
            blockers.push(Blocker::DeadlineHeld);
        }
        blockers
    }

    /// The drain that is on.
    pub(crate) fn drain_status(&self, view: &View, now: Now) -> Option<DrainStatus> {
        let record = &view.record.as_ref()?.value;
        let left = |feed: &ChangefeedId| match self.standing(view, feed) {
            Standing::Running(_, m) => Some((feed.clone(), *m.dispatchers.as_ref()?.get(&record.target)?)),
            _ => None,
        };
        let remaining_dispatchers = self.index.marked(Mark::Disagreeing).filter_map(left).collect();
        Some(DrainStatus {
            record: record.clone(),
            phase: self.phase(record),
            remaining: self.remaining(record),
            remaining_dispatchers,
            in_flight: WorkCount { maintainers: self.moves.len() as u64, dispatchers: self.index.in_flight() },
            last_progress_at_ms: self.progress.as_ref().map_or(record.started_at_ms, |progress| progress.moved_at),
            blocked_by: self.blockers(view, record, now),
            proceeds: Self::proceeds(record, now),
        })
    }

    /// How hooks have ended, those of earlier terms as far as they stand in the store; the latest last.
    pub(crate) fn hook_reports(&self, view: &View) -> Vec<HookReport> {
        let ended = view.history.values().map(|end| &end.value.record).rev().take(HOOK_REPORTS_MAX);
        let kept = ended.chain(view.record.as_ref().map(|kept| &kept.value));
        let mut reports: Vec<_> = kept.filter_map(|record| record.hook_report.as_deref().cloned()).collect();
        let told = self.hook_reports.iter().filter(|told| !reports.iter().any(|kept| kept.is_same(told)));
        let told: Vec<_> = told.cloned().collect();
        reports.extend(told);
        reports.sort_by(|one, other| (one.ended_at_ms, &one.capture).cmp(&(other.ended_at_ms, &other.capture)));
        reports.drain(..reports.len().saturating_sub(HOOK_REPORTS_MAX));
        reports
    }

    /// What a capture has, and whether it was heard lately.
    pub(crate) fn work_of(&self, id: &CaptureId, now: Now) -> (bool, Option<WorkCount>) {
        let report = self.peers.get(id).and_then(|peer| peer.report.as_ref());
        (report.is_some() && self.heard_within(id, 1, now), report.map(|report| report.inventory))
    }

    /// All changefeeds.
    pub(crate) fn changefeeds(&self, view: &View) -> BTreeMap<ChangefeedId, ChangefeedStatus> {
        let status = |(id, info): (&ChangefeedId, &crate::view::Kept<crate::model::ChangefeedInfo>)| {
            let running = match self.standing(view, id) {
                Standing::Running(host, m) => Some((host, m)),
                _ => None,
            };
            let report = running.map(|(_, m)| m);
            let status = ChangefeedStatus {
                config: info.value.config.clone(),
                state: info.value.state.clone(),
                warning: report.and_then(|m| m.warning.clone()),
                created_at_ms: info.value.created_at_ms,
                maintainer: running.map(|(host, m)| (host.capture.clone(), host.node_epoch, m.epoch)),
                checkpoint_ts: report.filter(|m| m.dispatchers.is_some()).map(|m| m.checkpoint_ts),
                checkpoint_at_ms: report.map(|m| m.checkpoint_at_ms).filter(|at| *at > 0),
                dispatchers: report.and_then(|m| m.dispatchers.clone()).unwrap_or_default(),
                in_flight: WorkCount {
                    maintainers: u64::from(self.moves.contains_key(id)),
                    dispatchers: report.map_or(0, |m| u64::from(m.in_flight)),
                },
            };
            (id.clone(), status)
        };
        view.infos.iter().map(status).collect()
    }

    /// How much work a capture has, as far as placements and its own report tell; `None` before its first report.
    pub(super) fn current_work(&self, view: &View, id: &CaptureId) -> Option<WorkCount> {
        let placed = view.incarnation(id).map_or(0, |target| self.index.hosted(&target).count());
        let (_, inventory) = self.work_of(id, Now::default());
        inventory.map(|work| WorkCount { maintainers: work.maintainers.max(placed as u64), ..work })
    }
}
