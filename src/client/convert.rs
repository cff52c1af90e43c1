//! What the protocol says, as people and programs are shown it.

use capturedrain_core::model::{UnixMillis, WorkCount};

use crate::{
    view::{BlockerView, CaptureView, DrainEndView, DrainView, HookReportView, WorkView, eta_seconds, moment},
    wire::pb,
};

/// All that is known of drains at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterView {
    /// The drain that is on.
    pub drain: DrainView,
    /// When that began.
    pub started_at_ms: u64,
    /// The registration that it is for; empty without a drain.
    pub node_epoch: String,
    /// All registered captures.
    pub captures: Vec<CaptureView>,
    /// The latest end of any drain.
    pub last_end: Option<DrainEndView>,
    /// How hooks of pods have ended lately, the latest last.
    pub hook_reports: Vec<HookReportView>,
}

impl ClusterView {
    pub(super) fn read(view: pb::DrainView) -> Result<Self, String> {
        let captures: Vec<_> = view.captures.into_iter().map(capture).collect();
        let record = view.drain.as_ref().and_then(|drain| drain.record.as_ref());
        let (started_at_ms, node_epoch) =
            record.map(|record| (record.started_unix_ms, record.node_epoch.clone())).unwrap_or_default();
        let drain = match view.drain {
            Some(drain) => drain_view(drain, &captures)?,
            None => DrainView { drain_epoch: view.last_epoch, ..DrainView::default() },
        };
        let hook_reports = view.hook_reports.into_iter().map(hook_report).collect();
        Ok(Self { drain, started_at_ms, node_epoch, captures, last_end: view.last_end.map(end), hook_reports })
    }

    /// How long the drain may still take, given how long it has been on.
    pub fn eta_seconds(&self, now: UnixMillis) -> Option<u64> {
        let count = |work: WorkView| WorkCount { maintainers: work.maintainers, dispatchers: work.dispatchers };
        let left = WorkCount {
            maintainers: self.drain.remaining_maintainer_count?,
            dispatchers: self.drain.remaining_dispatcher_count?,
        };
        eta_seconds(count(self.drain.initial?), left, now.0.saturating_sub(self.started_at_ms))
    }
}

fn work(count: pb::WorkCount) -> WorkView {
    WorkView { maintainers: count.maintainers, dispatchers: count.dispatchers }
}

fn drain_view(drain: pb::Drain, captures: &[CaptureView]) -> Result<DrainView, String> {
    let record = drain.record.ok_or("a drain without its record")?;
    let target = captures.iter().find(|at| at.id == record.target && at.node_epoch == record.node_epoch);
    let blocker = |blocker: pb::Blocker| BlockerView {
        kind: blocker.kind,
        name: Some(blocker.name).filter(|name| !name.is_empty()),
    };
    Ok(DrainView {
        is_draining: true,
        liveness: target.map(|at| at.liveness.clone()),
        draining_capture_id: Some(record.target),
        drain_epoch: record.drain_epoch,
        phase: Some(drain.phase),
        remaining_maintainer_count: drain.remaining.map(|left| left.maintainers),
        remaining_dispatcher_count: drain.remaining.map(|left| left.dispatchers),
        remaining_dispatchers: drain.remaining_dispatchers,
        in_flight: drain.in_flight.map(work),
        initial: record.initial.map(work),
        eta_seconds: None,
        blocked_by: drain.blocked_by.into_iter().map(blocker).collect(),
        requesters: record.requesters,
        reason: Some(record.reason).filter(|reason| !reason.is_empty()),
        started_at: Some(moment(UnixMillis(record.started_unix_ms))),
        last_progress_at: Some(moment(UnixMillis(drain.last_progress_unix_ms))),
        proceeds: drain.proceeds,
    })
}

pub(super) fn end(end: pb::DrainEnd) -> DrainEndView {
    let record = end.record.unwrap_or_default();
    DrainEndView {
        drain_epoch: record.drain_epoch,
        target: record.target,
        node_epoch: record.node_epoch,
        outcome: end.outcome,
        initial: record.initial.map(work).unwrap_or_default(),
        requesters: record.requesters,
        reason: Some(record.reason).filter(|reason| !reason.is_empty()),
        started_at: moment(UnixMillis(record.started_unix_ms)),
        ended_at: moment(UnixMillis(end.ended_unix_ms)),
        duration_ms: end.ended_unix_ms.saturating_sub(record.started_unix_ms),
    }
}

fn hook_report(report: pb::HookReport) -> HookReportView {
    HookReportView {
        capture: report.capture_id,
        pod_name: report.pod_name,
        pod_uid: report.pod_uid,
        outcome: report.outcome,
        sentence: report.sentence,
        started_at_ms: report.started_unix_ms,
        ended_at_ms: report.ended_unix_ms,
    }
}

pub(super) fn capture(capture: pb::Capture) -> CaptureView {
    let liveness = match capture.liveness() {
        pb::Liveness::Unspecified => "Unknown",
        pb::Liveness::Alive => "Alive",
        pb::Liveness::Draining => "Draining",
        pb::Liveness::Stopping => "Stopping",
    };
    CaptureView {
        liveness: liveness.to_owned(),
        id: capture.id,
        node_epoch: capture.node_epoch,
        address: capture.advertise_addr,
        pod_name: capture.pod_name,
        pod_uid: capture.pod_uid,
        version: capture.version,
        is_coordinator: capture.is_coordinator,
        heard: capture.heard,
        maintainer_count: capture.work.map(|work| work.maintainers),
        dispatcher_count: capture.work.map(|work| work.dispatchers),
    }
}
