//! One behaviour for every store: the suite runs against a real etcd and against the embedded store.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

#[path = "support/disk.rs"]
mod disk;
#[path = "support/etcd.rs"]
mod etcd;

use std::{path::Path, time::Duration};

use capturedrain::store::{AnyStore, Store, StoreError, WatchError};
use capturedrain_core::store::{Change, Changes, Compare, LeaseId, Op, TXN_MAX_OPS, Txn, TxnOutcome};
use disk::SmallDisk;
use futures::StreamExt as _;
use tokio::time;

const PATIENCE: Duration = Duration::from_secs(30);
/// More than any key.
const END: &str = "\u{7f}";

fn put(key: &str, value: &str) -> Op {
    Op::Put { key: key.into(), value: value.as_bytes().into(), lease: None }
}

fn leased(key: &str, lease: LeaseId) -> Op {
    Op::Put { key: key.into(), value: b"x".as_slice().into(), lease: Some(lease) }
}

async fn commit(store: &impl Store, compares: Vec<Compare>, ops: Vec<Op>) -> Option<u64> {
    match store.txn(Txn { compares, ops }).await.unwrap() {
        TxnOutcome::Committed(revision) => Some(revision),
        TxnOutcome::Refused(_) => None,
        TxnOutcome::Unknown => panic!("a store that is there answers"),
    }
}

/// Waits for a condition of the store.
async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let asking = async {
        while !holds().await {
            time::sleep(Duration::from_millis(50)).await;
        }
    };
    time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {what}"));
}

/// All of it, each part on keys of its own.
async fn conforms(store: &impl Store) {
    conditions(store).await;
    elections(store).await;
    prefixes(store).await;
    limits(store).await;
    leases(store).await;
    watches(store).await;
    pages(store).await;
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
}

