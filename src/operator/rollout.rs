//! Whether tidb-operator is taking pods of `TiCDC` away itself: two at a time are one too many.
//!
//! Read from what its objects say, version 1 (`TidbCluster`) and version 2 (`TiCDCGroup`); pure.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::resource::BlockedBy;

/// How version 1 marks its pods of `TiCDC`; `app.kubernetes.io/instance` names the `TidbCluster`.
pub const LABELS_V1: [(&str, &str); 2] =
    [("app.kubernetes.io/managed-by", "tidb-operator"), ("app.kubernetes.io/component", "ticdc")];
/// How version 2 does; `pingcap.com/group` names the `TiCDCGroup`.
pub const LABELS_V2: [(&str, &str); 2] =
    [("pingcap.com/managed-by", "tidb-operator"), ("pingcap.com/component", "ticdc")];
/// On a pod that version 1 is draining itself: since when, RFC 3339.
pub const BEGAN_AT: &str = "tidb.pingcap.com/ticdc-graceful-shutdown-begin-time";

const INSTANCE_V1: &str = "app.kubernetes.io/instance";
const GROUP_V2: &str = "pingcap.com/group";
/// For how long version 1 drains a pod, unless `spec.ticdc.gracefulShutdownTimeout` says otherwise.
const GRACEFUL_SHUTDOWN: SignedDuration = SignedDuration::from_mins(10);

/// Labels or annotations.
pub type Marks = BTreeMap<String, String>;

/// The object that manages a pod of `TiCDC`, by the labels of the pod; `None`: it is no such pod. It is in the pod's
/// namespace: `TidbCluster` of `pingcap.com/v1alpha1`, or `TiCDCGroup` of `core.pingcap.com/v1alpha1`.
pub fn manager(labels: &Marks) -> Option<BlockedBy> {
    let has = |marks: &[(&str, &str)]| marks.iter().all(|(key, value)| labels.get(*key).is_some_and(|is| is == value));
    let named = |kind: &str, key: &str| labels.get(key).map(|name| BlockedBy::new(kind, Some(name.clone())));
    if has(&LABELS_V1) {
        return named("TidbCluster", INSTANCE_V1);
    }
    if has(&LABELS_V2) { named("TiCDCGroup", GROUP_V2) } else { None }
}

/// The rollout that is under way at `now`, if there is one. `managers` are the objects that manage the captures of one
/// cluster, as the API server has them, `pods` the annotations of its captures' pods.
pub fn rollout<'a>(
    managers: &'a [Value],
    pods: impl IntoIterator<Item = &'a Marks>,
    now: Timestamp,
) -> Option<BlockedBy> {
    let named =
        |object: &Value| BlockedBy::new(text(object, "/kind"), object["metadata"]["name"].as_str().map(Into::into));
    if let Some(object) = managers.iter().find(|object| is_rolling(object)) {
        return Some(named(object));
    }
    let cluster = managers.iter().find(|object| object["kind"] == "TidbCluster");
    let patience = cluster.and_then(|object| go_duration(text(object, "/spec/ticdc/gracefulShutdownTimeout")));
    let patience = patience.unwrap_or(GRACEFUL_SHUTDOWN);
    // What cannot be read, version 1 takes for timed out.
    let is_leaving = |pod: &&Marks| {
        let began = pod.get(BEGAN_AT).and_then(|began| began.parse::<Timestamp>().ok());
        began.is_some_and(|began| now.duration_since(began) <= patience)
    };
    let leaving = pods.into_iter().find(is_leaving);
    leaving.map(|_| cluster.map_or_else(|| BlockedBy::new("TidbCluster", None), named))
}

fn is_rolling(object: &Value) -> bool {
    match text(object, "/kind") {
        "TidbCluster" => is_cluster_rolling(object),
        "TiCDCGroup" => is_group_rolling(object),
        _ => false,
    }
}

fn is_cluster_rolling(object: &Value) -> bool {
    let spec = &object["spec"]["ticdc"];
    // A paused one takes nothing away, for as long as it is.
    if spec.is_null() || object["spec"]["paused"] == true {
        return false;
    }
    let phase = text(object, "/status/ticdc/phase");
    let set = &object["status"]["ticdc"]["statefulSet"];
    !matches!(phase, "" | "Normal")
        || differ(&set["currentRevision"], &set["updateRevision"])
        || differ(&spec["replicas"], &set["replicas"])
}

fn is_group_rolling(object: &Value) -> bool {
    let (metadata, spec, status) = (&object["metadata"], &object["spec"], &object["status"]);
    if !metadata["deletionTimestamp"].is_null() {
        return true;
    }
    // A wish that was not looked at yet is a rollout that is about to begin.
    differ(&metadata["generation"], &status["observedGeneration"])
        || differ(&status["currentRevision"], &status["updateRevision"])
        || differ(&status["updatedReplicas"], &status["replicas"])
        || differ(&spec["replicas"], &status["replicas"])
}

