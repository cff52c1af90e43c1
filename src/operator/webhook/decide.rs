//! The decision: what to look at next, or what to answer.

use capturedrain_core::model::DrainOutcome;
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use super::{
    facts::{BREAK_GLASS, Facts, PodFacts},
    make::{RELEASE_AFTER_SECONDS, attempted_at, caller, callers},
};
use crate::{
    operator::{observe::Cluster, validate::is_in},
    resource::{
        CaptureDrain, CaptureDrainStatus, ClusterKind, ClusterRef, LimitPolicy, ending, is_drained, is_finished,
        stalled,
    },
    view::{CaptureView, outcome_name},
};

/// What comes next.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// More has to be known.
    Look(Look),
    /// That is the answer.
    Answer(Decision),
}

/// What is to be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// The pod, at the API server.
    Pod,
    /// The pod and its node, likewise.
    Node,
    /// The pod, the drain and the cluster at this moment.
    Proof {
        /// The cluster.
        cluster: ClusterRef,
        /// The drain.
        drain: String,
    },
    /// What stands in the way of a drain, and the pod.
    Obstacles,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// It may go.
    Pass {
        /// Why.
        why: Pass,
        /// The UID of the pod that is meant, where one is.
        uid: Option<String>,
        /// The drain that was made for this, where one was.
        drain: Option<String>,
    },
    /// Nothing happens; this would.
    Rehearsed(Option<String>),
    /// It may not go yet.
    Deny(Denial),
    /// The pod that the caller wanted gone is gone.
    Gone,
    /// A drain has to begin first.
    Begin {
        /// Of this pod.
        pod: Box<PodFacts>,
        /// Its cluster.
        cluster: ClusterRef,
    },
}

/// Why a pod may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// It is no capture's.
    NotOurs,
    /// There is none, as the API server will say.
    NoPod,
    /// Another one is meant, as the API server will say.
    OtherPod,
    /// It has ended, has not begun, or goes anyway.
    NotRunning,
    /// A person said so.
    BreakGlass,
    /// It is proven empty.
    Drained,
    /// No capture is in it.
    NothingToDrain,
    /// Nobody could take its work.
    NoPeers,
    /// Its time was over.
    Proceeded,
}

impl Pass {
    /// The name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotOurs => "NotOurs",
            Self::NoPod => "NoPod",
            Self::OtherPod => "OtherPod",
            Self::NotRunning => "NotRunning",
            Self::BreakGlass => "BreakGlass",
            Self::Drained => "Drained",
            Self::NothingToDrain => "NothingToDrain",
            Self::NoPeers => "NoPeers",
            Self::Proceeded => "DeadlineProceeded",
        }
    }
}

/// Why it may not go yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// The name in metrics and logs.
    pub decision: &'static str,
    /// The reason of the cause, for programs.
    pub cause: &'static str,
    /// One sentence, the same for the same state.
    pub message: String,
    /// The drain that the attempt is one more of.
    pub drain: Option<String>,
}

impl Denial {
    /// A capture has to be drained first.
    pub fn not_drained(decision: &'static str, message: String, drain: Option<String>) -> Self {
        Self { decision, cause: "CaptureNotDrained", message, drain }
    }

    fn withdrawn(pod: &str, drain: &str) -> Self {
        let message = format!(
            "the drain of pod {pod} was withdrawn (CaptureDrain {drain}): apply a CaptureDrain to drain it all the same, \
             or annotate the pod with {BREAK_GLASS}=true to let it go as it is"
        );
        Self { decision: "Withdrawn", cause: "DrainWithdrawn", message, drain: None }
    }
}

fn pass(why: Pass, pod: Option<&PodFacts>, drain: Option<&CaptureDrain>) -> Step {
    let uid = pod.map(|pod| pod.pod.uid.clone());
    Step::Answer(Decision::Pass { why, uid, drain: drain.map(ResourceExt::name_any) })
}

