//! What a scene means: how each drain stands, what each node has, and why a cordoned node does not empty.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::scene::{ClusterScene, PodScene, Scene};
use crate::{
    operator::observe::Unseen,
    resource::{
        ACCEPTED, CaptureDrain, CaptureDrainStatus, FINISHED, RECONCILING, STALLED, find, is_drained, is_finished,
        is_true,
    },
    view::CaptureView,
};

/// What is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// All drains, by namespace and name.
    pub drains: Vec<DrainRow>,
    /// The clusters that they name.
    pub clusters: Vec<ClusterRow>,
    /// What cannot be shown, each with its reason.
    pub unknown: Vec<String>,
}

/// A drain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DrainRow {
    /// Where it is.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The pod that it names, or else the capture.
    pub target: String,
    /// One word for people.
    pub phase: Option<String>,
    /// The target's.
    pub liveness: Option<String>,
    /// Maintainers that are left; `null` while unknown.
    pub maintainers: Option<i64>,
    /// Dispatchers that are left; `null` while unknown.
    pub dispatchers: Option<i64>,
    /// Dispatchers that it began with.
    pub initial_dispatchers: Option<i64>,
    /// How long the object has been there.
    pub age_seconds: i64,
    /// What it waits for, or how it ended.
    pub why: String,
}

/// A cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClusterRow {
    /// Where its Service is.
    pub namespace: String,
    /// Its Service.
    pub service: String,
    /// The capture that coordinates.
    pub coordinator: Option<String>,
    /// Why its captures are not seen from here; what follows is of its pods then.
    pub unseen: Option<String>,
    /// Nodes with captures on them, by name; the one without a name has those whose node is not known.
    pub nodes: Vec<NodeRow>,
}

/// A node, as far as one cluster goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeRow {
    /// Its name.
    pub node: Option<String>,
    /// Whether it is cordoned; `null` while unknown.
    pub cordoned: Option<bool>,
    /// The captures on it.
    pub captures: Vec<CaptureRow>,
    /// Why it does not empty, when it is cordoned.
    pub why: Option<String>,
}

/// A capture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CaptureRow {
    /// Its name, or that of its pod when it is not seen.
    pub capture: String,
    /// Its pod.
    pub pod: Option<String>,
    /// Its liveness; `null` while unknown.
    pub liveness: Option<String>,
    /// Whether it coordinates.
    pub is_coordinator: bool,
    /// Whether the coordinator hears it; `null` when it is not seen.
    pub heard: Option<bool>,
    /// Its maintainers; `null` while unknown.
    pub maintainers: Option<u64>,
    /// Its dispatchers; `null` while unknown.
    pub dispatchers: Option<u64>,
}

/// What a scene means.
pub fn report(scene: &Scene) -> Report {
    let mut drains: Vec<_> = scene.drains.iter().map(|drain| row(drain, scene)).collect();
    drains.sort_by(|one, other| (&one.namespace, &one.name).cmp(&(&other.namespace, &other.name)));
    let unknown = [scene.pods.as_ref().err(), scene.cordoned.as_ref().err()];
    Report {
        drains,
        clusters: scene.clusters.iter().map(|cluster| cluster_row(scene, cluster)).collect(),
        unknown: unknown.into_iter().flatten().map(ToString::to_string).collect(),
    }
}

fn status(drain: &CaptureDrain) -> CaptureDrainStatus {
    drain.status.clone().unwrap_or_default()
}

fn name(drain: &CaptureDrain) -> String {
    drain.metadata.name.clone().unwrap_or_default()
}

fn namespace(drain: &CaptureDrain) -> String {
    drain.metadata.namespace.clone().unwrap_or_default()
}

fn row(drain: &CaptureDrain, scene: &Scene) -> DrainRow {
    let (status, target) = (status(drain), &drain.spec.target);
    let progress = status.progress.clone().unwrap_or_default();
    let created = drain.metadata.creation_timestamp.as_ref().map(|created| created.0.as_second());
    DrainRow {
        namespace: namespace(drain),
        name: name(drain),
        target: target.pod_name.clone().or(target.capture_id.clone()).unwrap_or_default(),
        maintainers: progress.remaining.and_then(|left| left.maintainers),
        dispatchers: progress.remaining.and_then(|left| left.dispatchers),
        initial_dispatchers: progress.initial.and_then(|initial| initial.dispatchers),
        age_seconds: created.map_or(0, |created| scene.now.as_second().saturating_sub(created).max(0)),
        why: why(drain),
        phase: status.phase,
        liveness: status.liveness,
    }
}

/// Reason and message of a condition, as one piece of a sentence.
fn words(status: &CaptureDrainStatus, kind: &str) -> String {
    match find(&status.conditions, kind) {
        Some(found) if found.message.is_empty() => found.reason.clone(),
        Some(found) => format!("{}: {}", found.reason, found.message),
        None => String::new(),
    }
}

