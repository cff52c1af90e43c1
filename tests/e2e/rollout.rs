//! Captures leave because their pods are replaced.

use std::time::{Duration, Instant};

use kube::api::EvictParams;
use serde_json::Value;
use tokio::time;

use crate::{
    image::CAPTUREDRAIN,
    nodes::{self, Nodes},
    operator,
    site::{NAME, SLOW, Site},
    traffic::{Lag, now_ms},
};

/// How often it is looked which captures leave.
const PACE: Duration = Duration::from_millis(200);

/// Replaces every pod, and waits until all are.
async fn restart(site: &Site) -> Lag {
    let (since, set) = (now_ms(), format!("statefulset/{NAME}"));
    site.kubectl(&["rollout", "restart", &set]).await.ok();
    wait_for_rollout(site).await;
    site.traffic.lag_since(since)
}

/// Waits for a rollout, in which captures leave one after the other.
async fn one_by_one<T>(site: &Site, rollout: impl Future<Output = T>) -> T {
    let mut rollout = std::pin::pin!(rollout);
    loop {
        tokio::select! {
            ended = &mut rollout => return ended,
            pods = async {
                time::sleep(PACE).await;
                site.pods().await
            } => {
                let leaving = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_string()).count();
                assert!(leaving <= 1, "{leaving} captures leave at the same time:\n{}", site.trouble().await);
            }
        }
    }
}

async fn wait_for_rollout(site: &Site) {
    let set = format!("statefulset/{NAME}");
    let status = ["rollout", "status", &set, "--timeout=110s"];
    let said = one_by_one(site, site.kubectl(&status)).await;
    assert!(said.code == 0, "{said:?}\n{}", site.trouble().await);
}

fn tell(what: &str, lag: Lag) {
    println!("{what}: lag of {} rows: {} ms at p99, {} ms at most", lag.rows, lag.p99, lag.max);
}

#[tokio::test]
#[ignore = "on nodes: `make e2e`"]
async fn a_rolling_restart_drains_each_pod_by_its_hook() {
    let nodes = nodes::shared().await;
    let site = Site::open(&nodes, &[]).await;
    tell("with the hook", restart(&site).await);
    let history = site.history().await;
    for capture in ["cdc-0", "cdc-1", "cdc-2"] {
        let end = history.iter().find(|end| end["target"] == capture).unwrap_or_else(|| panic!("{history:?}"));
        assert_eq!(end["outcome"], "Drained", "{end}");
        assert!(end["requesters"].to_string().contains("prestop"), "{end}");
    }
    // The same without a hook: SIGTERM has each pod drained then.
    one_by_one(&site, site.helm("upgrade", &["hook.enabled=false"])).await;
    wait_for_rollout(&site).await;
    tell("without", restart(&site).await);
    site.close().await;
}

#[tokio::test]
#[ignore = "on nodes: `make e2e`"]
async fn an_upgrade_of_the_captures_in_mid_drain_and_its_rollback_lose_nothing_and_their_end_leaves_nothing() {
    let nodes = nodes::shared().await;
    operator::install(&nodes, &[]).await;
    let mut site = Site::open(&nodes, SLOW).await;
    site.fill().await;
    for node in &nodes.both {
        let tagged = |tag: &str| format!("{}:{tag}", CAPTUREDRAIN.0);
        node.ctr(&["images", "tag", "--force", &tagged(CAPTUREDRAIN.1), &tagged("next")]);
    }
    let since = now_ms();
    begin(&site, "cdc-1").await;
    one_by_one(&site, site.helm("upgrade", &["image.tag=next"])).await;
    wait_for_rollout(&site).await;
    let images = site.kubectl(&["get", "pods", "-o", "jsonpath={.items[*].spec.containers[0].image}"]).await.ok();
    assert_eq!(images.matches(":next").count(), 3, "{images}");
    site.run(&["changefeed", "delete", "ballast"]).await.ok();
    one_by_one(&site, site.rollback()).await;
    wait_for_rollout(&site).await;
    tell("upgrade and rollback", site.traffic.lag_since(since));
    let history = site.history().await;
    let drained = history.iter().filter(|end| end["outcome"] == "Drained").count();
    assert_eq!(drained, 6, "{history:?}");
    site.traffic.prove().await;
    site.uninstall().await;
}

