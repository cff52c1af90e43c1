//! Which captures should rather not get the work of another: those that are to go themselves.

use std::collections::{BTreeMap, BTreeSet};

use capturedrain_core::model::CaptureId;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{NodeSpec, Taint, Toleration};

use super::observe::Cluster;

/// Where a capture's pod is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Place {
    /// Its node.
    pub node: Option<String>,
    /// Which revision of its `StatefulSet` or `Deployment` it is of.
    pub revision: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// What it tolerates.
    pub tolerations: Vec<Toleration>,
}

/// All captures that should not get the work of `target`, in the order of their names. `places` and `nodes` are by UID of
/// the pod and by name, `queued` are the targets of drains that wait.
pub fn avoid(
    target: &str,
    cluster: &Cluster,
    places: &BTreeMap<String, Place>,
    nodes: &BTreeMap<String, NodeSpec>,
    queued: &BTreeSet<String>,
) -> Vec<CaptureId> {
    let place = |uid: &Option<String>| uid.as_ref().and_then(|uid| places.get(uid));
    let at = cluster.captures.iter().filter_map(|capture| place(&capture.pod_uid));
    // The revision of the youngest pod is the one that is rolled out.
    let newest = at.max_by_key(|place| place.created_at).and_then(|place| place.revision.clone());
    let is_to_go = |place: &Place| {
        let is_old = newest.is_some() && place.revision.is_some() && place.revision != newest;
        let node = place.node.as_ref().and_then(|node| nodes.get(node));
        is_old || node.is_some_and(|node| is_closed(node, &place.tolerations))
    };
    let avoided = cluster.captures.iter().filter(|capture| {
        capture.id != target && (queued.contains(&capture.id) || place(&capture.pod_uid).is_some_and(is_to_go))
    });
    avoided.filter_map(|capture| CaptureId::new(&capture.id).ok()).collect()
}

/// Whether a node would not take a pod again that tolerates so much.
pub fn is_closed(node: &NodeSpec, tolerations: &[Toleration]) -> bool {
    let mut taints = node.taints.iter().flatten();
    let repels = |taint: &Taint| taint.effect == "NoSchedule" || taint.effect == "NoExecute";
    node.unschedulable == Some(true)
        || taints.any(|taint| repels(taint) && !tolerations.iter().any(|at| tolerates(at, taint)))
}

/// As the scheduler has it.
fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let is_effect = toleration.effect.as_ref().is_none_or(|effect| effect.is_empty() || *effect == taint.effect);
    let key = toleration.key.as_deref().unwrap_or_default();
    let is_key = key.is_empty() || key == taint.key;
    if toleration.operator.as_deref() == Some("Exists") {
        return is_effect && is_key;
    }
    let value = toleration.value.as_deref().unwrap_or_default();
    is_effect && !key.is_empty() && is_key && value == taint.value.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;
    use crate::{operator::tests, view::CaptureView};

    /// In the pod of its name and UID.
    fn capture(id: &str) -> CaptureView {
        let own = || Some(id.to_owned());
        CaptureView { pod_name: own(), pod_uid: own(), ..tests::capture(id, "1") }
    }

    fn place(node: &str, revision: &str, second: i64) -> Place {
        let created_at = Timestamp::from_second(second).unwrap();
        Place { node: Some(node.to_owned()), revision: Some(revision.to_owned()), created_at, tolerations: Vec::new() }
    }

    fn taint(effect: &str) -> NodeSpec {
        let taint = Taint { key: "k".to_owned(), effect: effect.to_owned(), ..Taint::default() };
        NodeSpec { taints: Some(vec![taint]), ..NodeSpec::default() }
    }

    #[test]
    fn captures_that_are_to_go_themselves_are_avoided() {
        let cluster = Cluster { captures: ["a", "b", "c", "d"].map(capture).into(), ..Cluster::default() };
        let cordoned = NodeSpec { unschedulable: Some(true), ..NodeSpec::default() };
        let check = |places: [(&str, &str, i64); 4], node: NodeSpec, queued: &[&str], avoided: &[&str]| {
            let ids = ["a", "b", "c", "d"].map(str::to_owned);
            let places = places.map(|(node, revision, second)| place(node, revision, second));
            let places = ids.into_iter().zip(places).collect();
            let nodes = BTreeMap::from([("n".to_owned(), node), ("m".to_owned(), NodeSpec::default())]);
            let queued = queued.iter().map(ToString::to_string).collect();
            let found: Vec<_> = avoid("a", &cluster, &places, &nodes, &queued);
            assert_eq!(found.iter().map(CaptureId::as_str).collect::<Vec<_>>(), avoided);
        };
        let same = [("n", "1", 1), ("n", "1", 2), ("m", "1", 3), ("m", "1", 4)];
        check(same, NodeSpec::default(), &[], &[]);
        check(same, cordoned, &[], &["b"]);
        check(same, taint("NoSchedule"), &[], &["b"]);
        check(same, taint("NoExecute"), &[], &["b"]);
        check(same, taint("PreferNoSchedule"), &[], &[]);
        check(same, NodeSpec::default(), &["d", "a"], &["d"]);
        let rolled = [("n", "1", 1), ("n", "1", 2), ("m", "1", 3), ("m", "2", 4)];
        check(rolled, NodeSpec::default(), &[], &["b", "c"]);
    }

    #[test]
    fn a_taint_that_the_pod_tolerates_is_none() {
        let toleration = |key: &str, operator: &str, effect: &str| Toleration {
            key: Some(key.to_owned()),
            operator: Some(operator.to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        for (toleration, tolerated) in [
            (toleration("k", "Exists", "NoSchedule"), true),
            (toleration("", "Exists", ""), true),
            (toleration("k", "Equal", "NoSchedule"), true),
            (toleration("other", "Exists", ""), false),
            (toleration("k", "Exists", "NoExecute"), false),
            (toleration("", "Equal", ""), false),
        ] {
            let closed = is_closed(&taint("NoSchedule"), std::slice::from_ref(&toleration));
            assert_eq!(closed, !tolerated, "{toleration:?}");
        }
    }
}
