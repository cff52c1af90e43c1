//! The end of the operator.

use std::time::{Duration, Instant};

use crate::{
    nodes, operator,
    site::{SLOW, Site},
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
    let kinds = "all,secrets,configmaps,serviceaccounts,roles,rolebindings,leases,poddisruptionbudgets,jobs";
    let left = ["get", kinds, "-n", operator::NAMESPACE, "-o", "name"];
    let left = nodes.admin().kubectl(&left).await.ok();
    // What every namespace has.
    let own = |line: &&str| !line.ends_with("/kube-root-ca.crt") && !line.ends_with("/default");
    let left: Vec<_> = left.lines().filter(own).collect();
    assert!(left.is_empty(), "{left:?}");
    let kinds = "mutatingwebhookconfigurations,clusterroles,clusterrolebindings,crd";
    let wide = nodes.admin().kubectl(&["get", kinds, "-o", "name"]).await.ok();
    let wide: Vec<_> = wide.lines().filter(|line| line.contains("capturedrain")).collect();
    assert_eq!(wide, ["customresourcedefinition.apiextensions.k8s.io/capturedrains.capturedrain.io"]);
    site.close().await;
}