async fn leases(store: &impl Store) {
    let lease = store.grant(Duration::from_secs(1)).await.unwrap();
    commit(store, vec![], vec![leased("k/a", lease), put("k/b", "stays")]).await.unwrap();
    assert!(store.keep(lease).await.unwrap());
    until("the lease to run out", || async { store.get("k/a").await.unwrap().is_none() }).await;
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

async fn pages(store: &impl Store) {
    const KEYS: usize = 10_240;
    for batch in 0..KEYS / TXN_MAX_OPS {
        let ops = (0..TXN_MAX_OPS).map(|n| put(&format!("many/{:06}", batch * TXN_MAX_OPS + n), "x")).collect();
        commit(store, vec![], ops).await.unwrap();
    }
    let listing = store.list("many/", "many0").await.unwrap();
    assert_eq!(listing.entries.len(), KEYS);
    assert!(listing.entries.is_sorted_by(|a, b| a.key < b.key));
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_conforms() {
    let etcd = etcd::Etcd::start().await;
    conforms(&AnyStore::open(&etcd.url(), "suite").await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_store_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("embedded:{}", folder.path().join("store").display());
    conforms(&AnyStore::open(&url, "suite").await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clusters_on_one_etcd_do_not_see_each_other() {
    let etcd = etcd::Etcd::start().await;
    let one = AnyStore::open(&etcd.url(), "one").await.unwrap();
    let two = AnyStore::open(&etcd.url(), "two").await.unwrap();
    commit(&one, vec![], vec![put("a", "1")]).await.unwrap();
    assert_eq!(two.list("", END).await.unwrap().entries, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_goes_away_and_comes_back_has_lost_nothing() {
    let mut etcd = etcd::Etcd::start().await;
    let store = AnyStore::open(&etcd.url(), "away").await.unwrap();
    let revision = commit(&store, vec![], vec![put("a", "1")]).await.unwrap();
    let mut watch = store.watch("", END, revision);
    etcd.kill();
    let outcome = store.txn(Txn { compares: vec![], ops: vec![put("a", "2")] }).await.unwrap();
    assert_eq!(outcome, TxnOutcome::Unknown, "nobody answers");
    let ended = time::timeout(PATIENCE, watch.next()).await.expect("the watch notices");
    assert!(matches!(ended, Some(Err(WatchError::Broken(_)))), "{ended:?}");
    etcd.restart().await;
    until("the store to answer again", || async { store.get("a").await.is_ok() }).await;
    assert_eq!(&*store.get("a").await.unwrap().unwrap().value, b"1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_from_before_a_compaction_says_so() {
    let etcd = etcd::Etcd::start().await;
    let store = AnyStore::open(&etcd.url(), "compacted").await.unwrap();
    let first = commit(&store, vec![], vec![put("a", "1")]).await.unwrap();
    let last = commit(&store, vec![], vec![put("a", "2")]).await.unwrap();
    let mut client = etcd_client::Client::connect([etcd.client_url()], None).await.unwrap();
    client.compact(i64::try_from(last).unwrap(), None).await.unwrap();
    let told = time::timeout(PATIENCE, store.watch("", END, first - 1).next()).await.unwrap();
    assert!(matches!(told, Some(Err(WatchError::Compacted(at))) if at == last), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_at_the_address_is_said_within_seconds() {
    let error = AnyStore::open("etcd://127.0.0.1:1", "none").await.unwrap_err();
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    for bad in ["", "etcd://", "redis://x", "embedded:", "etcd://a/b"] {
        assert!(matches!(AnyStore::open(bad, "none").await, Err(StoreError::Url(_))), "{bad}");
    }
}

async fn embedded(path: &Path) -> Result<AnyStore, StoreError> {
    AnyStore::open(&format!("embedded:{}", path.display()), "one").await
}

#[tokio::test(flavor = "multi_thread")]
async fn opening_a_file_again_keeps_keys_and_voids_leases() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let store = embedded(&path).await.unwrap();
    let lease = store.grant(Duration::from_mins(10)).await.unwrap();
    let revision = commit(&store, vec![], vec![put("a", "kept"), leased("b", lease)]).await.unwrap();
    let busy = embedded(&path).await.unwrap_err();
    assert!(matches!(busy, StoreError::InUse(_)), "{busy}");
    drop(store);
    let store = loop {
        // The lock goes with the last task that held the store.
        match embedded(&path).await {
            Err(StoreError::InUse(_)) => tokio::task::yield_now().await,
            other => break other.unwrap(),
        }
    };
    assert_eq!(&*store.get("a").await.unwrap().unwrap().value, b"kept");
    assert_eq!(store.get("b").await.unwrap(), None, "who held the lease is gone");
    assert!(store.list("", END).await.unwrap().revision > revision, "revisions go on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_named_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    std::fs::write(&path, vec![7; 100_000]).unwrap();
    let error = embedded(&path).await.unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
    assert!(error.to_string().contains("store is damaged") && error.to_string().contains("move it away"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), vec![7; 100_000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_nothing_and_the_store_goes_on_when_there_is_room() {
    let Some(disk) = SmallDisk::mount("8m") else {
        return eprintln!("skipped: mounting a small disk needs root");
    };
    let ballast = disk.path().join("ballast");
    let store = embedded(&disk.path().join("store")).await.unwrap();
    commit(&store, vec![], vec![put("a", "kept")]).await.unwrap();
    // What the disk has left is taken, to the last byte.
    let _ = std::fs::write(&ballast, vec![0; 8 << 20]);
    let large = "x".repeat(64 << 10);
    let mut written = 0;
    loop {
        let ops = vec![put(&format!("fill/{written:03}"), &large)];
        match store.txn(Txn { compares: vec![], ops }).await.unwrap() {
            TxnOutcome::Committed(_) => written += 1,
            TxnOutcome::Unknown => break,
            TxnOutcome::Refused(_) => panic!("there is no condition to refuse"),
        }
        assert!(written < 1000, "the disk does not fill");
    }
    std::fs::remove_file(&ballast).unwrap();
    until("the store to take writes again", || async {
        matches!(store.txn(Txn { compares: vec![], ops: vec![put("b", "1")] }).await, Ok(TxnOutcome::Committed(_)))
    })
    .await;
    assert_eq!(&*store.get("a").await.unwrap().unwrap().value, b"kept");
    assert!(store.list("fill/", "fill0").await.unwrap().entries.len() >= written, "what was answered is there");
}
