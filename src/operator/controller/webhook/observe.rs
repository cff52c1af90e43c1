//! What is known of an eviction, from memory, and what is looked at on request.

use std::{future::Future, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{Node, Pod, PodSpec},
    events::v1::Event,
    policy::v1::PodDisruptionBudget,
};
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use tokio::time;

use super::super::{
    cache::{Caches, pod_facts},
    clusters::ClusterKey,
    error::{Error, category},
    metrics::Metrics,
    resolve::resolve,
};
use crate::{
    operator::{
        avoid::is_closed,
        observe::{Cluster, Unseen},
        webhook::{
            asked::Asked,
            budget::refusing,
            decide::{Look, pod_uid},
            facts::{Facts, Obstacles, PodFacts, Seen},
            make::number,
        },
    },
    resource::{CaptureDrain, ClusterRef},
};

/// How long the API server may take for one thing.
const API_TIMEOUT: Duration = Duration::from_millis(1500);
/// How long a cluster may take.
const CLUSTER_TIMEOUT: Duration = Duration::from_secs(2);

/// Who looks.
pub(super) struct Witness {
    client: Client,
    caches: Caches,
    metrics: Arc<Metrics>,
}

/// What a call of the API server came to, in time.
pub(super) async fn in_time<T>(
    verb: &'static str,
    what: &str,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, Trouble> {
    match time::timeout(API_TIMEOUT, call).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => {
            let category = category(&error);
            let error = Error::new(verb, what)(error).chain().to_string();
            Err(Trouble { category, error })
        }
        Err(_) => {
            let error = format!("cannot {verb} {what} within {} ms", API_TIMEOUT.as_millis());
            Err(Trouble { category: "unreachable", error })
        }
    }
}

/// What went wrong with the API server.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub(super) struct Trouble {
    pub(super) category: &'static str,
    error: String,
}

impl Trouble {
    /// All of it together has taken too long.
    pub(super) fn late(limit: Duration) -> Self {
        let error = format!("what has to be known is not known within {} ms", limit.as_millis());
        Self { category: "unreachable", error }
    }

    /// Whether another attempt may go well.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self.category, "throttled" | "server" | "unreachable" | "conflict")
    }
}

impl Witness {
    pub(super) fn new(client: Client, caches: Caches, metrics: Arc<Metrics>) -> Self {
        Self { client, caches, metrics }
    }

    /// What is known without looking.
    pub(super) fn remember(&self, asked: &Asked) -> Facts {
        let pod = self.caches.pod_facts(&asked.namespace, &asked.name);
        let mut facts = Facts {
            now: Timestamp::now(),
            asked: asked.clone(),
            pod: Seen::Cached(None),
            is_node_closed: None,
            drains: Vec::new(),
            cluster: None,
            obstacles: None,
        };
        self.put(&mut facts, Seen::Cached(pod));
        facts
    }

    /// Replaces the pod, and what follows from it.
    fn put(&self, facts: &mut Facts, seen: Seen) {
        let (Seen::Cached(pod) | Seen::Live(pod)) = &seen;
        let at = |pod: Option<&PodFacts>| pod.map(|pod| (pod.pod.uid.clone(), pod.node.clone()));
        if at(pod.as_ref()) != at(facts.pod.pod()) {
            facts.is_node_closed = None;
        }
        let uid = pod.as_ref().map(|pod| pod.pod.uid.clone()).unwrap_or_default();
        facts.drains = self.caches.drains_of(&facts.asked.namespace, &facts.asked.name, &uid);
        facts.pod = seen;
    }

    /// Looks at what the decision asks for.
    pub(super) async fn look(&self, facts: &mut Facts, look: Look) -> Result<(), Trouble> {
        match look {
            Look::Pod => {
                let pod = self.pod(&facts.asked).await?.as_ref().map(pod_facts);
                self.put(facts, Seen::Live(pod));
            }
            Look::Node => {
                let pod = self.pod(&facts.asked).await?;
                self.put(facts, Seen::Live(pod.as_ref().map(pod_facts)));
                facts.is_node_closed = match pod.and_then(|pod| pod.spec) {
                    Some(pod) => Some(self.is_closed(&pod).await?),
                    None => None,
                };
            }
            Look::Proof { cluster, drain } => {
                let (pod, drain, cluster) = futures::join!(
                    self.pod(&facts.asked),
                    self.drain(&facts.asked, &drain),
                    self.cluster(&facts.asked.namespace, cluster)
                );
                match (pod, drain) {
                    (Ok(pod), Ok((name, drain))) => {
                        self.put(facts, Seen::Live(pod.as_ref().map(pod_facts)));
                        facts.drains.retain(|other| other.name_any() != name);
                        facts.drains.extend(drain.map(Arc::new));
                        facts.cluster = Some(cluster);
                    }
                    (Err(why), _) | (_, Err(why)) => facts.cluster = Some(Err(Unseen::Unreachable(why.to_string()))),
                }
            }
            Look::Obstacles => {
                let (pod, budgets, withdrawn) =
                    futures::join!(self.pod(&facts.asked), self.budgets(&facts.asked), self.withdrawals(&facts.asked));
                let pod = pod?;
                self.put(facts, Seen::Live(pod.as_ref().map(pod_facts)));
                let Some(pod) = pod else { return Ok(()) };
                facts.obstacles = Some(Obstacles {
                    budget: refusing(&budgets, pod.labels(), is_ready(&pod)),
                    withdrawn: withdrawn_since(&withdrawn, &pod_facts(&pod), &facts.drains),
                });
            }
        }
        Ok(())
    }

