//! `kubectl drain`, as a person types it.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{
    nodes::{self, NODES, Nodes},
    operator,
    person::Running,
    site::{SLOW, Site},
    traffic::now_ms,
    wait::wait_for,
};

/// How long the command may take.
pub(crate) const DRAIN_MAX: Duration = Duration::from_mins(2);
/// What a capture that is not drained yet is denied with.
pub(crate) const DENIED: &str = "is not drained";

pub(crate) fn is(drain: &Value, condition: &str, status: &str) -> bool {
    let conditions = drain["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().any(|one| one["type"] == condition && one["status"] == status)
}

/// A cluster with the operator in front of it.
async fn open(values: &[&str]) -> (tokio::sync::MutexGuard<'static, Nodes>, Site) {
    let nodes = nodes::shared().await;
    operator::install(&nodes, &[]).await;
    let site = Site::open(&nodes, values).await;
    (nodes, site)
}

/// A node that a person empties.
pub(crate) struct Begun {
    pub(crate) node: &'static str,
    /// The one capture on it, and its pod.
    pub(crate) capture: String,
    pub(crate) uid: String,
    /// The command, which was denied once.
    pub(crate) drain: Running,
    /// When the command began.
    at: Instant,
}

/// Begins to empty a node with one capture, which has much to give away.
pub(crate) async fn begin(site: &Site) -> Begun {
    site.fill().await;
    let node = site.node_with(1).await;
    let capture = site.on(node).await.remove(0);
    let uid = site.uid(&capture).await;
    let (at, drain) = (Instant::now(), Running::drain(&site.admin, node, &[]));
    drain.until(DRAIN_MAX, DENIED).await;
    Begun { node, capture, uid, drain, at }
}

#[tokio::test]
#[ignore = "on nodes: `make e2e`"]
async fn a_capture_is_drained_before_its_pod_goes() {
    let (nodes, site) = open(SLOW).await;
    let since = now_ms();
    let Begun { node, capture, uid, drain, at } = begin(&site).await;
    let operator = operator::on(&nodes, node).await;
    site.drain_of(&uid, "a drain of it", |drain| is(drain, "Drained", "True")).await;
    let proven = at.elapsed().as_secs_f64();
    site.wait_until_deleted(&capture, &uid).await;
    let evicted = at.elapsed().as_secs_f64();
    let (code, said) = drain.end(DRAIN_MAX).await;
    println!("{said}");
    assert_eq!(code, 0, "{said}\n{}", site.trouble().await);
    assert!(said.contains(" dispatchers left (CaptureDrain "), "what is left is counted: {said}");
    // The operator has a replica on each node, and the same command takes this one's.
    assert!(said.contains(&format!("{operator} evicted")), "{operator}: {said}");
    let ended = at.elapsed().as_secs_f64() - evicted;
    println!(
        "kubectl drain: proven empty after {proven:.1} s, evicted after {evicted:.1} s; its own end took {ended:.1} s"
    );
    assert_eq!(site.end_of(&capture).await, "Drained");
    let lag = site.traffic.lag_since(since);
    println!("lag of {} rows: {} ms at p99, {} ms at most", lag.rows, lag.p99, lag.max);
    let finished = site.drain_of(&uid, "its end", |drain| is(drain, "Finished", "True")).await;
    assert!(is(&finished, "Succeeded", "True"), "{finished}");
    site.close().await;
}

#[tokio::test]
#[ignore = "on nodes: `make e2e`"]
async fn two_captures_of_a_node_go_one_after_the_other() {
    let (_nodes, site) = open(SLOW).await;
    site.fill().await;
    let node = site.node_with(2).await;
    let there = site.on(node).await;
    let before = site.work().await;
    let drain = Running::drain(&site.admin, node, &[]);
    let first = wait_for(DRAIN_MAX, "the first drain", async || {
        let captures = site.captures().await;
        let draining = captures.iter().find(|at| at["liveness"] == "Draining")?;
        Some(draining["id"].as_str().unwrap().to_owned())
    })
    .await;
    let second = there.iter().find(|other| **other != first).unwrap().clone();
    // What is to leave next gets nothing while the first one leaves.
    wait_for(DRAIN_MAX, "the first one's proof", async || {
        let (had, has) = (before[&second], site.work().await[&second]);
        assert!(has.0 <= had.0 && has.1 <= had.1, "{second} has {has:?} maintainers and dispatchers, and had {had:?}");
        site.captures().await.iter().any(|at| at["id"] == first && at["liveness"] == "Stopping").then_some(())
    })
    .await;
    let (code, said) = drain.end(DRAIN_MAX).await;
    assert_eq!(code, 0, "{said}\n{}", site.trouble().await);
    for capture in &there {
        assert_eq!(site.end_of(capture).await, "Drained");
        assert!(said.contains(&format!("pod/{capture} evicted")), "{said}");
    }
    site.close().await;
}

#[tokio::test]
#[ignore = "on nodes: `make e2e`"]
async fn a_rehearsal_ends_at_once_and_changes_nothing() {
    let (_nodes, site) = open(&[]).await;
    let node = site.node_with(1).await;
    let drain = Running::drain(&site.admin, node, &["--dry-run=server"]);
    let (code, said) = drain.end(Duration::from_secs(20)).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("would be drained first"), "{said}");
    assert!(site.drains().await.is_empty(), "{:?}", site.drains().await);
    assert!(site.history().await.is_empty());
    site.close().await;
}

