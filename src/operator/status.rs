//! Stage 5, status: what came of the round, written down for people and programs.

use capturedrain_core::model::{Answer, DrainEpoch, Refusal};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    observe::{Cluster, Observed, Unseen},
    plan::{Plan, Stage},
    validate::Aim,
};
use crate::{
    resource::{
        ACCEPTED, BlockedBy, CaptureDrain, CaptureDrainSpec, CaptureDrainStatus, ClusterKind, Conditions, DRAINED,
        FINISHED, LimitPolicy, Progress, RECONCILING, STALLED, SUCCEEDED, Work, is_true,
    },
    view::WorkView,
};

/// How long a drain may be without a destination before `noPeersPolicy: Proceed` ends it, unless
/// `progressDeadlineSeconds` says otherwise: longer than a capture that restarts takes to register.
pub const NO_PEERS_PATIENCE_SECONDS: i64 = 60;

/// What the caller's action came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// There was nothing to do.
    Idle,
    /// The cluster answered.
    Answered(Answer),
    /// The cluster refused.
    Refused(Refusal),
    /// The cluster cannot call a drain off.
    CancelUnsupported,
    /// The cluster did not answer.
    Unseen(Unseen),
}

/// The status after a round. Without news it is the same as before.
pub fn status(
    drain: &CaptureDrain,
    aim: &Aim,
    plan: &Plan,
    outcome: &Outcome,
    observed: &Observed,
) -> CaptureDrainStatus {
    let after = kept(drain, observed.now);
    if plan.stage == Stage::Finished {
        return after;
    }
    let (spec, now) = (&drain.spec, observed.now);
    let conditions = Conditions::new(&after.conditions, drain.metadata.generation, now);
    let cluster = observed.cluster.as_ref().ok();
    let mut round = Round { spec, cluster, blocked_before: after.blocked_by.clone(), after, conditions, now };
    round.see(aim);
    match judge(drain, plan, outcome) {
        Verdict::Stage(stage) => round.stage(&stage, aim),
        Verdict::Started(epoch) => round.started(epoch),
    }
    round.after.conditions = round.conditions.into_inner();
    round.after
}

/// The status as it was, speaking of the present generation.
pub fn kept(drain: &CaptureDrain, now: Timestamp) -> CaptureDrainStatus {
    let before = drain.status.clone().unwrap_or_default();
    let generation = drain.metadata.generation;
    let conditions = Conditions::new(&before.conditions, generation, now).into_inner();
    CaptureDrainStatus { observed_generation: generation, conditions, ..before }
}

enum Verdict {
    Stage(Stage),
    Started(DrainEpoch),
}

/// What the outcome makes of the plan.
fn judge(drain: &CaptureDrain, plan: &Plan, outcome: &Outcome) -> Verdict {
    let is_withdrawn = matches!(plan.stage, Stage::Ended { .. });
    let stage = match outcome {
        Outcome::Answered(Answer::Draining { epoch, .. } | Answer::Drained { epoch }) => {
            return Verdict::Started(*epoch);
        }
        Outcome::CancelUnsupported => Stage::Ended { reason: "CancelUnsupported", succeeded: false },
        Outcome::Unseen(unseen) => Stage::Unseen(unseen.clone()),
        Outcome::Refused(Refusal::NotReady(why)) => Stage::Unseen(Unseen::Unreachable(why.clone())),
        // It ended before it could be called off: there is nothing left to withdraw.
        Outcome::Refused(_) if is_withdrawn => plan.stage.clone(),
        Outcome::Refused(refusal) => match refusal {
            Refusal::OtherDrain { target, .. } => {
                Stage::Queued(vec![BlockedBy::new("Drain", Some(target.to_string()))])
            }
            Refusal::NoPeers(_) if drain.spec.no_peers_policy == LimitPolicy::Proceed => {
                Stage::Ended { reason: "NoPeers", succeeded: false }
            }
            Refusal::NoPeers(_) => Stage::Queued(vec![BlockedBy::new("NoDestination", None)]),
            Refusal::UnknownCapture(_) => Stage::Ended { reason: "TargetGone", succeeded: false },
            Refusal::Mismatch(_) => Stage::Ended { reason: "TargetReplaced", succeeded: false },
            // The next round sees more.
            other => Stage::Unseen(Unseen::Unreachable(other.to_string())),
        },
        Outcome::Idle | Outcome::Answered(_) => plan.stage.clone(),
    };
    Verdict::Stage(stage)
}

