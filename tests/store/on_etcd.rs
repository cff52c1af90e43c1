//! What etcd alone does: prefixes, outages, compactions.

use capturedrain::store::{AnyStore, Store as _, StoreError, WatchError};
use capturedrain_core::store::{Txn, TxnOutcome};
use futures::StreamExt as _;
use tokio::time;

use crate::{END, PATIENCE, commit, etcd, put, until};

/// Three members of an etcd, on free ports, killed when this goes.
struct Members {
    _folder: tempfile::TempDir,
    ports: Vec<u16>,
    processes: Vec<tokio::process::Child>,
}

impl Members {
    fn start() -> Self {
        let listeners: Vec<_> = (0..6).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<_> = listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        drop(listeners);
        let folder = tempfile::tempdir().unwrap();
        let url = |n: usize| format!("http://127.0.0.1:{}", ports[n]);
        let all: Vec<_> = (0..3).map(|n| format!("m{n}={}", url(n + 3))).collect();
        let binary = std::env::var("CAPTUREDRAIN_ETCD").unwrap_or_else(|_| "etcd".to_owned());
        let launch = |n: usize| {
            tokio::process::Command::new(&binary)
                .args(["--name", &format!("m{n}"), "--initial-cluster", &all.join(","), "--log-level", "error"])
                .args(["--listen-client-urls", &url(n), "--advertise-client-urls", &url(n)])
                .args(["--listen-peer-urls", &url(n + 3), "--initial-advertise-peer-urls", &url(n + 3)])
                .arg("--data-dir")
                .arg(folder.path().join(n.to_string()))
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .unwrap()
        };
        let processes = (0..3).map(launch).collect();
        Self { _folder: folder, ports, processes }
    }

    fn url(&self, member: usize) -> String {
        format!("etcd://127.0.0.1:{}", self.ports[member])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_on_a_member_that_is_cut_off_does_not_stay_silent() {
    let mut members = Members::start();
    until("three members", || async { AnyStore::open(&members.url(0), "cut").await.is_ok() }).await;
    let store = AnyStore::open(&members.url(0), "cut").await.unwrap();
    let revision = commit(&store, vec![], vec![put("a", "1")]).await.unwrap();
    let mut watch = store.watch("", END, revision - 1);
    assert!(matches!(time::timeout(PATIENCE, watch.next()).await, Ok(Some(Ok(_)))), "the watch is on");
    for process in &mut members.processes[1..] {
        process.kill().await.unwrap();
    }
    let ended = time::timeout(PATIENCE, watch.next()).await.expect("the watch notices");
    let Some(Err(WatchError::Broken(error))) = ended else { panic!("{ended:?}") };
    assert!(error.to_string().contains("no leader"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_watch_is_not_taken_for_an_attack() {
    const IDLE: time::Duration = time::Duration::from_secs(20);
    let etcd = etcd::Etcd::start().await;
    let store = AnyStore::open(&etcd.url(), "idle").await.unwrap();
    let revision = commit(&store, vec![], vec![put("a", "1")]).await.unwrap();
    let mut watch = store.watch("", END, revision);
    let told = time::timeout(IDLE, watch.next()).await;
    assert!(told.is_err(), "nothing happens, and yet the watch tells {told:?}");
    commit(&store, vec![], vec![put("a", "2")]).await.unwrap();
    let told = time::timeout(PATIENCE, watch.next()).await.expect("a change is told in time");
    assert!(matches!(told, Some(Ok(_))), "{told:?}");
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
