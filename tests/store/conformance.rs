//! One behaviour for every store: a real etcd, a file, and the model in memory.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant as Clock},
};

use capturedrain::store::{AnyStore, Store, StoreError, Watch, WatchError};
use capturedrain_core::{
    model::Instant,
    store::{
        Change, Changes, Compare, Entry, LOG_MAX_REVISIONS, LeaseId, Listing, Model, Op, TXN_MAX_OPS, Txn, TxnOutcome,
    },
};
use futures::{StreamExt as _, stream};
use tokio::time;

use crate::{PATIENCE, commit, etcd::Etcd, leased, put, until};

/// How often somebody looks who waits.
const LOOK: Duration = Duration::from_millis(5);

/// A store, and what is done to it from outside.
trait Subject {
    type Store: Store;

    /// The store as it is now.
    fn store(&self) -> Self::Store;

    /// Has it forget what changed up to a revision.
    async fn compact(&self, revision: u64);

    /// Ends it, and starts it anew on what it has persisted. Nobody else may have a clone of it.
    async fn restart(&mut self);
}

struct OnEtcd {
    etcd: Etcd,
    store: AnyStore,
}

impl Subject for OnEtcd {
    type Store = AnyStore;

    fn store(&self) -> AnyStore {
        self.store.clone()
    }

    async fn compact(&self, revision: u64) {
        let mut client = etcd_client::Client::connect([self.etcd.client_url()], None).await.unwrap();
        client.compact(i64::try_from(revision).unwrap(), None).await.unwrap();
    }

    async fn restart(&mut self) {
        self.etcd.restart().await;
        until("etcd to answer again", || async { self.store.get("").await.is_ok() }).await;
    }
}

struct OnFile {
    url: String,
    store: Option<AnyStore>,
}

impl Subject for OnFile {
    type Store = AnyStore;

    fn store(&self) -> AnyStore {
        self.store.clone().expect("it runs")
    }

    async fn compact(&self, _revision: u64) {
        // It forgets by itself what lies too far back.
        let store = self.store();
        for _ in 0..=LOG_MAX_REVISIONS {
            commit(&store, vec![], vec![put("flood", "x")]).await.unwrap();
        }
    }

    async fn restart(&mut self) {
        self.store = None;
        let opening = async {
            loop {
                // The lock goes with the last task that held the store.
                match AnyStore::open(&self.url, "suite").await {
                    Err(StoreError::InUse(_)) => time::sleep(LOOK).await,
                    other => return other.unwrap(),
                }
            }
        };
        self.store = Some(time::timeout(PATIENCE, opening).await.expect("nobody holds the store any more"));
    }
}

/// The model, as a store whose clock is that of the test.
#[derive(Clone)]
struct InMemory {
    model: Arc<Mutex<Model>>,
    started: Clock,
}

impl InMemory {
    fn now(&self) -> Instant {
        Instant(self.started.elapsed())
    }

    fn model(&self) -> MutexGuard<'_, Model> {
        let mut model = self.model.lock().unwrap();
        model.expire(self.now());
        model
    }
}

impl Store for InMemory {
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        Ok(self.model().grant(ttl, self.now()))
    }

    async fn keep(&self, lease: LeaseId) -> Result<bool, StoreError> {
        Ok(self.model().keep(lease, self.now()))
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.model().revoke(lease);
        Ok(())
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        // To the model it is one that is refused: its callers have no use for an error.
        txn.check_size()?;
        Ok(self.model().txn(&txn))
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.model().get(key).cloned())
    }

    async fn list(&self, start: &str, end: &str) -> Result<Listing, StoreError> {
        Ok(self.model().list(start, end))
    }

    fn watch(&self, start: &str, end: &str, after: u64) -> Watch {
        let (start, end): (Arc<str>, Arc<str>) = (start.into(), end.into());
        stream::unfold(Some((self.clone(), after)), move |state| {
            let (start, end) = (start.clone(), end.clone());
            async move {
                let (store, seen) = state?;
                loop {
                    let told = store.model().changes_after(seen, &start, &end);
                    match told {
                        Ok(changes) if changes.revision > seen => {
                            let next = changes.revision;
                            return Some((Ok(changes), Some((store, next))));
                        }
                        Ok(_) => time::sleep(LOOK).await,
                        Err(compacted) => return Some((Err(WatchError::Compacted(compacted.0)), None)),
                    }
                }
            }
        })
        .boxed()
    }
}

impl Subject for InMemory {
    type Store = Self;

    fn store(&self) -> Self {
        self.clone()
    }

