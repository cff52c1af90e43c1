//! Captures leave because their pods are replaced.

use crate::{
    nodes,
    site::{NAME, Site},
    traffic::now_ms,
};

#[tokio::test]
#[ignore = "on nodes: `make e2e`"]
async fn a_rolling_restart_loses_nothing() {
    let nodes = nodes::shared().await;
    let site = Site::open(&nodes, &["hook.enabled=false"]).await;
    let since = now_ms();
    site.kubectl(&["rollout", "restart", &format!("statefulset/{NAME}")]).await.ok();
    site.kubectl(&["rollout", "status", &format!("statefulset/{NAME}"), "--timeout=110s"]).await.ok();
    eprintln!("{:?}", site.traffic.lag_since(since));
    eprintln!("{}", site.trouble().await);
    site.close().await;
}
