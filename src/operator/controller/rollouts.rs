//! What tidb-operator is about, read when a drain of its pods is to begin.

use std::collections::BTreeSet;

use jiff::Timestamp;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind},
};
use serde_json::Value;

use super::{cache::Caches, error::is_gone, resolve::unseen};
use crate::{
    operator::{
        observe::{Cluster, Unseen},
        rollout::{manager, rollout},
        validate::is_in,
    },
    resource::BlockedBy,
};

/// The rollout of a cluster's pods that is under way. Where that cannot be seen, nothing may begin.
pub(super) async fn look(
    client: &Client,
    caches: &Caches,
    namespace: &str,
    cluster: &Cluster,
) -> Result<Option<BlockedBy>, Unseen> {
    let pods = caches.marks(namespace, |name, pod| cluster.captures.iter().any(|capture| is_in(capture, name, pod)));
    let managers: BTreeSet<_> = pods
        .iter()
        .filter_map(|(labels, _)| manager(labels))
        .filter_map(|by| Some((by.kind.clone(), by.name?)))
        .collect();
    let mut objects = Vec::new();
    for (kind, name) in managers {
        objects.extend(read(client, namespace, &kind, &name).await?);
    }
    Ok(rollout(&objects, pods.iter().map(|(_, annotations)| annotations), Timestamp::now()))
}

/// An object of tidb-operator's; `None` when it, or the CRD, is not there: then nobody rolls anything out.
async fn read(client: &Client, namespace: &str, kind: &str, name: &str) -> Result<Option<Value>, Unseen> {
    let group = if kind == "TidbCluster" { "pingcap.com" } else { "core.pingcap.com" };
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1alpha1", kind));
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    match api.get(name).await {
        Ok(object) => Ok(serde_json::to_value(object).ok()),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(unseen(&format!("{kind} {namespace}/{name}"), &error)),
    }
}
