//! Gathers what `status` shows: drains, the captures of their clusters, pods and nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    time::Duration,
};

use futures::{
    Stream, StreamExt as _, future,
    stream::{self, BoxStream},
};
use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::ListParams,
    core::{Expression, Selector, SelectorExt as _},
    runtime::{WatchStreamExt as _, watcher},
};
use serde::de::DeserializeOwned;
use tokio::time;

use super::Trouble;
use crate::{
    operator::{
        controller::{ClusterKey, connect, namespaced as api, slices},
        member,
        observe::Unseen,
    },
    resource::{CaptureDrain, ClusterKind},
    view::CaptureView,
};

/// How long the captures of a cluster are waited for: from outside of Kubernetes pods often cannot be dialled.
const CLUSTER_PATIENCE: Duration = Duration::from_secs(8);

/// What there is at one moment.
#[derive(Debug, Clone)]
pub struct Scene {
    /// When.
    pub now: Timestamp,
    /// All drains that are asked about.
    pub drains: Vec<CaptureDrain>,
    /// The clusters that they name, and those of which there are pods.
    pub clusters: Vec<ClusterScene>,
    /// The pods of their namespaces, or why they are not known.
    pub pods: Result<Vec<PodScene>, Trouble>,
    /// Whether a node is cordoned, by its name; or why that is not known.
    pub cordoned: Result<BTreeMap<String, bool>, Trouble>,
}

/// A cluster.
#[derive(Debug, Clone)]
pub struct ClusterScene {
    /// Where its Service is.
    pub namespace: String,
    /// Its Service.
    pub service: String,
    /// Its captures, or why they are not seen from here.
    pub captures: Result<Vec<CaptureView>, Unseen>,
    /// Names of the pods that Kubernetes has behind the Service.
    pub behind: BTreeSet<String>,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodScene {
    /// Where it is.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its node, once it has one.
    pub node: Option<String>,
    /// Whether it is being deleted.
    pub is_deleting: bool,
}

/// Gathers a scene of a namespace, or of all.
///
/// # Errors
/// When drains cannot be listed: without them there is nothing to show.
pub async fn scene(client: &Client, namespace: Option<&str>) -> Result<Scene, Trouble> {
    let drains =
        list(&api::<CaptureDrain>(client, namespace), "CaptureDrains").await.map_err(|trouble| match trouble {
            Trouble::NotFound(_) => Trouble::NotFound(
                "the API server knows no CaptureDrain: install the CRD with `capturedrain crd | kubectl apply \
             --server-side -f -`"
                    .to_owned(),
            ),
            other => other,
        })?;
    let (pods_api, nodes_api) = (api::<Pod>(client, namespace), Api::<Node>::all(client.clone()));
    let (pods, nodes) = future::join(list(&pods_api, "pods"), list(&nodes_api, "nodes")).await;
    let keys = keys(&drains, pods.as_deref().unwrap_or_default());
    let of_clusters = keys.iter().map(|key| cluster(client, key, pods.as_deref().unwrap_or_default()));
    let clusters = future::join_all(of_clusters).await;
    let is_cordoned = |node: Node| (node.name_any(), node.spec.and_then(|spec| spec.unschedulable) == Some(true));
    Ok(Scene {
        now: Timestamp::now(),
        drains,
        clusters,
        pods: pods.map(|pods| pods.iter().map(pod_scene).collect()),
        cordoned: nodes.map(|nodes| nodes.into_iter().map(is_cordoned).collect()),
    })
}

/// The clusters that drains name, and those of which there are pods and no drains.
pub(super) fn keys(drains: &[CaptureDrain], pods: &[Pod]) -> BTreeSet<ClusterKey> {
    let mut keys: BTreeSet<_> = drains.iter().map(ClusterKey::of).collect();
    for pod in pods {
        let namespace = pod.namespace().unwrap_or_default();
        let Some(cluster) = member::cluster(pod.labels(), pod.annotations()) else { continue };
        let is_same =
            |key: &ClusterKey| (&key.namespace, &key.cluster.service_name) == (&namespace, &cluster.service_name);
        if !keys.iter().any(is_same) {
            keys.insert(ClusterKey { namespace, cluster });
        }
    }
    keys
}

/// Something after each change of what a scene shows, as far as it may be watched.
pub fn changes(client: &Client, namespace: Option<&str>) -> impl Stream<Item = ()> + Send + use<> {
    let nodes = touches(Api::<Node>::all(client.clone()));
    let (drains, pods) = (touches(api::<CaptureDrain>(client, namespace)), touches(api::<Pod>(client, namespace)));
    stream::select_all([drains, pods, nodes])
}

fn touches<K>(api: Api<K>) -> BoxStream<'static, ()>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    // What may not be watched is looked at with the rest, whenever that changes.
    let events = watcher(api, watcher::Config::default()).default_backoff().touched_objects();
    events.filter_map(|touched| future::ready(touched.ok().map(drop))).boxed()
}

