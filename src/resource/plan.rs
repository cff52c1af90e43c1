//! What to do next: decided from the resource and what was seen, nothing else.

use capturedrain_core::model::{CaptureId, DrainEpoch, DrainRequest, NoPeersPolicy, OnDeadline};

use super::{Aim, BlockedBy, CaptureDrain, LimitPolicy, Observed, Unseen, is_finished};
use crate::view::{CaptureView, DrainEndView};

/// What the caller has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ask for the drain.
    Start(Box<DrainRequest>),
    /// Call it off.
    Cancel {
        /// The target.
        capture: CaptureId,
        /// The drain.
        epoch: DrainEpoch,
    },
    /// Wait.
    Nothing,
}

/// Where the run stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// It has ended before; nothing changes any more.
    Finished,
    /// The cluster does not answer.
    Unseen(Unseen),
    /// It ends without ever having begun.
    Rejected(&'static str),
    /// Another drain is on.
    Queued(BlockedBy),
    /// It is being asked for.
    Starting,
    /// It is on.
    Draining,
    /// The target is proven empty, and its pod may go.
    Drained(DrainEndView),
    /// It has ended, for this reason.
    Ended {
        /// As the conditions name it.
        reason: &'static str,
        /// Whether the target was proven empty.
        succeeded: bool,
    },
}

/// What to do, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What the caller has to do.
    pub action: Action,
    /// Where the run stands.
    pub stage: Stage,
}

impl Plan {
    fn wait(stage: Stage) -> Self {
        Self { action: Action::Nothing, stage }
    }

    fn end(reason: &'static str, succeeded: bool) -> Self {
        Self::wait(Stage::Ended { reason, succeeded })
    }
}

/// Decides what comes next.
pub fn plan(drain: &CaptureDrain, aim: &Aim, observed: &Observed) -> Plan {
    if is_finished(drain) {
        return Plan::wait(Stage::Finished);
    }
    if let Some(unseen) = &observed.unseen {
        return Plan::wait(Stage::Unseen(unseen.clone()));
    }
    let epoch = drain.status.as_ref().and_then(|status| status.epoch).and_then(|epoch| u64::try_from(epoch).ok());
    if drain.metadata.deletion_timestamp.is_some() {
        return withdraw(drain, epoch, observed);
    }
    match epoch {
        Some(epoch) => follow(drain, epoch, aim, observed),
        None => begin(drain, aim, observed),
    }
}

/// The object was deleted.
fn withdraw(drain: &CaptureDrain, epoch: Option<u64>, observed: &Observed) -> Plan {
    let stage = Stage::Ended { reason: "Withdrawn", succeeded: false };
    let capture = drain.status.as_ref().and_then(|status| status.capture_id.as_deref());
    let ours = epoch.filter(|epoch| observed.drain.is_draining && observed.drain.drain_epoch == *epoch);
    let action = match (ours, capture.and_then(|capture| CaptureId::new(capture).ok())) {
        (Some(epoch), Some(capture)) => Action::Cancel { capture, epoch: DrainEpoch(epoch) },
        _ => Action::Nothing,
    };
    Plan { action, stage }
}

/// No drain was started yet.
fn begin(drain: &CaptureDrain, aim: &Aim, observed: &Observed) -> Plan {
    let capture = match aim {
        Aim::Present(capture) => capture,
        Aim::Gone => return Plan::end("TargetGone", false),
        Aim::Replaced(_) => return Plan::end("TargetReplaced", false),
        Aim::PodNotFound => return Plan::wait(Stage::Rejected("PodNotFound")),
        Aim::NotACapture => return Plan::wait(Stage::Rejected("NotACapture")),
    };
    let on = observed.drain.draining_capture_id.as_ref().filter(|_| observed.drain.is_draining);
    if let Some(other) = on.filter(|other| **other != capture.id) {
        return Plan::wait(Stage::Queued(BlockedBy::new("Drain", Some(other.clone()))));
    }
    match request(drain, capture) {
        Some(request) => Plan { action: Action::Start(Box::new(request)), stage: Stage::Starting },
        None => Plan::wait(Stage::Rejected("NotACapture")),
    }
}

fn request(drain: &CaptureDrain, capture: &CaptureView) -> Option<DrainRequest> {
    let spec = &drain.spec;
    let namespace = drain.metadata.namespace.as_deref().unwrap_or("default");
    let requester = format!("CaptureDrain {namespace}/{}", drain.metadata.name.as_deref().unwrap_or_default());
    let mut request = DrainRequest::new(CaptureId::new(&capture.id).ok()?, requester);
    request.node_epoch = capture.node_epoch.parse().ok();
    request.pod_uid = capture.pod_uid.as_deref().map(Into::into);
    request.reason = spec.reason.clone().unwrap_or_default();
    let seconds = spec.deadline_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    request.deadline_ms = seconds.map(|seconds| seconds.saturating_mul(1000));
    request.on_deadline = match spec.on_deadline {
        LimitPolicy::Hold => OnDeadline::Hold,
        LimitPolicy::Proceed => OnDeadline::Proceed,
    };
    request.no_peers_policy = match spec.no_peers_policy {
        LimitPolicy::Hold => NoPeersPolicy::Hold,
        LimitPolicy::Proceed => NoPeersPolicy::Proceed,
    };
    Some(request)
}

/// A drain was started: it is on, or how it ended is in the history.
fn follow(drain: &CaptureDrain, epoch: u64, aim: &Aim, observed: &Observed) -> Plan {
    if observed.drain.is_draining && observed.drain.drain_epoch == epoch {
        return if observed.drain.proceeds {
            Plan::end("DeadlineProceeded", false)
        } else {
            Plan::wait(Stage::Draining)
        };
    }
    let Some(end) = observed.ends.iter().find(|end| end.drain_epoch == epoch) else {
        // A coordinator that has just taken office has not read it yet.
        return Plan::wait(Stage::Draining);
    };
    match (end.outcome.as_str(), aim) {
        ("Cancelled", _) => Plan::end("Withdrawn", false),
        ("TargetGone", _) => Plan::end("TargetGone", false),
        ("NoPeers", _) => Plan::end("NoPeers", false),
        (_, Aim::Present(_)) if drain.spec.target.capture_id.is_some() => Plan::end("CaptureStopping", true),
        (_, Aim::Present(_)) => Plan::wait(Stage::Drained(end.clone())),
        // A new registration in the same pod: work may have come back, so the proof is void.
        (_, Aim::Replaced(found)) if found.pod_uid == pinned_pod(drain) => Plan::end("TargetReplaced", false),
        _ if drain.spec.target.capture_id.is_some() => Plan::end("CaptureStopping", true),
        _ => Plan::end("PodGone", true),
    }
}

fn pinned_pod(drain: &CaptureDrain) -> Option<String> {
    drain.status.as_ref().and_then(|status| status.pod_uid.clone())
}
