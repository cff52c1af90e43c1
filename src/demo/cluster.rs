//! Some captures in this process, on one embedded store. They end in every way, and start anew under their names.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use capturedrain_core::model::{CaptureId, ChangefeedId, ChangefeedStatus, Options, Snapshot};

use super::{DemoConfig, DemoError};
use crate::{
    client::{Client, ClientError},
    node::{Node, NodeConfig, NodeError, identity, listen},
    store::AnyStore,
};

/// Shortest heartbeat, in milliseconds.
const HEARTBEAT_MIN_MS: u64 = 200;
/// What each changefeed adds to the heartbeat, in milliseconds: with each one its position is persisted, in a store that
/// commits one after another.
const HEARTBEAT_PER_CHANGEFEED_MS: u64 = 10;
/// How many heartbeats a lease lasts.
const LEASE_HEARTBEATS: u32 = 10;

/// One of so many changefeeds may move at once.
const CHANGEFEEDS_PER_MOVE: u16 = 20;

/// Periods are as short as the changefeeds allow, since a minute is short, and few moves go on at once, so that there is a
/// middle to kill somebody in.
fn options(config: &DemoConfig) -> Options {
    let heartbeat_ms = HEARTBEAT_MIN_MS.max(u64::from(config.changefeeds) * HEARTBEAT_PER_CHANGEFEED_MS);
    let heartbeat = Duration::from_millis(heartbeat_ms);
    Options {
        lease: heartbeat * LEASE_HEARTBEATS,
        heartbeat,
        balance_cooldown: Duration::from_millis(300),
        drain_maintainer_batch_size: config.changefeeds.div_ceil(CHANGEFEEDS_PER_MOVE).into(),
        drain_dispatcher_batch_size: 1,
        ..Options::default()
    }
}

/// How many tables each changefeed has.
pub(super) type Tables = BTreeMap<ChangefeedId, u64>;

pub(super) struct Cluster {
    size: usize,
    options: Options,
    store: AnyStore,
    nodes: Vec<Node>,
    client: Client,
}

/// How far a drain is.
pub(super) struct Drained {
    /// Maintainers and dispatchers that the target began with.
    pub(super) initial: u64,
    /// Those that have left.
    pub(super) gone: u64,
}

impl Cluster {
    pub(super) async fn start(folder: &Path, config: &DemoConfig) -> Result<Self, DemoError> {
        let store = AnyStore::open(&format!("embedded:{}", folder.join("store.redb").display()), "demo").await?;
        let options = options(config);
        let mut nodes = Vec::new();
        for n in 0..config.captures {
            let id = CaptureId::new(format!("capture-{n}")).map_err(NodeError::from)?;
            nodes.push(start(id, options.clone(), store.clone()).await?);
        }
        let client = client(&nodes)?;
        Ok(Self { size: config.captures.into(), options, store, nodes, client })
    }

    /// Starts a capture of this name; one that left comes back so.
    pub(super) async fn join(&mut self, id: CaptureId) -> Result<(), DemoError> {
        self.nodes.push(start(id, self.options.clone(), self.store.clone()).await?);
        self.follow_membership()
    }

    /// Takes a capture out of the list of those that are asked. It runs on until the caller ends it.
    pub(super) fn take(&mut self, id: &CaptureId) -> Result<Node, DemoError> {
        let at = self.nodes.iter().position(|node| node.door().capture == *id);
        let node = at.map(|at| self.nodes.remove(at)).ok_or(DemoError::TooSlow("a capture that runs"))?;
        self.follow_membership()?;
        Ok(node)
    }

    fn follow_membership(&mut self) -> Result<(), DemoError> {
        self.client = client(&self.nodes)?;
        Ok(())
    }