    async fn compact(&self, revision: u64) {
        self.model().compact(revision);
    }

    async fn restart(&mut self) {
        let all = self.model().list("", "\u{10ffff}");
        *self.model() = Model::restore(all.revision, all.entries);
    }
}

/// All of it, each part on keys of its own.
async fn conforms(mut subject: impl Subject) {
    let store = subject.store();
    conditions(&store).await;
    elections(&store).await;
    prefixes(&store).await;
    limits(&store).await;
    drains(&store).await;
    leases(&store).await;
    watches(&store).await;
    pages(&store).await;
    compactions(&subject, &store).await;
    drop(store);
    restarts(&mut subject).await;
}

async fn conditions(store: &impl Store) {
    let absent = || vec![Compare::Modified("c/a".into(), 0)];
    let first = commit(store, absent(), vec![put("c/a", "1")]).await.expect("the key is absent");
    assert_eq!(commit(store, absent(), vec![put("c/a", "2"), put("c/b", "2")]).await, None, "the key is there");
    assert_eq!(store.get("c/b").await.unwrap(), None, "what is refused changes nothing");
    let second = commit(store, vec![Compare::Modified("c/a".into(), first)], vec![put("c/a", "3")]).await.unwrap();
    let entry = store.get("c/a").await.unwrap().unwrap();
    assert_eq!((entry.create_revision, entry.mod_revision, &*entry.value), (first, second, b"3".as_slice()));
    let stale = vec![Compare::Modified("c/a".into(), first)];
    assert_eq!(commit(store, stale, vec![Op::Delete("c/a".into())]).await, None, "somebody replaced it meanwhile");
}

/// A write of a former term is refused, also when the key of the election was made again.
async fn elections(store: &impl Store) {
    let term = commit(store, vec![], vec![put("e/owner", "a")]).await.unwrap();
    let in_office = || vec![Compare::Created("e/owner".into(), term)];
    assert!(commit(store, in_office(), vec![put("e/x", "1"), put("e/owner", "acting")]).await.is_some());
    assert!(commit(store, in_office(), vec![put("e/x", "2")]).await.is_some(), "a put keeps the create revision");
    commit(store, vec![], vec![Op::Delete("e/owner".into())]).await.unwrap();
    commit(store, vec![], vec![put("e/owner", "b")]).await.unwrap();
    assert_eq!(commit(store, in_office(), vec![put("e/x", "3")]).await, None, "a later term");
}

async fn prefixes(store: &impl Store) {
    let revision = commit(store, vec![], vec![put("p/a", "1")]).await.unwrap();
    let unchanged = |at| vec![Compare::PrefixUnchanged("p/".into(), at), Compare::PrefixUnchanged("none/".into(), at)];
    assert!(commit(store, unchanged(revision), vec![put("q", "1")]).await.is_some());
    commit(store, vec![], vec![put("p/b", "joins")]).await.unwrap();
    assert_eq!(commit(store, unchanged(revision), vec![put("q", "2")]).await, None, "a key has joined the prefix");
}

async fn limits(store: &impl Store) {
    let ops = |count| (0..count).map(|n| put(&format!("l/{n}"), "x")).collect::<Vec<_>>();
    assert!(commit(store, vec![], ops(TXN_MAX_OPS)).await.is_some());
    let refused = store.txn(Txn { compares: vec![], ops: ops(TXN_MAX_OPS + 1) }).await;
    assert!(matches!(refused, Err(StoreError::Rejected(_))), "{refused:?}");

    let compares = |count| (0..count).map(|n| Compare::Modified(format!("none/{n}").into(), 0)).collect::<Vec<_>>();
    assert!(commit(store, compares(TXN_MAX_OPS), vec![put("l/x", "x")]).await.is_some());
    let refused = store.txn(Txn { compares: compares(TXN_MAX_OPS + 1), ops: vec![put("l/x", "y")] }).await;
    assert!(matches!(refused, Err(StoreError::Rejected(_))), "{refused:?}");
    assert_eq!(&*store.get("l/x").await.unwrap().unwrap().value, b"x", "what is refused changes nothing");
}

