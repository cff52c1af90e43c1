//! Follows the pods of captures that are being deleted, whoever deletes them: their clusters are told when each is killed,
//! and what came of their hooks is told on the pods.

use std::{collections::BTreeMap, future, sync::Arc, time::Duration};

use capturedrain_core::model::DrainRequest;
use futures::{Stream, StreamExt as _};
use jiff::Timestamp;
use kube::runtime::events::Recorder;
use tokio::time::{self, Instant};

use super::{
    cache::Caches,
    clusters::{ClusterKey, Clusters},
    hooks,
};
use crate::{
    operator::{leaving::last_word, status::Outcome},
    resource::is_finished,
};

/// How often what could not be told is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a cluster is listened to after its last such pod is gone: the word of a hook may come late.
const LINGER: Duration = Duration::from_secs(10);

/// Those who have pods that are being deleted.
pub(super) struct Leaving {
    caches: Caches,
    clusters: Arc<Clusters>,
    recorder: Recorder,
    told: hooks::Told,
    followed: BTreeMap<ClusterKey, Followed>,
}

/// A cluster with such a pod.
struct Followed {
    until: Instant,
    /// What it was told last.
    told: Option<DrainRequest>,
}

impl Leaving {
    pub(super) fn new(caches: Caches, clusters: Arc<Clusters>, recorder: Recorder) -> Self {
        Self { caches, clusters, recorder, told: hooks::Told::default(), followed: BTreeMap::new() }
    }

    /// Follows them for ever. `news` names clusters of which something is news.
    pub(super) async fn follow(mut self, news: impl Stream<Item = ClusterKey> + Send) {
        let mut touched = Box::pin(self.caches.leaving());
        let mut news = Box::pin(news);
        loop {
            let pause = self.followed.is_empty();
            let again = async { if pause { future::pending().await } else { time::sleep(AGAIN).await } };
            tokio::select! {
                Some(key) = touched.next() => {
                    let until = Instant::now() + LINGER;
                    self.followed.entry(key.clone()).or_insert(Followed { until, told: None });
                    self.clusters.hold(self.followed.keys());
                    self.look_at(&key).await;
                }
                Some(key) = news.next() => self.look_at(&key).await,
                () = again => {
                    for key in self.followed.keys().cloned().collect::<Vec<_>>() {
                        self.look_at(&key).await;
                    }
                    self.let_go();
                }
                else => return,
            }
        }
    }

    /// Tells what there is to tell, if the cluster is one of them.
    async fn look_at(&mut self, key: &ClusterKey) {
        let Some(followed) = self.followed.get_mut(key) else { return };
        let killed_at_ms = self.caches.killed_at_ms(key);
        if !killed_at_ms.is_empty() {
            followed.until = Instant::now() + LINGER;
        }
        let known = self.clusters.known(key);
        let (Some(Ok(cluster)), Some(backend)) = (&known.seen, &known.backend) else { return };
        hooks::tell(&key.namespace, &cluster.hook_reports, Timestamp::now(), &mut self.told, &self.recorder).await;
        let request = last_word(cluster, &killed_at_ms).filter(|request| followed.told.as_ref() != Some(request));
        if let Some(request) = request
            && matches!(backend.start(&request).await, Outcome::Answered(_))
        {
            followed.told = Some(request);
        }
    }

    /// Ends what is followed no longer, and the ways to clusters that nobody needs.
    fn let_go(&mut self) {
        let before = self.followed.len();
        self.followed.retain(|_, followed| Instant::now() < followed.until);
        if self.followed.len() < before {
            self.clusters.hold(self.followed.keys());
            let drains = &self.caches.drains;
            self.clusters.keep(|key| drains.find(|drain| !is_finished(drain) && key.is_of(drain)).is_some());
        }
    }
}