/// A status in the making.
struct Round<'a> {
    spec: &'a CaptureDrainSpec,
    cluster: Option<&'a Cluster>,
    blocked_before: Vec<BlockedBy>,
    after: CaptureDrainStatus,
    conditions: Conditions,
    now: Timestamp,
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn time(text: Option<&String>) -> Option<Time> {
    text.and_then(|text| text.parse().ok()).map(Time)
}

impl Round<'_> {
    fn is_ticdc(&self) -> bool {
        self.spec.cluster_ref.kind == ClusterKind::TiCdc
    }

    /// A number of maintainers is none where nobody counts them.
    fn work(&self, count: WorkView) -> Work {
        let maintainers = (!self.is_ticdc()).then(|| number(count.maintainers));
        Work { maintainers, dispatchers: Some(number(count.dispatchers)) }
    }

    /// What is true whatever the stage is.
    fn see(&mut self, aim: &Aim) {
        let Some(cluster) = self.cluster else { return };
        self.after.queue_position = None;
        self.after.blocked_by.clear();
        self.after.coordinator = cluster.captures.iter().find(|at| at.is_coordinator).map(|at| at.id.clone());
        let Aim::Present(capture) = aim else {
            self.after.liveness = None;
            return;
        };
        self.after.capture_id = Some(capture.id.clone());
        self.after.node_epoch = Some(capture.node_epoch.clone());
        if capture.pod_uid.is_some() {
            self.after.pod_uid.clone_from(&capture.pod_uid);
        }
        self.after.liveness = Some(capture.liveness.clone());
        self.conditions.set(ACCEPTED, true, "Accepted", format!("the target is capture {}", capture.id));
    }

    fn started(&mut self, epoch: DrainEpoch) {
        self.after.epoch = Some(number(epoch.0));
        self.after.start_time = self.after.start_time.take().or(Some(Time(self.now)));
        self.draining();
    }

    fn stage(&mut self, stage: &Stage, aim: &Aim) {
        match stage {
            Stage::Finished | Stage::Kept => {}
            Stage::Unseen(unseen) => {
                // Silence takes nothing back; a cluster that cannot say who is empty does.
                if matches!(unseen, Unseen::Unsupported(_)) && is_true(&self.after.conditions, DRAINED) {
                    self.conditions.set(DRAINED, false, "ProgressUnknown", unseen.to_string());
                }
                self.conditions.set(STALLED, true, unseen.reason(), unseen.to_string());
                self.after.phase = Some("Unknown".to_owned());
            }
            Stage::Rejected(reason) => {
                self.conditions.set(ACCEPTED, false, reason, self.rejection(reason));
                self.end(reason, false);
            }
            Stage::Awaited => {
                self.after.phase = Some("Pending".to_owned());
                self.conditions.set(ACCEPTED, false, "NotACapture", "the pod has started, its capture not yet");
                self.conditions.lift(STALLED, "Queued");
            }
            Stage::Queued(ahead) => self.queued(ahead),
            Stage::Starting => self.after.phase = Some("Pending".to_owned()),
            Stage::Draining => self.draining(),
            Stage::Drained(end) => {
                self.proven(Some(end.initial));
                let message = match aim {
                    Aim::Gone => "the capture has ended, its pod is about to go",
                    _ => "the pod may be deleted",
                };
                self.conditions.set(RECONCILING, true, "AwaitingPodDeletion", message);
                self.conditions.lift(STALLED, "AwaitingPodDeletion");
                self.after.phase = Some("Drained".to_owned());
            }
            Stage::Ended { reason, succeeded } => self.ended(reason, *succeeded),
        }
    }

    fn rejection(&self, reason: &str) -> String {
        let target = &self.spec.target;
        match (&target.pod_name, &target.capture_id) {
            (Some(pod), _) if reason == "PodNotFound" => match &target.pod_uid {
                Some(uid) => format!("there is no pod {pod} with UID {uid}"),
                None => format!("there is no pod {pod}"),
            },
            (Some(pod), _) => format!("pod {pod} runs no capture of this cluster"),
            (None, Some(capture)) => match &target.pod_uid {
                Some(uid) => format!("no capture {capture} is registered in a pod with UID {uid}"),
                None => format!("no capture {capture} is registered"),
            },
            (None, None) => "the target names nothing".to_owned(),
        }
    }

    fn queued(&mut self, ahead: &[BlockedBy]) {
        self.after.phase = Some("Queued".to_owned());
        if self.after.epoch.is_none() {
            let capture = self.after.capture_id.as_deref().unwrap_or_default();
            self.conditions.set(ACCEPTED, true, "Queued", format!("the target is capture {capture}, its drain waits"));
        } else {
            // It has been on, and has to be asked for again.
            self.conditions.set(DRAINED, false, "InProgress", "work may have come back, the drain has to begin again");
        }
        self.after.queue_position = Some(number(ahead.len() as u64));
        self.blocked_by(ahead.first().cloned());
        let Some(next) = ahead.first() else { return };
        let name = next.name.as_deref().unwrap_or_default();
        let (reason, message) = match next.kind.as_str() {
            "Drain" => ("BlockedByDrain", format!("capture {name} is being drained, one drain at a time")),
            "NoDestination" => ("Queued", "no other capture could take the work".to_owned()),
            "CaptureDrain" => ("Queued", format!("CaptureDrain {name} comes first")),
            "Pod" => ("Queued", format!("pod {name} has to come back first")),
            kind => ("BlockedByExternalDrain", format!("{kind} {name} takes pods away at the moment")),
        };
        self.conditions.set(RECONCILING, true, reason, message);
        if next.kind == "NoDestination" {
            let message = "no other capture could take the work: add one, or delete the pod without a drain";
            self.conditions.set(STALLED, true, "NoDestination", message);
        } else {
            self.conditions.lift(STALLED, reason);
        }
    }

    fn ended(&mut self, reason: &str, succeeded: bool) {
        if succeeded {
            let epoch = self.after.epoch;
            let end =
                self.cluster.and_then(|cluster| cluster.ends.iter().find(|end| Some(number(end.drain_epoch)) == epoch));
            self.proven(end.map(|end| end.initial));
        } else if self.after.epoch.is_some() {
            self.conditions.set(DRAINED, false, "InProgress", unproven(reason));
        }
        self.end(reason, succeeded);
    }

    fn end(&mut self, reason: &str, succeeded: bool) {
        self.conditions.set(RECONCILING, false, reason, ending(reason));
        self.conditions.lift(STALLED, reason);
        self.conditions.set(SUCCEEDED, succeeded, reason, ending(reason));
        self.conditions.set(FINISHED, true, reason, ending(reason));
        self.after.completion_time = self.after.completion_time.take().or(Some(Time(self.now)));
        self.after.phase = Some(if succeeded { "Succeeded" } else { "Failed" }.to_owned());
    }

    fn proven(&mut self, initial: Option<WorkView>) {
        let known = self.after.progress.take().and_then(|progress| progress.initial);
        let told = initial.map(|initial| self.work(initial));
        // Who takes a run over of another process does not know what it began with.
        let initial = if self.is_ticdc() { known.or(told) } else { told.or(known) };
        let nothing = self.work(WorkView::default());
        let is_nothing = initial == Some(nothing);
        let epoch = self.after.epoch.unwrap_or_default();
        let (reason, message) = if is_nothing {
            ("NothingToDrain", format!("proven empty under epoch {epoch}: there was nothing on it"))
        } else {
            ("Proven", format!("proven empty under epoch {epoch}"))
        };
        self.conditions.set(DRAINED, true, reason, message);
        let in_flight = (!self.is_ticdc()).then_some(0);
        self.after.progress = Some(Progress { initial, remaining: Some(nothing), in_flight });
    }

    fn draining(&mut self) {
        self.after.phase = Some("Draining".to_owned());
        let epoch = self.after.epoch;
        let on = self.cluster.map(|cluster| &cluster.drain);
        let on = on.filter(|drain| drain.is_draining && Some(number(drain.drain_epoch)) == epoch);
        let Some(drain) = on else {
            self.conditions.set(DRAINED, false, "ProgressUnknown", "the drain has been asked for");
            self.conditions.set(RECONCILING, true, "MovingMaintainers", "the drain has been asked for");
            self.conditions.lift(STALLED, "MovingMaintainers");
            return;
        };
        let drain = drain.clone();
        let remaining = Work {
            maintainers: drain.remaining_maintainer_count.map(number),
            dispatchers: drain.remaining_dispatcher_count.map(number),
        };
        let is_unknown = remaining == Work::default();
        let known = self.after.progress.take().and_then(|progress| progress.initial).filter(|_| self.is_ticdc());
        self.after.progress = Some(Progress {
            initial: known.or(drain.initial.map(|initial| self.work(initial))),
            remaining: (!is_unknown).then_some(remaining),
            in_flight: drain.in_flight.map(|moves| number(moves.maintainers + moves.dispatchers)),
        });
        self.after.start_time = time(drain.started_at.as_ref()).or(self.after.start_time.take());
        self.after.last_progress_time = time(drain.last_progress_at.as_ref());
        self.after.requesters.clone_from(&drain.requesters);
        let (reason, message) = if is_unknown {
            ("ProgressUnknown", "the target has not said yet what it has".to_owned())
        } else {
            ("InProgress", left(remaining))
        };
        self.conditions.set(DRAINED, false, reason, message.clone());
        let moving = match drain.phase.as_deref() {
            Some("MovingMaintainers") | None => "MovingMaintainers",
            Some(_) => "MovingDispatchers",
        };
        self.conditions.set(RECONCILING, true, moving, message);
        let blockers = drain.blocked_by.iter().map(|by| BlockedBy::new(&by.kind, by.name.clone()));
        self.blocked_by(blockers);
        self.block(moving);
    }

    fn block(&mut self, moving: &str) {
        let blockers = &self.after.blocked_by;
        let is = |kind: &str| blockers.iter().any(|by| by.kind == kind);
        let deadline = self.spec.progress_deadline_seconds;
        let alone_since = blockers.iter().find(|by| by.kind == "NoDestination").and_then(|by| by.since.clone());
        if is("DeadlineHeld") {
            let message = "the deadline has passed and work is left: the pod is held, the drain goes on";
            self.conditions.set(STALLED, true, "DeadlineHeld", message);
        } else if is("NoDestination") {
            self.conditions.set(STALLED, true, "NoDestination", "no other capture may take the work");
        } else if let Some(limit) = deadline.filter(|limit| self.has_stood_still(*limit)) {
            self.conditions.set(STALLED, true, "NoProgress", format!("nothing has left the target for {limit} s"));
        } else {
            self.conditions.lift(STALLED, moving);
        }
        let proceeds = self.spec.no_peers_policy == LimitPolicy::Proceed;
        let limit = deadline.unwrap_or(NO_PEERS_PATIENCE_SECONDS);
        if proceeds && alone_since.is_some_and(|since| self.is_past(&since, limit)) {
            self.ended("NoPeers", false);
        }
    }

    /// What holds it up now, each since it was first seen.
    fn blocked_by(&mut self, blockers: impl IntoIterator<Item = BlockedBy>) {
        let since = |now: &BlockedBy| {
            let known =
                self.blocked_before.iter().find(|before| (&before.kind, &before.name) == (&now.kind, &now.name));
            known.and_then(|before| before.since.clone()).or(Some(Time(self.now)))
        };
        self.after.blocked_by = blockers.into_iter().map(|by| BlockedBy { since: since(&by), ..by }).collect();
    }

    fn is_past(&self, since: &Time, seconds: i64) -> bool {
        self.now.as_second().saturating_sub(since.0.as_second()) >= seconds
    }

    /// Whether nothing has left the target for so many seconds.
    fn has_stood_still(&self, seconds: i64) -> bool {
        let since = self.after.last_progress_time.as_ref().or(self.after.start_time.as_ref());
        since.is_some_and(|since| self.is_past(since, seconds))
    }
}

