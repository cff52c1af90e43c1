//! The end of the operator.

use std::time::{Duration, Instant};

use crate::{
    nodes, operator,
    site::{SLOW, Site, wait_until_empty},
};

/// The bound of the chart's job, and what Helm takes besides.
const UNINSTALL_MAX: Duration = Duration::from_mins(2);

#[tokio::test]
#[ignore = "on nodes: `make e2e`"]
async fn uninstalled_in_mid_drain_it_leaves_nothing_but_the_crd() {
    let nodes = nodes::shared().await;
    operator::install(&nodes, &[]).await;
    let site = Site::open(&nodes, SLOW).await;
    site.fill().await;
    let uid = site.uid("cdc-1").await;
    assert_eq!(site.evict("cdc-1", &kube::api::EvictParams::default()).await.0, 429);
    site.drain_of(&uid, "a drain of it", |drain| drain["status"]["epoch"].is_u64()).await;
    let began = Instant::now();
    operator::uninstall(&nodes).await;
    assert!(began.elapsed() < UNINSTALL_MAX, "{:?}", began.elapsed());
    site.wait_for_liveness("cdc-1", "Alive").await;
    assert!(site.drains().await.iter().all(|drain| drain["metadata"]["finalizers"].is_null()));
    // The replicas answer evictions for ten seconds more.
    wait_until_empty(nodes.admin(), operator::NAMESPACE).await;
    let kinds = "mutatingwebhookconfigurations,clusterroles,clusterrolebindings,crd";
    let wide = nodes.admin().kubectl(&["get", kinds, "-o", "name"]).await.ok();
    let wide: Vec<_> = wide.lines().filter(|line| line.contains("capturedrain")).collect();
    assert_eq!(wide, ["customresourcedefinition.apiextensions.k8s.io/capturedrains.capturedrain.io"]);
    site.close().await;
}
