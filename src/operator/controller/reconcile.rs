//! One round of one drain: the stages, with Kubernetes on both sides.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use capturedrain_core::model::{Answer, CaptureId};
use jiff::Timestamp;
use kube::{Client, ResourceExt as _, runtime::controller::Action as Next, runtime::events::Recorder};

use super::{
    cache::Caches,
    clusters::{ClusterKey, Clusters, Known},
    error::Error,
    metrics::Metrics,
    rollouts, write,
};
use crate::{
    operator::{
        apply::apply,
        avoid::avoid,
        due::{due, expires},
        event::{Note, notes},
        observe::{Cluster, Observed, PodSeen, Surroundings, Unseen},
        plan::{self, Action, Plan, Stage, plan},
        queue::ahead,
        status::{Outcome, kept, status},
        validate::validate,
    },
    resource::{CaptureDrain, CaptureDrainStatus, ClusterKind, is_finished},
};

/// How soon a round that failed is tried again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_mins(1));
/// How soon a round whose object had changed meanwhile is repeated.
const AGAIN: Duration = Duration::from_millis(200);

/// What all rounds share.
pub(super) struct Context {
    client: Client,
    caches: Caches,
    clusters: Arc<Clusters>,
    recorder: Recorder,
    metrics: Arc<Metrics>,
    let_go_after: Duration,
    /// What is remembered of each drain, by UID. None of it has to survive.
    memory: Mutex<BTreeMap<String, Memory>>,
}

/// What is remembered of a drain.
#[derive(Debug, Default)]
struct Memory {
    /// The captures that its cluster was last told to avoid.
    avoid_told: Option<Vec<CaptureId>>,
    /// How many rounds have failed in a row.
    failures: u32,
}

impl Context {
    pub(super) fn new(
        client: Client,
        caches: Caches,
        clusters: Arc<Clusters>,
        recorder: Recorder,
        metrics: Arc<Metrics>,
        let_go_after: Duration,
    ) -> Self {
        Self { client, caches, clusters, recorder, metrics, let_go_after, memory: Mutex::default() }
    }

    fn memory(&self) -> MutexGuard<'_, BTreeMap<String, Memory>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember<R>(&self, drain: &CaptureDrain, change: impl FnOnce(&mut Memory) -> R) -> R {
        change(self.memory().entry(drain.uid().unwrap_or_default()).or_default())
    }

    /// Forgets a drain that is over, and the way to its cluster unless another needs it.
    fn forget(&self, drain: &CaptureDrain) {
        self.memory().remove(&drain.uid().unwrap_or_default());
        let needs = |key: &ClusterKey, other: &CaptureDrain| {
            !is_finished(other) && other.uid() != drain.uid() && key.is_of(other)
        };
        self.clusters.keep(|key| self.caches.drains.find(|other| needs(key, other)).is_some());
    }

    /// Stage 1 with Kubernetes.
    fn observe(&self, drain: &CaptureDrain, cluster: Result<Cluster, Unseen>) -> Observed {
        let now = Timestamp::now();
        let namespace = drain.metadata.namespace.as_deref().unwrap_or_default();
        let pod = drain.spec.target.pod_name.as_ref().map(|name| self.caches.pod(namespace, name));
        let mut around = Surroundings { pod: pod.unwrap_or_default(), ..Surroundings::default() };
        if let Ok(cluster) = &cluster {
            let key = ClusterKey::of(drain);
            let siblings = self.caches.drains.state_filter(|other| key.is_of(other));
            let uid_of = |name: &str| match self.caches.pod(namespace, name) {
                PodSeen::There(pod) => Some(pod.uid),
                PodSeen::Missing | PodSeen::Unasked => None,
            };
            around.ahead = ahead(drain, siblings.iter().map(|other| &**other), cluster, &uid_of, now);
            let target = target_of(drain, cluster).unwrap_or_default();
            let queued = siblings.iter().filter(|other| !is_finished(other) && other.uid() != drain.uid());
            let queued: BTreeSet<_> = queued.filter_map(|other| Some(target_of(other, cluster)?.to_owned())).collect();
            around.avoid = avoid(target, cluster, &self.caches.places(namespace), &self.caches.nodes(), &queued);
            around.avoid_told = self.remember(drain, |memory| memory.avoid_told.clone());
        }
        Observed { now, cluster, around }
    }
}

