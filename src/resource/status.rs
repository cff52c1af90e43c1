//! What came of it, written down for people and programs.

use capturedrain_core::model::{Answer, DrainEpoch, Refusal};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    Aim, BlockedBy, CaptureDrain, CaptureDrainSpec, CaptureDrainStatus, LimitPolicy, Observed, Plan, Progress, Stage,
    Unseen, Work,
    condition::{ACCEPTED, Conditions, DRAINED, FINISHED, RECONCILING, STALLED, SUCCEEDED, find, is_true},
};
use crate::view::WorkView;

/// How long a drain may be without a destination before `noPeersPolicy: Proceed` ends it, unless
/// `progressDeadlineSeconds` says otherwise: longer than a capture that restarts takes to register.
const NO_PEERS_PATIENCE_SECONDS: i64 = 60;

/// What the caller's action came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// There was nothing to do.
    Idle,
    /// The cluster answered.
    Answered(Answer),
    /// The cluster refused.
    Refused(Refusal),
    /// The cluster did not answer.
    Unseen(Unseen),
}

/// Whether the run has ended.
pub fn is_finished(drain: &CaptureDrain) -> bool {
    drain.status.as_ref().is_some_and(|status| is_true(&status.conditions, FINISHED))
}

/// Whether the target is proven empty.
pub fn is_drained(drain: &CaptureDrain) -> bool {
    drain.status.as_ref().is_some_and(|status| is_true(&status.conditions, DRAINED))
}

/// Why the run ended, once it has.
pub fn ending(drain: &CaptureDrain) -> Option<&str> {
    let status = drain.status.as_ref()?;
    find(&status.conditions, FINISHED)
        .filter(|finished| finished.status == "True")
        .map(|finished| finished.reason.as_str())
}

/// Why it will not go on by itself, when it will not.
pub fn stalled(drain: &CaptureDrain) -> Option<&str> {
    let status = drain.status.as_ref()?;
    find(&status.conditions, STALLED).filter(|stalled| stalled.status == "True").map(|stalled| stalled.reason.as_str())
}

/// The status after a round. Without news it is the same as before.
pub fn status(
    drain: &CaptureDrain,
    aim: &Aim,
    plan: &Plan,
    outcome: &Outcome,
    observed: &Observed,
    now: Timestamp,
) -> CaptureDrainStatus {
    let before = drain.status.clone().unwrap_or_default();
    if plan.stage == Stage::Finished {
        return before;
    }
    let generation = drain.metadata.generation;
    let conditions = Conditions::new(&before.conditions, generation, now);
    let after = CaptureDrainStatus { observed_generation: generation, ..before };
    let mut round = Round { spec: &drain.spec, blocked_before: after.blocked_by.clone(), after, conditions, now };
    round.see(aim, observed);
    match judge(drain, plan, outcome) {
        Verdict::Stage(stage) => round.stage(&stage, observed),
        Verdict::Started(epoch) => round.started(epoch, observed),
    }
    round.after.conditions = round.conditions.into_inner();
    round.after
}

enum Verdict {
    Stage(Stage),
    Started(DrainEpoch),
}

/// What the outcome makes of the plan.
fn judge(drain: &CaptureDrain, plan: &Plan, outcome: &Outcome) -> Verdict {
    let stage = match outcome {
        Outcome::Answered(Answer::Draining { epoch, .. } | Answer::Drained { epoch }) => {
            return Verdict::Started(*epoch);
        }
        Outcome::Unseen(unseen) => Stage::Unseen(unseen.clone()),
        Outcome::Refused(refusal) => match refusal {
            Refusal::OtherDrain { target, .. } => Stage::Queued(BlockedBy::new("Drain", Some(target.to_string()))),
            Refusal::NoPeers(_) if drain.spec.no_peers_policy == LimitPolicy::Proceed => {
                Stage::Ended { reason: "NoPeers", succeeded: false }
            }
            Refusal::NoPeers(_) => Stage::Queued(BlockedBy::new("NoDestination", None)),
            Refusal::UnknownCapture(_) => Stage::Ended { reason: "TargetGone", succeeded: false },
            Refusal::Mismatch(_) => Stage::Ended { reason: "TargetReplaced", succeeded: false },
            // A withdrawal that came too late, or a coordinator that is not ready: the next round sees more.
            other => Stage::Unseen(Unseen::Unreachable(other.to_string())),
        },
        Outcome::Idle | Outcome::Answered(_) => plan.stage.clone(),
    };
    Verdict::Stage(stage)
}

