//! The cluster that a pod's capture belongs to, by what the pod says of itself.

use super::rollout::{LABELS_V1, Marks, manager};
use crate::resource::{ClusterKind, ClusterRef};

/// The label of a capture's pod: the Service of its cluster.
pub const SERVICE: &str = "capturedrain.io/service";
/// The annotation that names the Secret with which the cluster is called over TLS.
pub const TLS_SECRET: &str = "capturedrain.io/tls-secret-name";
/// The annotation of a pod of `TiCDC` that names the Secret with user and password.
pub const USER_SECRET: &str = "capturedrain.io/user-secret-name";

/// The cluster of a pod with these labels and annotations; `None`: it is no capture's.
pub fn cluster(labels: &Marks, annotations: &Marks) -> Option<ClusterRef> {
    let named = |marks: &Marks, key: &str| marks.get(key).filter(|name| !name.is_empty()).cloned();
    let managed = manager(labels).and_then(|by| by.name);
    let kind = if managed.is_some() { ClusterKind::TiCdc } else { ClusterKind::CaptureDrain };
    let of_manager = || managed.map(|name| format!("{name}-{}-peer", LABELS_V1[1].1));
    Some(ClusterRef {
        service_name: named(labels, SERVICE).or_else(of_manager)?,
        kind,
        tls_secret_name: named(annotations, TLS_SECRET),
        user_secret_name: named(annotations, USER_SECRET).filter(|_| kind == ClusterKind::TiCdc),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(pairs: &[(&str, &str)]) -> Marks {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn check(labels: &[(&str, &str)], annotations: &[(&str, &str)], expected: Option<(ClusterKind, &str, [bool; 2])>) {
        let found = cluster(&marks(labels), &marks(annotations));
        let secrets = |of: &ClusterRef| [of.tls_secret_name.is_some(), of.user_secret_name.is_some()];
        assert_eq!(found.as_ref().map(|of| (of.kind, of.service_name.as_str(), secrets(of))), expected, "{labels:?}");
    }

    #[test]
    fn a_pod_says_which_cluster_its_capture_belongs_to() {
        let v1 = [LABELS_V1[0], LABELS_V1[1], ("app.kubernetes.io/instance", "db")];
        let secrets = [(TLS_SECRET, "tls"), (USER_SECRET, "user")];
        check(&[("app", "web")], &secrets, None);
        check(&[(SERVICE, "")], &[], None);
        check(&v1[..2], &[], None);
        check(&[(SERVICE, "cdc")], &[], Some((ClusterKind::CaptureDrain, "cdc", [false, false])));
        check(&[(SERVICE, "cdc")], &secrets, Some((ClusterKind::CaptureDrain, "cdc", [true, false])));
        check(&v1, &secrets, Some((ClusterKind::TiCdc, "db-ticdc-peer", [true, true])));
        let v2 = [
            ("pingcap.com/managed-by", "tidb-operator"),
            ("pingcap.com/component", "ticdc"),
            ("pingcap.com/group", "g"),
        ];
        check(&v2, &[], Some((ClusterKind::TiCdc, "g-ticdc-peer", [false, false])));
        check(&[&v1[..], &[(SERVICE, "other")]].concat(), &[], Some((ClusterKind::TiCdc, "other", [false, false])));
    }
}