/// The transaction that starts a drain: of two that read the same, one takes effect.
async fn drains(store: &impl Store) {
    let start = async |epoch_at: u64, target: &str, epoch: &str| {
        let compares = vec![Compare::Modified("d/record".into(), 0), Compare::Modified("d/epoch".into(), epoch_at)];
        let liveness = put(&format!("d/liveness/{target}"), "Draining");
        commit(store, compares, vec![put("d/record", target), put("d/epoch", epoch), liveness]).await
    };
    let first = start(0, "a", "1").await.expect("no drain is on");
    assert_eq!(start(0, "b", "1").await, None, "the same was read, and another was faster");
    assert_eq!(start(first, "b", "2").await, None, "a drain is on");
    let keys: Vec<_> = store.list("d/", "d0").await.unwrap().entries;
    let keys: Vec<_> = keys.iter().map(|entry| (&*entry.key, &*entry.value, entry.mod_revision)).collect();
    let expected = [("d/epoch", &b"1"[..], first), ("d/liveness/a", b"Draining", first), ("d/record", b"a", first)];
    assert_eq!(keys, expected, "all of the first, nothing of the others");
    commit(store, vec![], vec![Op::Delete("d/record".into())]).await.unwrap();
    assert_eq!(start(0, "b", "1").await, None, "the epoch that was read is not the last");
    assert!(start(first, "b", "2").await.is_some());
}

async fn leases(store: &impl Store) {
    const TTL: Duration = Duration::from_secs(2);
    let lease = store.grant(TTL).await.unwrap();
    commit(store, vec![], vec![leased("k/a", lease), put("k/b", "stays")]).await.unwrap();
    let granted = Clock::now();
    while granted.elapsed() < TTL * 2 {
        assert!(store.keep(lease).await.unwrap());
        assert!(store.get("k/a").await.unwrap().is_some(), "kept alive past its first time");
        time::sleep(TTL / 8).await;
    }
    let kept = Clock::now();
    until("the lease to run out", || async { store.get("k/a").await.unwrap().is_none() }).await;
    assert!(kept.elapsed() > TTL / 2, "it ran out too early");
    assert!(store.get("k/b").await.unwrap().is_some());
    assert!(!store.keep(lease).await.unwrap(), "a lease that is over cannot be kept");
    assert_eq!(commit(store, vec![], vec![leased("k/c", lease)]).await, None, "a put on a lease that is over");

    let lease = store.grant(Duration::from_mins(1)).await.unwrap();
    commit(store, vec![], vec![leased("k/d", lease)]).await.unwrap();
    store.revoke(lease).await.unwrap();
    assert_eq!(store.get("k/d").await.unwrap(), None, "keys go with a lease that is given back");
    store.revoke(lease).await.expect("a second time is no error");
}

async fn watches(store: &impl Store) {
    let lease = store.grant(Duration::from_mins(1)).await.unwrap();
    let before = store.list("w/", "w0").await.unwrap();
    commit(store, vec![], vec![put("w/a", "1"), leased("w/b", lease), put("x", "outside")]).await.unwrap();
    commit(store, vec![], vec![Op::Delete("w/a".into())]).await.unwrap();
    store.revoke(lease).await.unwrap();
    let told = follow(store, before.revision, 4).await;
    let keys: Vec<_> = told.iter().map(name).collect();
    assert_eq!(keys, ["+w/a", "+w/b", "-w/a", "-w/b"], "from the listing on, in order, and nothing from outside");

    let middle = store.list("w/", "w0").await.unwrap().revision;
    commit(store, vec![], vec![put("w/c", "later")]).await.unwrap();
    assert_eq!(follow(store, middle, 1).await.iter().map(name).collect::<Vec<_>>(), ["+w/c"], "it resumes");
}

fn name(change: &Change) -> String {
    match change {
        Change::Put(entry) => format!("+{}", entry.key),
        Change::Deleted(key) => format!("-{key}"),
    }
}

/// The first changes below `w/` after a revision.
async fn follow(store: &impl Store, after: u64, count: usize) -> Vec<Change> {
    let mut watch = store.watch("w/", "w0", after);
    let mut told = Vec::new();
    while told.len() < count {
        let next = time::timeout(PATIENCE, watch.next()).await.expect("a change is told in time");
        let Changes { changes, .. } = next.unwrap().unwrap();
        told.extend(changes);
    }
    told
}