#[tokio::test]
#[ignore = "on nodes: `make e2e`"]
async fn who_gives_up_has_the_capture_back() {
    let (nodes, site) = open(SLOW).await;
    let Begun { node, capture, uid, drain, .. } = begin(&site).await;
    let begun = site.drain_of(&uid, "a drain of it", |drain| drain["status"]["epoch"].is_u64()).await;
    drain.interrupt().await;
    nodes.uncordon(node).await;
    let name = begun["metadata"]["name"].as_str().unwrap();
    assert_eq!(begun["spec"]["releaseAfterSeconds"], 300);
    let sooner = r#"{"spec":{"releaseAfterSeconds":3}}"#;
    site.kubectl(&["patch", "cdrain", name, "--type=merge", "-p", sooner]).await.ok();
    let ended = site.drain_of(&uid, "its end", |drain| is(drain, "Finished", "True")).await;
    assert!(ended.to_string().contains("EvictionAbandoned"), "{ended}");
    site.wait_for_liveness(&capture, "Alive").await;
    assert_eq!(site.uid(&capture).await, uid, "the pod stays");
    site.close().await;
}

#[tokio::test]
#[ignore = "on nodes: `make e2e`"]
async fn who_asks_again_goes_on_with_the_same_drain() {
    let (_nodes, site) = open(SLOW).await;
    let Begun { node, uid, drain, .. } = begin(&site).await;
    site.drain_of(&uid, "a drain of it", |drain| drain["status"]["epoch"].is_u64()).await;
    drain.interrupt().await;
    let (code, said) = Running::drain(&site.admin, node, &[]).end(DRAIN_MAX).await;
    assert_eq!(code, 0, "{said}\n{}", site.trouble().await);
    let of_it = site.drains().await.into_iter().filter(|drain| drain["status"]["podUID"] == uid.as_str()).count();
    assert_eq!(of_it, 1, "{:?}", site.drains().await);
    site.close().await;
}

#[tokio::test]
#[ignore = "on nodes: `make e2e`"]
async fn the_last_capture_of_all_does_not_wedge_its_node() {
    let (_nodes, site) = open(&["replicas=1", "podDisruptionBudget.enabled=false"]).await;
    let node = site.node_with(1).await;
    let (code, said) = Running::drain(&site.admin, node, &[]).end(DRAIN_MAX).await;
    assert_eq!(code, 0, "{said}\n{}", site.trouble().await);
    let events = site.kubectl(&["get", "events"]).await.ok();
    assert!(events.contains("NoPeers"), "{events}");
    site.close().await;
}

#[tokio::test]
#[ignore = "on nodes: `make e2e`"]
async fn a_budget_that_allows_nothing_is_named_and_no_drain_starts() {
    let (_nodes, site) = open(&[]).await;
    let node = site.node_with(1).await;
    let selector = "--selector=capturedrain.io/service=cdc";
    site.kubectl(&["create", "pdb", "all-of-them", selector, "--min-available=3"]).await.ok();
    site.kubectl(&["delete", "pdb", "cdc"]).await;
    wait_for(DRAIN_MAX, "the budget", async || {
        let budget = site.kubectl(&["get", "pdb", "all-of-them", "-o", "jsonpath={.status.expectedPods}"]).await;
        (budget.stdout == "3").then_some(())
    })
    .await;
    let drain = Running::drain(&site.admin, node, &[]);
    drain.until(DRAIN_MAX, "all-of-them").await;
    assert!(site.drains().await.is_empty(), "{:?}", site.drains().await);
    site.kubectl(&["delete", "pdb", "all-of-them"]).await.ok();
    let (code, said) = drain.end(DRAIN_MAX).await;
    assert_eq!(code, 0, "{said}\n{}", site.trouble().await);
    site.close().await;
}

