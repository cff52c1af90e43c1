//! The preStop hook alone: nobody evicts, a pod is deleted.

use std::time::Duration;

use crate::{
    nodes::{self, NODES},
    operator,
    site::{SLOW, Site},
    traffic::now_ms,
    wait::wait_for,
};

/// How long a pod may take to go.
const GONE_MAX: Duration = Duration::from_mins(1);

/// Deletes a pod without waiting for it.
async fn delete(site: &Site, pod: &str) {
    site.kubectl(&["delete", "pod", pod, "--wait=false"]).await.ok();
}

/// Waits until a pod with this UID is no more.
async fn wait_until_gone(site: &Site, pod: &str, uid: &str) {
    let gone = async || {
        let now = site.kubectl(&["get", "pod", pod, "-o", "jsonpath={.metadata.uid}"]).await;
        (now.stdout != uid).then_some(())
    };
    wait_for(GONE_MAX, "the pod to go", gone).await;
}

#[tokio::test]
#[ignore = "on nodes: `make e2e`"]
async fn a_pod_that_is_deleted_by_hand_is_drained_first() {
    let nodes = nodes::shared().await;
    let site = Site::open(&nodes, SLOW).await;
    site.fill().await;
    let (uid, since) = (site.uid("cdc-1").await, now_ms());
    delete(&site, "cdc-1").await;
    site.wait_for_liveness("cdc-1", "Draining").await;
    wait_until_gone(&site, "cdc-1", &uid).await;
    assert_eq!(site.end_of("cdc-1").await, "Drained");
    let lag = site.traffic.lag_since(since);
    println!("lag of {} rows: {} ms at p99, {} ms at most", lag.rows, lag.p99, lag.max);
    site.close().await;
}

#[tokio::test]
#[ignore = "on nodes: `make e2e`"]
async fn a_grace_period_that_is_too_short_is_reported_and_costs_no_row() {
    let nodes = nodes::shared().await;
    operator::install(&nodes, &[]).await;
    let site = Site::open(&nodes, SLOW).await;
    site.fill().await;
    let uid = site.uid("cdc-1").await;
    // Sooner than the chart says, as a person in a hurry has it: the operator tells the hook.
    site.kubectl(&["delete", "pod", "cdc-1", "--wait=false", "--grace-period=8"]).await.ok();
    let told = async || {
        let events = site.kubectl(&["get", "events"]).await.stdout;
        (events.contains("PreStopFailed")).then_some(events)
    };
    let events = wait_for(GONE_MAX, "an event", told).await;
    assert!(events.contains("pod/cdc-1"), "{events}");
    wait_until_gone(&site, "cdc-1", &uid).await;
    site.wait_until_ready(3).await;
    site.close().await;
}

#[tokio::test]
#[ignore = "on nodes: `make e2e`"]
async fn a_hook_that_waits_does_not_need_the_api_server() {
    let mut nodes = nodes::shared().await;
    let site = Site::open(&nodes, SLOW).await;
    site.fill().await;
    let uid = site.uid("cdc-1").await;
    delete(&site, "cdc-1").await;
    site.wait_for_liveness("cdc-1", "Draining").await;
    let server = site.server().await;
    nodes.api.stop();
    site.wait_for_end_at(&server, "cdc-1", "Drained").await;
    nodes.api.start_again().await;
    wait_until_gone(&site, "cdc-1", &uid).await;
    site.wait_until_ready(3).await;
    site.close().await;
}

#[tokio::test]
#[ignore = "on nodes: `make e2e`"]
async fn a_hook_that_runs_again_keeps_its_first_deadline() {
    let mut nodes = nodes::shared().await;
    let site = Site::open(&nodes, SLOW).await;
    site.fill().await;
    let (uid, pod) = (site.uid("cdc-1").await, site.pod("cdc-1").await);
    delete(&site, "cdc-1").await;
    site.wait_for_liveness("cdc-1", "Draining").await;
    let first = site.hook_deadline().await;
    let deleted = site.pod("cdc-1").await["metadata"]["deletionTimestamp"].as_str().unwrap().to_owned();
    let killed = u64::try_from(deleted.parse::<jiff::Timestamp>().unwrap().as_millisecond()).unwrap();
    let index = NODES.iter().position(|node| pod["spec"]["nodeName"] == *node).unwrap();
    let nodes = &mut *nodes;
    nodes.both[index].stop_kubelet();
    nodes.both[index].start_kubelet(&nodes.api);
    let again = async || {
        let log = site.kubectl(&["logs", "cdc-1", "--tail=-1"]).await.stdout;
        log.contains("the hook runs again").then_some(())
    };
    wait_for(GONE_MAX, "another run of the hook", again).await;
    wait_until_gone(&site, "cdc-1", &uid).await;
    assert_eq!(site.end_of("cdc-1").await, "Drained");
    // An operator that is there tells the moment of the deletion itself, which is sooner.
    let last = site.hook_deadline().await;
    assert!(last == first || (last == killed && killed < first), "{last} {first} {killed}");
    site.close().await;
}
