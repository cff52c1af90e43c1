//! Requests and answers of `DrainService`, to the wire and back.

use capturedrain_core::model::{
    Answer, Blocker, CaptureStatus, DrainEnd, DrainEpoch, DrainOutcome, DrainRecord, DrainRequest, DrainStatus,
    NoPeersPolicy, NodeEpoch, OnDeadline, Plan, Snapshot, UnixMillis, WorkCount,
};

use super::{
    envelope::{Malformed, capture, encode_liveness},
    hook::encode_report,
    pb,
    report::encode_work,
};

pub(super) fn node_epoch(text: Option<&String>) -> Result<Option<NodeEpoch>, Malformed> {
    text.map(|text| text.parse().map_err(|_| Malformed("node_epoch"))).transpose()
}

/// A call to drain, as it is sent.
pub(crate) fn encode_drain(request: &DrainRequest) -> pb::DrainCaptureRequest {
    pb::DrainCaptureRequest {
        capture_id: request.capture.to_string(),
        node_epoch: request.node_epoch.map(|epoch| epoch.to_string()),
        pod_uid: request.pod_uid.as_ref().map(ToString::to_string),
        drain_epoch: request.epoch.map(|epoch| epoch.0),
        requester: request.requester.clone(),
        reason: request.reason.clone(),
        deadline_ms: request.deadline_ms,
        on_deadline: on_deadline(request.on_deadline).into(),
        no_peers_policy: no_peers(request.no_peers_policy).into(),
        hook_deadline_unix_ms: request.hook_deadline_ms.map(|at| at.0),
        avoid: request.avoid.iter().map(ToString::to_string).collect(),
        dry_run: request.dry_run,
    }
}

pub(super) fn decode_drain(request: pb::DrainCaptureRequest) -> Result<DrainRequest, Malformed> {
    let proceeds = |policy: i32| policy == i32::from(pb::Policy::Proceed);
    Ok(DrainRequest {
        capture: capture(&request.capture_id)?,
        node_epoch: node_epoch(request.node_epoch.as_ref())?,
        pod_uid: request.pod_uid.map(Into::into),
        epoch: request.drain_epoch.map(DrainEpoch),
        requester: request.requester,
        reason: request.reason,
        deadline_ms: request.deadline_ms,
        on_deadline: if proceeds(request.on_deadline) { OnDeadline::Proceed } else { OnDeadline::Hold },
        no_peers_policy: if proceeds(request.no_peers_policy) { NoPeersPolicy::Proceed } else { NoPeersPolicy::Hold },
        hook_deadline_ms: request.hook_deadline_unix_ms.map(UnixMillis),
        avoid: request.avoid.iter().map(|id| capture(id)).collect::<Result<_, _>>()?,
        dry_run: request.dry_run,
    })
}

pub(super) fn decode_release(request: &pb::ReleaseCaptureRequest) -> Result<Option<NodeEpoch>, Malformed> {
    node_epoch(request.node_epoch.as_ref())
}

pub(super) fn encode_answer(answer: Answer) -> pb::DrainCaptureResponse {
    match answer {
        Answer::Draining { epoch, current } => pb::DrainCaptureResponse {
            drain_epoch: epoch.0,
            current: current.map(encode_work),
            ..pb::DrainCaptureResponse::default()
        },
        Answer::Drained { epoch } => pb::DrainCaptureResponse {
            drain_epoch: epoch.0,
            current: Some(pb::WorkCount::default()),
            drained: true,
            ..pb::DrainCaptureResponse::default()
        },
        Answer::DryRun { current, destinations, plan } => pb::DrainCaptureResponse {
            current: Some(encode_work(current)),
            destinations: destinations.iter().map(ToString::to_string).collect(),
            plan: Some(encode_plan(&plan)),
            ..pb::DrainCaptureResponse::default()
        },
        Answer::Done => pb::DrainCaptureResponse::default(),
    }
}

