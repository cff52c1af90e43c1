//! What passes between the operator and the hook of a pod: when the pod is killed, and how the hook ended.

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, api::PostParams};
use serde_json::json;

use crate::{api_server, operator::scene_with, shop::wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn the_deletion_of_a_pod_reaches_its_hook_and_the_failure_of_the_hook_its_pod() {
    // So much that the drain is on for seconds.
    let (shop, _operator) = scene_with("hook", 1500, "30s").await;
    let client = api_server::shared().await.admin().client().await;
    let (target, node) = (shop.a_follower().await, format!("{}-node", shop.namespace));
    let object = serde_json::from_value(json!({"metadata": {"name": node}})).unwrap();
    Api::<Node>::all(client.clone()).create(&PostParams::default(), &object).await.unwrap();
    // A pod on a node is given time to end, and without a kubelet it never does.
    shop.bind(&target, &node).await;
    // A target that stands still cannot be proven empty.
    shop.suspend(&target);
    shop.drain("x", &target, json!({})).await;
    wait_for("a beginning", async || shop.status("x").await["epoch"].as_i64()).await;
    assert_eq!(shop.record().await.unwrap()["hook_deadline_ms"], json!(null));
    shop.kubectl(&["delete", "pod", &target, "--grace-period=600", "--wait=false"]).await;
    let pods: Api<Pod> = Api::namespaced(client, &shop.namespace);
    let killed = pods.get(&target).await.unwrap().metadata.deletion_timestamp.unwrap().0.as_millisecond();
    wait_for("the deletion to be told", async || {
        (shop.record().await?["hook_deadline_ms"] == json!(killed)).then_some(())
    })
    .await;
    shop.resume(&target);
    assert_eq!(shop.hook(&target, &["--grace-period", "1s", "--margin", "500ms"]).await, Some(6));
    wait_for("the event on the pod", async || {
        shop.events(&target).await.contains(&"PreStopFailed".to_owned()).then_some(())
    })
    .await;
    // The drain goes on without it.
    shop.wait_for_condition("x", "Drained", "True", "Proven").await;
    let failures = shop.events(&target).await.iter().filter(|reason| *reason == "PreStopFailed").count();
    assert_eq!(failures, 1);
}
