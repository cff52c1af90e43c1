//! What Kubernetes has, kept up to date by watches: drains, pods and nodes, each cut down to what is looked at.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, Mutex, PoisonError},
};

use futures::{FutureExt as _, Stream, StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeSpec, Pod as KubePod, PodSpec, PodStatus};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        reflector::{self, ObjectRef, Store, store::Writer},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::broadcast;

use super::{clusters::ClusterKey, error::category};
use crate::{
    operator::{
        avoid::Place,
        member,
        observe::{Pod, PodSeen},
        rollout::Marks,
        webhook::{decide::pod_uid, facts::PodFacts},
    },
    resource::{CaptureDrain, ClusterKind, is_finished},
};

/// How many changes of drains may wait for a slow reconciler.
const BUFFER: usize = 1024;
/// The label by which pods of one `StatefulSet` or `Deployment` tell their revisions.
const REVISIONS: [&str; 2] = ["controller-revision-hash", "pod-template-hash"];

/// What nodes are called in complaints.
pub(super) const NODES: &str = "nodes";
/// How labels and annotations begin that say whose a pod is.
const MARKS: [&str; 4] = ["app.kubernetes.io/", "pingcap.com/", "tidb.pingcap.com/", "capturedrain.io/"];

/// Why something is not known yet, by what it is.
type Complaints = Arc<Mutex<BTreeMap<&'static str, Complaint>>>;

/// Why something is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Complaint {
    sentence: String,
    /// Whether it may not be known, which does not pass by itself.
    is_forbidden: bool,
}

/// Everything that is watched.
#[derive(Clone)]
pub(super) struct Caches {
    pub(super) drains: Store<CaptureDrain>,
    pods: Store<KubePod>,
    nodes: Store<Node>,
    changes: broadcast::Sender<Change>,
    complaints: Complaints,
}

/// Whom something that has changed concerns.
#[derive(Debug, Clone)]
enum Change {
    /// This drain, and those of its cluster that wait for it.
    Drain(Box<(ObjectRef<CaptureDrain>, ClusterKey)>),
    /// Every drain of a namespace, and the cluster of a capture whose pod is being deleted.
    Pod(Option<String>, Option<ClusterKey>),
    /// Everybody.
    All,
}

impl Debug for Caches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Caches").field("drains", &self.drains.len()).finish_non_exhaustive()
    }
}

impl Caches {
    /// Begins to watch. Watches that fail are tried again for ever.
    pub(super) fn start(client: &Client, namespace: Option<&str>) -> Self {
        let complaints = Complaints::default();
        let changes = broadcast::channel(BUFFER).0;
        // Nobody may be there to hear of a change, so that sending may fail.
        let (drains, writer) = reflector::store();
        let told = changes.clone();
        let api = namespaced::<CaptureDrain>(client, namespace);
        keep(
            api,
            writer,
            "capturedrains",
            &complaints,
            |drain| drain.managed_fields_mut().clear(),
            move |drain| {
                let of = (ObjectRef::from_obj(drain), ClusterKey::of(drain));
                let _ = told.send(Change::Drain(Box::new(of)));
            },
        );
        let (pods, writer) = reflector::store();
        let told = changes.clone();
        let api = namespaced::<KubePod>(client, namespace);
        keep(api, writer, "pods", &complaints, slim_pod, move |pod| {
            let _ = told.send(Change::Pod(pod.namespace(), left_by(pod)));
        });
        let (nodes, writer) = reflector::store();
        let told = changes.clone();
        let mut seen = BTreeMap::new();
        keep(Api::<Node>::all(client.clone()), writer, NODES, &complaints, slim_node, move |node| {
            if is_news(&mut seen, node) {
                let _ = told.send(Change::All);
            }
        });
        Self { drains, pods, nodes, changes, complaints }
    }

