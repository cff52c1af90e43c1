//! Every way in which a run ends, and what its status says then.

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::{
    api_server::{self, ApiServer, access::Access},
    operator::{scene, scene_with},
    shop::{Operator, Shop, condition, wait_for},
    trouble::grant,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_by_its_name_is_done_with_the_proof() {
    let (shop, _operator) = scene("name", 20).await;
    let target = shop.a_follower().await;
    shop.drain_of("x", json!({"captureID": target}), json!({"ttlSecondsAfterFinished": 2})).await;
    let status = shop.wait_for_end("x", "CaptureStopping").await;
    assert_eq!(condition(&status, "Drained"), ("True".to_owned(), "Proven".to_owned()), "{status:#}");
    assert_eq!(status["phase"], "Succeeded");
    wait_for("its time to be over", async || shop.object("x").await.is_none().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_rejected_with_a_sentence() {
    let (shop, _operator) = scene("nobody", 0).await;
    shop.drain("no-pod", "cdc-9", json!({})).await;
    shop.drain_of("no-capture", json!({"captureID": "cdc-9"}), json!({})).await;
    shop.drain_of("other-pod", json!({"podName": "cdc-0", "podUID": "another"}), json!({})).await;
    for (name, reason, sentence) in [
        ("no-pod", "PodNotFound", "there is no pod cdc-9"),
        ("no-capture", "NotACapture", "no capture cdc-9 is registered"),
        ("other-pod", "PodNotFound", "there is no pod cdc-0 with UID another"),
    ] {
        let status = shop.wait_for_end(name, reason).await;
        let accepted = status["conditions"].as_array().unwrap().iter().find(|is| is["type"] == "Accepted").unwrap();
        assert_eq!((&accepted["status"], &accepted["message"]), (&json!("False"), &json!(sentence)));
        assert_eq!(shop.events(name).await, ["DrainRejected"]);
    }
    // A young pod may still become a capture.
    shop.make_pod("cdc-3").await;
    shop.drain("young", "cdc-3", json!({})).await;
    let status = shop.wait_for_condition("young", "Accepted", "False", "NotACapture").await;
    assert_eq!(condition(&status, "Finished").0, "", "{status:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_of_the_command_line_is_joined_and_its_withdrawal_is_final() {
    let (shop, _operator) = scene_with("joined", 30, "30s").await;
    let target = shop.a_follower().await;
    shop.suspend(&target);
    shop.ok(&["drain", &target]).await;
    let epoch = shop.json(&["status"]).await["drain_epoch"].clone();
    assert!(epoch.is_u64(), "{epoch}");
    shop.drain("x", &target, json!({})).await;
    wait_for("the drain to be joined", async || {
        let status = shop.status("x").await;
        (status["epoch"] == epoch && status["requesters"].as_array()?.len() == 2).then_some(())
    })
    .await;
    shop.ok(&["cancel", &target]).await;
    let status = shop.wait_for_end("x", "Withdrawn").await;
    assert_eq!((status["phase"].as_str(), condition(&status, "Drained").0.as_str()), (Some("Failed"), "False"));
    assert_eq!(shop.json(&["history"]).await.as_array().unwrap().len(), 1, "no second drain begins");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_somebody_else_wants_too_outlives_the_object() {
    let (shop, _operator) = scene_with("shared", 30, "30s").await;
    let target = shop.a_follower().await;
    shop.suspend(&target);
    shop.drain("x", &target, json!({})).await;
    wait_for("a beginning", async || shop.status("x").await["epoch"].as_i64()).await;
    shop.ok(&["drain", &target]).await;
    wait_for("both to be heard of", async || {
        (shop.status("x").await["requesters"].as_array()?.len() == 2).then_some(())
    })
    .await;
    shop.kubectl(&["delete", "cdrain", "x", "--timeout=60s"]).await;
    shop.resume(&target);
    wait_for("the proof", async || (shop.json(&["history"]).await[0]["outcome"] == "Drained").then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_goes_before_the_proof_is_a_lost_target() {
    let (mut shop, _operator) = scene_with("lost", 30, "6s").await;
    let target = shop.a_follower().await;
    shop.suspend(&target);
    shop.drain("x", &target, json!({})).await;
    wait_for("a beginning", async || shop.status("x").await["epoch"].as_i64()).await;
    shop.delete_pod(&target).await;
    // Another pod under its name is not meant.
    shop.start(&target).await;
    let status = shop.wait_for_end("x", "TargetGone").await;
    assert_eq!(condition(&status, "Succeeded").0, "False", "{status:#}");
    wait_for("the new pod's capture to work", async || {
        (shop.capture(&target).await?["liveness"] == "Alive").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_restarts_after_the_proof_voids_it() {
    let (mut shop, _operator) = scene("void", 20).await;
    let target = shop.a_follower().await;
    shop.drain("x", &target, json!({})).await;
    shop.wait_for_condition("x", "Drained", "True", "Proven").await;
    shop.run(&target);
    let status = shop.wait_for_end("x", "TargetReplaced").await;
    assert_eq!(condition(&status, "Drained").0, "False", "{status:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eviction_that_nobody_tries_again_is_given_up() {
    let (shop, _operator) = scene("given-up", 20).await;
    let target = shop.a_follower().await;
    shop.drain("x", &target, json!({"releaseAfterSeconds": 4})).await;
    shop.wait_for_condition("x", "Drained", "True", "Proven").await;
    let status = shop.wait_for_end("x", "EvictionAbandoned").await;
    assert_eq!(condition(&status, "Drained").0, "False", "{status:#}");
    wait_for("the capture to be back at work", async || {
        (shop.capture(&target).await?["liveness"] == "Alive").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_without_peers_stalls_or_lets_go() {
    let (mut shop, _operator) = scene("alone", 20).await;
    let target = shop.coordinator().await;
    for pod in ["cdc-0", "cdc-1", "cdc-2"] {
        if pod != target {
            shop.delete_pod(pod).await;
        }
    }
    shop.wait_for_captures(1).await;
    shop.drain("held", &target, json!({})).await;
    let status = shop.wait_for_condition("held", "Stalled", "True", "NoDestination").await;
    assert_eq!(condition(&status, "Finished").0, "", "{status:#}");
    shop.kubectl(&["delete", "cdrain", "held", "--timeout=60s"]).await;
    shop.drain("let-go", &target, json!({"noPeersPolicy": "Proceed"})).await;
    shop.wait_for_end("let-go", "NoPeers").await;
    assert_eq!(shop.events("let-go").await, ["NoPeers"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_holds_the_pod_or_lets_it_go() {
    let (shop, _operator) = scene_with("deadline", 30, "30s").await;
    let target = shop.a_follower().await;
    shop.suspend(&target);
    shop.drain("x", &target, json!({"deadlineSeconds": 1})).await;
    let status = shop.wait_for_condition("x", "Stalled", "True", "DeadlineHeld").await;
    assert_eq!(
        (status["phase"].as_str(), status["blockedBy"][0]["kind"].as_str()),
        (Some("Draining"), Some("DeadlineHeld"))
    );
    assert!(shop.events("x").await.contains(&"DeadlineExceeded".to_owned()));
    shop.kubectl(&["delete", "cdrain", "x", "--timeout=60s"]).await;
    shop.drain("y", &target, json!({"deadlineSeconds": 1, "onDeadline": "Proceed"})).await;
    let status = shop.wait_for_end("y", "DeadlineProceeded").await;
    assert_eq!(condition(&status, "Drained").0, "False", "{status:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn work_does_not_go_where_the_next_drain_will_be() {
    let shop = Shop::open(api_server::shared().await, "avoid", 30).await;
    let admin = shop.admin.clone();
    assert_eq!(onto_cordoned(&shop, &admin).await.1, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_watch_nodes_nothing_is_preferred_and_all_goes_on() {
    let api = ApiServer::start().await;
    for verbs in ["list", ""] {
        let shop = Shop::open(&api, "blind", 30).await;
        let access = api.service_account(&shop.namespace, "blind").await;
        grant(&shop, "blind", None).await;
        if !verbs.is_empty() {
            let (role, subject) = (&shop.namespace, format!("--serviceaccount={}:blind", shop.namespace));
            let verbs = format!("--verb={verbs}");
            shop.admin.kubectl(&["create", "clusterrole", role, &verbs, "--resource=nodes"]).await.ok();
            let bind = ["create", "clusterrolebinding", role, &format!("--clusterrole={role}"), &subject];
            shop.admin.kubectl(&bind).await.ok();
        }
        let (operator, moved) = onto_cordoned(&shop, &access).await;
        assert!(moved > 0, "{}", operator.log());
        let (code, said) = operator.get("/readyz").await.unwrap();
        assert!(code == 200 && said.contains("nodes cannot be watched: "), "{code} {said}");
        let complaints = operator.log().lines().filter(|line| line.contains("cannot be watched")).count();
        assert!((1..3).contains(&complaints), "{}", operator.log());
    }
}

/// Drains a capture while another is on a node that is cordoned. How many dispatchers went there.
async fn onto_cordoned(shop: &Shop, access: &Access) -> (Operator, u64) {
    // What is avoided is a preference: the first that has heard of a drain may get its first move, whoever it is, and the
    // coordinator hears of it before all others. So another is on the node that is cordoned.
    let (target, coordinator) = (shop.a_follower().await, shop.coordinator().await);
    let is_other = |pod: &&str| **pod != *target && **pod != *coordinator;
    let cordoned = ["cdc-0", "cdc-1", "cdc-2"].into_iter().find(is_other).unwrap();
    let client = shop.admin.client().await;
    let node = format!("{}-node", shop.namespace);
    let nodes: Api<Node> = Api::all(client);
    let object = json!({"metadata": {"name": node}, "spec": {"unschedulable": true}});
    nodes.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    shop.bind(cordoned, &node).await;
    // It lists what is there before it leads, and hears of what is new when it may be too late.
    let operator = Operator::start(access, &shop.namespace, &[]);
    operator.wait_until_leading().await;
    wait_for("a word about nodes", async || operator.get("/readyz").await.filter(|(code, _)| *code == 200)).await;
    let count = async |pod: &str| shop.capture(pod).await.unwrap()["dispatcher_count"].as_u64().unwrap();
    let before = (count(cordoned).await, count(&coordinator).await, count(&target).await);
    assert_eq!(before.0 + before.1 + before.2, 30, "{before:?}");
    shop.drain("x", &target, json!({})).await;
    shop.wait_for_condition("x", "Drained", "True", "Proven").await;
    let after = (count(cordoned).await, count(&coordinator).await);
    assert_eq!(after.0 + after.1, 30, "{before:?} {after:?}\n{}", operator.log());
    let open = json!({"spec": {"unschedulable": false}});
    nodes.patch(&node, &PatchParams::default(), &Patch::Merge(open)).await.unwrap();
    (operator, after.0 - before.0)
}