/// The capture that a drain is for, as far as that is known.
fn target_of<'a>(drain: &'a CaptureDrain, cluster: &'a Cluster) -> Option<&'a str> {
    let target = &drain.spec.target;
    let accepted = drain.status.as_ref().and_then(|status| status.capture_id.as_deref());
    let by_pod = || cluster.captures.iter().find(|at| target.names(&at.id, at.pod_name.as_deref()));
    accepted.or(target.capture_id.as_deref()).or_else(|| by_pod().map(|found| found.id.as_str()))
}

/// One round.
pub(super) async fn reconcile(drain: Arc<CaptureDrain>, context: Arc<Context>) -> Result<Next, Error> {
    let done = round(&drain, &context).await;
    match &done {
        Ok(_) => {
            context.metrics.reconciled("done", "");
            // One that was forgotten in this round stays so.
            if let Some(memory) = context.memory().get_mut(&drain.uid().unwrap_or_default()) {
                memory.failures = 0;
            }
        }
        Err(error) => context.metrics.reconciled("failed", error.category()),
    }
    done
}

/// When a round that failed is tried again.
#[allow(clippy::needless_pass_by_value, reason = "the form that the controller wants")]
pub(super) fn retry(drain: Arc<CaptureDrain>, _: &Error, context: Arc<Context>) -> Next {
    let failures = context.remember(&drain, |memory| {
        memory.failures = memory.failures.saturating_add(1);
        memory.failures
    });
    Next::requeue(RETRY.0.saturating_mul(2_u32.saturating_pow(failures.min(10))).min(RETRY.1))
}

async fn round(drain: &CaptureDrain, context: &Context) -> Result<Next, Error> {
    let now = Timestamp::now();
    if is_finished(drain) {
        return finished(drain, context, now).await;
    }
    if drain.metadata.deletion_timestamp.is_some() && !write::has_finalizer(drain) {
        // Nothing was begun, and it is about to vanish.
        context.forget(drain);
        return Ok(Next::await_change());
    }
    let known = context.clusters.known(&ClusterKey::of(drain));
    let Some(seen) = known.seen.clone() else {
        // The cluster's first word brings the next round.
        return Ok(patience(drain, context, now).map_or_else(Next::await_change, Next::requeue));
    };
    let mut observed = context.observe(drain, seen);
    let aim = validate(drain, &observed);
    let mut planned = plan(drain, &aim, &observed);
    if let (Action::Start(_), Ok(cluster)) = (&planned.action, &observed.cluster)
        && drain.spec.cluster_ref.kind == ClusterKind::TiCdc
        && plan::epoch(drain).is_none()
    {
        let namespace = drain.metadata.namespace.as_deref().unwrap_or_default();
        match rollouts::look(&context.client, &context.caches, namespace, cluster).await {
            Ok(rollout) => observed.around.rollout = rollout,
            Err(unseen) => observed.cluster = Err(unseen),
        }
        planned = plan(drain, &aim, &observed);
    }
    let Some(outcome) = carry_out(drain, &planned, &known, context).await? else {
        return Ok(Next::requeue(AGAIN));
    };
    if let (Action::Start(request), Outcome::Answered(Answer::Draining { .. } | Answer::Drained { .. })) =
        (&planned.action, &outcome)
    {
        context.remember(drain, |memory| memory.avoid_told = Some(request.avoid.clone()));
    }
    let after = status(drain, &aim, &planned, &outcome, &observed);
    write_down(drain, &after, context).await?;
    let drain = &CaptureDrain { status: Some(after), ..drain.clone() };
    if drain.metadata.deletion_timestamp.is_some() {
        return part(drain, &planned, &outcome, context).await;
    }
    if is_finished(drain) {
        return finished(drain, context, now).await;
    }
    Ok(due(drain, now).map_or_else(Next::await_change, Next::requeue))
}