/// What comes next.
pub fn decide(facts: &Facts) -> Step {
    let live = |step: Step| if facts.pod.is_live() { step } else { Step::Look(Look::Pod) };
    let Some(pod) = facts.pod.pod() else { return live(pass(Pass::NoPod, None, None)) };
    let Some(cluster) = pod.cluster() else { return pass(Pass::NotOurs, None, None) };
    if facts.asked.uid.as_ref().is_some_and(|uid| *uid != pod.pod.uid) {
        return live(pass(Pass::OtherPod, None, None));
    }
    if facts.asked.is_dry_run {
        return Step::Answer(Decision::Rehearsed(rehearsal(facts, pod, &cluster)));
    }
    if is_successor(facts, pod) {
        match facts.is_node_closed {
            None => return Step::Look(Look::Node),
            Some(false) => return Step::Answer(Decision::Gone),
            // Whoever wants this node empty wants this pod gone, too.
            Some(true) => {}
        }
    }
    if is_idle(pod) {
        return live(pass(Pass::NotRunning, Some(pod), None));
    }
    if is_broken(pod) {
        return pass(Pass::BreakGlass, Some(pod), None);
    }
    match current(facts, pod) {
        Some(drain) if is_finished(drain) => after(facts, pod, &cluster, drain),
        Some(drain) => during(facts, pod, drain),
        None => begin(facts, pod, &cluster),
    }
}

/// Whether it does not matter how the pod goes.
fn is_idle(pod: &PodFacts) -> bool {
    pod.pod.is_deleting || matches!(pod.phase.as_str(), "Pending" | "Succeeded" | "Failed")
}

fn is_broken(pod: &PodFacts) -> bool {
    pod.annotations.get(BREAK_GLASS).is_some_and(|is| is == "true")
}

/// What an eviction would begin, in one sentence.
fn rehearsal(facts: &Facts, pod: &PodFacts, cluster: &ClusterRef) -> Option<String> {
    if is_idle(pod) || is_broken(pod) {
        return None;
    }
    let (name, service) = (&facts.asked.name, &cluster.service_name);
    let unfinished = current(facts, pod).filter(|drain| !is_finished(drain));
    Some(match unfinished {
        Some(drain) if is_drained(drain) => format!("the capture in pod {name} is drained: the pod could go"),
        Some(drain) => format!("pod {name} could not go yet: {}", progress(drain, name)),
        None => format!("the capture in pod {name}, of Service {service}, would be drained first"),
    })
}

/// Whether this pod came after the one that the same caller wants gone.
fn is_successor(facts: &Facts, pod: &PodFacts) -> bool {
    if facts.asked.uid.is_some() {
        return false;
    }
    let user = caller(&facts.asked.user);
    let patience = SignedDuration::from_secs(RELEASE_AFTER_SECONDS);
    facts.drains.iter().any(|drain| {
        let other = pod_uid(drain).is_some_and(|uid| uid != pod.pod.uid);
        let lately = attempted_at(drain).is_some_and(|at| facts.now.duration_since(at) <= patience);
        let is_younger = drain.metadata.creation_timestamp.as_ref().is_some_and(|at| at.0 <= pod.pod.created_at);
        other && lately && is_younger && callers(drain).contains(&user)
    })
}

/// The UID of the pod that a drain is about, as far as it says.
pub fn pod_uid(drain: &CaptureDrain) -> Option<&str> {
    let status = drain.status.as_ref().and_then(|status| status.pod_uid.as_deref());
    drain.spec.target.pod_uid.as_deref().or(status)
}

/// The drain that decides: the one that is not over, one that has its proof first; or else the latest.
fn current<'a>(facts: &'a Facts, pod: &PodFacts) -> Option<&'a CaptureDrain> {
    let is_meant = |drain: &CaptureDrain| match pod_uid(drain) {
        Some(uid) => uid == pod.pod.uid,
        None => drain.spec.target.pod_name.as_ref() == Some(&facts.asked.name) && !is_finished(drain),
    };
    let made = |drain: &CaptureDrain| drain.metadata.creation_timestamp.as_ref().map(|at| at.0);
    let rank = |drain: &CaptureDrain| {
        let is_going = drain.metadata.deletion_timestamp.is_some();
        (!is_finished(drain), !is_going, is_drained(drain))
    };
    let meant = facts.drains.iter().map(|drain| &**drain).filter(|drain| is_meant(drain));
    meant.max_by_key(|drain| (rank(drain), made(drain), drain.metadata.name.as_deref()))
}

