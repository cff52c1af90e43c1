//! Looks at the cluster all the time, from outside, and remembers the first thing that must not be.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use capturedrain::{
    client::Client as Cluster,
    tls::Dialer,
    view::{CaptureView, ServerStatus},
};
use capturedrain_core::model::{CaptureId, NodeEpoch};
use etcd_client::{Client, ConnectOptions, EventType, WatchOptions};
use tokio::{sync::mpsc, task::JoinSet, time};

use crate::{ledger::Ledger, proof::Write, wires::open_files};

const PERIOD: Duration = Duration::from_millis(400);
/// How long an answer is waited for: a process that stands still gives none.
const ANSWER_MAX: Duration = Duration::from_millis(500);
/// How long two may hold themselves for the coordinator: one that was paused has to find out first that it is not.
const TWO_MAX: Duration = Duration::from_secs(5);
/// How long a proven capture may take to close its files; nothing is written to them.
const CLOSE_MAX: Duration = Duration::from_secs(3);

/// The first thing that went wrong.
#[derive(Clone, Default)]
pub(crate) struct Trouble(Arc<Mutex<Option<String>>>);

impl Trouble {
    pub(crate) fn report(&self, what: String) {
        self.0.lock().unwrap().get_or_insert(what);
    }

    pub(crate) fn found(&self) -> Option<String> {
        self.0.lock().unwrap().clone()
    }

    /// Reports an error, and says whether there was none.
    fn hold(&self, outcome: Result<(), String>) -> bool {
        outcome.map_err(|what| self.report(what)).is_ok()
    }
}

/// Every transaction below a prefix, from a revision on, in order and each once, however often its etcd goes away.
pub(crate) async fn follow(
    url: String,
    options: ConnectOptions,
    prefix: String,
    from: i64,
    transactions: mpsc::Sender<(i64, Vec<Write>)>,
) {
    let mut next = from;
    loop {
        let watched = async {
            let mut client = Client::connect([&url], Some(options.clone())).await?;
            let watch = WatchOptions::new().with_prefix().with_start_revision(next);
            let mut watch = client.watch(prefix.as_str(), Some(watch)).await?;
            while let Some(message) = watch.message().await? {
                let mut revisions: BTreeMap<i64, Vec<Write>> = BTreeMap::new();
                for event in message.events() {
                    let kv = event.kv().unwrap();
                    let key = kv.key_str()?.strip_prefix(&prefix).unwrap_or_default().to_owned();
                    let value = (event.event_type() == EventType::Put).then(|| kv.value().to_vec());
                    revisions.entry(kv.mod_revision()).or_default().push((key, value));
                }
                for (revision, writes) in revisions {
                    next = revision + 1;
                    let _ = transactions.send((revision, writes)).await;
                }
            }
            Ok::<_, etcd_client::Error>(())
        };
        let _ = watched.await;
        if transactions.is_closed() {
            return;
        }
        time::sleep(Duration::from_millis(50)).await;
    }
}

/// Who runs at the moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Running {
    pub(crate) addresses: BTreeMap<&'static str, String>,
    pub(crate) pids: BTreeMap<&'static str, u32>,
}

/// What was seen.
#[derive(Clone)]
pub(crate) struct Seen {
    pub(crate) ledger: Arc<Mutex<Ledger>>,
    /// The highest drain epoch that any capture told.
    pub(crate) told_epoch: Arc<Mutex<u64>>,
    pub(crate) running: Arc<Mutex<Running>>,
    pub(crate) trouble: Trouble,
}

/// Watches until this goes.
pub(crate) struct Watches {
    pub(crate) seen: Seen,
    /// They end with this.
    tasks: JoinSet<()>,
}

impl Watches {
    /// Follows what is persisted below a prefix of an etcd, asks captures, and looks at their processes: who is proven
    /// must have no file open below `sinks`.
    pub(crate) fn start(store: (String, ConnectOptions), prefix: String, dialer: Dialer, sinks: Vec<String>) -> Self {
        let seen = Seen {
            ledger: Arc::default(),
            told_epoch: Arc::default(),
            running: Arc::default(),
            trouble: Trouble::default(),
        };
        let mut tasks = JoinSet::new();
        let (transactions, mut history) = mpsc::channel(64);
        tasks.spawn(follow(store.0, store.1, prefix, 1, transactions));
        let judge = seen.clone();
        tasks.spawn(async move {
            while let Some((revision, writes)) = history.recv().await {
                let taken = judge.ledger.lock().unwrap().take(&writes);
                judge.trouble.hold(taken.map_err(|what| format!("revision {revision} of the store: {what}")));
            }
        });
        tasks.spawn(office(seen.clone(), dialer));
        tasks.spawn(hands(seen.clone(), sinks));
        Self { seen, tasks }
    }

    /// Asks the cluster as its callers do, too.
    pub(crate) fn ask(&mut self, cluster: Cluster) {
        self.tasks.spawn(views(self.seen.clone(), cluster));
    }
}

/// Asks each capture whether it is the coordinator.
async fn office(seen: Seen, dialer: Dialer) {
    let http = dialer.http();
    let mut office = Office::default();
    loop {
        time::sleep(PERIOD).await;
        let addresses = seen.running.lock().unwrap().addresses.clone();
        let asked = addresses.into_iter().map(|(id, addr)| {
            let call = http.get(dialer.url(&addr, "/api/v2/status")).timeout(ANSWER_MAX);
            async move { Some((id, call.send().await.ok()?.json::<ServerStatus>().await.ok()?)) }
        });
        let answers = futures::future::join_all(asked).await;
        let owners = answers.into_iter().flatten().filter(|(_, status)| status.is_owner).map(|(id, _)| id);
        let judged = office.see(&owners.collect(), Instant::now());
        seen.trouble.hold(judged);
    }
}