/// More keys than a page has, listed at one revision while they change.
async fn pages(store: &impl Store) {
    const KEYS: usize = 10_240;
    for batch in 0..KEYS / TXN_MAX_OPS {
        let ops = (0..TXN_MAX_OPS).map(|n| put(&format!("many/{:06}", batch * TXN_MAX_OPS + n), "0")).collect();
        commit(store, vec![], ops).await.unwrap();
    }
    let (writing, last) = (store.clone(), format!("many/{:06}", KEYS - 1));
    let writer = tokio::spawn(async move {
        for n in 1_u64.. {
            let both = vec![put("many/000000", &n.to_string()), put(&last, &n.to_string())];
            commit(&writing, vec![], both).await.unwrap();
            // A store in memory has nothing to wait for.
            tokio::task::yield_now().await;
        }
    });
    let mut values = Vec::new();
    until("both ends to have changed", || async { &*store.get("many/000000").await.unwrap().unwrap().value != b"0" })
        .await;
    for _ in 0..20 {
        let listing = store.list("many/", "many0").await.unwrap();
        assert_eq!(listing.entries.len(), KEYS);
        assert!(listing.entries.is_sorted_by(|a, b| a.key < b.key));
        let (first, last) = (listing.entries.first().unwrap(), listing.entries.last().unwrap());
        assert_eq!(first.value, last.value, "keys of one transaction, listed at different revisions");
        assert!(first.mod_revision <= listing.revision, "newer than the listing says");
        values.push(first.value.clone());
    }
    writer.abort();
    let _ = writer.await;
    values.dedup();
    assert!(values.len() > 1, "nothing changed meanwhile");
}

/// A watch that keeps up lives through a compaction; one from before is told.
async fn compactions<S: Subject>(subject: &S, store: &S::Store) {
    let first = commit(store, vec![], vec![put("z/a", "1")]).await.unwrap();
    let mut watch = store.watch("z/", "z0", first - 1);
    let told = time::timeout(PATIENCE, watch.next()).await.expect("a change is told in time");
    assert!(matches!(told, Some(Ok(_))), "the watch is on: {told:?}");
    let (telling, mut told) = tokio::sync::mpsc::unbounded_channel();
    let following = tokio::spawn(async move {
        while let Some(Ok(Changes { changes, .. })) = watch.next().await {
            for change in &changes {
                telling.send(name(change)).unwrap();
            }
        }
    });
    let mut next = async || time::timeout(PATIENCE, told.recv()).await.expect("a change is told in time");
    let last = commit(store, vec![], vec![put("z/b", "1")]).await.unwrap();
    assert_eq!(next().await.as_deref(), Some("+z/b"));
    subject.compact(last).await;
    let late = time::timeout(PATIENCE, store.watch("z/", "z0", first - 1).next()).await.unwrap();
    assert!(matches!(late, Some(Err(WatchError::Compacted(at))) if at >= last), "{late:?}");
    commit(store, vec![], vec![put("z/c", "1")]).await.unwrap();
    assert_eq!(next().await.as_deref(), Some("+z/c"), "a watch that keeps up lives on");
    following.abort();
    assert!(following.await.is_err_and(|end| end.is_cancelled()), "it would have gone on");
}

/// What was answered is there after an end, and revisions go on.
async fn restarts(subject: &mut impl Subject) {
    let store = subject.store();
    let written = commit(&store, vec![], vec![put("r/a", "1"), put("r/b", "1")]).await.unwrap();
    let replaced = commit(&store, vec![], vec![put("r/b", "2"), put("r/c", "1")]).await.unwrap();
    commit(&store, vec![], vec![Op::Delete("r/c".into())]).await.unwrap();
    let before = store.list("r/", "r0").await.unwrap();
    drop(store);
    subject.restart().await;
    let store = subject.store();
    let after = store.list("r/", "r0").await.unwrap();
    assert_eq!(after.entries, before.entries);
    let revisions: Vec<_> = after.entries.iter().map(|entry| (entry.create_revision, entry.mod_revision)).collect();
    assert_eq!(revisions, [(written, written), (written, replaced)]);
    assert!(after.revision >= before.revision);
    let stale = vec![Compare::Modified("r/b".into(), written)];
    assert_eq!(commit(&store, stale, vec![put("r/b", "3")]).await, None, "it was replaced before the end");
    let later = commit(&store, vec![Compare::Modified("r/b".into(), replaced)], vec![put("r/b", "3")]).await.unwrap();
    assert!(later > after.revision);
    let told = time::timeout(PATIENCE, store.watch("r/", "r0", after.revision).next()).await.unwrap();
    assert_eq!(told.unwrap().unwrap().changes.iter().map(name).collect::<Vec<_>>(), ["+r/b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_conforms() {
    let etcd = Etcd::start().await;
    let store = AnyStore::open(&etcd.url(), "suite").await.unwrap();
    conforms(OnEtcd { etcd, store }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_store_conforms() {
    // In memory where that can be had: thousands of transactions are synced.
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let url = format!("embedded:{}", folder.path().join("store").display());
    let store = Some(AnyStore::open(&url, "suite").await.unwrap());
    conforms(OnFile { url, store }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_conforms() {
    conforms(InMemory { model: Arc::default(), started: Clock::now() }).await;
}
