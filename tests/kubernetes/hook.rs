//! What passes between the operator and the hook of a pod: when the pod is killed, and how the hook ended.

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api,
    api::{DeleteParams, PostParams},
};
use serde_json::json;

use crate::{api_server, operator::scene, shop::wait_for};

/// Nobody has made a `CaptureDrain`: a pod is deleted, and its hook begins the drain.
#[tokio::test(flavor = "multi_thread")]
async fn the_deletion_of_a_pod_reaches_its_hook_and_the_failure_of_the_hook_its_pod() {
    let (shop, _operator) = scene("hook", 60).await;
    let client = api_server::shared().await.admin().client().await;
    let (target, node) = (shop.a_follower().await, format!("{}-node", shop.namespace));
    let object = serde_json::from_value(json!({"metadata": {"name": node}})).unwrap();
    Api::<Node>::all(client.clone()).create(&PostParams::default(), &object).await.unwrap();
    // A pod on a node is given time to end, and without a kubelet it never does.
    shop.bind(&target, &node).await;
    shop.kubectl(&["label", "pod", &target, "capturedrain.io/service=cdc"]).await;
    // Each dispatcher takes some time to stop, so that the drain outlasts the hook.
    let sink = "blackhole://?latency_ms=300";
    shop.ok(&["changefeed", "create", "--id", "slow", "--source", "synthetic://?tables=200", "--sink", sink]).await;
    wait_for("work to give away", async || {
        shop.capture(&target).await.filter(|capture| capture["dispatcher_count"].as_u64() > Some(60))
    })
    .await;
    let hook = shop.hook(&target, &["--grace-period", "600s", "--margin", "500ms"]);
    let story = async {
        let begun = async || shop.record().await.filter(|record| record["hook_deadline_ms"].is_u64());
        let first = wait_for("a beginning", begun).await["hook_deadline_ms"].as_u64().unwrap();
        let pods: Api<Pod> = Api::namespaced(client, &shop.namespace);
        pods.delete(&target, &DeleteParams { grace_period_seconds: Some(2), ..DeleteParams::default() }).await.unwrap();
        let killed = pods.get(&target).await.unwrap().metadata.deletion_timestamp.unwrap().0.as_millisecond();
        assert!(u64::try_from(killed).unwrap() < first, "{killed} {first}");
        wait_for("the deletion to be told", async || {
            (shop.record().await?["hook_deadline_ms"] == json!(killed)).then_some(())
        })
        .await;
    };
    let (code, ()) = tokio::join!(hook, story);
    assert_eq!(code, Some(6));
    wait_for("the event on the pod", async || {
        shop.events(&target).await.contains(&"PreStopFailed".to_owned()).then_some(())
    })
    .await;
    // The drain goes on without it, and the event is not told again.
    wait_for("the proof", async || shop.capture(&target).await.filter(|capture| capture["liveness"] == "Stopping"))
        .await;
    let failures = shop.events(&target).await.iter().filter(|reason| *reason == "PreStopFailed").count();
    assert_eq!(failures, 1);
}
