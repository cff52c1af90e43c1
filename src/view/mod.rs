//! What people and programs are shown, over HTTP and by `-o json`: `snake_case`, and `null` for what is not known.

mod api;

use std::collections::BTreeMap;

use capturedrain_core::model::{
    Answer, Blocker, CaptureId, CaptureStatus, ChangefeedState, ChangefeedStatus, DrainEnd, DrainOutcome, DrainStatus,
    Liveness, Plan, Snapshot, UnixMillis, WorkCount,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::api::{
    CaptureBrief, ChangefeedBody, ChangefeedError, ClusterCapture, Deleted, Empty, List, NewbornChangefeed, ResumeBody,
    ServerStatus, TableCount, TaskStatus,
};

/// A moment as RFC 3339 has it.
pub fn moment(at: UnixMillis) -> String {
    let ms = i64::try_from(at.0).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX).to_string()
}

/// What holds a drain up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BlockerView {
    /// `NoDestination`, `UnheardCapture` or `DeadlineHeld`.
    pub kind: String,
    /// The capture that is meant, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// The drain that is on, or that none is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct DrainView {
    /// Whether one is.
    pub is_draining: bool,
    /// Its target.
    pub draining_capture_id: Option<String>,
    /// Its number. Without a drain that of the one which ended `Stopping`, or else the last one given out.
    pub drain_epoch: u64,
    /// `MovingMaintainers`, `MovingDispatchers` or `Proving`.
    pub phase: Option<String>,
    /// The liveness of the target.
    pub liveness: Option<String>,
    /// Maintainers on the target; `null` while unknown.
    pub remaining_maintainer_count: Option<u64>,
    /// Dispatchers on the target; `null` while unknown.
    pub remaining_dispatcher_count: Option<u64>,
    /// Dispatchers on the target by changefeed, of those whose maintainer has reported.
    pub remaining_dispatchers: BTreeMap<String, u64>,
    /// Moves on their way.
    pub in_flight: Option<WorkView>,
    /// What was on the target when it began.
    pub initial: Option<WorkView>,
    /// How long it may still take, at the rate so far; `null` while nothing has moved.
    pub eta_seconds: Option<u64>,
    /// What holds it up.
    pub blocked_by: Vec<BlockerView>,
    /// Who asked for it.
    pub requesters: Vec<String>,
    /// Why.
    pub reason: Option<String>,
    /// When it began.
    pub started_at: Option<String>,
    /// When the remaining count last fell.
    pub last_progress_at: Option<String>,
    /// Whether the deadline has passed and the policy lets the pod go.
    pub proceeds: bool,
}

/// How much work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct WorkView {
    /// Maintainers.
    pub maintainers: u64,
    /// Dispatchers.
    pub dispatchers: u64,
}

impl From<WorkCount> for WorkView {
    fn from(work: WorkCount) -> Self {
        Self { maintainers: work.maintainers, dispatchers: work.dispatchers }
    }
}

/// How long the rest takes when it goes on as it did: `None` while nothing has moved.
pub fn eta_seconds(initial: WorkCount, left: WorkCount, elapsed_ms: u64) -> Option<u64> {
    let (total, left) = (initial.maintainers + initial.dispatchers, left.maintainers + left.dispatchers);
    let moved = total.checked_sub(left).filter(|moved| *moved > 0)?;
    Some(elapsed_ms.saturating_mul(left) / moved / 1000)
}

impl DrainView {
    /// What a capture knows of the drain that is on.
    pub fn of(snapshot: &Snapshot, now: UnixMillis) -> Self {
        let Some(drain) = &snapshot.drain else {
            return Self { drain_epoch: snapshot.last_epoch.0, ..Self::default() };
        };
        let target = snapshot.captures.get(&drain.record.target);
        let liveness = target.filter(|at| at.registration.node_epoch == drain.record.node_epoch).map(|at| at.liveness);
        Self { liveness: liveness.map(|liveness| liveness_name(liveness).to_owned()), ..Self::of_drain(drain, now) }
    }