#[tokio::test]
#[ignore = "on nodes: `make e2e`"]
async fn an_upgrade_of_the_operator_in_mid_drain_and_its_rollback_go_on_with_it() {
    let nodes = nodes::shared().await;
    operator::install(&nodes, &[]).await;
    let site = Site::open(&nodes, SLOW).await;
    site.fill().await;
    let (uid, epoch) = begin(&site, "cdc-1").await;
    operator::install(&nodes, &["podLabels.rolled=yes"]).await;
    assert_eq!(proven_under(&site, &uid).await, epoch);
    assert_eq!(rolled_operators(&nodes).await, 2);
    assert_eq!(site.evict("cdc-1", &EvictParams::default()).await.0, 201);
    site.wait_until_anew("cdc-1", &uid).await;
    let (uid, epoch) = begin(&site, "cdc-2").await;
    operator::rollback(&nodes).await;
    assert_eq!(proven_under(&site, &uid).await, epoch);
    assert_eq!(rolled_operators(&nodes).await, 0);
    site.close().await;
}

#[tokio::test]
#[ignore = "on nodes: `make e2e`"]
async fn captures_with_an_etcd_of_their_own_come_change_and_go() {
    let nodes = nodes::shared().await;
    let mut site = Site::open_whole(&nodes).await;
    one_by_one(&site, site.helm("upgrade", &["log.filter=warn"])).await;
    wait_for_rollout(&site).await;
    let history = site.history().await;
    assert_eq!(history.iter().filter(|end| end["outcome"] == "Drained").count(), 3, "{history:?}");
    site.traffic.prove().await;
    // Whatever goes first, the names, the etcd or other captures: no hook waits for what has gone.
    let began = Instant::now();
    site.uninstall().await;
    println!("uninstalled within {:.1} s", began.elapsed().as_secs_f64());
}

/// Has a capture drained by an eviction that is denied: its pod's UID, and the drain's epoch.
async fn begin(site: &Site, capture: &str) -> (String, Value) {
    let uid = site.uid(capture).await;
    assert_eq!(site.evict(capture, &EvictParams::default()).await.0, 429);
    let drain = site.drain_of(&uid, "a drain of it", |drain| drain["status"]["epoch"].is_u64()).await;
    (uid, drain["status"]["epoch"].clone())
}

/// The epoch of the drain that has proven a capture empty.
async fn proven_under(site: &Site, uid: &str) -> Value {
    let drain = site.drain_of(uid, "the proof", |drain| drain["status"]["liveness"] == "Stopping").await;
    drain["status"]["epoch"].clone()
}

/// How many replicas have the label.
async fn rolled_operators(nodes: &Nodes) -> usize {
    let selector = ["get", "pods", "-n", operator::NAMESPACE, "-l", "rolled=yes"];
    let list = nodes.admin().kubectl_json(&selector).await;
    let pods = list["items"].as_array().cloned().unwrap_or_default();
    // One that has ended may still answer evictions for some seconds.
    pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).count()
}

#[tokio::test]
#[ignore = "on nodes: `make e2e`"]
async fn the_test_of_the_operators_chart_passes() {
    let nodes = nodes::shared().await;
    operator::install(&nodes, &[]).await;
    let (code, said) = operator::test(&nodes).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("Succeeded"), "{said}");
    // What has found nothing wrong leaves nothing behind.
    let pods = nodes.admin().kubectl(&["get", "pods", "-n", operator::NAMESPACE, "-o", "name"]).await.ok();
    assert_eq!(pods.lines().filter(|pod| pod.contains("selftest")).count(), 0, "{pods}");
}