/// Stage 4 with Kubernetes: nothing begins before the object is held, and before it is sure that nothing has begun.
/// `None` when the object is not what it was believed to be.
async fn carry_out(
    drain: &CaptureDrain,
    planned: &Plan,
    known: &Known,
    context: &Context,
) -> Result<Option<Outcome>, Error> {
    if planned.action == Action::Nothing {
        return Ok(Some(Outcome::Idle));
    }
    if matches!(planned.action, Action::Start(_)) && plan::epoch(drain).is_none() {
        let live = if write::has_finalizer(drain) {
            write::read(&context.client, drain).await?
        } else {
            write::hold(&context.client, drain).await?
        };
        let is_as_believed = live.as_ref().is_some_and(|live| {
            plan::epoch(live).is_none() && !is_finished(live) && live.metadata.deletion_timestamp.is_none()
        });
        if !is_as_believed {
            return Ok(None);
        }
    }
    let Some(backend) = &known.backend else { return Ok(None) };
    let outcome = apply(&**backend, &planned.action).await;
    Ok(Some(outcome))
}

/// Stage 5 with Kubernetes: nothing is written without news.
async fn write_down(drain: &CaptureDrain, after: &CaptureDrainStatus, context: &Context) -> Result<(), Error> {
    if drain.status.as_ref() == Some(after) {
        return Ok(());
    }
    write::status(&context.client, drain, after).await?;
    let notes = notes(drain, after);
    for note in &notes {
        log(drain, after, note);
    }
    write::tell(&context.recorder, drain, notes).await;
    Ok(())
}

fn log(drain: &CaptureDrain, after: &CaptureDrainStatus, note: &Note) {
    let (namespace, name) = (drain.metadata.namespace.as_deref().unwrap_or_default(), drain.name_any());
    let (target, epoch) = (after.capture_id.as_deref().unwrap_or_default(), after.epoch);
    let phase = after.phase.as_deref().unwrap_or_default();
    tracing::info!(namespace, name, target, epoch, phase, reason = note.reason, sentence = note.sentence, "transition");
}

/// It has ended: its object is let go, its status kept current, and when its time is over it is deleted.
async fn finished(drain: &CaptureDrain, context: &Context, now: Timestamp) -> Result<Next, Error> {
    context.forget(drain);
    write::let_go(&context.client, drain).await?;
    if expires(drain, now) {
        write::delete(&context.client, drain).await?;
        return Ok(Next::await_change());
    }
    let is_lagging =
        drain.status.as_ref().is_some_and(|status| status.observed_generation != drain.metadata.generation);
    if is_lagging {
        write::status(&context.client, drain, &kept(drain, now)).await?;
    }
    Ok(due(drain, now).map_or_else(Next::await_change, Next::requeue))
}

/// How much longer a deleted object is kept for a cluster that says nothing.
fn patience(drain: &CaptureDrain, context: &Context, now: Timestamp) -> Option<Duration> {
    let deleted = drain.metadata.deletion_timestamp.as_ref()?.0;
    let since = now.as_millisecond().saturating_sub(deleted.as_millisecond());
    Some(context.let_go_after.saturating_sub(Duration::from_millis(u64::try_from(since).unwrap_or(0))))
}

/// It was deleted: its object is let go once the drain was called off, or nobody was there to be told for too long.
async fn part(drain: &CaptureDrain, planned: &Plan, outcome: &Outcome, context: &Context) -> Result<Next, Error> {
    let is_unseen = matches!(planned.stage, Stage::Unseen(_)) || matches!(outcome, Outcome::Unseen(_));
    let left = patience(drain, context, Timestamp::now()).unwrap_or_default();
    if is_unseen && !left.is_zero() {
        return Ok(Next::requeue(left.min(RETRY.1)));
    }
    if is_unseen {
        let sentence = format!(
            "the cluster could not be reached for {} s after the deletion: the drain was not called off",
            context.let_go_after.as_secs()
        );
        let note = Note { is_warning: true, reason: "FinalizerReleased", sentence };
        write::tell(&context.recorder, drain, vec![note]).await;
    }
    write::let_go(&context.client, drain).await?;
    context.forget(drain);
    Ok(Next::await_change())
}
