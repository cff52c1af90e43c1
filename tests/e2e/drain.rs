//! `kubectl drain`, as a person types it.

use std::time::Duration;

use crate::{nodes, operator, person::Running, site::Site, traffic::now_ms};

const DRAIN_MAX: Duration = Duration::from_mins(2);

#[tokio::test]
#[ignore = "on nodes: `make e2e`"]
async fn a_drained_node_loses_nothing() {
    let nodes = nodes::shared().await;
    operator::install(&nodes, &["replicas=2"]).await;
    let site = Site::open(&nodes, &[]).await;
    let since = now_ms();
    let drain = Running::drain(&site.admin, "node-b", &[]);
    let (code, said) = drain.end(DRAIN_MAX).await;
    eprintln!("{said}");
    assert_eq!(code, 0, "{said}\n{}", site.trouble().await);
    eprintln!("{:?}", site.traffic.lag_since(since));
    for pod in ["cdc-0", "cdc-1", "cdc-2"] {
        eprintln!("{pod}\n{}", site.kubectl(&["logs", pod]).await.stdout);
    }
    site.close().await;
}