fn encode_plan(plan: &Plan) -> pb::Plan {
    pb::Plan {
        moves: plan.moves.iter().map(|(id, work)| (id.to_string(), encode_work(*work))).collect(),
        limits: Some(encode_work(plan.limits)),
        move_ms: plan.move_ms,
        is_measured: plan.is_measured,
        estimate_ms: plan.estimate_ms,
    }
}

/// The answer to a call to drain, as it was sent. A capture of an older build sends no plan.
pub(crate) fn decode_answer(answer: pb::DrainCaptureResponse) -> Result<Answer, Malformed> {
    let work = |count: pb::WorkCount| WorkCount { maintainers: count.maintainers, dispatchers: count.dispatchers };
    let (epoch, current) = (DrainEpoch(answer.drain_epoch), answer.current.map(work));
    if answer.drained {
        return Ok(Answer::Drained { epoch });
    }
    if epoch != DrainEpoch::default() {
        return Ok(Answer::Draining { epoch, current });
    }
    let plan = answer.plan.unwrap_or_default();
    let moves = plan.moves.into_iter().map(|(id, count)| Ok((capture(&id)?, work(count))));
    let plan = Plan {
        moves: moves.collect::<Result<_, Malformed>>()?,
        limits: plan.limits.map(work).unwrap_or_default(),
        move_ms: plan.move_ms,
        is_measured: plan.is_measured,
        estimate_ms: plan.estimate_ms,
    };
    let destinations = answer.destinations.iter().map(|id| capture(id)).collect::<Result<_, _>>()?;
    Ok(Answer::DryRun { current: current.unwrap_or_default(), destinations, plan })
}

fn on_deadline(policy: OnDeadline) -> pb::Policy {
    match policy {
        OnDeadline::Hold => pb::Policy::Hold,
        OnDeadline::Proceed => pb::Policy::Proceed,
    }
}

fn no_peers(policy: NoPeersPolicy) -> pb::Policy {
    match policy {
        NoPeersPolicy::Hold => pb::Policy::Hold,
        NoPeersPolicy::Proceed => pb::Policy::Proceed,
    }
}

/// What a capture knows of drains.
pub(super) fn encode_view(snapshot: &Snapshot) -> pb::DrainView {
    pb::DrainView {
        drain: snapshot.drain.as_ref().map(encode_drain_status),
        last_epoch: snapshot.last_epoch.0,
        captures: encode_captures(snapshot),
        last_end: snapshot.history.last().map(encode_end),
        hook_reports: snapshot.hook_reports.iter().map(encode_report).collect(),
    }
}

pub(super) fn encode_captures(snapshot: &Snapshot) -> Vec<pb::Capture> {
    let coordinator = snapshot.coordinator.as_ref().map(|(id, _)| id);
    snapshot.captures.iter().map(|(id, status)| encode_capture(status, Some(id) == coordinator)).collect()
}

fn encode_capture(status: &CaptureStatus, is_coordinator: bool) -> pb::Capture {
    let registration = &status.registration;
    pb::Capture {
        id: registration.id.to_string(),
        node_epoch: registration.node_epoch.to_string(),
        advertise_addr: registration.advertise_addr.to_string(),
        pod_name: registration.pod_name.as_ref().map(ToString::to_string),
        pod_uid: registration.pod_uid.as_ref().map(ToString::to_string),
        version: registration.binary_version.to_string(),
        labels: registration.labels.clone(),
        liveness: encode_liveness(status.liveness).into(),
        is_coordinator,
        heard: status.heard,
        work: status.work.map(encode_work),
    }
}

pub(super) fn encode_record(record: &DrainRecord) -> pb::DrainRecord {
    pb::DrainRecord {
        drain_epoch: record.epoch.0,
        target: record.target.to_string(),
        node_epoch: record.node_epoch.to_string(),
        pod_uid: record.pod_uid.as_ref().map(ToString::to_string),
        requesters: record.requesters.clone(),
        reason: record.reason.clone(),
        started_unix_ms: record.started_at_ms.0,
        initial: Some(encode_work(record.initial)),
        deadline_ms: record.deadline_ms,
        on_deadline: on_deadline(record.on_deadline).into(),
        no_peers_policy: no_peers(record.no_peers_policy).into(),
        hook_deadline_unix_ms: record.hook_deadline_ms.map(|at| at.0),
        avoid: record.avoid.iter().map(ToString::to_string).collect(),
    }
}