/// A drain that is not over.
fn during(facts: &Facts, pod: &PodFacts, drain: &CaptureDrain) -> Step {
    let (name, own) = (&facts.asked.name, drain.name_any());
    if drain.metadata.deletion_timestamp.is_some() {
        return Step::Answer(Decision::Deny(Denial::withdrawn(name, &own)));
    }
    if is_drained(drain) {
        return proven(facts, pod, drain);
    }
    if is_unseen_for_too_long(drain, facts.now) {
        return pass(Pass::Proceeded, Some(pod), Some(drain));
    }
    let message = format!("{} (CaptureDrain {own})", progress(drain, name));
    Step::Answer(Decision::Deny(Denial::not_drained("NotDrained", message, Some(own))))
}

/// A cluster that was never reached has no clock for the deadline, so that this one counts.
fn is_unseen_for_too_long(drain: &CaptureDrain, now: Timestamp) -> bool {
    let is_unseen = matches!(stalled(drain), Some("ClusterUnreachable" | "Unauthorized" | "DrainUnsupported"));
    let made = drain.metadata.creation_timestamp.as_ref().map(|at| at.0);
    let deadline = drain.spec.deadline_seconds.filter(|_| drain.spec.on_deadline == LimitPolicy::Proceed);
    let age = made.zip(deadline).map(|(made, seconds)| now.duration_since(made) >= SignedDuration::from_secs(seconds));
    is_unseen && age == Some(true)
}

/// How far a drain is, without what changes by the clock.
fn progress(drain: &CaptureDrain, pod: &str) -> String {
    let nothing = CaptureDrainStatus::default();
    let status = drain.status.as_ref().unwrap_or(&nothing);
    let plural = |count: i64, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    if let Some(why) = stalled(drain) {
        return format!("pod {pod} is not drained, and its drain does not go on by itself: {why}");
    }
    if status.phase.as_deref() == Some("Queued") {
        let ahead = status.blocked_by.first().map_or_else(String::new, |by| {
            let name = by.name.as_deref().map(|name| format!(" {name}")).unwrap_or_default();
            format!(", behind {}{name}", by.kind)
        });
        return format!("pod {pod} is not drained, its drain waits for its turn{ahead}");
    }
    let left = status.progress.as_ref().and_then(|progress| progress.remaining);
    let numbers = left.map(|left| {
        let maintainers = left.maintainers.map(|count| plural(count, "maintainer"));
        let dispatchers = left.dispatchers.map(|count| plural(count, "dispatcher"));
        maintainers.into_iter().chain(dispatchers).collect::<Vec<_>>().join(" and ")
    });
    match numbers.filter(|numbers| !numbers.is_empty()) {
        Some(numbers) => format!("pod {pod} is being drained, {numbers} left"),
        None => format!("pod {pod} is being drained, what is left is not known yet"),
    }
}

/// A drain that says that it is proven: believed only when pod, drain and cluster say the same at this moment.
fn proven(facts: &Facts, pod: &PodFacts, drain: &CaptureDrain) -> Step {
    let own = drain.name_any();
    let Some(seen) = facts.cluster.as_ref() else {
        return Step::Look(Look::Proof { cluster: drain.spec.cluster_ref.clone(), drain: own });
    };
    let name = &facts.asked.name;
    let deny = |why: &str| {
        let message = format!("{why} (CaptureDrain {own})");
        Step::Answer(Decision::Deny(Denial::not_drained("Unproven", message, Some(own.clone()))))
    };
    let Ok(cluster) = seen else {
        return deny(&format!("pod {name} was drained, and its cluster does not answer whether it still is"));
    };
    match capture_in(cluster, name, pod) {
        // Its process has ended: nothing is there, and nothing can come.
        None => pass(Pass::Drained, Some(pod), Some(drain)),
        Some(capture) if agrees(drain, capture, cluster) => pass(Pass::Drained, Some(pod), Some(drain)),
        Some(_) => deny(&format!("pod {name} was drained, and its capture has started anew or was given work since")),
    }
}

