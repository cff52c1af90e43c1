//! Evictions on a real API server: what is denied, what is let go, and what each brings about.

use std::time::Duration;

use k8s_openapi::api::{core::v1::Pod, policy::v1::PodDisruptionBudget};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time;

use crate::{
    api_server::{self, SERVICE_ADDRESS},
    gate::{Caller, configure, scene, scene_with, settle},
    operator::check_metrics,
    plugin::{check, level},
    shop::wait_for,
};

#[tokio::test(flavor = "multi_thread")]
async fn an_eviction_is_denied_until_its_capture_is_drained() {
    let (shop, gate, caller) = scene("evict", 30).await;
    let target = shop.a_follower().await;
    let uid = shop.uid(&target);
    let first = caller.evict(&target).await;
    let told = (first.code, first.status["reason"].as_str());
    assert_eq!(told, (429, Some("TooManyRequests")), "{first:?}: {}", gate.operator.log());
    assert_eq!(first.cause(), "CaptureNotDrained");
    assert!(first.message().contains(&format!("pod {target} is not drained")), "{first:?}");
    let retry = first.status["details"]["retryAfterSeconds"].as_u64().unwrap_or(0);
    assert_eq!(retry, 0, "clients would retry by themselves: {first:?}");
    let name = format!("{uid}-1");
    shop.wait_for_condition(&name, "Drained", "True", "Proven").await;
    let made = &shop.drains_of(&uid).await[0];
    let expected = json!({
        "clusterRef": {"serviceName": "cdc", "kind": "CaptureDrain"}, "target": {"podName": target, "podUID": uid},
        "deadlineSeconds": 3600, "onDeadline": "Proceed", "noPeersPolicy": "Proceed", "releaseAfterSeconds": 300,
        "reason": "eviction by admin", "ttlSecondsAfterFinished": 3600,
    });
    assert_eq!(made["spec"], expected, "{made:#}");
    assert_eq!(shop.json(&["history"]).await[0]["reason"], "eviction by admin");
    // Another pod than the one that is meant would be refused by the API server itself.
    let other = caller.evict_with(&target, json!({"preconditions": {"uid": "other"}}), "").await;
    assert_eq!(other.code, 409, "{other:?}");
    let last = caller.evict(&target).await;
    assert_eq!((last.code, &last.status), (201, &Value::Null), "{}", gate.operator.log());
    let events = wait_for("both events", async || {
        let events = shop.events(&target).await;
        events.contains(&"EvictionAllowed".to_owned()).then_some(events)
    })
    .await;
    assert_eq!(events.iter().filter(|reason| *reason == "EvictionDenied").count(), 1, "{events:?}");
    let denied = "capturedrain_webhook_requests_total{decision=\"NotDrained\"} ";
    assert_eq!(gate.operator.metric(denied).await, Some(1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_drain_says_what_is_left_and_waits() {
    let (mut shop, _gate, caller) = scene_with("kubectl-drain", 30, "30s", &[]).await;
    let target = shop.a_follower().await;
    let node = format!("node-{}", shop.namespace);
    let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}});
    shop.admin.kubectl_with(&["apply", "-f", "-"], &object.to_string()).await.ok();
    shop.bind(&target, &node).await;
    settle(&shop, &target).await;
    // Nothing leaves a capture that is suspended.
    shop.suspend(&target);
    let args = ["drain", &node, "--force", "--ignore-daemonsets", "--timeout=8s"];
    let said = shop.admin.kubectl(&args).await;
    let told = said.stdout + &said.stderr;
    assert!(told.contains("admission webhook \"evictions.capturedrain.io\" denied the request"), "{told}");
    assert!(told.contains("will retry after 5s"), "{told}");
    assert!(told.contains("is being drained, what is left is not known yet (CaptureDrain "), "{told}");
    shop.resume(&target);
    shop.wait_for_condition(&format!("{}-1", shop.uid(&target)), "Drained", "True", "Proven").await;
    let again = ["drain", &node, "--force", "--ignore-daemonsets", "--timeout=60s"];
    let drain = shop.admin.kubectl(&again);
    let done = async {
        wait_for("the pod to be told to go", async || {
            let pods: Api<Pod> = Api::namespaced(shop.admin.client().await, &shop.namespace);
            pods.get(&target).await.ok()?.metadata.deletion_timestamp.map(drop)
        })
        .await;
        // There is no kubelet.
        shop.kubectl(&["delete", "pod", &target, "--force", "--grace-period=0"]).await;
    };
    let (said, ()) = tokio::join!(drain, done);
    assert_eq!(said.code, 0, "{}{}", said.stdout, said.stderr);
    assert!(said.stdout.contains(&format!("pod/{target} evicted")), "{}", said.stdout);
    // It came back elsewhere: for whoever wanted it gone, it is gone.
    shop.start(&target).await;
    settle(&shop, &target).await;
    let gone = caller.evict(&target).await;
    assert_eq!(gone.code, 404, "{gone:?}");
    let other = Caller::new(&api_server::shared().await.user("bert", "system:masters"), &shop.namespace).await;
    shop.publish().await;
    assert_eq!(other.evict_until(&target, 429).await.cause(), "CaptureNotDrained");
    // On a node that whoever wants it empty has tainted, as autoscalers do, it has to go, too.
    shop.bind(&target, &node).await;
    settle(&shop, &target).await;
    shop.kubectl(&["uncordon", &node]).await;
    // A node without a kubelet has a taint of its own.
    shop.kubectl(&["taint", "node", &node, "node.kubernetes.io/not-ready:NoSchedule-"]).await;
    assert_eq!(caller.evict(&target).await.code, 404);
    shop.kubectl(&["taint", "node", &node, "ToBeDeletedByClusterAutoscaler=1:NoSchedule"]).await;
    assert_eq!(caller.evict(&target).await.cause(), "CaptureNotDrained");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_evictions_at_once_begin_one_drain() {
    let (shop, gate, caller) = scene_with("ten-evictions", 30, "30s", &[]).await;
    let target = shop.a_follower().await;
    shop.suspend(&target);
    let answers = futures::future::join_all((0..10).map(|_| caller.evict(&target))).await;
    assert!(answers.iter().all(|answer| answer.code == 429), "{answers:?}");
    let uid = shop.uid(&target);
    let drains = shop.drains_of(&uid).await;
    assert_eq!(drains.len(), 1, "{drains:#?}");
    assert_eq!(drains[0]["metadata"]["name"], format!("{uid}-1"));
    // All are remembered as one attempt after the other, and told once.
    wait_for("a count", async || {
        let denied = gate.operator.metric("capturedrain_webhook_requests_total{decision=\"NotDrained\"} ").await?;
        (denied >= 10.0).then_some(())
    })
    .await;
    wait_for("an event", async || (!shop.events(&target).await.is_empty()).then_some(())).await;
    assert_eq!(shop.events(&target).await, ["EvictionDenied"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_restarts_after_the_proof_is_not_let_go() {
    let (mut shop, gate, caller) = scene("proof", 30).await;
    let target = shop.a_follower().await;
    let uid = shop.uid(&target);
    caller.evict(&target).await;
    shop.wait_for_condition(&format!("{uid}-1"), "Drained", "True", "Proven").await;
    // The leader is away, so that nobody takes the proof back but the webhook.
    let lease = ["patch", "lease", "capturedrain-operator", "--type=merge", "-p"];
    let taken = json!({"spec": {"holderIdentity": "nobody", "leaseDurationSeconds": 600, "renewTime": "2100-01-01T00:00:00.000000Z"}});
    shop.kubectl(&[&lease[..], &[&taken.to_string()]].concat()).await;
    wait_for("the operator to stop leading", async || {
        (gate.operator.metric("capturedrain_operator_leader ").await? == 0.0).then_some(())
    })
    .await;
    let before = shop.capture(&target).await.unwrap()["node_epoch"].clone();
    shop.kill(&target);
    shop.run(&target);
    wait_for("the capture to be back", async || {
        let capture = shop.capture(&target).await?;
        (capture["node_epoch"] != before && capture["heard"] == true).then_some(())
    })
    .await;
    let answer = caller.evict(&target).await;
    assert_eq!((answer.code, answer.cause()), (429, "CaptureNotDrained"), "{answer:?}: {}", gate.operator.log());
    assert!(answer.message().contains("has started anew"), "{answer:?}");
    let free =
        json!({"spec": {"holderIdentity": "", "renewTime": "2020-01-01T00:00:00.000000Z", "leaseDurationSeconds": 1}});
    shop.kubectl(&[&lease[..], &[&free.to_string()]].concat()).await;
    // The next attempt drains it again.
    shop.wait_for_end(&format!("{uid}-1"), "TargetReplaced").await;
    caller.evict_until(&target, 429).await;
    shop.kubectl(&["wait", "--for=condition=Drained", "--timeout=60s", &format!("cdrain/{uid}-2")]).await;
    caller.evict_until(&target, 201).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_brings_nothing_about() {
    let (shop, gate, caller) = scene("dry", 0).await;
    let target = shop.a_follower().await;
    assert_eq!(caller.evict_with(&target, Value::Null, "?dryRun=All").await.code, 201);
    assert_eq!(caller.evict_with(&target, json!({"dryRun": ["All"]}), "").await.code, 201);
    assert_eq!(gate.operator.metric("capturedrain_webhook_requests_total{decision=\"DryRun\"} ").await, Some(2.0));
    check_metrics(&gate.operator.get("/metrics").await.unwrap().1);
    assert!(shop.drains_of(&shop.uid(&target)).await.is_empty());
    assert!(shop.events(&target).await.is_empty());
    let pods: Api<Pod> = Api::namespaced(shop.admin.client().await, &shop.namespace);
    assert!(pods.get(&target).await.unwrap().metadata.deletion_timestamp.is_none());
    // kubectl shows the warning.
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": target, "namespace": shop.namespace},
        "deleteOptions": {"dryRun": ["All"]},
    });
    let path = format!("/api/v1/namespaces/{}/pods/{target}/eviction", shop.namespace);
    let said = shop.admin.kubectl_with(&["create", "--raw", &path, "-f", "-"], &eviction.to_string()).await;
    assert!(said.stderr.contains("would be drained first"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_pods_of_captures_that_run_are_held() {
    let (shop, gate, caller) = scene("scope", 0).await;
    assert_eq!(caller.evict("cdc-7").await.code, 404);
    // Pending, and no capture's.
    for pod in ["cdc-8", "web-0"] {
        shop.make_pod(pod).await;
    }
    settle(&shop, "web-0").await;
    shop.kubectl(&["label", "pod", "web-0", "capturedrain.io/service-"]).await;
    shop.kubectl(&["label", "pod", "cdc-8", "capturedrain.io/service=cdc"]).await;
    caller.evict_until("web-0", 201).await;
    caller.evict_until("cdc-8", 201).await;
    // Others do not come here at all: neither other names nor other namespaces.
    let asked = async || {
        let (_, page) = gate.operator.get("/metrics").await.unwrap();
        let lines = page.lines().filter(|line| line.starts_with("capturedrain_webhook_requests_total"));
        lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum::<u64>()
    };
    let before = asked().await;
    assert_eq!(caller.evict("cdc-7").await.code, 404);
    assert_eq!(asked().await, before + 1, "a call is counted");
    let before = asked().await;
    shop.make_pod("web-x").await;
    assert_eq!(caller.evict("web-x").await.code, 201);
    let elsewhere = api_server::shared().await.namespace("elsewhere").await;
    let args = ["run", "cdc-0", "--image=x", "-n", &elsewhere, "--labels=capturedrain.io/service=cdc"];
    shop.admin.kubectl(&args).await.ok();
    assert_eq!(Caller::new(&shop.admin, &elsewhere).await.evict("cdc-0").await.code, 201);
    assert_eq!(asked().await, before);
    let drains = shop.admin.kubectl_json(&["get", "cdrain", "-n", &shop.namespace]).await;
    assert_eq!(drains["items"].as_array().unwrap().len(), 1, "the one of the scene: {drains:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_that_would_refuse_is_named_and_nothing_is_drained() {
    let (shop, _gate, caller) = scene("budget", 0).await;
    let target = shop.a_follower().await;
    let budget = json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "cdc-budget"},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "cdc"}}},
    });
    shop.apply(&budget.to_string()).await;
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(shop.admin.client().await, &shop.namespace);
    let status = |allowed: i32| json!({"status": {"disruptionsAllowed": allowed, "currentHealthy": 2, "desiredHealthy": 2, "expectedPods": 3, "observedGeneration": 1}});
    budgets.patch_status("cdc-budget", &PatchParams::default(), &Patch::Merge(status(0))).await.unwrap();
    let answer = caller.evict(&target).await;
    assert_eq!((answer.code, answer.cause()), (429, "DisruptionBudget"), "{answer:?}");
    assert!(answer.message().contains("PodDisruptionBudget cdc-budget"), "{answer:?}");
    assert!(shop.drains_of(&shop.uid(&target)).await.is_empty());
    budgets.patch_status("cdc-budget", &PatchParams::default(), &Patch::Merge(status(1))).await.unwrap();
    // The API server does not evict what two budgets select.
    let second = budget.to_string().replace("cdc-budget", "of-all");
    shop.apply(&second).await;
    budgets.patch_status("of-all", &PatchParams::default(), &Patch::Merge(status(1))).await.unwrap();
    let answer = caller.evict(&target).await;
    assert_eq!((answer.code, answer.cause()), (429, "DisruptionBudget"), "{answer:?}");
    assert!(
        answer.message().contains("more than one PodDisruptionBudget selects it (cdc-budget, of-all)"),
        "{answer:?}"
    );
    assert!(shop.drains_of(&shop.uid(&target)).await.is_empty());
    shop.kubectl(&["delete", "pdb", "of-all"]).await;
    assert_eq!(caller.evict(&target).await.cause(), "CaptureNotDrained");
    caller.evict_until(&target, 201).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_empty_at_its_deadline_may_be_evicted_with_what_is_left() {
    let (shop, gate, caller) = scene_with("late", 30, "30s", &[]).await;
    let target = shop.a_follower().await;
    shop.suspend(&target);
    shop.drain("mine", &target, json!({"deadlineSeconds": 1, "onDeadline": "Proceed"})).await;
    shop.wait_for_end("mine", "DeadlineProceeded").await;
    caller.evict_until(&target, 201).await;
    let proceeded = "capturedrain_webhook_requests_total{decision=\"DeadlineProceeded\"} ";
    assert_eq!(gate.operator.metric(proceeded).await, Some(1.0));
    shop.resume(&target);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_a_person_withdrew_stays_withdrawn_until_the_glass_is_broken() {
    let (shop, gate, caller) = scene_with("withdrawn", 30, "30s", &[]).await;
    let target = shop.a_follower().await;
    let name = format!("{}-1", shop.uid(&target));
    shop.suspend(&target);
    caller.evict(&target).await;
    wait_for("a beginning", async || shop.status(&name).await["epoch"].as_i64()).await;
    shop.kubectl(&["delete", "cdrain", &name, "--timeout=60s"]).await;
    shop.resume(&target);
    let answer = caller.evict(&target).await;
    assert_eq!((answer.code, answer.cause()), (429, "DrainWithdrawn"), "{answer:?}: {}", gate.operator.log());
    assert!(answer.message().contains(&format!("CaptureDrain {name}")), "{answer:?}");
    assert!(shop.drains_of(&shop.uid(&target)).await.is_empty());
    shop.kubectl(&["annotate", "pod", &target, "capturedrain.io/break-glass=true"]).await;
    caller.evict_until(&target, 201).await;
    wait_for("the event", async || shop.events(&target).await.contains(&"BreakGlassUsed".to_owned()).then_some(()))
        .await;
    assert_eq!(gate.operator.metric("capturedrain_webhook_requests_total{decision=\"BreakGlass\"} ").await, Some(1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_keep_a_drain_up_and_without_them_it_is_given_up() {
    let (shop, _gate, caller) = scene_with("given-up", 30, "30s", &[]).await;
    let target = shop.a_follower().await;
    let uid = shop.uid(&target);
    let name = format!("{uid}-1");
    shop.suspend(&target);
    caller.evict(&target).await;
    wait_for("a beginning", async || shop.status(&name).await["epoch"].as_i64()).await;
    let written = async || {
        let object = shop.object(&name).await.unwrap();
        object["metadata"]["annotations"]["capturedrain.io/eviction-attempted-at"].as_str().map(str::to_owned)
    };
    let first = written().await.unwrap();
    // Not each attempt is written down, but one of them is, and who made it.
    let bert = Caller::new(&api_server::shared().await.user("bert", "system:masters"), &shop.namespace).await;
    let renewed = wait_for("the attempt to be written down", async || {
        bert.evict(&target).await;
        written().await.filter(|at| *at != first)
    })
    .await;
    assert!(renewed > first, "{renewed} {first}");
    let callers = shop.object(&name).await.unwrap()["metadata"]["annotations"]["capturedrain.io/evicted-by"].clone();
    assert_eq!(callers, "[\"admin\",\"bert\"]");
    let shorter = json!({"spec": {"releaseAfterSeconds": 1}}).to_string();
    shop.kubectl(&["patch", "cdrain", &name, "--type=merge", "-p", &shorter]).await;
    shop.wait_for_end(&name, "EvictionAbandoned").await;
    shop.resume(&target);
    wait_for("the capture to be back at work", async || {
        (shop.capture(&target).await?["liveness"] == "Alive").then_some(())
    })
    .await;
    // Somebody who comes later has it drained anew.
    assert_eq!(caller.evict(&target).await.cause(), "CaptureNotDrained");
    shop.wait_for_condition(&format!("{uid}-2"), "Drained", "True", "Proven").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_capture_does_not_hold_its_node() {
    let (mut shop, gate, caller) = scene("alone", 0).await;
    for pod in ["cdc-1", "cdc-2"] {
        shop.delete_pod(pod).await;
    }
    shop.wait_for_captures(1).await;
    assert_eq!(caller.evict("cdc-0").await.code, 429);
    shop.wait_for_end(&format!("{}-1", shop.uid("cdc-0")), "NoPeers").await;
    caller.evict_until("cdc-0", 201).await;
    assert_eq!(gate.operator.metric("capturedrain_webhook_requests_total{decision=\"NoPeers\"} ").await, Some(1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_operator_the_failure_policy_decides() {
    let (shop, mut gate, caller) = scene("dead", 0).await;
    gate.operator.kill();
    assert_eq!(caller.evict("cdc-0").await.code, 500);
    configure(&shop, &shop.namespace, gate.port, "Ignore").await;
    caller.evict_until("cdc-0", 201).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_ends_answers_for_a_while_and_is_not_ready() {
    let (shop, mut gate, caller) = scene_with("linger", 0, "3s", &["--webhook-linger", "4s"]).await;
    gate.operator.signal("-TERM");
    let (code, said) =
        wait_for("it not to be ready", async || gate.operator.get("/readyz").await.filter(|(code, _)| *code != 200))
            .await;
    assert_eq!((code, said.as_str()), (503, "this replica is ending\n"));
    assert_eq!(caller.evict("cdc-0").await.code, 429);
    wait_for("its end", async || gate.operator.has_ended().then_some(())).await;
    assert_eq!(caller.evict("cdc-0").await.code, 500);
    drop(shop);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_review_is_refused_without_harm() {
    let (_shop, gate, caller) = scene("garbage", 0).await;
    let client = reqwest::Client::builder().tls_danger_accept_invalid_certs(true).build().unwrap();
    let url = format!("https://{SERVICE_ADDRESS}:{}/evictions", gate.port);
    for (body, code) in [("", 400), ("{}", 400), ("[1]", 400), ("{\"request\":{\"uid\":\"x\"}}", 500)] {
        let answer =
            time::timeout(Duration::from_secs(20), client.post(&url).body(body).send()).await.unwrap().unwrap();
        // One without a name is looked for in vain.
        assert!(answer.status() == code || body.contains("uid"), "{body}: {answer:?}");
    }
    let long = "x".repeat(1 << 20);
    assert_eq!(client.post(&url).body(long).send().await.unwrap().status(), 413);
    assert_eq!(client.get(&url).send().await.unwrap().status(), 405);
    assert_eq!(caller.evict("cdc-0").await.code, 429);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_shows_whether_evictions_wait() {
    let (shop, mut gate, caller) = scene("check-hook", 0).await;
    let service = ["--service", "cdc"];
    let (_, found) = check(&shop.admin, &shop.namespace, &service).await;
    let levels = |found: &Value| (level(found, "webhook").to_owned(), level(found, "webhook-eviction").to_owned());
    assert_eq!(levels(&found), ("ok".to_owned(), "ok".to_owned()), "{found:#}");
    assert!(shop.drains_of(&shop.uid("cdc-0")).await.is_empty(), "a check brings nothing about");
    gate.operator.kill();
    configure(&shop, &shop.namespace, gate.port, "Ignore").await;
    // Until the API server has heard of it, it refuses.
    wait_for("the other policy", async || (caller.evict("cdc-9").await.code == 404).then_some(())).await;
    let (_, found) = check(&shop.admin, &shop.namespace, &service).await;
    assert_eq!(levels(&found), ("ok".to_owned(), "failure".to_owned()), "{found:#}");
    shop.admin.kubectl(&["delete", "mutatingwebhookconfiguration", &shop.namespace]).await.ok();
    let (_, found) = check(&shop.admin, &shop.namespace, &service).await;
    assert_eq!(level(&found, "webhook"), "warning", "{found:#}");
}