    /// Ends all captures at once.
    pub(super) async fn end(self) {
        for node in self.nodes {
            node.kill().await;
        }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// What the coordinator knows.
    fn acting(&self) -> Option<Arc<Snapshot>> {
        let mut snapshots = self.nodes.iter().map(|node| node.door().snapshots.borrow().clone());
        snapshots.find(|snapshot| snapshot.is_coordinator)
    }

    pub(super) fn coordinator(&self) -> Option<CaptureId> {
        self.acting()?.me.as_ref().map(|me| me.capture.clone())
    }

    pub(super) fn followers(&self) -> Option<Vec<CaptureId>> {
        let coordinator = self.coordinator()?;
        let names = self.nodes.iter().map(|node| node.door().capture.clone());
        Some(names.filter(|id| *id != coordinator).collect())
    }

    /// How many captures the coordinator hears.
    pub(super) fn heard(&self) -> u64 {
        let heard = |snapshot: Arc<Snapshot>| snapshot.captures.values().filter(|capture| capture.heard).count();
        self.acting().map_or(0, heard) as u64
    }

    /// How many dispatchers work.
    pub(super) fn dispatchers(&self) -> u64 {
        let Some(snapshot) = self.acting() else { return 0 };
        snapshot.changefeeds.values().filter(|feed| works(feed)).map(count).sum()
    }

    /// How many dispatchers work, those on a capture left out.
    pub(super) fn dispatchers_besides(&self, id: &CaptureId) -> u64 {
        self.dispatchers() - self.dispatchers_on(id).min(self.dispatchers())
    }

    /// How many dispatchers are on a capture.
    pub(super) fn dispatchers_on(&self, id: &CaptureId) -> u64 {
        let Some(snapshot) = self.acting() else { return 0 };
        snapshot.changefeeds.values().filter_map(|feed| feed.dispatchers.get(id)).sum()
    }

    /// How many dispatchers are where they belong when all captures share the work evenly.
    pub(super) fn in_place(&self, tables: &Tables) -> u64 {
        let Some(snapshot) = self.acting() else { return 0 };
        let of = |(id, tables): (&ChangefeedId, &u64)| {
            let feed = snapshot.changefeeds.get(id)?;
            let most = tables.div_ceil(self.size as u64);
            Some(feed.dispatchers.values().map(|count| (*count).min(most)).sum::<u64>())
        };
        tables.iter().filter_map(of).sum()
    }

    /// Whether every capture is there, and all work runs, evenly shared.
    pub(super) fn is_balanced(&self, tables: &Tables) -> bool {
        let Some(snapshot) = self.acting() else { return false };
        let all_here = snapshot.captures.len() == self.size && snapshot.captures.values().all(|capture| capture.heard);
        let mut maintainers: BTreeMap<&CaptureId, u64> = BTreeMap::new();
        for (id, tables) in tables {
            let Some(feed) = snapshot.changefeeds.get(id).filter(|feed| works(feed) && count(feed) == *tables) else {
                return false;
            };
            let Some((host, _, _)) = &feed.maintainer else { return false };
            *maintainers.entry(host).or_default() += 1;
            if !is_even(self.size, feed.dispatchers.values()) {
                return false;
            }
        }
        all_here && snapshot.drain.is_none() && is_even(self.size, maintainers.values())
    }

    /// Whether all work runs, and nothing of it on this capture.
    pub(super) fn works_without(&self, gone: &CaptureId, tables: &Tables) -> bool {
        let Some(snapshot) = self.acting() else { return false };
        tables.iter().all(|(id, tables)| {
            snapshot.changefeeds.get(id).is_some_and(|feed| {
                let elsewhere = feed.maintainer.as_ref().is_some_and(|(host, _, _)| host != gone);
                elsewhere && works(feed) && count(feed) == *tables && !feed.dispatchers.contains_key(gone)
            })
        })
    }

    /// How far the drain of a capture is, once that is known.
    pub(super) fn drained(&self, target: &CaptureId) -> Option<Drained> {
        let snapshot = self.acting()?;
        let drain = snapshot.drain.as_ref().filter(|drain| drain.record.target == *target)?;
        let left = drain.remaining?;
        let initial = drain.record.initial.maintainers + drain.record.initial.dispatchers;
        Some(Drained { initial, gone: initial.saturating_sub(left.maintainers + left.dispatchers) })
    }

    /// Whether the drain of this number has ended.
    pub(super) fn is_over(&self, epoch: i64) -> bool {
        self.acting()
            .is_some_and(|snapshot| snapshot.history.iter().any(|end| i64::try_from(end.record.epoch.0) == Ok(epoch)))
    }

    /// Whether everything up to a commit timestamp is in the sinks.
    pub(super) fn all_past(&self, tables: &Tables, until: u64) -> bool {
        let Some(snapshot) = self.acting() else { return false };
        tables.keys().all(|id| {
            let checkpoint = snapshot.changefeeds.get(id).and_then(|feed| feed.checkpoint_ts);
            checkpoint.is_some_and(|checkpoint| checkpoint >= until)
        })
    }
}

async fn start(id: CaptureId, options: Options, store: AnyStore) -> Result<Node, NodeError> {
    let listener = listen("127.0.0.1:0").await?;
    let addr = listener.local_addr().map_err(|source| NodeError::Listen { addr: String::new(), source })?;
    let identity = identity(id, &addr.to_string());
    Node::start(NodeConfig { cluster: "demo".into(), identity, options, store }, listener)
}

fn client(nodes: &[Node]) -> Result<Client, ClientError> {
    Client::new(&nodes.iter().map(|node| node.addr().to_string()).collect::<Vec<_>>())
}

/// Whether its maintainer has said how far it is.
fn works(feed: &ChangefeedStatus) -> bool {
    feed.checkpoint_at_ms.is_some_and(|at| at > 0)
}

fn count(feed: &ChangefeedStatus) -> u64 {
    feed.dispatchers.values().sum()
}

/// Whether so many places share evenly; those that have nothing are not listed.
fn is_even<'a>(places: usize, counts: impl ExactSizeIterator<Item = &'a u64> + Clone) -> bool {
    let least = if counts.len() < places { 0 } else { counts.clone().min().copied().unwrap_or(0) };
    counts.max().is_none_or(|most| *most <= least + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_without_anything_count() {
        for (places, counts, even) in
            [(3, &[5, 5, 5][..], true), (3, &[5, 4, 6], false), (3, &[1, 1], true), (3, &[2, 1], false), (3, &[], true)]
        {
            assert_eq!(is_even(places, counts.iter()), even, "{counts:?}");
        }
    }
}