fn capture_in<'a>(cluster: &'a Cluster, name: &str, pod: &PodFacts) -> Option<&'a CaptureView> {
    cluster.captures.iter().find(|capture| is_in(capture, name, &pod.pod))
}

/// Whether a cluster says what the proof says: this registration, proven empty by this drain, and nothing since.
fn agrees(drain: &CaptureDrain, capture: &CaptureView, cluster: &Cluster) -> bool {
    let Some(status) = &drain.status else { return false };
    if status.node_epoch.as_ref() != Some(&capture.node_epoch) {
        return false;
    }
    if drain.spec.cluster_ref.kind == ClusterKind::TiCdc {
        // It keeps no record; the operator asks on, and what it says was read a moment ago.
        return true;
    }
    let of_this = |epoch: &str, target: &str| target == capture.id && epoch == capture.node_epoch;
    let last = cluster.ends.iter().rfind(|end| of_this(&end.node_epoch, &end.target));
    let epoch = status.epoch.and_then(|epoch| u64::try_from(epoch).ok());
    let is_last =
        last.is_none_or(|end| Some(end.drain_epoch) == epoch && end.outcome == outcome_name(DrainOutcome::Drained));
    capture.liveness == "Stopping" && is_last
}

/// A drain that is over, while its pod is still there.
fn after(facts: &Facts, pod: &PodFacts, cluster: &ClusterRef, drain: &CaptureDrain) -> Step {
    let reason = ending(drain).unwrap_or_default();
    let name = &facts.asked.name;
    match reason {
        "Withdrawn" => return Step::Answer(Decision::Deny(Denial::withdrawn(name, &drain.name_any()))),
        "DeadlineProceeded" | "NoPeers" | "NotACapture" | "TargetGone" | "CaptureStopping" => {}
        _ => return begin(facts, pod, cluster),
    }
    let Some(seen) = facts.cluster.as_ref() else {
        return Step::Look(Look::Proof { cluster: drain.spec.cluster_ref.clone(), drain: drain.name_any() });
    };
    let go = |why| pass(why, Some(pod), Some(drain));
    let Ok(seen) = seen else {
        return if reason == "DeadlineProceeded" { go(Pass::Proceeded) } else { begin(facts, pod, cluster) };
    };
    let Some(capture) = capture_in(seen, name, pod) else { return go(Pass::NothingToDrain) };
    let is_same = drain.status.as_ref().is_some_and(|status| status.node_epoch.as_ref() == Some(&capture.node_epoch));
    let has_peers =
        seen.captures.iter().any(|other| other.id != capture.id && other.liveness == "Alive" && other.heard);
    match reason {
        "DeadlineProceeded" if is_same => go(Pass::Proceeded),
        "NoPeers" if !has_peers => go(Pass::NoPeers),
        "CaptureStopping" if agrees(drain, capture, seen) => go(Pass::Drained),
        _ => begin(facts, pod, cluster),
    }
}

/// Nothing is under way: a drain is to begin, unless something stands in its way.
fn begin(facts: &Facts, pod: &PodFacts, cluster: &ClusterRef) -> Step {
    let name = &facts.asked.name;
    let Some(obstacles) = &facts.obstacles else { return Step::Look(Look::Obstacles) };
    if let Some(why) = &obstacles.budget {
        let message = format!("pod {name} may not go, {why}: nothing is drained for it");
        let denial = Denial { decision: "Budget", cause: "DisruptionBudget", message, drain: None };
        return Step::Answer(Decision::Deny(denial));
    }
    if let Some(drain) = &obstacles.withdrawn {
        return Step::Answer(Decision::Deny(Denial::withdrawn(name, drain)));
    }
    Step::Answer(Decision::Begin { pod: Box::new(pod.clone()), cluster: cluster.clone() })
}