    /// What changes from now on.
    fn changes(&self) -> impl Stream<Item = Change> + Send + 'static + use<> {
        stream::unfold(self.changes.subscribe(), |mut changes| async move {
            match changes.recv().await {
                Ok(change) => Some((change, changes)),
                // What was missed may concern anybody.
                Err(broadcast::error::RecvError::Lagged(_)) => Some((Change::All, changes)),
                Err(broadcast::error::RecvError::Closed) => None,
            }
        })
    }

    /// Each cluster of this project that has a pod that is being deleted, now and whenever one changes.
    pub(super) fn leaving(&self) -> impl Stream<Item = ClusterKey> + Send + 'static + use<> {
        let (changes, pods) = (self.changes(), self.pods.clone());
        let all = move || pods.state().iter().filter_map(|pod| left_by(pod)).collect::<Vec<_>>();
        stream::iter(all()).chain(changes.flat_map(move |change| {
            stream::iter(match change {
                Change::Pod(_, left) => left.into_iter().collect(),
                Change::All => all(),
                Change::Drain(_) => Vec::new(),
            })
        }))
    }

    /// When each pod of a cluster that is being deleted is killed, in milliseconds since 1970, by UID.
    pub(super) fn killed_at_ms(&self, key: &ClusterKey) -> BTreeMap<String, u64> {
        let pods = self.pods.state_filter(|pod| left_by(pod).as_ref() == Some(key));
        pods.iter().filter_map(|pod| Some((pod.uid()?, killed_at_ms(pod)?))).collect()
    }

    /// Each drain that something concerns from now on.
    pub(super) fn concerned(&self) -> impl Stream<Item = ObjectRef<CaptureDrain>> + Send + 'static + use<> {
        let drains = self.drains.clone();
        self.changes().flat_map(move |change| {
            let mut concerned = unfinished(&drains, |drain| match &change {
                Change::Drain(of) => of.1.is_of(drain),
                Change::Pod(namespace, _) => drain.metadata.namespace == *namespace,
                Change::All => true,
            });
            if let Change::Drain(of) = change {
                concerned.retain(|other| *other != of.0);
                concerned.push(of.0);
            }
            stream::iter(concerned)
        })
    }

    /// Waits until drains and pods are known. Nodes are for preferences only, so nothing waits for them.
    /// `false` when a watch has ended before, which only a bug can bring about.
    pub(super) async fn ready(&self) -> bool {
        self.drains.wait_until_ready().await.is_ok() && self.pods.wait_until_ready().await.is_ok()
    }

    /// Whether what is waited for was listed.
    pub(super) fn is_ready(&self) -> bool {
        self.ready().now_or_never() == Some(true)
    }

    /// What is not known at the moment, and why.
    pub(super) fn complaints(&self) -> BTreeMap<&'static str, String> {
        let complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        complaints.iter().map(|(what, why)| (*what, why.sentence.clone())).collect()
    }

    /// A pod by its name.
    pub(super) fn pod(&self, namespace: &str, name: &str) -> PodSeen {
        match self.pods.get(&ObjectRef::new(name).within(namespace)) {
            None => PodSeen::Missing,
            Some(pod) => PodSeen::There(seen(&pod)),
        }
    }

    /// The same, with what an eviction depends on.
    pub(super) fn pod_facts(&self, namespace: &str, name: &str) -> Option<PodFacts> {
        self.pods.get(&ObjectRef::new(name).within(namespace)).map(|pod| pod_facts(&pod))
    }

    /// The drains that are about a pod, or were about one of its name.
    pub(super) fn drains_of(&self, namespace: &str, name: &str, uid: &str) -> Vec<Arc<CaptureDrain>> {
        self.drains.state_filter(|drain| {
            let is_named = drain.spec.target.pod_name.as_deref() == Some(name);
            drain.metadata.namespace.as_deref() == Some(namespace) && (is_named || pod_uid(drain) == Some(uid))
        })
    }

    /// Labels and annotations of those pods of a namespace that are meant, by name and all else.
    pub(super) fn marks(&self, namespace: &str, is_meant: impl Fn(&str, &Pod) -> bool) -> Vec<(Marks, Marks)> {
        let pods = self.pods.state_filter(|pod| {
            pod.metadata.namespace.as_deref() == Some(namespace) && is_meant(&pod.name_any(), &seen(pod))
        });
        pods.iter().map(|pod| (pod.labels().clone(), pod.annotations().clone())).collect()
    }

    /// Where each pod of a namespace is, by its UID.
    pub(super) fn places(&self, namespace: &str) -> BTreeMap<String, Place> {
        let pods = self.pods.state_filter(|pod| pod.metadata.namespace.as_deref() == Some(namespace));
        let place = |pod: &KubePod| Place {
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            revision: REVISIONS.iter().find_map(|label| pod.labels().get(*label).cloned()),
            created_at: created(pod),
            tolerations: pod.spec.as_ref().and_then(|spec| spec.tolerations.clone()).unwrap_or_default(),
        };
        pods.iter().map(|pod| (pod.uid().unwrap_or_default(), place(pod))).collect()
    }

    /// All nodes, by their names. None where they may not be followed: what was once is no preference for ever.
    pub(super) fn nodes(&self) -> BTreeMap<String, NodeSpec> {
        let complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        if complaints.get(NODES).is_some_and(|why| why.is_forbidden) {
            return BTreeMap::new();
        }
        drop(complaints);
        self.nodes.state().iter().map(|node| (node.name_any(), node.spec.clone().unwrap_or_default())).collect()
    }
}

/// Those drains that are not over and are meant.
pub(super) fn unfinished(
    drains: &Store<CaptureDrain>,
    is_meant: impl Fn(&CaptureDrain) -> bool,
) -> Vec<ObjectRef<CaptureDrain>> {
    let found = drains.state_filter(|drain| !is_finished(drain) && is_meant(drain));
    found.iter().map(|drain| ObjectRef::from_obj(&**drain)).collect()
}

/// The objects of a namespace, or of all.
pub(crate) fn namespaced<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
{
    namespace.map_or_else(|| Api::all(client.clone()), |namespace| Api::namespaced(client.clone(), namespace))
}