pub(super) async fn list<K>(api: &Api<K>, what: &str) -> Result<Vec<K>, Trouble>
where
    K: Clone + DeserializeOwned + Debug,
{
    Ok(api.list(&ListParams::default()).await.map_err(Trouble::reading(what))?.items)
}

/// What the captures of a cluster say, when they can be reached from here.
pub(super) async fn captures(client: &Client, key: &ClusterKey) -> Result<Vec<CaptureView>, Unseen> {
    if key.cluster.kind == ClusterKind::TiCdc {
        return Err(Unseen::Unsupported("it is TiCDC's".to_owned()));
    }
    let asked = async { Ok(connect(client, key).await?.status().await?.captures) };
    time::timeout(CLUSTER_PATIENCE, asked).await.unwrap_or_else(|_| {
        Err(Unseen::Unreachable(format!("no capture has answered for {} s", CLUSTER_PATIENCE.as_secs())))
    })
}

async fn cluster(client: &Client, key: &ClusterKey, pods: &[Pod]) -> ClusterScene {
    let (namespace, service) = (key.namespace.clone(), key.cluster.service_name.clone());
    let services = api::<Service>(client, Some(&namespace));
    let (found, slices, captures) =
        future::join3(services.get_opt(&service), slices(client, key), captures(client, key)).await;
    // What is not known here only leaves pods out.
    let mut behind = behind(found.ok().flatten().as_ref(), &slices.unwrap_or_default(), pods, &namespace);
    let is_of = |pod: &&Pod| {
        let of = member::cluster(pod.labels(), pod.annotations());
        pod.namespace().as_ref() == Some(&namespace) && of.is_some_and(|of| of.service_name == service)
    };
    behind.extend(pods.iter().filter(is_of).map(kube::ResourceExt::name_any));
    ClusterScene { namespace, service, captures, behind }
}

/// The pods that a Service selects, or that its endpoints name.
pub(super) fn behind(
    service: Option<&Service>,
    slices: &[EndpointSlice],
    pods: &[Pod],
    namespace: &str,
) -> BTreeSet<String> {
    let targets = slices.iter().flat_map(|slice| &slice.endpoints).filter_map(|endpoint| endpoint.target_ref.as_ref());
    let named = targets.filter(|target| target.kind.as_deref() == Some("Pod")).filter_map(|target| target.name.clone());
    let selector = service.and_then(|service| service.spec.as_ref()?.selector.clone()).unwrap_or_default();
    let wanted = selector.into_iter().map(|(key, value)| Expression::Equal(key, value));
    let wanted: Selector = wanted.collect();
    let is_selected = |pod: &&Pod| {
        !wanted.selects_all() && pod.namespace().as_deref() == Some(namespace) && wanted.matches(pod.labels())
    };
    named.chain(pods.iter().filter(is_selected).map(kube::ResourceExt::name_any)).collect()
}

fn pod_scene(pod: &Pod) -> PodScene {
    PodScene {
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        is_deleting: pod.metadata.deletion_timestamp.is_some(),
    }
}