/// What a drain waits for, or how it ended.
fn why(drain: &CaptureDrain) -> String {
    let status = status(drain);
    if is_finished(drain) {
        words(&status, FINISHED)
    } else if is_true(&status.conditions, STALLED) {
        format!("stalled: {}", words(&status, STALLED))
    } else if is_true(&status.conditions, RECONCILING) {
        words(&status, RECONCILING)
    } else if status.conditions.is_empty() {
        "no operator has looked at it: `kubectl capturedrain check` says whether one runs".to_owned()
    } else {
        words(&status, ACCEPTED)
    }
}

fn cluster_row(scene: &Scene, cluster: &ClusterScene) -> ClusterRow {
    let of_cluster = |drain: &&CaptureDrain| {
        namespace(drain) == cluster.namespace && drain.spec.cluster_ref.service_name == cluster.service
    };
    let drains: Vec<_> = scene.drains.iter().filter(of_cluster).collect();
    let pods: Vec<_> = scene.pods.iter().flatten().filter(|pod| pod.namespace == cluster.namespace).cloned().collect();
    let (captures, unseen) = match &cluster.captures {
        Ok(captures) => (captures.iter().map(seen).collect(), None),
        Err(why) => (unseen_captures(cluster, &drains, &pods), Some(unseen(why))),
    };
    let mut nodes: BTreeMap<Option<String>, Vec<CaptureRow>> = BTreeMap::new();
    for capture in captures {
        let pod = pod_of(&capture, &pods);
        nodes.entry(pod.and_then(|pod| pod.node.clone())).or_default().push(capture);
    }
    let nodes = nodes.into_iter().map(|(node, captures)| {
        let cordoned = node.as_ref().and_then(|node| scene.cordoned.as_ref().ok()?.get(node).copied());
        let waits = captures.iter().map(|capture| waits(capture, &drains, &pods));
        let why = (cordoned == Some(true)).then(|| waits.collect::<Vec<_>>().join("; "));
        NodeRow { node, cordoned, captures, why }
    });
    let nodes: Vec<_> = nodes.collect();
    let coordinator = cluster.captures.iter().flatten().find(|capture| capture.is_coordinator);
    ClusterRow {
        namespace: cluster.namespace.clone(),
        service: cluster.service.clone(),
        coordinator: coordinator.map(|capture| capture.id.clone()),
        unseen,
        nodes,
    }
}

fn unseen(why: &Unseen) -> String {
    match why {
        Unseen::Unreachable(why) => format!("its captures cannot be reached from here ({why})"),
        Unseen::Unauthorized(why) => format!("its captures may not be asked from here ({why})"),
        Unseen::Unsupported(why) => format!("its captures are not asked ({why})"),
    }
}

fn seen(capture: &CaptureView) -> CaptureRow {
    CaptureRow {
        capture: capture.id.clone(),
        pod: capture.pod_name.clone(),
        liveness: Some(capture.liveness.clone()),
        is_coordinator: capture.is_coordinator,
        heard: Some(capture.heard),
        maintainers: capture.maintainer_count,
        dispatchers: capture.dispatcher_count,
    }
}

/// What pods and drains tell of captures that are not seen: the pods behind the Service, and those that drains name.
fn unseen_captures(cluster: &ClusterScene, drains: &[&CaptureDrain], pods: &[PodScene]) -> Vec<CaptureRow> {
    let targets = drains.iter().filter_map(|drain| drain.spec.target.pod_name.clone());
    let names: BTreeSet<String> = cluster.behind.iter().cloned().chain(targets).collect();
    let there = names.into_iter().filter(|name| pods.iter().any(|pod| pod.name == *name));
    let told = there.map(|pod| {
        let drain =
            drains.iter().find(|drain| !is_finished(drain) && drain.spec.target.pod_name.as_ref() == Some(&pod));
        CaptureRow {
            capture: pod.clone(),
            liveness: drain.and_then(|drain| status(drain).liveness),
            pod: Some(pod),
            is_coordinator: false,
            heard: None,
            maintainers: None,
            dispatchers: None,
        }
    });
    told.collect()
}

fn pod_of<'a>(capture: &CaptureRow, pods: &'a [PodScene]) -> Option<&'a PodScene> {
    pods.iter().find(|pod| Some(&pod.name) == capture.pod.as_ref())
}

