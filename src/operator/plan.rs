//! Stage 3, plan: what to do next, decided from the resource and what was seen, nothing else.

use capturedrain_core::model::{CaptureId, DrainEpoch, DrainRequest, NoPeersPolicy, NodeEpoch, OnDeadline};
use jiff::Timestamp;

use super::{
    ATTEMPTED_AT,
    observe::{Cluster, Observed, PodSeen, Unseen},
    validate::Aim,
};
use crate::{
    resource::{BlockedBy, CaptureDrain, ClusterKind, LimitPolicy, is_drained, is_finished},
    view::{CaptureView, DrainEndView},
};

/// What the caller has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ask for the drain, or ask again.
    Start(Box<DrainRequest>),
    /// Call it off.
    Cancel {
        /// The target.
        capture: CaptureId,
        /// The drain.
        epoch: DrainEpoch,
    },
    /// Have a `Stopping` capture register anew.
    Release {
        /// The target.
        capture: CaptureId,
        /// The life of it that is meant.
        node_epoch: Option<NodeEpoch>,
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
    /// The target's pod is there, and its capture is not yet.
    Awaited,
    /// Others come first, the next one first.
    Queued(Vec<BlockedBy>),
    /// It is being asked for.
    Starting,
    /// It is on.
    Draining,
    /// The target is proven empty, and its pod may go.
    Drained(DrainEndView),
    /// The same, as far as it is known: nothing changes.
    Kept,
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

/// How requests of this resource sign.
pub fn requester(drain: &CaptureDrain) -> String {
    let namespace = drain.metadata.namespace.as_deref().unwrap_or("default");
    format!("CaptureDrain {namespace}/{}", drain.metadata.name.as_deref().unwrap_or_default())
}

/// The epoch under which this resource's drain runs or ran.
pub fn epoch(drain: &CaptureDrain) -> Option<u64> {
    drain.status.as_ref().and_then(|status| status.epoch).and_then(|epoch| u64::try_from(epoch).ok())
}

/// When `releaseAfterSeconds` is over, if it is given: it counts from the last attempt at an eviction, or else from the
/// creation.
pub fn released_at(drain: &CaptureDrain) -> Option<Timestamp> {
    let seconds = drain.spec.release_after_seconds?;
    let attempted =
        drain.metadata.annotations.as_ref().and_then(|all| all.get(ATTEMPTED_AT)?.parse::<Timestamp>().ok());
    let created = drain.metadata.creation_timestamp.as_ref().map(|created| created.0);
    let from = attempted.into_iter().chain(created).max()?;
    Timestamp::from_second(from.as_second().saturating_add(seconds)).ok()
}

/// Decides what comes next.
pub fn plan(drain: &CaptureDrain, aim: &Aim, observed: &Observed) -> Plan {
    if is_finished(drain) {
        return Plan::wait(Stage::Finished);
    }
    let cluster = match &observed.cluster {
        Err(unseen) => return Plan::wait(Stage::Unseen(unseen.clone())),
        Ok(cluster) => cluster,
    };
    if drain.metadata.deletion_timestamp.is_some() {
        return withdraw(drain, "Withdrawn", aim, cluster, observed);
    }
    let next = match epoch(drain) {
        Some(epoch) => follow(drain, epoch, aim, cluster, observed),
        None => begin(drain, aim, cluster, observed),
    };
    let is_over = matches!(next.stage, Stage::Ended { .. } | Stage::Rejected(_));
    if !is_over && released_at(drain).is_some_and(|at| at <= observed.now) && !is_leaving(observed) {
        return withdraw(drain, "EvictionAbandoned", aim, cluster, observed);
    }
    next
}

/// Whether the target's pod is being deleted: then there is no way back.
fn is_leaving(observed: &Observed) -> bool {
    matches!(&observed.around.pod, PodSeen::There(pod) if pod.is_deleting)
}

/// It is given up: a drain that nobody else asked for is called off, a target that was proven empty goes back to work.
fn withdraw(drain: &CaptureDrain, reason: &'static str, aim: &Aim, cluster: &Cluster, observed: &Observed) -> Plan {
    let stage = Stage::Ended { reason, succeeded: false };
    let own = requester(drain);
    let on = &cluster.drain;
    // It may have been asked for, and the answer not written down.
    let is_own = on.is_draining && on.requesters.iter().any(|other| other.ends_with(&own));
    let Some(epoch) = epoch(drain).or(is_own.then_some(on.drain_epoch)) else { return Plan::wait(stage) };
    let capture = drain.status.as_ref().and_then(|status| status.capture_id.as_ref());
    let capture = capture.or(on.draining_capture_id.as_ref().filter(|_| is_own));
    let Some(capture) = capture.and_then(|capture| CaptureId::new(capture).ok()) else { return Plan::wait(stage) };
    let action = if is_ticdc(drain) {
        // It is told in any case, to hear that there is no way back; unless the target is on its way out.
        let is_there = matches!(aim, Aim::Present(_)) && !is_leaving(observed);
        if is_there { Action::Cancel { capture, epoch: DrainEpoch(epoch) } } else { Action::Nothing }
    } else if is_on(cluster, epoch) {
        let is_alone = on.requesters.iter().all(|other| other.ends_with(&own));
        if is_alone { Action::Cancel { capture, epoch: DrainEpoch(epoch) } } else { Action::Nothing }
    } else if on.drain_epoch < epoch {
        // What was seen of the cluster is older than the answer that it gave.
        Action::Cancel { capture, epoch: DrainEpoch(epoch) }
    } else {
        match aim {
            Aim::Present(at) if at.liveness == "Stopping" && !is_leaving(observed) => {
                Action::Release { capture, node_epoch: at.node_epoch.parse().ok() }
            }
            _ => Action::Nothing,
        }
    };
    Plan { action, stage }
}

/// Whether the cluster keeps no record of drains.
fn is_ticdc(drain: &CaptureDrain) -> bool {
    drain.spec.cluster_ref.kind == ClusterKind::TiCdc
}

fn is_on(cluster: &Cluster, epoch: u64) -> bool {
    cluster.drain.is_draining && cluster.drain.drain_epoch == epoch
}

/// No drain was started yet.
fn begin(drain: &CaptureDrain, aim: &Aim, cluster: &Cluster, observed: &Observed) -> Plan {
    let capture = match aim {
        Aim::Present(capture) => capture,
        Aim::Starting | Aim::Unseen => return Plan::wait(Stage::Awaited),
        Aim::Gone | Aim::PodGone => return Plan::end("TargetGone", false),
        Aim::Replaced(_) => return Plan::end("TargetReplaced", false),
        Aim::PodNotFound => return Plan::wait(Stage::Rejected("PodNotFound")),
        Aim::NotACapture => return Plan::wait(Stage::Rejected("NotACapture")),
    };
    if let Some(rollout) = &observed.around.rollout {
        return Plan::wait(Stage::Queued(vec![rollout.clone()]));
    }
    let on = cluster.drain.draining_capture_id.as_ref().filter(|_| cluster.drain.is_draining);
    if let Some(other) = on.filter(|other| **other != capture.id) {
        let mut ahead = observed.around.ahead.clone();
        if ahead.is_empty() {
            ahead.push(BlockedBy::new("Drain", Some(other.clone())));
        }
        return Plan::wait(Stage::Queued(ahead));
    }
    // A drain of the same target that is on, or that has proven it empty, is joined.
    let is_joined = on.is_some() || capture.liveness == "Stopping";
    if !is_joined && !observed.around.ahead.is_empty() {
        return Plan::wait(Stage::Queued(observed.around.ahead.clone()));
    }
    start(drain, capture, observed, Stage::Starting)
}

fn start(drain: &CaptureDrain, capture: &CaptureView, observed: &Observed, stage: Stage) -> Plan {
    match request(drain, capture, observed) {
        Some(request) => Plan { action: Action::Start(Box::new(request)), stage },
        None => Plan::wait(Stage::Rejected("NotACapture")),
    }
}

fn request(drain: &CaptureDrain, capture: &CaptureView, observed: &Observed) -> Option<DrainRequest> {
    let spec = &drain.spec;
    let mut request = DrainRequest::new(CaptureId::new(&capture.id).ok()?, requester(drain));
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
    request.avoid.clone_from(&observed.around.avoid);
    if is_ticdc(drain) {
        // It keeps no record: the run goes on under the number that it had.
        request.epoch = epoch(drain).map(DrainEpoch);
    }
    Some(request)
}

/// A drain was started: it is on, or how it ended is in the history.
fn follow(drain: &CaptureDrain, epoch: u64, aim: &Aim, cluster: &Cluster, observed: &Observed) -> Plan {
    if is_on(cluster, epoch) {
        if cluster.drain.proceeds {
            return Plan::end("DeadlineProceeded", false);
        }
        let around = &observed.around;
        let is_told = around.avoid_told.as_ref().map_or(around.avoid.is_empty(), |told| *told == around.avoid);
        return match aim {
            Aim::Present(capture) if !is_told => start(drain, capture, observed, Stage::Draining),
            _ => Plan::wait(Stage::Draining),
        };
    }
    let Some(end) = cluster.ends.iter().find(|end| end.drain_epoch == epoch) else {
        // The store was put back, or the history was cut, or the cluster keeps none: whoever asks again is told.
        return match aim {
            Aim::Present(capture) => start(drain, capture, observed, Stage::Draining),
            // Whoever had the proof has ended, and the status has it still.
            Aim::Gone | Aim::PodGone if is_ticdc(drain) && is_drained(drain) => gone(drain, aim, observed),
            Aim::Gone | Aim::PodGone => Plan::end("TargetGone", false),
            Aim::Replaced(_) => Plan::end("TargetReplaced", false),
            _ => Plan::wait(Stage::Draining),
        };
    };
    let is_pod = drain.spec.target.pod_name.is_some();
    match (end.outcome.as_str(), aim) {
        ("Cancelled", _) => Plan::end("Withdrawn", false),
        ("TargetGone", _) => Plan::end("TargetGone", false),
        // Held until somebody is there to take the work: it is asked for again.
        ("NoPeers", Aim::Present(capture)) if drain.spec.no_peers_policy == LimitPolicy::Hold => {
            start(drain, capture, observed, Stage::Draining)
        }
        ("NoPeers", _) => Plan::end("NoPeers", false),
        (_, Aim::PodGone) => Plan::end("PodGone", true),
        // A new registration in the same pod: work may have come back, so the proof is void.
        (_, Aim::Replaced(found)) if found.pod_uid == pinned_pod(drain) => Plan::end("TargetReplaced", false),
        // It may be given work again, so that it is asked on until it is gone.
        (_, Aim::Present(_)) if is_ticdc(drain) => Plan::wait(Stage::Drained(end.clone())),
        _ if !is_pod => Plan::end("CaptureStopping", true),
        // Nobody else was alive, so that it works again: the proof is void.
        (_, Aim::Present(capture)) if capture.liveness == "Alive" => start(drain, capture, observed, Stage::Draining),
        (_, Aim::Present(_)) => Plan::wait(Stage::Drained(end.clone())),
        // The process has ended; whether its pod is gone Kubernetes knows.
        (_, Aim::Gone) if observed.around.pod != PodSeen::Unasked => Plan::wait(Stage::Drained(end.clone())),
        _ => Plan::end("PodGone", true),
    }
}

/// A target whose proof is in the status alone has gone.
fn gone(drain: &CaptureDrain, aim: &Aim, observed: &Observed) -> Plan {
    let is_pod = drain.spec.target.pod_name.is_some();
    match aim {
        Aim::Gone if !is_pod => Plan::end("CaptureStopping", true),
        Aim::Gone if observed.around.pod != PodSeen::Unasked => Plan::wait(Stage::Kept),
        _ => Plan::end("PodGone", true),
    }
}

fn pinned_pod(drain: &CaptureDrain) -> Option<String> {
    drain.status.as_ref().and_then(|status| status.pod_uid.clone())
}