    fn of_drain(drain: &DrainStatus, now: UnixMillis) -> Self {
        let record = &drain.record;
        let blocker = |blocker: &Blocker| match blocker {
            Blocker::NoDestination => BlockerView { kind: "NoDestination".to_owned(), name: None },
            Blocker::UnheardCapture(id) => {
                BlockerView { kind: "UnheardCapture".to_owned(), name: Some(id.to_string()) }
            }
            Blocker::DeadlineHeld => BlockerView { kind: "DeadlineHeld".to_owned(), name: None },
        };
        let elapsed_ms = now.0.saturating_sub(record.started_at_ms.0);
        Self {
            is_draining: true,
            draining_capture_id: Some(record.target.to_string()),
            drain_epoch: record.epoch.0,
            phase: Some(drain.phase.as_str().to_owned()),
            liveness: None,
            remaining_maintainer_count: drain.remaining.map(|left| left.maintainers),
            remaining_dispatcher_count: drain.remaining.map(|left| left.dispatchers),
            remaining_dispatchers: drain.remaining_dispatchers.iter().map(|(id, n)| (id.to_string(), *n)).collect(),
            in_flight: Some(drain.in_flight.into()),
            initial: Some(record.initial.into()),
            eta_seconds: drain.remaining.and_then(|left| eta_seconds(record.initial, left, elapsed_ms)),
            blocked_by: drain.blocked_by.iter().map(blocker).collect(),
            requesters: record.requesters.clone(),
            reason: Some(record.reason.clone()).filter(|reason| !reason.is_empty()),
            started_at: Some(moment(record.started_at_ms)),
            last_progress_at: Some(moment(drain.last_progress_at_ms)),
            proceeds: drain.proceeds,
        }
    }
}

/// The name that people and programs see.
pub fn liveness_name(liveness: Liveness) -> &'static str {
    match liveness {
        Liveness::Alive => "Alive",
        Liveness::Draining => "Draining",
        Liveness::Stopping => "Stopping",
    }
}

/// The name that people and programs see.
pub fn outcome_name(outcome: DrainOutcome) -> &'static str {
    match outcome {
        DrainOutcome::Drained => "Drained",
        DrainOutcome::Cancelled => "Cancelled",
        DrainOutcome::TargetGone => "TargetGone",
        DrainOutcome::NoPeers => "NoPeers",
    }
}

/// The namespace that all changefeeds of a cluster are in.
pub const NAMESPACE: &str = "default";

/// The name that programs see, which is `TiCDC`'s.
pub fn state_name(state: &ChangefeedState) -> &'static str {
    match state {
        ChangefeedState::Running => "normal",
        ChangefeedState::Paused => "stopped",
        ChangefeedState::Failed { .. } => "failed",
    }
}

/// A registered capture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CaptureView {
    /// Its name.
    pub id: String,
    /// This registration's number.
    pub node_epoch: String,
    /// `host:port`
    pub address: String,
    /// Its Kubernetes pod.
    pub pod_name: Option<String>,
    /// That pod's UID.
    pub pod_uid: Option<String>,
    /// The release that it runs.
    pub version: String,
    /// `Alive`, `Draining` or `Stopping`.
    pub liveness: String,
    /// Whether it coordinates.
    pub is_coordinator: bool,
    /// Whether the coordinator heard it lately.
    pub heard: bool,
    /// Its maintainers; `null` while unknown.
    pub maintainer_count: Option<u64>,
    /// Its dispatchers; `null` while unknown.
    pub dispatcher_count: Option<u64>,
}

impl CaptureView {
    /// All captures that a capture knows.
    pub fn all(snapshot: &Snapshot) -> Vec<Self> {
        let coordinator = snapshot.coordinator.as_ref().map(|(id, _)| id);
        snapshot.captures.iter().map(|(id, status)| Self::of(status, Some(id) == coordinator)).collect()
    }

    fn of(status: &CaptureStatus, is_coordinator: bool) -> Self {
        let registration = &status.registration;
        Self {
            id: registration.id.to_string(),
            node_epoch: registration.node_epoch.to_string(),
            address: registration.advertise_addr.to_string(),
            pod_name: registration.pod_name.as_ref().map(ToString::to_string),
            pod_uid: registration.pod_uid.as_ref().map(ToString::to_string),
            version: registration.binary_version.to_string(),
            liveness: liveness_name(status.liveness).to_owned(),
            is_coordinator,
            heard: status.heard,
            maintainer_count: status.work.map(|work| work.maintainers),
            dispatcher_count: status.work.map(|work| work.dispatchers),
        }
    }
}

/// A drain that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrainEndView {
    /// Its number.
    pub drain_epoch: u64,
    /// Which capture it was for.
    pub target: String,
    /// Which registration of it.
    pub node_epoch: String,
    /// `Drained`, `Cancelled`, `TargetGone` or `NoPeers`.
    pub outcome: String,
    /// What was on the target when it began.
    pub initial: WorkView,
    /// Who asked for it.
    pub requesters: Vec<String>,
    /// Why.
    pub reason: Option<String>,
    /// When it began.
    pub started_at: String,
    /// When it ended.
    pub ended_at: String,
    /// How long it took.
    pub duration_ms: u64,
}