/// Since when there has been more than one coordinator.
#[derive(Default)]
struct Office {
    several_since: Option<Instant>,
}

impl Office {
    fn see(&mut self, owners: &BTreeSet<&'static str>, now: Instant) -> Result<(), String> {
        if owners.len() < 2 {
            self.several_since = None;
            return Ok(());
        }
        let since = *self.several_since.get_or_insert(now);
        if now.duration_since(since) > TWO_MAX {
            return Err(format!("more than one coordinator for {TWO_MAX:?}, now {owners:?}"));
        }
        Ok(())
    }
}

/// Looks at the processes of those who are proven: whoever has nothing has no file of a sink open.
async fn hands(seen: Seen, sinks: Vec<String>) {
    let mut hands = Hands::default();
    loop {
        time::sleep(PERIOD).await;
        let pids = seen.running.lock().unwrap().pids.clone();
        let before = seen.ledger.lock().unwrap().proven();
        let held: Vec<_> = before
            .into_iter()
            .filter_map(|(id, life)| {
                let pid = *pids.get(id.as_str())?;
                let is_sink = |path: &String| {
                    let is_rows = Path::new(path).extension().is_some_and(|ending| ending == "jsonl");
                    is_rows && sinks.iter().any(|sink| path.starts_with(sink))
                };
                let path = open_files(pid).into_iter().find(is_sink)?;
                Some(((id, life, pid), path))
            })
            .collect();
        // Who was released meanwhile may have work again.
        let still = seen.ledger.lock().unwrap().proven();
        let held = held.into_iter().filter(|((id, life, _), _)| still.contains(&(id.clone(), *life))).collect();
        let judged = hands.see(held, Instant::now());
        seen.trouble.hold(judged);
    }
}

/// Proven lives whose process was seen with an open file.
#[derive(Default)]
struct Hands {
    since: BTreeMap<(CaptureId, NodeEpoch, u32), Instant>,
}

impl Hands {
    fn see(&mut self, held: BTreeMap<(CaptureId, NodeEpoch, u32), String>, now: Instant) -> Result<(), String> {
        self.since.retain(|who, _| held.contains_key(who));
        for (who, path) in held {
            let (id, life, _) = &who;
            let told = format!("proof_of_completion: {id} of {life} is proven empty, and still has {path} open");
            if now.duration_since(*self.since.entry(who.clone()).or_insert(now)) > CLOSE_MAX {
                return Err(told);
            }
        }
        Ok(())
    }
}

/// Asks the coordinator, as callers do.
async fn views(seen: Seen, cluster: Cluster) {
    loop {
        time::sleep(PERIOD).await;
        let Ok(view) = cluster.status().await else { continue };
        let mut told = seen.told_epoch.lock().unwrap();
        *told = view.drain.drain_epoch.max(*told);
        let judged = view.captures.iter().try_for_each(judge_capture);
        seen.trouble.hold(judged);
    }
}

/// A capture that is `Stopping` has nothing, in the words of the coordinator itself.
fn judge_capture(capture: &CaptureView) -> Result<(), String> {
    let CaptureView { id, node_epoch, liveness, maintainer_count, dispatcher_count, .. } = capture;
    let work = maintainer_count.unwrap_or_default() + dispatcher_count.unwrap_or_default();
    if liveness == "Stopping" && work > 0 {
        let counts = format!("{maintainer_count:?} maintainers and {dispatcher_count:?} dispatchers");
        return Err(format!("proof_of_completion: {id} of {node_epoch} is Stopping with {counts}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_coordinators_are_noticed_and_a_late_one_is_not() {
        let (mut office, now) = (Office::default(), Instant::now());
        let both = || BTreeSet::from(["a", "b"]);
        assert_eq!(office.see(&both(), now), Ok(()));
        assert_eq!(office.see(&BTreeSet::from(["b"]), now + TWO_MAX), Ok(()));
        assert_eq!(office.see(&both(), now + 2 * TWO_MAX), Ok(()));
        assert!(office.see(&both(), now + 4 * TWO_MAX).unwrap_err().contains("more than one coordinator"));
    }

    #[test]
    fn a_proven_capture_that_keeps_a_file_is_noticed() {
        let (mut hands, now) = (Hands::default(), Instant::now());
        let held = || BTreeMap::from([((CaptureId::new("a").unwrap(), NodeEpoch::default(), 1), "f.jsonl".to_owned())]);
        assert_eq!(hands.see(held(), now), Ok(()));
        assert_eq!(hands.see(BTreeMap::new(), now + 2 * CLOSE_MAX), Ok(()));
        assert_eq!(hands.see(held(), now + 2 * CLOSE_MAX), Ok(()));
        assert!(hands.see(held(), now + 4 * CLOSE_MAX).unwrap_err().contains("f.jsonl"));
    }

    #[test]
    fn work_on_a_stopping_capture_is_noticed() {
        let capture = |liveness: &str, dispatcher_count| CaptureView {
            id: "a".to_owned(),
            node_epoch: "1".to_owned(),
            address: String::new(),
            pod_name: None,
            pod_uid: None,
            version: String::new(),
            liveness: liveness.to_owned(),
            is_coordinator: false,
            heard: true,
            maintainer_count: Some(0),
            dispatcher_count,
        };
        assert!(judge_capture(&capture("Draining", Some(1))).is_ok());
        assert!(judge_capture(&capture("Stopping", None)).is_ok());
        assert!(judge_capture(&capture("Stopping", Some(1))).unwrap_err().contains("Stopping with"));
    }
}