/// Why a capture is still on its node, as one sentence without its end.
fn waits(capture: &CaptureRow, drains: &[&CaptureDrain], pods: &[PodScene]) -> String {
    let id = &capture.capture;
    if pod_of(capture, pods).is_some_and(|pod| pod.is_deleting) {
        return format!("waits for {id}, whose pod is being deleted");
    }
    let is_of = |drain: &&&CaptureDrain| drain.spec.target.names(id, capture.pod.as_deref());
    let mut own: Vec<_> = drains.iter().filter(is_of).filter(|drain| !is_finished(drain)).collect();
    // The one that has begun speaks for those that have not.
    own.sort_by_key(|drain| status(drain).epoch.is_none());
    if let Some(drain) = own.first() {
        return format!("waits for {id}, whose drain cdrain/{} {}", name(drain), standing(drain, drains, 0));
    }
    let last = drains.iter().filter(is_of).max_by_key(|drain| drain.metadata.creation_timestamp.clone());
    let last = last.map(|last| format!("; the last one, cdrain/{}, ended: {}", name(last), why(last)));
    format!("waits for {id}, which nobody drains: apply a CaptureDrain for it{}", last.unwrap_or_default())
}

/// How many drains are followed that wait for each other: the operator names the first of the queue.
const CHAIN_MAX: usize = 1;