impl DrainEndView {
    /// How a drain ended.
    pub fn of(end: &DrainEnd) -> Self {
        let record = &end.record;
        Self {
            drain_epoch: record.epoch.0,
            target: record.target.to_string(),
            node_epoch: record.node_epoch.to_string(),
            outcome: outcome_name(end.outcome).to_owned(),
            initial: record.initial.into(),
            requesters: record.requesters.clone(),
            reason: Some(record.reason.clone()).filter(|reason| !reason.is_empty()),
            started_at: moment(record.started_at_ms),
            ended_at: moment(end.ended_at_ms),
            duration_ms: end.ended_at_ms.0.saturating_sub(record.started_at_ms.0),
        }
    }
}

/// How the hook of a pod ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HookReportView {
    /// Whose pod it is.
    pub capture: String,
    /// The pod.
    pub pod_name: Option<String>,
    /// Its UID.
    pub pod_uid: Option<String>,
    /// A stable word.
    pub outcome: String,
    /// The same for people.
    pub sentence: String,
    /// When the run began, in milliseconds since 1970.
    pub started_at_ms: u64,
    /// When it ended.
    pub ended_at_ms: u64,
}

/// A changefeed, in the shape of `TiCDC` and with what is known here besides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChangefeedView {
    /// Its name.
    pub id: String,
    /// Always `default`: a cluster is one namespace.
    pub namespace: String,
    /// `normal`, `stopped` or `failed`.
    pub state: String,
    /// Why it failed.
    pub error: Option<ChangefeedError>,
    /// Why some of it does not go on for the time being; left out when all does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// What it replicates.
    pub source: String,
    /// Where to.
    #[serde(rename = "sink_uri")]
    pub sink: String,
    /// When it was created.
    pub create_time: String,
    /// The commit timestamp after which it starts; 0: with a snapshot of what is there.
    pub start_ts: u64,
    /// A span with more keys than this is split; 0: never.
    #[serde(default)]
    pub span_max_keys: u64,
    /// Everything up to here is in the sink; `null` while unknown.
    pub checkpoint_ts: Option<u64>,
    /// The same; `TiCDC` calls it so in lists.
    pub checkpoint_tso: Option<u64>,
    /// The same again: what is resolved is flushed.
    pub resolved_ts: Option<u64>,
    /// When the source passed the checkpoint, `YYYY-MM-DD hh:mm:ss.mmm` in UTC; left out while unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_time: Option<String>,
    /// Now minus the moment at which the source passed the checkpoint; `null` while unknown.
    pub lag_ms: Option<u64>,
    /// The capture that has its maintainer.
    pub maintainer: Option<String>,
    /// The number of that placement.
    pub changefeed_epoch: Option<u64>,
    /// Its dispatchers by capture.
    pub dispatchers: BTreeMap<String, u64>,
    /// Which captures work on it. Spans have no table numbers, so these lists are empty; see `dispatchers`.
    pub task_status: Vec<TaskStatus>,
}

impl ChangefeedView {
    /// A changefeed as the coordinator knows it.
    pub fn of(id: &str, status: &ChangefeedStatus, now: UnixMillis) -> Self {
        let error = match &status.state {
            ChangefeedState::Failed { error } => Some(ChangefeedError::of(error)),
            ChangefeedState::Running | ChangefeedState::Paused => None,
        };
        let checkpoint_at_ms = status.checkpoint_at_ms.filter(|at| *at > 0);
        let task = |id: &CaptureId| TaskStatus { capture_id: id.to_string(), table_ids: Vec::new() };
        Self {
            id: id.to_owned(),
            namespace: NAMESPACE.to_owned(),
            state: state_name(&status.state).to_owned(),
            error,
            warning: status.warning.clone(),
            create_time: moment(status.created_at_ms),
            source: status.config.source.to_string(),
            sink: status.config.sink.to_string(),
            start_ts: status.config.start_ts,
            span_max_keys: status.config.span_max_keys,
            checkpoint_ts: status.checkpoint_ts,
            checkpoint_tso: status.checkpoint_ts,
            resolved_ts: status.checkpoint_ts,
            checkpoint_time: checkpoint_at_ms.map(|at| api::ticdc_time(UnixMillis(at))),
            lag_ms: checkpoint_at_ms.map(|at| now.0.saturating_sub(at)),
            maintainer: status.maintainer.as_ref().map(|(capture, ..)| capture.to_string()),
            changefeed_epoch: status.maintainer.as_ref().map(|(.., epoch)| epoch.0),
            dispatchers: status.dispatchers.iter().map(|(id, count)| (id.to_string(), *count)).collect(),
            task_status: status.dispatchers.keys().map(task).collect(),
        }
    }
}

