//! What etcd alone does: prefixes, outages, compactions.

use capturedrain::store::{AnyStore, Store as _, StoreError, WatchError};
use capturedrain_core::store::{Txn, TxnOutcome};
use futures::StreamExt as _;
use tokio::time;

use crate::{END, PATIENCE, commit, etcd, put, until};

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
