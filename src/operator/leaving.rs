//! Pods that are being deleted: the cluster has to know when each is killed, since a hook does not.

use std::collections::BTreeMap;

use capturedrain_core::model::{CaptureId, DrainEpoch, DrainRequest, UnixMillis};

use super::observe::Cluster;

/// Who tells.
const REQUESTER: &str = "operator";

/// The call that tells the drain that is on when the pod of its target is killed; nothing when no such pod is being
/// deleted. `killed_at_ms` has those that are, by UID, in milliseconds since 1970. It names the drain that it means, so
/// that it never starts one.
pub fn last_word(cluster: &Cluster, killed_at_ms: &BTreeMap<String, u64>) -> Option<DrainRequest> {
    let target = cluster.drain.draining_capture_id.as_ref().filter(|_| cluster.drain.is_draining)?;
    let capture = cluster.captures.iter().find(|capture| capture.id == *target)?;
    let uid = capture.pod_uid.as_ref()?;
    let mut request = DrainRequest::new(CaptureId::new(target).ok()?, REQUESTER);
    request.node_epoch = capture.node_epoch.parse().ok();
    request.pod_uid = Some(uid.as_str().into());
    request.epoch = Some(DrainEpoch(cluster.drain.drain_epoch));
    request.hook_deadline_ms = Some(UnixMillis(*killed_at_ms.get(uid)?));
    Some(request)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;
    use crate::{operator::tests, view::DrainView};

    #[test]
    fn only_the_drain_of_a_pod_that_is_being_deleted_is_told() {
        let mut capture = tests::capture("b", "5");
        capture.pod_uid = Some("uid-b".to_owned());
        let on = |target: &str, is_draining| {
            let drain = DrainView {
                draining_capture_id: Some(target.to_owned()),
                drain_epoch: 7,
                is_draining,
                ..DrainView::default()
            };
            Cluster { captures: vec![capture.clone(), tests::capture("c", "6")], drain, ..Cluster::default() }
        };
        let killed = |uid: &str| BTreeMap::from([(uid.to_owned(), 9)]);
        let request = last_word(&on("b", true), &killed("uid-b")).unwrap();
        assert_eq!((request.epoch, request.hook_deadline_ms), (Some(DrainEpoch(7)), Some(UnixMillis(9))));
        assert_eq!((request.pod_uid.as_deref(), request.node_epoch), (Some("uid-b"), "5".parse().ok()));
        for (cluster, killed) in [
            (on("b", false), killed("uid-b")),
            (on("c", true), killed("uid-b")),
            (on("b", true), killed("of its predecessor")),
            (on("b", true), BTreeMap::new()),
            (Cluster::default(), killed("uid-b")),
        ] {
            assert_eq!(last_word(&cluster, &killed), None, "{cluster:?}");
        }
    }
}