/// How a drain stands, so that it fits behind its name.
fn standing(drain: &CaptureDrain, drains: &[&CaptureDrain], depth: usize) -> String {
    let status = status(drain);
    if is_true(&status.conditions, STALLED) {
        return format!("is stalled: {}", words(&status, STALLED));
    }
    let first = status.blocked_by.iter().find(|by| by.kind == "CaptureDrain").and_then(|by| by.name.clone());
    if let Some(first) = first {
        let other = drains.iter().find(|other| name(other) == first && depth < CHAIN_MAX);
        let other = other.map(|other| format!(", which {}", standing(other, drains, depth + 1)));
        return format!("is queued behind cdrain/{first}{}", other.unwrap_or_default());
    }
    if is_drained(drain) {
        return "is proven empty: its pod may be deleted, and nobody has deleted it".to_owned();
    }
    if is_true(&status.conditions, RECONCILING) {
        return format!("goes on: {}", words(&status, RECONCILING));
    }
    if status.conditions.is_empty() {
        return "no operator has looked at".to_owned();
    }
    format!("waits: {}", words(&status, ACCEPTED))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

    use jiff::Timestamp;
    use serde_json::json;

    use super::*;

    fn drain(name: &str, pod: &str, status: &serde_json::Value) -> CaptureDrain {
        serde_json::from_value(json!({
            "apiVersion": "capturedrain.io/v1alpha1",
            "kind": "CaptureDrain",
            "metadata": {"name": name, "namespace": "n", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"clusterRef": {"serviceName": "cdc"}, "target": {"podName": pod}},
            "status": status,
        }))
        .unwrap()
    }

    fn is(kind: &str, reason: &str, message: &str) -> serde_json::Value {
        json!({"type": kind, "status": "True", "reason": reason, "message": message,
            "lastTransitionTime": "2026-01-01T00:00:00Z"})
    }

    fn capture(id: &str) -> CaptureView {
        serde_json::from_value(json!({
            "id": id, "node_epoch": "1", "address": "h:1", "pod_name": id, "pod_uid": id, "version": "1",
            "liveness": "Alive", "is_coordinator": id == "cdc-0", "heard": true,
            "maintainer_count": 1, "dispatcher_count": 2,
        }))
        .unwrap()
    }

    fn pod(name: &str, node: &str) -> PodScene {
        let node = Some(node.to_owned());
        PodScene { namespace: "n".to_owned(), name: name.to_owned(), uid: name.to_owned(), node, is_deleting: false }
    }

    /// `cdc-0` on node `a`, `cdc-1` on `b`, which is cordoned.
    fn scene(drains: Vec<CaptureDrain>) -> Scene {
        Scene {
            now: "2026-01-01T00:01:30Z".parse::<Timestamp>().unwrap(),
            drains,
            clusters: vec![ClusterScene {
                namespace: "n".to_owned(),
                service: "cdc".to_owned(),
                captures: Ok(vec![capture("cdc-0"), capture("cdc-1")]),
                behind: BTreeSet::from(["cdc-1".to_owned()]),
            }],
            pods: Ok(vec![pod("cdc-0", "a"), pod("cdc-1", "b")]),
            cordoned: Ok(BTreeMap::from([("a".to_owned(), false), ("b".to_owned(), true)])),
        }
    }

    #[test]
    fn a_cordoned_node_says_what_it_waits_for() {
        let moving =
            json!({"epoch": 1, "conditions": [is("Reconciling", "MovingDispatchers", "2 dispatchers are left")]});
        let stalled = json!({"epoch": 1, "conditions": [
            is("Reconciling", "MovingDispatchers", ""), is("Stalled", "NoDestination", "no other capture may take it")]});
        let queued = |behind: &str| {
            json!({"conditions": [is("Reconciling", "Queued", "")],
                "blockedBy": [{"kind": "CaptureDrain", "name": behind}]})
        };
        let proven = json!({"epoch": 1, "conditions": [is("Drained", "Proven", ""), is("Reconciling", "AwaitingPodDeletion", "")]});
        let ended = json!({"conditions": [is("Finished", "Withdrawn", "called off")]});
        let waits = "waits for cdc-1, whose drain cdrain/x";
        for (drains, expected) in [
            (vec![], "waits for cdc-1, which nobody drains: apply a CaptureDrain for it".to_owned()),
            (
                vec![drain("x", "cdc-1", &ended)],
                "waits for cdc-1, which nobody drains: apply a CaptureDrain for it; the last one, cdrain/x, ended: \
                 Withdrawn: called off"
                    .to_owned(),
            ),
            (vec![drain("x", "cdc-1", &json!({}))], format!("{waits} no operator has looked at")),
            (vec![drain("x", "cdc-1", &moving)], format!("{waits} goes on: MovingDispatchers: 2 dispatchers are left")),
            (
                vec![drain("x", "cdc-1", &stalled)],
                format!("{waits} is stalled: NoDestination: no other capture may take it"),
            ),
            (
                vec![drain("x", "cdc-1", &proven)],
                format!("{waits} is proven empty: its pod may be deleted, and nobody has deleted it"),
            ),
            (
                vec![drain("x", "cdc-1", &queued("y")), drain("y", "cdc-0", &stalled)],
                format!(
                    "{waits} is queued behind cdrain/y, which is stalled: NoDestination: no other capture may take it"
                ),
            ),
            (vec![drain("x", "cdc-1", &queued("gone"))], format!("{waits} is queued behind cdrain/gone")),
        ] {
            let report = report(&scene(drains));
            let nodes = &report.clusters[0].nodes;
            assert_eq!((nodes[0].node.as_deref(), nodes[0].why.as_deref()), (Some("a"), None));
            assert_eq!(nodes[1].why.as_deref(), Some(expected.as_str()));
        }
    }

    #[test]
    fn drains_that_wait_for_each_other_do_not_go_round_for_ever() {
        let behind = |other: &str| json!({"blockedBy": [{"kind": "CaptureDrain", "name": other}]});
        let report = report(&scene(vec![drain("x", "cdc-1", &behind("y")), drain("y", "cdc-0", &behind("x"))]));
        assert!(
            report.clusters[0].nodes[1].why.as_ref().unwrap().ends_with("cdrain/y, which is queued behind cdrain/x")
        );
    }

    #[test]
    fn a_pod_that_goes_is_what_its_node_waits_for() {
        let mut scene = scene(vec![]);
        scene.pods.as_mut().unwrap()[1].is_deleting = true;
        let why = report(&scene).clusters[0].nodes[1].why.clone();
        assert_eq!(why.as_deref(), Some("waits for cdc-1, whose pod is being deleted"));
    }

    #[test]
    fn captures_that_cannot_be_reached_are_told_by_their_pods() {
        let mut scene = scene(vec![drain("x", "cdc-1", &json!({"liveness": "Draining"}))]);
        scene.clusters[0].captures = Err(Unseen::Unreachable("no route".to_owned()));
        let cluster = report(&scene).clusters[0].clone();
        assert_eq!(cluster.unseen.as_deref(), Some("its captures cannot be reached from here (no route)"));
        let [node] = cluster.nodes.as_slice() else { panic!("{:?}", cluster.nodes) };
        assert_eq!((node.node.as_deref(), node.cordoned), (Some("b"), Some(true)));
        assert_eq!(node.captures[0].liveness.as_deref(), Some("Draining"));
        assert_eq!((node.captures[0].heard, node.captures[0].dispatchers), (None, None));
    }

    #[test]
    fn what_may_not_be_read_is_unknown_and_not_no() {
        let mut scene = scene(vec![]);
        scene.cordoned = Err(crate::plugin::Trouble::Unauthorised("nodes cannot be read: no".to_owned()));
        let report = report(&scene);
        assert_eq!(report.unknown, ["nodes cannot be read: no"]);
        assert!(report.clusters[0].nodes.iter().all(|node| node.cordoned.is_none() && node.why.is_none()));
    }

    #[test]
    fn a_drain_says_how_far_it_is() {
        let status = json!({"phase": "Draining", "progress": {
            "initial": {"maintainers": 1, "dispatchers": 9}, "remaining": {"maintainers": 0, "dispatchers": 4}}});
        let row = report(&scene(vec![drain("x", "cdc-1", &status)])).drains[0].clone();
        assert_eq!((row.maintainers, row.dispatchers, row.initial_dispatchers), (Some(0), Some(4), Some(9)));
        assert_eq!((row.target.as_str(), row.age_seconds), ("cdc-1", 90));
        let row = report(&scene(vec![drain("x", "cdc-1", &json!({}))])).drains[0].clone();
        assert_eq!((row.maintainers, row.dispatchers), (None, None));
    }
}