/// What is left, in words.
fn left(remaining: Work) -> String {
    let count = |n: Option<i64>, what: &str| match n {
        Some(1) => format!("1 {what} is left"),
        Some(n) => format!("{n} {what}s are left"),
        None => format!("{what}s unknown"),
    };
    format!("{}, {}", count(remaining.maintainers, "maintainer"), count(remaining.dispatchers, "dispatcher"))
}

/// Why a run that ended so has no proof.
fn unproven(reason: &str) -> &'static str {
    match reason {
        "TargetReplaced" => "the capture has started anew, work may be on it",
        _ => "not proven empty",
    }
}

/// An end in words.
fn ending(reason: &str) -> &'static str {
    match reason {
        "PodGone" => "the capture was proven empty, then its pod went",
        "CaptureStopping" => "the capture is proven empty and takes no more work",
        "Withdrawn" => "the drain was called off, what moved stays where it is",
        "EvictionAbandoned" => "nobody has tried to evict the pod for releaseAfterSeconds: the capture is back at work",
        "TargetGone" => "the capture went before it was proven empty, its work is placed again",
        "TargetReplaced" => "the capture has started anew and is not the one that was meant",
        "NoPeers" => "no other capture could take the work, and noPeersPolicy lets the pod go",
        "DeadlineProceeded" => "the deadline has passed, and onDeadline lets the pod go with work left",
        "CancelUnsupported" => "the cluster cannot call a drain off: the pod has to restart to work again",
        "PodNotFound" => "there is no such pod",
        "NotACapture" => "there is no such capture",
        _ => "",
    }
}
