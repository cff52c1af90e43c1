//! The drain that an eviction begins.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::api::ObjectMeta;

use super::{asked::Asked, facts::PodFacts};
use crate::{
    operator::{ATTEMPTED_AT, backend::DEADLINE_MS},
    resource::{CaptureDrain, CaptureDrainSpec, ClusterKind, ClusterRef, LimitPolicy, Target},
};

/// The label of a drain that an eviction began: the UID of the pod.
pub const POD_UID: &str = "capturedrain.io/pod-uid";
/// The annotation of a drain that names who has tried to evict its pod, a JSON list.
pub const EVICTED_BY: &str = "capturedrain.io/evicted-by";

/// How long such a drain may take, in seconds; then the pod may go.
const DEADLINE_SECONDS: i64 = 3600;
/// How long it outlives the last attempt, in seconds.
pub const RELEASE_AFTER_SECONDS: i64 = 300;
/// How long its object is kept, in seconds.
const TTL_SECONDS: i64 = 3600;
/// How many callers are remembered, the latest.
pub(super) const CALLERS_MAX: usize = 8;
/// How much of a caller's name is kept, in characters.
const CALLER_MAX_CHARS: usize = 256;

/// A caller's name, as it may stand in an object.
pub fn caller(user: &str) -> String {
    let name: String = user.chars().filter(|c| !c.is_control()).take(CALLER_MAX_CHARS).collect();
    if name.is_empty() { "somebody unknown".to_owned() } else { name }
}

/// Who has tried to evict the pod of a drain.
pub fn callers(drain: &CaptureDrain) -> Vec<String> {
    let text = drain.metadata.annotations.as_ref().and_then(|all| all.get(EVICTED_BY));
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// When somebody last tried.
pub fn attempted_at(drain: &CaptureDrain) -> Option<Timestamp> {
    drain.metadata.annotations.as_ref()?.get(ATTEMPTED_AT)?.parse().ok()
}

/// The annotations of a drain after another attempt.
pub fn attempt(before: &[String], user: &str, now: Timestamp) -> BTreeMap<String, String> {
    let user = caller(user);
    let mut callers: Vec<_> = before.iter().filter(|other| **other != user).cloned().collect();
    callers.push(user);
    let latest = callers.split_off(callers.len().saturating_sub(CALLERS_MAX));
    let list = serde_json::to_string(&latest).unwrap_or_default();
    BTreeMap::from([(ATTEMPTED_AT.to_owned(), now.to_string()), (EVICTED_BY.to_owned(), list)])
}

/// The drain that the attempt of an eviction begins: the next of this pod.
pub fn make(asked: &Asked, pod: &PodFacts, cluster: ClusterRef, number: usize, now: Timestamp) -> CaptureDrain {
    let uid = &pod.pod.uid;
    let deadline = match cluster.kind {
        ClusterKind::CaptureDrain => DEADLINE_SECONDS,
        // Shorter than tidb-operator waits.
        ClusterKind::TiCdc => i64::try_from(DEADLINE_MS / 1000).unwrap_or(DEADLINE_SECONDS),
    };
    let metadata = ObjectMeta {
        name: Some(format!("{uid}-{number}")),
        namespace: Some(asked.namespace.clone()),
        labels: Some(BTreeMap::from([(POD_UID.to_owned(), uid.clone())])),
        annotations: Some(attempt(&[], &asked.user, now)),
        ..ObjectMeta::default()
    };
    let spec = CaptureDrainSpec {
        cluster_ref: cluster,
        target: Target { pod_name: Some(asked.name.clone()), capture_id: None, pod_uid: Some(uid.clone()) },
        deadline_seconds: Some(deadline),
        progress_deadline_seconds: None,
        on_deadline: LimitPolicy::Proceed,
        no_peers_policy: LimitPolicy::Proceed,
        release_after_seconds: Some(RELEASE_AFTER_SECONDS),
        reason: Some(format!("eviction by {}", caller(&asked.user))),
        ttl_seconds_after_finished: Some(TTL_SECONDS),
    };
    CaptureDrain { metadata, spec, status: None }
}

/// The number of the next drain of a pod, by those that are there.
pub fn next_number<'a>(uid: &str, drains: impl Iterator<Item = &'a CaptureDrain>) -> usize {
    let numbers = drains.filter_map(|drain| number(uid, drain.metadata.name.as_deref()?));
    numbers.max().map_or(1, |last| last + 1)
}

/// The number in the name of a drain of a pod.
pub fn number(uid: &str, name: &str) -> Option<usize> {
    name.strip_prefix(uid)?.strip_prefix('-')?.parse().ok().filter(|number| *number < usize::MAX)
}
