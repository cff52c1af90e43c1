//! What tidb-operator is about, read when a drain of its pods is to begin.

use std::collections::BTreeSet;

use jiff::Timestamp;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind},
};
use serde_json::Value;

use super::{cache::Caches, error::category};
use crate::{
    operator::{
        observe::Cluster,
        rollout::{manager, rollout},
    },
    resource::BlockedBy,
};

/// The rollout of a cluster's pods that is under way.
pub(super) async fn look(client: &Client, caches: &Caches, namespace: &str, cluster: &Cluster) -> Option<BlockedBy> {
    let names: BTreeSet<_> = cluster.captures.iter().filter_map(|capture| capture.pod_name.as_deref()).collect();
    let pods = caches.marks(namespace, &names);
    let managers: BTreeSet<_> = pods
        .iter()
        .filter_map(|(labels, _)| manager(labels))
        .filter_map(|by| Some((by.kind.clone(), by.name?)))
        .collect();
    let mut objects = Vec::new();
    for (kind, name) in managers {
        objects.extend(read(client, namespace, &kind, &name).await);
    }
    rollout(&objects, pods.iter().map(|(_, annotations)| annotations), Timestamp::now())
}

async fn read(client: &Client, namespace: &str, kind: &str, name: &str) -> Option<Value> {
    let group = if kind == "TidbCluster" { "pingcap.com" } else { "core.pingcap.com" };
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1alpha1", kind));
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    match api.get(name).await {
        Ok(object) => serde_json::to_value(object).ok(),
        Err(error) => {
            // A rollout that cannot be seen is none that is known of.
            tracing::warn!(namespace, kind, name, category = category(&error), %error, "cannot be read");
            None
        }
    }
}
