//! Connections to clusters: one each, for as long as a drain of it is not over or a pod of it is being deleted.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{Stream, StreamExt as _};
use kube::Client;
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
    time::{self, Instant},
};
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::{metrics::Metrics, resolve::resolve};
use crate::{
    operator::{
        backend::Backend,
        observe::{Cluster, Unseen},
    },
    resource::{CaptureDrain, ClusterRef},
};

/// How long a cluster may be silent before it counts as unreachable: longer than one takes to elect a coordinator.
const SILENCE: Duration = Duration::from_secs(30);
/// How soon a way to a cluster is looked for again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How often the numbers of a drain are passed on at most; everything else is at once.
const PACE: Duration = Duration::from_secs(1);

/// Which cluster, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ClusterKey {
    pub(crate) namespace: String,
    pub(crate) cluster: ClusterRef,
}

impl ClusterKey {
    pub(crate) fn of(drain: &CaptureDrain) -> Self {
        let namespace = drain.metadata.namespace.clone().unwrap_or_default();
        Self { namespace, cluster: drain.spec.cluster_ref.clone() }
    }

    /// Whether a drain is of this cluster.
    pub(super) fn is_of(&self, drain: &CaptureDrain) -> bool {
        let namespace = drain.metadata.namespace.as_deref().unwrap_or_default();
        namespace == self.namespace && drain.spec.cluster_ref == self.cluster
    }
}

/// What is known of a cluster.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    /// What it said last, or why it says nothing; `None` while it was not asked for long.
    pub(super) seen: Option<Result<Cluster, Unseen>>,
    /// The way to it.
    pub(super) backend: Option<Arc<dyn Backend>>,
}

/// Ends its task when it is dropped.
#[derive(Debug)]
struct Connection {
    known: watch::Receiver<Known>,
    task: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// All connections.
pub(super) struct Clusters {
    client: Client,
    metrics: Arc<Metrics>,
    connections: Mutex<BTreeMap<ClusterKey, Connection>>,
    /// Those whose connections stay in any case.
    held: Mutex<BTreeSet<ClusterKey>>,
    news: mpsc::UnboundedSender<ClusterKey>,
}

impl Clusters {
    /// Without connections, and the clusters of which something is news.
    pub(super) fn new(
        client: Client,
        metrics: Arc<Metrics>,
    ) -> (Self, impl Stream<Item = ClusterKey> + Send + 'static) {
        let (news, heard) = mpsc::unbounded_channel();
        let clusters = Self { client, metrics, connections: Mutex::default(), held: Mutex::default(), news };
        (clusters, UnboundedReceiverStream::new(heard))
    }

    /// What is known of a cluster. It is connected to when it was not.
    pub(super) fn known(&self, key: &ClusterKey) -> Known {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let connection = connections.entry(key.clone()).or_insert_with(|| {
            let (known, receiver) = watch::channel(Known::default());
            let follower = Follower {
                client: self.client.clone(),
                metrics: self.metrics.clone(),
                key: key.clone(),
                known,
                news: self.news.clone(),
            };
            Connection { known: receiver, task: tokio::spawn(follower.run()).abort_handle() }
        });
        connection.known.borrow().clone()
    }

    /// Says which connections stay in any case.
    pub(super) fn hold<'a>(&self, keys: impl Iterator<Item = &'a ClusterKey>) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = keys.cloned().collect();
    }

    /// Ends the connections that nobody needs.
    pub(super) fn keep(&self, is_needed: impl Fn(&ClusterKey) -> bool) {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.retain(|key, _| held.contains(key) || is_needed(key));
    }
}

/// Follows one cluster.
struct Follower {
    client: Client,
    metrics: Arc<Metrics>,
    key: ClusterKey,
    known: watch::Sender<Known>,
    news: mpsc::UnboundedSender<ClusterKey>,
}

impl Follower {
    async fn run(self) {
        let mut pause = RETRY.0;
        loop {
            match resolve(&self.client, &self.key, &self.metrics).await {
                Ok(backend) => {
                    self.known.send_modify(|known| known.backend = Some(backend.clone()));
                    if self.follow(&*backend).await {
                        pause = RETRY.0;
                    }
                }
                Err(unseen) => self.say(Err(unseen)),
            }
            time::sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// Passes on what a cluster says, until it has been silent for too long. Whether it said anything.
    async fn follow(&self, backend: &dyn Backend) -> bool {
        let mut views = backend.follow();
        let mut has_spoken = false;
        let mut tell_at = Instant::now();
        let mut waiting: Option<Cluster> = None;
        let mut silent_since: Option<(Instant, Unseen)> = None;
        loop {
            let too_long = silent_since.as_ref().map(|(since, _)| *since + SILENCE);
            tokio::select! {
                view = views.next() => match view {
                    None => {
                        let unseen = silent_since.map(|(_, unseen)| unseen);
                        self.say(Err(unseen.unwrap_or_else(|| Unseen::Unreachable("the cluster is silent".to_owned()))));
                        return has_spoken;
                    }
                    Some(Ok(cluster)) => {
                        (has_spoken, silent_since) = (true, None);
                        if self.is_news(&cluster) {
                            tell_at = Instant::now();
                        }
                        waiting = Some(cluster);
                    }
                    Some(Err(Unseen::Unreachable(why))) => {
                        let since = silent_since.map_or_else(Instant::now, |(since, _)| since);
                        silent_since = Some((since, Unseen::Unreachable(why)));
                    }
                    // It answers, so that there is nothing to wait for.
                    Some(Err(unseen)) => {
                        self.say(Err(unseen));
                        return has_spoken;
                    }
                },
                () = time::sleep_until(tell_at), if waiting.is_some() => {
                    if let Some(cluster) = waiting.take() {
                        tell_at = Instant::now() + PACE;
                        self.say(Ok(cluster));
                    }
                }
                () = time::sleep_until(too_long.unwrap_or(tell_at)), if too_long.is_some() => {
                    if let Some((_, unseen)) = silent_since {
                        self.say(Err(unseen));
                    }
                    return has_spoken;
                }
            }
        }
    }

    /// Whether more than numbers have changed since something was last passed on.
    fn is_news(&self, cluster: &Cluster) -> bool {
        match &self.known.borrow().seen {
            Some(Ok(before)) => outline(before) != outline(cluster),
            _ => true,
        }
    }

    fn say(&self, seen: Result<Cluster, Unseen>) {
        let is_news = self.known.send_if_modified(|known| {
            let is_news = known.seen.as_ref() != Some(&seen);
            known.seen = Some(seen);
            is_news
        });
        if is_news {
            // Without a reconciler there is nobody to tell.
            let _ = self.news.send(self.key.clone());
        }
    }
}

/// A cluster without its numbers.
fn outline(cluster: &Cluster) -> Cluster {
    let mut outline = cluster.clone();
    outline.drain.remaining_maintainer_count = None;
    outline.drain.remaining_dispatcher_count = None;
    outline.drain.remaining_dispatchers.clear();
    outline.drain.in_flight = None;
    outline.drain.eta_seconds = None;
    outline.drain.last_progress_at = None;
    for capture in &mut outline.captures {
        capture.maintainer_count = None;
        capture.dispatcher_count = None;
    }
    outline
}
