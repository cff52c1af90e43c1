//! Three captures in this process.

use std::{path::Path, time::Duration};

use capturedrain_core::model::{CaptureId, ChangefeedId, Options, Snapshot};

use super::{DemoError, wait_for};
use crate::{
    client::Client,
    door::Door,
    node::{Node, NodeConfig, NodeError, identity, listen},
    store::AnyStore,
};

const CAPTURES: usize = 3;

pub(super) struct Cluster {
    nodes: Vec<Node>,
    client: Client,
}

/// How far a drain is.
pub(super) struct HalfWay {
    pub(super) initial: u64,
    pub(super) gone: u64,
}

impl Cluster {
    pub(super) async fn start(folder: &Path) -> Result<Self, DemoError> {
        let store = AnyStore::open(&format!("embedded:{}", folder.join("store.redb").display()), "demo").await?;
        // Short periods, since a minute is short; few moves at once, so that there is a middle to kill somebody in.
        let options = Options {
            lease: Duration::from_secs(2),
            heartbeat: Duration::from_millis(200),
            drain_maintainer_batch_size: 1,
            drain_dispatcher_batch_size: 1,
            ..Options::default()
        };
        let mut nodes = Vec::new();
        for n in 0..CAPTURES {
            let listener = listen("127.0.0.1:0").await?;
            let addr = listener.local_addr().map_err(|source| NodeError::Listen { addr: String::new(), source })?;
            let id = CaptureId::new(format!("capture-{n}")).map_err(NodeError::from)?;
            let identity = identity(id, &addr.to_string());
            nodes.push(Node::start(NodeConfig { identity, options: options.clone(), store: store.clone() }, listener)?);
        }
        let servers: Vec<_> = nodes.iter().map(|node| node.addr().to_string()).collect();
        let cluster = Self { nodes, client: Client::new(&servers)? };
        wait_for("the captures to register", async || {
            let heard = cluster.acting()?.captures.values().filter(|capture| capture.heard).count();
            (heard == CAPTURES).then_some(())
        })
        .await?;
        Ok(cluster)
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.door().capture.to_string()).collect()
    }

    pub(super) fn doors(&self) -> Vec<Door> {
        self.nodes.iter().map(|node| node.door().clone()).collect()
    }

    /// What the coordinator knows.
    fn acting(&self) -> Option<std::sync::Arc<Snapshot>> {
        let mut snapshots = self.nodes.iter().map(|node| node.door().snapshots.borrow().clone());
        snapshots.find(|snapshot| snapshot.is_coordinator)
    }

    pub(super) fn coordinator(&self) -> Option<CaptureId> {
        self.acting()?.me.as_ref().map(|me| me.capture.clone())
    }

    pub(super) fn epoch(&self) -> u64 {
        self.acting().map_or(0, |snapshot| snapshot.last_epoch.0)
    }

    pub(super) fn a_follower(&self) -> Option<CaptureId> {
        let coordinator = self.coordinator()?;
        self.nodes.iter().map(|node| &node.door().capture).find(|id| **id != coordinator).cloned()
    }

    /// How many dispatchers work.
    pub(super) fn dispatchers(&self) -> u64 {
        let feeds = self.acting().map(|snapshot| snapshot.changefeeds.clone()).unwrap_or_default();
        let working = feeds.values().filter(|feed| feed.checkpoint_at_ms.is_some_and(|at| at > 0));
        working.flat_map(|feed| feed.dispatchers.values()).sum()
    }

    /// How far the drain is, once half of the target's work has left and some is still there.
    pub(super) fn half_way(&self, target: &CaptureId) -> Option<HalfWay> {
        let snapshot = self.acting()?;
        let drain = snapshot.drain.as_ref().filter(|drain| drain.record.target == *target)?;
        let left = drain.remaining?;
        let initial = drain.record.initial.maintainers + drain.record.initial.dispatchers;
        let gone = initial.saturating_sub(left.maintainers + left.dispatchers);
        (gone * 2 >= initial && gone < initial).then_some(HalfWay { initial, gone })
    }

    /// Ends the coordinator at once.
    pub(super) async fn kill_coordinator(&mut self) -> Option<CaptureId> {
        let coordinator = self.coordinator()?;
        let at = self.nodes.iter().position(|node| node.door().capture == coordinator)?;
        self.nodes.remove(at).kill().await;
        Some(coordinator)
    }

    /// Whether everything up to a commit timestamp is in the sinks.
    pub(super) fn all_past<'a>(&self, feeds: impl Iterator<Item = &'a ChangefeedId>, until: u64) -> bool {
        let Some(snapshot) = self.acting() else { return false };
        let mut feeds = feeds;
        feeds.all(|id| {
            let checkpoint = snapshot.changefeeds.get(id).and_then(|feed| feed.checkpoint_ts);
            checkpoint.is_some_and(|checkpoint| checkpoint >= until)
        })
    }
}
