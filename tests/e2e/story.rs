//! First steps.

use std::time::Duration;

use crate::{image::BUSYBOX, nodes::Nodes, wait::wait_for};
use serde_json::json;

#[tokio::test]
#[ignore = "on nodes: `make e2e`"]
async fn a_pod_runs() {
    let start = std::time::Instant::now();
    let nodes = Nodes::start().await;
    eprintln!("ready after {:?}", start.elapsed());
    let admin = nodes.admin();
    let pod = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "x"},
        "spec": {"selector": {"matchLabels": {"app": "x"}}, "template": {"metadata": {"labels": {"app": "x"}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "x", "image": BUSYBOX}]}}}});
    admin.kubectl_with(&["apply", "-f", "-"], &pod.to_string()).await.ok();
    wait_for(Duration::from_mins(1), "pods", async || {
        let said = admin.kubectl(&["get", "ds", "x", "-o", "jsonpath={.status.numberReady}"]).await;
        eprintln!("{said:?} {:?}", start.elapsed());
        tokio::time::sleep(Duration::from_secs(1)).await;
        (said.stdout == "2").then_some(())
    })
    .await;
    let lookup = ["exec", "ds/x", "--", "/bin/busybox", "nslookup", "kubernetes.default.svc.cluster.local"];
    eprintln!("{:?}", admin.kubectl(&lookup).await);
    eprintln!("{:?}", admin.kubectl(&["get", "pods", "-A", "-o", "wide"]).await.ok());
}