/// The answer to a request for a drain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrainAccepted {
    /// Maintainers on the target; `null` while unknown.
    pub current_maintainer_count: Option<u64>,
    /// Dispatchers on the target; `null` while unknown.
    pub current_dispatcher_count: Option<u64>,
    /// The drain's number; `null` for a dry run.
    pub drain_epoch: Option<u64>,
    /// Dry run: who may get work.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub destinations: Vec<String>,
    /// Dry run: what each of them would get, and how long that takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanView>,
}

/// What a drain would come to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanView {
    /// What would go where.
    pub moves: BTreeMap<String, WorkView>,
    /// How much may be on the move at once.
    pub limits: WorkView,
    /// How long a move takes.
    pub move_ms: u64,
    /// Whether the last drain took that; else it is a guess.
    pub is_measured: bool,
    /// How long the drain would take.
    pub estimate_ms: u64,
}

impl From<&Plan> for PlanView {
    fn from(plan: &Plan) -> Self {
        Self {
            moves: plan.moves.iter().map(|(id, work)| (id.to_string(), (*work).into())).collect(),
            limits: plan.limits.into(),
            move_ms: plan.move_ms,
            is_measured: plan.is_measured,
            estimate_ms: plan.estimate_ms,
        }
    }
}

impl DrainAccepted {
    /// What came of a request.
    pub fn of(answer: &Answer) -> Self {
        let accepted = |current: Option<WorkCount>, drain_epoch: Option<u64>| Self {
            current_maintainer_count: current.map(|work| work.maintainers),
            current_dispatcher_count: current.map(|work| work.dispatchers),
            drain_epoch,
            destinations: Vec::new(),
            plan: None,
        };
        match answer {
            Answer::Draining { epoch, current } => accepted(*current, Some(epoch.0)),
            Answer::Drained { epoch } => accepted(Some(WorkCount::default()), Some(epoch.0)),
            Answer::DryRun { current, destinations, plan } => Self {
                destinations: destinations.iter().map(ToString::to_string).collect(),
                plan: Some(plan.into()),
                ..accepted(Some(*current), None)
            },
            Answer::Done => accepted(None, None),
        }
    }
}

/// The wish for a changefeed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewChangefeed {
    /// Its name; left out: one is made up.
    #[serde(rename = "changefeed_id", alias = "id", default)]
    pub id: String,
    /// What to replicate.
    #[serde(default)]
    #[schema(required)]
    pub source: String,
    /// Where to.
    #[serde(rename = "sink_uri", alias = "sink", default)]
    #[schema(required)]
    pub sink: String,
    /// The commit timestamp after which it starts; left out or 0: what the source suggests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_ts: Option<u64>,
    /// A span with more keys than this is split; 0: never.
    #[serde(default)]
    pub span_max_keys: u64,
}

/// A changefeed that was created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreatedChangefeed {
    /// Its name.
    pub id: String,
    /// The commit timestamp after which it starts.
    pub start_ts: u64,
    /// What a person should know, one sentence each.
    pub warnings: Vec<String>,
}

/// An error of the HTTP API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorView {
    /// One sentence.
    pub error_msg: String,
    /// `CDC:Err…`
    pub error_code: String,
    /// A stable word, where there is one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The facts of the refusal.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub facts: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_estimated_before_something_moved() {
        let count = |maintainers, dispatchers| WorkCount { maintainers, dispatchers };
        assert_eq!(eta_seconds(count(1, 9), count(1, 9), 5_000), None);
        assert_eq!(eta_seconds(count(1, 9), count(0, 5), 5_000), Some(5));
        assert_eq!(eta_seconds(count(1, 9), count(2, 9), 5_000), None);
    }

    #[test]
    fn what_is_unknown_is_null_and_never_zero() {
        let json = serde_json::to_value(DrainView::default()).unwrap_or_default();
        assert!(json["remaining_dispatcher_count"].is_null(), "{json}");
        assert_eq!(json["is_draining"], false);
    }
}