fn encode_drain_status(status: &DrainStatus) -> pb::Drain {
    let blocker = |blocker: &Blocker| {
        let (kind, name) = match blocker {
            Blocker::NoDestination => ("NoDestination", String::new()),
            Blocker::UnheardCapture(id) => ("UnheardCapture", id.to_string()),
            Blocker::DeadlineHeld => ("DeadlineHeld", String::new()),
        };
        pb::Blocker { kind: kind.to_owned(), name }
    };
    pb::Drain {
        record: Some(encode_record(&status.record)),
        phase: status.phase.as_str().to_owned(),
        remaining: status.remaining.map(encode_work),
        remaining_dispatchers: status.remaining_dispatchers.iter().map(|(id, left)| (id.to_string(), *left)).collect(),
        in_flight: Some(encode_work(status.in_flight)),
        last_progress_unix_ms: status.last_progress_at_ms.0,
        blocked_by: status.blocked_by.iter().map(blocker).collect(),
        proceeds: status.proceeds,
    }
}

pub(super) fn encode_end(end: &DrainEnd) -> pb::DrainEnd {
    let outcome = match end.outcome {
        DrainOutcome::Drained => "Drained",
        DrainOutcome::Cancelled => "Cancelled",
        DrainOutcome::TargetGone => "TargetGone",
        DrainOutcome::NoPeers => "NoPeers",
    };
    pb::DrainEnd {
        record: Some(encode_record(&end.record)),
        outcome: outcome.to_owned(),
        ended_unix_ms: end.ended_at_ms.0,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use capturedrain_core::model::CaptureId;

    use super::*;

    #[test]
    fn a_request_comes_back_as_it_was_sent() {
        let mut request = DrainRequest::new(CaptureId::new("b").unwrap(), "someone");
        request.node_epoch = Some(NodeEpoch(0xab));
        request.pod_uid = Some("uid".into());
        request.epoch = Some(DrainEpoch(7));
        request.reason = "node upgrade".to_owned();
        request.deadline_ms = Some(9);
        request.on_deadline = OnDeadline::Proceed;
        request.no_peers_policy = NoPeersPolicy::Proceed;
        request.hook_deadline_ms = Some(UnixMillis(11));
        request.avoid = vec![CaptureId::new("c").unwrap()];
        request.dry_run = true;
        assert_eq!(decode_drain(encode_drain(&request)).unwrap(), request);
    }

    #[test]
    fn an_answer_comes_back_as_it_was_sent() {
        let id = |id: &str| CaptureId::new(id).unwrap();
        let work = |maintainers, dispatchers| WorkCount { maintainers, dispatchers };
        let plan = Plan {
            moves: [(id("a"), work(1, 4)), (id("c"), work(0, 3))].into(),
            limits: work(10, 11),
            move_ms: 12,
            is_measured: true,
            estimate_ms: 13,
        };
        let (epoch, current) = (DrainEpoch(7), work(1, 7));
        for answer in [
            Answer::Draining { epoch, current: Some(current) },
            Answer::Draining { epoch, current: None },
            Answer::Drained { epoch },
            Answer::DryRun { current, destinations: vec![id("a"), id("c")], plan },
        ] {
            assert_eq!(decode_answer(encode_answer(answer.clone())), Ok(answer));
        }
    }

    #[test]
    fn a_name_that_is_none_is_refused() {
        let request = pb::DrainCaptureRequest { capture_id: "../x".to_owned(), ..Default::default() };
        assert_eq!(decode_drain(request), Err(Malformed("capture")));
    }
}