    async fn pod(&self, asked: &Asked) -> Result<Option<Pod>, Trouble> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), &asked.namespace);
        in_time("read", "the pod", pods.get_opt(&asked.name)).await
    }

    /// Whether the node of a pod would not take it again; one that waits for a node is on none that is closed.
    async fn is_closed(&self, pod: &PodSpec) -> Result<bool, Trouble> {
        let Some(name) = &pod.node_name else { return Ok(false) };
        let nodes = Api::<Node>::all(self.client.clone());
        match in_time("read", "the node", nodes.get_opt(name)).await {
            Ok(node) => {
                let node = node.and_then(|node| node.spec).unwrap_or_default();
                Ok(is_closed(&node, pod.tolerations.as_deref().unwrap_or_default()))
            }
            // Who may not know it does not take a pod for gone that may be there to stay.
            Err(trouble) if trouble.category == "forbidden" => Ok(true),
            Err(trouble) => Err(trouble),
        }
    }

    async fn drain(&self, asked: &Asked, name: &str) -> Result<(String, Option<CaptureDrain>), Trouble> {
        let drains = Api::<CaptureDrain>::namespaced(self.client.clone(), &asked.namespace);
        let found = in_time("read", "the CaptureDrain", drains.get_opt(name)).await?;
        Ok((name.to_owned(), found))
    }

    async fn cluster(&self, namespace: &str, cluster: ClusterRef) -> Result<Cluster, Unseen> {
        let key = ClusterKey { namespace: namespace.to_owned(), cluster };
        let look = async { resolve(&self.client, &key, &self.metrics).await?.look().await };
        let late = |_| Unseen::Unreachable(format!("no answer within {} s", CLUSTER_TIMEOUT.as_secs()));
        time::timeout(CLUSTER_TIMEOUT, look).await.map_err(late)?
    }

    /// Budgets that cannot be read refuse nothing: the API server judges them after this.
    async fn budgets(&self, asked: &Asked) -> Vec<PodDisruptionBudget> {
        let budgets = Api::<PodDisruptionBudget>::namespaced(self.client.clone(), &asked.namespace);
        let found = in_time("read", "the budgets", budgets.list(&ListParams::default())).await;
        match found {
            Ok(list) => list.items,
            Err(error) => {
                tracing::warn!(namespace = asked.namespace, %error, "budgets are left out");
                Vec::new()
            }
        }
    }

    /// What tells of drains that were withdrawn: their objects may be gone, events stay for an hour.
    async fn withdrawals(&self, asked: &Asked) -> Vec<Event> {
        let events = Api::<Event>::namespaced(self.client.clone(), &asked.namespace);
        let told = ListParams::default().fields("reason=DrainWithdrawn,regarding.kind=CaptureDrain");
        let found = in_time("read", "the events", events.list(&told)).await;
        match found {
            Ok(list) => list.items,
            Err(error) => {
                tracing::warn!(namespace = asked.namespace, %error, "whether a drain was withdrawn is not known");
                Vec::new()
            }
        }
    }
}

/// As the API server has it, for budgets.
fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The drain of a pod that was withdrawn after every other that there is began.
fn withdrawn_since(events: &[Event], pod: &PodFacts, drains: &[Arc<CaptureDrain>]) -> Option<String> {
    let of_pod = drains.iter().filter(|drain| pod_uid(drain) == Some(&pod.pod.uid));
    let last = of_pod.filter_map(|drain| Some(drain.metadata.creation_timestamp.as_ref()?.0)).max();
    let told = events.iter().filter_map(|event| {
        let name = event.regarding.as_ref()?.name.clone()?;
        let at = event.series.as_ref().map(|series| series.last_observed_time.0).or(Some(event.event_time.as_ref()?.0));
        number(&pod.pod.uid, &name)?;
        (at? >= last.unwrap_or(Timestamp::MIN)).then_some((at, name))
    });
    told.max().map(|(_, name)| name)
}