/// Whether two things that are both known are not the same.
fn differ(one: &Value, other: &Value) -> bool {
    let is_known = |value: &Value| !value.is_null() && *value != "";
    is_known(one) && is_known(other) && one != other
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A duration as Go writes it, such as `1h10m0s`.
fn go_duration(text: &str) -> Option<SignedDuration> {
    text.parse().ok().filter(|_| !text.is_empty())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use serde_json::json;

    use super::*;

    fn marks(pairs: &[(&str, &str)]) -> Marks {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    /// A `TidbCluster` at rest, cut down to what is about `TiCDC`.
    fn cluster() -> Value {
        json!({
            "apiVersion": "pingcap.com/v1alpha1", "kind": "TidbCluster",
            "metadata": {"name": "db", "namespace": "tidb", "generation": 7},
            "spec": {"version": "v7.5.6", "ticdc": {"baseImage": "pingcap/ticdc", "replicas": 3, "config": {}}},
            "status": {"clusterID": "7", "ticdc": {
                "synced": true, "phase": "Normal",
                "captures": {"db-ticdc-0": {"podName": "db-ticdc-0", "id": "6b1e", "isOwner": true}},
                "statefulSet": {"observedGeneration": 4, "replicas": 3, "readyReplicas": 3, "currentReplicas": 3,
                    "updatedReplicas": 3, "currentRevision": "db-ticdc-5d", "updateRevision": "db-ticdc-5d"},
            }},
        })
    }

    /// A `TiCDCGroup` at rest.
    fn group() -> Value {
        json!({
            "apiVersion": "core.pingcap.com/v1alpha1", "kind": "TiCDCGroup",
            "metadata": {"name": "cdc", "namespace": "tidb", "generation": 3},
            "spec": {"cluster": {"name": "db"}, "replicas": 3, "template": {"spec": {"version": "v8.5.7"}}},
            "status": {"observedGeneration": 3, "currentRevision": "cdc-7f", "updateRevision": "cdc-7f",
                "version": "v8.5.7", "selector": "pingcap.com/group=cdc", "replicas": 3, "readyReplicas": 3,
                "currentReplicas": 3, "updatedReplicas": 3,
                "conditions": [{"type": "Ready", "status": "True"}, {"type": "Synced", "status": "True"}]},
        })
    }

    fn check(mut object: Value, changes: &[(&str, Value)], rolling: bool) {
        for (pointer, value) in changes {
            let (parent, name) = pointer.rsplit_once('/').unwrap();
            object.pointer_mut(parent).unwrap()[name] = value.clone();
        }
        let found = rollout(std::slice::from_ref(&object), [], Timestamp::UNIX_EPOCH);
        let expected = rolling.then(|| {
            BlockedBy::new(object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().map(Into::into))
        });
        assert_eq!(found, expected, "{changes:?}");
    }

    #[test]
    fn a_tidbcluster_that_changes_its_captures_is_found() {
        check(cluster(), &[], false);
        for phase in ["Upgrade", "Scale", "Suspend"] {
            check(cluster(), &[("/status/ticdc/phase", json!(phase))], true);
        }
        check(cluster(), &[("/status/ticdc/statefulSet/updateRevision", json!("db-ticdc-6f"))], true);
        check(cluster(), &[("/spec/ticdc/replicas", json!(2))], true);
        let paused = ("/spec/paused", json!(true));
        check(cluster(), &[("/status/ticdc/phase", json!("Upgrade")), paused], false);
        // One that has none, one that was just made, and one that is busy with something else.
        check(cluster(), &[("/spec/ticdc", json!(null)), ("/status/ticdc/phase", json!("Upgrade"))], false);
        check(cluster(), &[("/status", json!({}))], false);
        check(cluster(), &[("/status/tikv", json!({"phase": "Upgrade"}))], false);
    }

    #[test]
    fn a_ticdcgroup_that_changes_its_captures_is_found() {
        check(group(), &[], false);
        for (at, value) in [
            ("/status/updateRevision", json!("cdc-8a")),
            ("/status/updatedReplicas", json!(2)),
            ("/spec/replicas", json!(2)),
            ("/metadata/generation", json!(4)),
            ("/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z")),
        ] {
            check(group(), &[(at, value)], true);
        }
        check(group(), &[("/status", json!({}))], false);
        check(group(), &[("/kind", json!("TiKVGroup")), ("/status/updateRevision", json!("x"))], false);
    }

    #[test]
    fn a_pod_that_tidb_operator_drains_is_found_until_it_gives_up() {
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let check = |managers: &[Value], began: &str, rolling: bool| {
            let (other, pod) = (marks(&[("a", "b")]), marks(&[(BEGAN_AT, began)]));
            assert_eq!(rollout(managers, [&other, &pod], now).is_some(), rolling, "{began}");
        };
        for managers in [&[][..], &[cluster()][..]] {
            check(managers, "2026-01-01T00:09:59Z", true);
            check(managers, "2026-01-01T00:00:00Z", true);
            check(managers, "2026-01-01T01:00:01+01:00", true);
            check(managers, "2025-12-31T23:59:59Z", false);
            check(managers, "malformed", false);
        }
        let mut patient = cluster();
        patient["spec"]["ticdc"]["gracefulShutdownTimeout"] = json!("1h0m0s");
        check(&[patient.clone()], "2025-12-31T23:59:59Z", true);
        patient["spec"]["ticdc"]["gracefulShutdownTimeout"] = json!("2m0s");
        check(&[patient], "2026-01-01T00:05:00Z", false);
    }

    #[test]
    fn the_labels_of_a_pod_say_who_manages_it() {
        let name = |labels: &[(&str, &str)]| manager(&marks(labels)).map(|by| (by.kind, by.name.unwrap_or_default()));
        let found = |kind: &str, name: &str| Some((kind.to_owned(), name.to_owned()));
        let v1 = [LABELS_V1[0], LABELS_V1[1], ("app.kubernetes.io/name", "tidb-cluster"), (INSTANCE_V1, "db")];
        let v2 = [LABELS_V2[0], LABELS_V2[1], ("pingcap.com/cluster", "db"), (GROUP_V2, "cdc")];
        assert_eq!(name(&v1), found("TidbCluster", "db"));
        assert_eq!(name(&v2), found("TiCDCGroup", "cdc"));
        assert_eq!(name(&v1[1..]), None, "of somebody else");
        assert_eq!(name(&[LABELS_V1[0], ("app.kubernetes.io/component", "tikv"), (INSTANCE_V1, "db")]), None);
        assert_eq!(name(&[]), None);
    }
}