#[tokio::test]
#[ignore = "on nodes: `make e2e`"]
async fn a_pod_that_is_made_anew_elsewhere_is_not_waited_for() {
    let (_nodes, site) = open(SLOW).await;
    let Begun { capture, uid, drain, .. } = begin(&site).await;
    site.kubectl(&["delete", "pod", &capture, "--force", "--grace-period=0"]).await.ok();
    let (code, said) = drain.end(DRAIN_MAX).await;
    assert_eq!(code, 0, "{said}\n{}", site.trouble().await);
    let now = site.uid(&capture).await;
    assert_ne!(now, uid);
    assert!(
        site.drains().await.iter().all(|drain| drain["status"]["podUID"] != now.as_str()),
        "the new pod is left alone"
    );
    site.close().await;
}

#[tokio::test]
#[ignore = "on nodes: `make e2e`"]
async fn the_coordinators_pod_is_drained_like_any_other() {
    let (_nodes, site) = open(&[]).await;
    let coordinator = site.coordinator().await;
    let node = site.pod(&coordinator).await["spec"]["nodeName"].as_str().unwrap().to_owned();
    let since = now_ms();
    let (code, said) = Running::drain(&site.admin, &node, &[]).end(DRAIN_MAX).await;
    assert_eq!(code, 0, "{said}\n{}", site.trouble().await);
    assert_eq!(site.end_of(&coordinator).await, "Drained");
    let lag = site.traffic.lag_since(since);
    println!("lag of {} rows: {} ms at p99, {} ms at most", lag.rows, lag.p99, lag.max);
    site.close().await;
}

#[tokio::test]
#[ignore = "on nodes: `make e2e`"]
async fn a_drain_survives_its_coordinator() {
    let (nodes, site) = open(SLOW).await;
    site.fill().await;
    let coordinator = site.coordinator().await;
    let captures = site.captures().await;
    let mut others = captures.iter().map(|at| at["id"].as_str().unwrap()).filter(|id| *id != coordinator);
    let capture = others.next_back().unwrap().to_owned();
    let (uid, pod) = (site.uid(&capture).await, site.pod(&coordinator).await);
    let asked = site.evict(&capture, &kube::api::EvictParams::default()).await;
    assert_eq!(asked.0, 429, "{asked:?}");
    let begun = site.drain_of(&uid, "a drain of it", |drain| drain["status"]["epoch"].is_u64()).await;
    nodes.node(pod["spec"]["nodeName"].as_str().unwrap()).kill_container(&pod);
    let proven = site.drain_of(&uid, "the proof", |drain| is(drain, "Drained", "True")).await;
    assert_eq!(proven["status"]["epoch"], begun["status"]["epoch"]);
    site.close().await;
}

#[tokio::test]
#[ignore = "on nodes: `make e2e`"]
async fn without_a_destination_a_drain_stalls_says_so_and_goes_on() {
    let (nodes, site) = open(&[SLOW, &["replicas=2"]].concat()).await;
    site.fill().await;
    let (node, other) = (NODES[0], NODES[1]);
    let [capture] = &site.on(node).await[..] else { panic!("{}", site.trouble().await) };
    let [destination] = &site.on(other).await[..] else { panic!("{}", site.trouble().await) };
    let uid = site.uid(capture).await;
    for node in NODES {
        site.admin.kubectl(&["cordon", node]).await.ok();
    }
    // Of a person, who would rather wait: what the webhook makes lets the pod go.
    site.ask_for_drain(capture).await;
    site.drain_of(&uid, "a drain of it", |drain| drain["status"]["epoch"].is_u64()).await;
    site.kubectl(&["delete", "pod", destination, "--force", "--grace-period=0"]).await.ok();
    // For a moment nobody coordinates, and nobody answers.
    let is_stalled = |drain: &Value| is(drain, "Stalled", "True") && drain.to_string().contains("NoDestination");
    site.drain_of(&uid, "a stall", is_stalled).await;
    assert_eq!(site.evict(capture, &kube::api::EvictParams::default()).await.0, 429);
    nodes.uncordon(other).await;
    site.drain_of(&uid, "the proof", |drain| is(drain, "Drained", "True")).await;
    site.close().await;
}