/// Keeps a store up to date for as long as the process lives.
fn keep<K>(
    api: Api<K>,
    writer: Writer<K>,
    what: &'static str,
    complaints: &Complaints,
    slim: impl Fn(&mut K) + Send + 'static,
    mut tell: impl FnMut(&K) + Send + 'static,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let complaints = complaints.clone();
    let events = watcher(api, watcher::Config::default()).default_backoff().modify(slim);
    let heard = complaints.clone();
    let events = events.inspect_ok(move |_| {
        heard.lock().unwrap_or_else(PoisonError::into_inner).remove(what);
    });
    tokio::spawn(async move {
        let mut touched = Box::pin(events.reflect(writer).touched_objects());
        while let Some(event) = touched.next().await {
            match event {
                Ok(object) => tell(&object),
                Err(error) => complain(&complaints, what, &error),
            }
        }
    });
}

fn complain(complaints: &Complaints, what: &'static str, error: &watcher::Error) {
    let is_forbidden = match error {
        watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error) => {
            category(error) == "forbidden"
        }
        _ => false,
    };
    let now = Complaint { sentence: error.to_string(), is_forbidden };
    let before = complaints.lock().unwrap_or_else(PoisonError::into_inner).insert(what, now.clone());
    // Said once, not at each attempt.
    if before.as_ref() != Some(&now) {
        tracing::warn!(what, error = now.sentence, "cannot be watched");
    }
}

fn created(object: &impl Resource<DynamicType = ()>) -> Timestamp {
    object.meta().creation_timestamp.as_ref().map(|created| created.0).unwrap_or_default()
}

fn ips(pod: &KubePod) -> Vec<String> {
    let ips = pod.status.as_ref().and_then(|status| status.pod_ips.as_ref());
    ips.into_iter().flatten().map(|ip| ip.ip.clone()).collect()
}

fn seen(pod: &KubePod) -> Pod {
    Pod {
        uid: pod.uid().unwrap_or_default(),
        ips: ips(pod),
        created_at: created(pod),
        is_deleting: pod.metadata.deletion_timestamp.is_some(),
    }
}

/// The cluster of this project whose capture's pod this is, when it is being deleted.
fn left_by(pod: &KubePod) -> Option<ClusterKey> {
    pod.metadata.deletion_timestamp.as_ref()?;
    let cluster = member::cluster(pod.labels(), pod.annotations())?;
    (cluster.kind == ClusterKind::CaptureDrain)
        .then(|| ClusterKey { namespace: pod.namespace().unwrap_or_default(), cluster })
}

/// Kubernetes has added its grace period.
fn killed_at_ms(pod: &KubePod) -> Option<u64> {
    let at = pod.metadata.deletion_timestamp.as_ref()?;
    u64::try_from(at.0.as_millisecond()).ok()
}

/// A pod, as far as it matters to an eviction.
pub(crate) fn pod_facts(pod: &KubePod) -> PodFacts {
    PodFacts {
        pod: seen(pod),
        labels: pod.labels().clone(),
        annotations: pod.annotations().clone(),
        phase: pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default(),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
    }
}

fn slim_pod(pod: &mut KubePod) {
    pod.managed_fields_mut().clear();
    pod.metadata.owner_references = None;
    pod.metadata.finalizers = None;
    let is_mark = |name: &str| MARKS.iter().any(|mark| name.starts_with(mark));
    pod.labels_mut().retain(|label, _| REVISIONS.contains(&label.as_str()) || is_mark(label));
    pod.annotations_mut().retain(|name, _| is_mark(name));
    pod.spec = pod.spec.take().map(|spec| PodSpec {
        node_name: spec.node_name,
        tolerations: spec.tolerations,
        ..PodSpec::default()
    });
    pod.status = pod.status.take().map(|status| PodStatus {
        phase: status.phase,
        pod_ips: status.pod_ips,
        ..PodStatus::default()
    });
}

fn slim_node(node: &mut Node) {
    node.managed_fields_mut().clear();
    node.labels_mut().clear();
    node.annotations_mut().clear();
    node.status = None;
    node.spec = node.spec.take().map(|spec| NodeSpec {
        unschedulable: spec.unschedulable,
        taints: spec.taints,
        ..NodeSpec::default()
    });
}

/// Whether a node has changed in what is looked at: its kubelet touches it all the time.
fn is_news(seen: &mut BTreeMap<String, u64>, node: &Node) -> bool {
    let mut hasher = DefaultHasher::new();
    let spec = node.spec.as_ref();
    spec.and_then(|spec| spec.unschedulable).hash(&mut hasher);
    for taint in spec.and_then(|spec| spec.taints.as_ref()).into_iter().flatten() {
        (&taint.key, &taint.value, &taint.effect).hash(&mut hasher);
    }
    let now = hasher.finish();
    seen.insert(node.name_any(), now) != Some(now)
}
