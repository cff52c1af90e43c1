//! One behaviour for every store: a real etcd, a file, and the model in memory.

use std::time::Duration;

use capturedrain::store::{AnyStore, Store, StoreError};
use capturedrain_core::store::{Change, Changes, Compare, Op, TXN_MAX_OPS, Txn};
use futures::StreamExt as _;
use tokio::time;

use crate::{PATIENCE, commit, etcd, leased, put, until};

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
