//! Stores that fail under real processes.

use std::time::Duration;

use tokio::time;

use crate::{
    etcd::Etcd,
    processes::{Cluster, wait_for},
};

/// How long the tries of a server are counted.
const WINDOW: Duration = Duration::from_secs(3);
/// What a server may do in that time: write twice a second, and what it had under way.
const TRIES_MAX: usize = 8;

/// How many transactions an etcd has answered, well or not.
async fn transactions(etcd: &Etcd) -> usize {
    // Fails only when one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let page = reqwest::get(format!("{}/metrics", etcd.client_url())).await.unwrap().text().await.unwrap();
    let lines = page.lines().filter(|line| line.starts_with("grpc_server_handled_total"));
    let lines = lines.filter(|line| line.contains("grpc_method=\"Txn\""));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_without_space_is_not_asked_without_a_pause() {
    let etcd = Etcd::start_with(&["--quota-backend-bytes", "16777216"]).await;
    let mut cluster = Cluster::new("full", &etcd.url());
    cluster.start("only");
    cluster.wait_for_captures(1).await;
    let mut client = etcd_client::Client::connect([etcd.client_url()], None).await.unwrap();
    let ballast = vec![b'x'; 1 << 20];
    let mut full = false;
    for n in 0..64 {
        full = full || client.put(format!("/ballast/{n}"), ballast.clone(), None).await.is_err();
    }
    assert!(full, "the quota is not reached");
    let create = ["changefeed", "create", "--id", "f", "--source", "synthetic://", "--sink", "blackhole://"];
    let creating = cluster.run(&create);
    let counting = async {
        let before = transactions(&etcd).await;
        wait_for(Duration::from_secs(10), "a first attempt", || async {
            (transactions(&etcd).await > before).then_some(())
        })
        .await;
        let before = transactions(&etcd).await;
        time::sleep(WINDOW).await;
        let tries = transactions(&etcd).await - before;
        assert!((1..=TRIES_MAX).contains(&tries), "{tries} transactions within {WINDOW:?}");
    };
    let (ended, ()) = tokio::join!(creating, counting);
    assert_eq!(ended.0, 5, "{ended:?}");
}