/// A status in the making.
struct Round<'a> {
    spec: &'a CaptureDrainSpec,
    blocked_before: Vec<BlockedBy>,
    after: CaptureDrainStatus,
    conditions: Conditions,
    now: Timestamp,
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn work(count: WorkView) -> Work {
    Work { maintainers: Some(number(count.maintainers)), dispatchers: Some(number(count.dispatchers)) }
}

fn time(text: Option<&String>) -> Option<Time> {
    text.and_then(|text| text.parse().ok()).map(Time)
}

impl Round<'_> {
    /// What is true whatever the stage is.
    fn see(&mut self, aim: &Aim, observed: &Observed) {
        self.after.queue_position = None;
        self.after.blocked_by.clear();
        if observed.unseen.is_some() {
            return;
        }
        self.after.coordinator = observed.captures.iter().find(|at| at.is_coordinator).map(|at| at.id.clone());
        match aim {
            Aim::Present(capture) => {
                self.after.capture_id = Some(capture.id.clone());
                self.after.node_epoch = Some(capture.node_epoch.clone());
                self.after.pod_uid.clone_from(&capture.pod_uid);
                self.after.liveness = Some(capture.liveness.clone());
                self.conditions.set(ACCEPTED, true, "Accepted", format!("the target is capture {}", capture.id));
            }
            _ => self.after.liveness = None,
        }
    }

    fn started(&mut self, epoch: DrainEpoch, observed: &Observed) {
        self.after.epoch = Some(number(epoch.0));
        self.after.start_time = self.after.start_time.take().or(Some(Time(self.now)));
        self.stage(&Stage::Draining, observed);
    }

    fn stage(&mut self, stage: &Stage, observed: &Observed) {
        match stage {
            Stage::Finished => {}
            Stage::Unseen(unseen) => {
                self.conditions.set(STALLED, true, unseen.reason(), unseen.to_string());
                self.after.phase = Some("Unknown".to_owned());
            }
            Stage::Rejected(reason) => {
                let message = "no registered capture is the target";
                self.conditions.set(ACCEPTED, false, reason, message);
                self.end(reason, false);
            }
            Stage::Queued(blocker) => {
                let reason = if blocker.name.is_some() { "BlockedByDrain" } else { "Queued" };
                self.after.phase = Some("Queued".to_owned());
                self.after.queue_position = Some(1);
                self.blocked_by([blocker.clone()]);
                self.conditions.set(RECONCILING, true, reason, "another drain comes first");
                match blocker.kind.as_str() {
                    "NoDestination" => {
                        self.conditions.set(STALLED, true, "NoDestination", "no other capture could take the work");
                    }
                    _ => self.conditions.lift(STALLED, reason),
                }
            }
            Stage::Starting => self.after.phase = Some("Pending".to_owned()),
            Stage::Draining => self.draining(observed),
            Stage::Drained(end) => {
                let nothing = end.initial == WorkView::default();
                let reason = if nothing { "NothingToDrain" } else { "Proven" };
                self.conditions.set(DRAINED, true, reason, format!("proven under epoch {}", end.drain_epoch));
                self.conditions.set(RECONCILING, true, "AwaitingPodDeletion", "the pod may go");
                self.conditions.lift(STALLED, reason);
                self.left(WorkView::default(), Some(end.initial));
                self.after.phase = Some("Drained".to_owned());
            }
            Stage::Ended { reason, succeeded } => self.ended(reason, *succeeded, observed),
        }
    }

    fn ended(&mut self, reason: &str, succeeded: bool, observed: &Observed) {
        let end = observed.ends.iter().find(|end| Some(number(end.drain_epoch)) == self.after.epoch);
        if succeeded {
            let initial = end.map(|end| end.initial);
            let proof = if initial == Some(WorkView::default()) { "NothingToDrain" } else { "Proven" };
            let epoch = self.after.epoch.unwrap_or_default();
            self.conditions.set(DRAINED, true, proof, format!("proven under epoch {epoch}"));
            self.left(WorkView::default(), initial);
        } else {
            self.conditions.set(DRAINED, false, "InProgress", "not proven");
        }
        self.end(reason, succeeded);
    }

    fn end(&mut self, reason: &str, succeeded: bool) {
        self.conditions.set(RECONCILING, false, reason, "");
        self.conditions.lift(STALLED, reason);
        self.conditions.set(SUCCEEDED, succeeded, reason, "");
        self.conditions.set(FINISHED, true, reason, "");
        self.after.completion_time = self.after.completion_time.take().or(Some(Time(self.now)));
        self.after.phase = Some(if succeeded { "Succeeded" } else { "Failed" }.to_owned());
    }

    fn left(&mut self, remaining: WorkView, initial: Option<WorkView>) {
        let known = self.after.progress.take().and_then(|progress| progress.initial);
        let initial = initial.map(work).or(known);
        self.after.progress = Some(Progress { initial, remaining: Some(work(remaining)), in_flight: Some(0) });
    }

    fn draining(&mut self, observed: &Observed) {
        self.after.phase = Some("Draining".to_owned());
        let drain = &observed.drain;
        if Some(number(drain.drain_epoch)) != self.after.epoch || !drain.is_draining {
            self.conditions.set(DRAINED, false, "ProgressUnknown", "the drain has been asked for");
            self.conditions.set(RECONCILING, true, "MovingMaintainers", "");
            return;
        }
        let remaining = Work {
            maintainers: drain.remaining_maintainer_count.map(number),
            dispatchers: drain.remaining_dispatcher_count.map(number),
        };
        let unknown = remaining.dispatchers.is_none();
        self.after.progress = Some(Progress {
            initial: drain.initial.map(work),
            remaining: (!unknown).then_some(remaining),
            in_flight: drain.in_flight.map(|moves| number(moves.maintainers + moves.dispatchers)),
        });
        self.after.start_time = time(drain.started_at.as_ref()).or(self.after.start_time.take());
        self.after.last_progress_time = time(drain.last_progress_at.as_ref());
        self.after.requesters.clone_from(&drain.requesters);
        let reason = if unknown { "ProgressUnknown" } else { "InProgress" };
        self.conditions.set(DRAINED, false, reason, "");
        let moving = match drain.phase.as_deref() {
            Some("MovingMaintainers") | None => "MovingMaintainers",
            Some(_) => "MovingDispatchers",
        };
        self.conditions.set(RECONCILING, true, moving, "");
        self.block(observed, moving);
    }

    fn block(&mut self, observed: &Observed, moving: &str) {
        let blockers = &observed.drain.blocked_by;
        self.blocked_by(blockers.iter().map(|by| BlockedBy::new(&by.kind, by.name.clone())));
        let is = |kind: &str| blockers.iter().any(|by| by.kind == kind);
        let deadline = self.spec.progress_deadline_seconds;
        if is("DeadlineHeld") {
            self.conditions.set(STALLED, true, "DeadlineHeld", "the deadline has passed, the pod is held");
        } else if is("NoDestination") {
            self.conditions.set(STALLED, true, "NoDestination", "no other capture may take the work");
        } else if let Some(limit) = deadline.filter(|limit| self.has_stood_still(*limit)) {
            self.conditions.set(STALLED, true, "NoProgress", format!("nothing has left the target for {limit} s"));
        } else {
            self.conditions.lift(STALLED, moving);
        }
        let proceeds = self.spec.no_peers_policy == LimitPolicy::Proceed;
        let alone_since =
            self.after.blocked_by.iter().find(|by| by.kind == "NoDestination").and_then(|by| by.since.as_ref());
        let limit = deadline.unwrap_or(NO_PEERS_PATIENCE_SECONDS);
        if proceeds && alone_since.is_some_and(|since| self.is_past(since, limit)) {
            self.ended("NoPeers", false, observed);
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
