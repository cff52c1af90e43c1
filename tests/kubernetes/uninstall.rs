//! What is left when an operator goes: nothing that waits for it, whatever else has gone before.

use std::{
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{process::Command, time};

use crate::{
    api_server::{
        self, ApiServer, Setup,
        access::{Access, Credential},
    },
    gate::scene_with,
    helm::{assert_restricted, documents, named, of_kind, template},
    shop::{Operator, PATIENCE, Shop, wait_for},
};

const CHART: (&str, &str) = (concat!(env!("CARGO_MANIFEST_DIR"), "/charts/capturedrain-operator"), "operator");

async fn uninstall(access: &Access, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_capturedrain"));
    command.args(["operator-uninstall", "--kubeconfig", &access.kubeconfig().display().to_string(), "-o", "json"]);
    command.args(more).stdin(Stdio::null()).kill_on_drop(true);
    time::timeout(PATIENCE, command.output()).await.expect("a command that ends").unwrap()
}

fn gone(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What the chart's Job is, and its account with the rights that the chart gives it.
async fn job(api: &ApiServer, namespace: &str, watched: &str) -> (Value, Access) {
    let watch = format!("watchNamespace={watched}");
    let values = [&watch, "webhook.enabled=true"];
    let rendered = documents(&template(CHART, namespace, &values, &["uninstall"]).await.unwrap());
    for document in rendered.iter().filter(|document| document["kind"] != "Job") {
        api.admin().kubectl_with(&["apply", "-f", "-"], &document.to_string()).await.ok();
    }
    let access = api.service_account(namespace, "operator-uninstall").await;
    (of_kind(&rendered, "Job")[0].clone(), access)
}

/// A webhook that nobody serves and that is asked about nothing.
async fn make_webhook(access: &Access, name: &str) {
    let config = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [{
            "name": "evictions.capturedrain.io", "clientConfig": {"url": "https://127.0.0.1:1/"}, "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "nowhere"}},
            "rules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods/eviction"],
            }],
        }],
    });
    access.kubectl_with(&["apply", "-f", "-"], &config.to_string()).await.ok();
}

async fn is_webhook(access: &Access, name: &str) -> bool {
    !access.kubectl(&["get", "mutatingwebhookconfiguration", name, "--ignore-not-found"]).await.ok().is_empty()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_is_on_is_withdrawn_and_the_webhook_goes() {
    // The rights of one namespace and to a name of its own.
    let api = api_server::shared().await;
    let shop = Shop::open_with(api, "uninstall", 30, "30s").await;
    let operator = Operator::start(&shop.admin, &shop.namespace, &[]);
    operator.wait_until_leading().await;
    let (job, access) = job(api, &shop.namespace, &shop.namespace).await;
    let webhook = format!("{}.operator", shop.namespace);
    make_webhook(&shop.admin, &webhook).await;
    shop.drain_of("over", json!({"captureID": "nobody"}), json!({})).await;
    shop.wait_for_end("over", "NotACapture").await;
    let target = shop.a_follower().await;
    shop.suspend(&target);
    shop.drain("on", &target, json!({})).await;
    wait_for("a beginning", async || shop.status("on").await["epoch"].as_i64()).await;
    shop.drain("waits", &shop.coordinator().await, json!({})).await;
    // As the Job has it.
    let args = job["spec"]["template"]["spec"]["containers"][0]["args"].as_array().unwrap();
    let args: Vec<_> = args.iter().skip(1).map(|arg| arg.as_str().unwrap()).collect();
    let (output, ()) = tokio::join!(uninstall(&access, &args), async {
        wait_for("its deletion", async || shop.object("waits").await.is_none().then_some(())).await;
        shop.resume(&target);
    });
    let own = |name: &str| format!("{}/{name}", shop.namespace);
    let expected = json!({"is_webhook_gone": true, "withdrawn": [own("on"), own("waits")], "released": []});
    assert_eq!(gone(&output), expected, "{}", operator.log());
    assert!(shop.object("on").await.is_none() && shop.object("waits").await.is_none());
    assert!(shop.object("over").await.is_some(), "what has ended is history, and stays");
    assert!(!is_webhook(&shop.admin, &webhook).await);
    assert_eq!(shop.json(&["history"]).await[0]["outcome"], "Cancelled");
    wait_for("the capture to be alive", async || (shop.capture(&target).await?["liveness"] == "Alive").then_some(()))
        .await;
    // Once more there is nothing to do.
    let nothing = json!({"is_webhook_gone": true, "withdrawn": [], "released": []});
    assert_eq!(gone(&uninstall(&access, &args).await), nothing);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_went_with_its_operator_was_withdrawn_by_nobody() {
    let (shop, _gate, caller) = scene_with("reinstalled", 30, "30s", &[]).await;
    let target = shop.a_follower().await;
    let name = format!("{}-1", shop.uid(&target));
    shop.suspend(&target);
    assert_eq!(caller.evict(&target).await.cause(), "CaptureNotDrained");
    wait_for("a beginning", async || shop.status(&name).await["epoch"].as_i64()).await;
    let (_, access) = job(api_server::shared().await, &shop.namespace, &shop.namespace).await;
    // The webhook stays, as if it were there again.
    let gone = gone(&uninstall(&access, &["--namespace", &shop.namespace]).await);
    assert_eq!(gone["withdrawn"], json!([format!("{}/{name}", shop.namespace)]), "{gone:#}");
    shop.resume(&target);
    let told = shop.events(&name).await;
    assert!(told.contains(&"EvictionAbandoned".to_owned()), "{told:?}");
    let again = caller.evict(&target).await;
    assert_eq!(again.cause(), "CaptureNotDrained", "{again:?}");
    caller.evict_until(&target, 201).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_of_a_cluster_that_is_away_is_let_go_in_time() {
    let api = api_server::shared().await;
    let mut shop = Shop::open_with(api, "away", 30, "30s").await;
    let operator = Operator::start(&shop.admin, &shop.namespace, &["--let-go-after", "1h"]);
    operator.wait_until_leading().await;
    let target = shop.a_follower().await;
    shop.suspend(&target);
    shop.drain("x", &target, json!({})).await;
    wait_for("a beginning", async || shop.status("x").await["epoch"].as_i64()).await;
    for pod in ["cdc-0", "cdc-1", "cdc-2"] {
        shop.kill(pod);
    }
    let began = Instant::now();
    let output = uninstall(&shop.admin, &["--namespace", &shop.namespace, "--timeout", "20s"]).await;
    assert_eq!(gone(&output)["released"], json!([format!("{}/x", shop.namespace)]));
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    wait_for("its end", async || shop.object("x").await.is_none().then_some(())).await;
    wait_for("the event", async || shop.events("x").await.contains(&"FinalizerReleased".to_owned()).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_operator_nothing_is_held_for_ever() {
    let api = api_server::shared().await;
    let shop = Shop::open(api, "orphan", 0).await;
    let held = |name: &str| {
        let mut drain = shop.manifest(name, &json!({"captureID": "cdc-0"}), &json!({}));
        drain["metadata"]["finalizers"] = json!(["capturedrain.io/drain", "example.org/other"]);
        drain.to_string()
    };
    shop.apply(&held("x")).await;
    let output = uninstall(&shop.admin, &["--namespace", &shop.namespace, "--timeout", "6s"]).await;
    assert_eq!(gone(&output)["released"], json!([format!("{}/x", shop.namespace)]));
    // Another's finalizer is another's.
    assert_eq!(shop.object("x").await.unwrap()["metadata"]["finalizers"], json!(["example.org/other"]));
    let patch = r#"{"metadata": {"finalizers": null}}"#;
    shop.kubectl(&["patch", "cdrain", "x", "--type=merge", "-p", patch]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_missing_it_ends_in_time_and_says_so() {
    let check = async |access: &Access, more: &[&str], code: i32, words: &str| {
        let began = Instant::now();
        let output = uninstall(access, &[&["--timeout", "3s", "--webhook-name", "x"], more].concat()).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(words), "{said}");
        assert!(began.elapsed() < Duration::from_secs(13), "{:?}", began.elapsed());
    };
    let api = api_server::shared().await;
    let namespace = api.namespace("bound").await;
    let file = |name: &str| api.file(name).into();
    let nowhere = Access::write(file("gone"), "https://127.0.0.1:1", "", &Credential::Token("x".to_owned()));
    check(&nowhere, &[], 5, "cannot delete MutatingWebhookConfiguration x").await;
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", silent.local_addr().unwrap());
    let silent = Access::write(file("silent"), &url, "", &Credential::Token("x".to_owned()));
    check(&silent, &[], 5, "has not answered within 3 s").await;
    let nobody = api.service_account(&namespace, "nobody").await;
    check(&nobody, &["--namespace", &namespace], 10, "forbidden").await;
    let bare = ApiServer::start_with(Setup { crd: false, ..Setup::default() }).await;
    make_webhook(bare.admin(), "x").await;
    let output = uninstall(bare.admin(), &["--webhook-name", "x", "--timeout", "20s"]).await;
    assert_eq!(gone(&output)["is_webhook_gone"], true);
    assert!(!is_webhook(bare.admin(), "x").await, "there is no CRD, and the webhook goes all the same");
}

#[tokio::test]
async fn pods_of_hooks_are_restricted_and_no_operators() {
    let api = api_server::shared().await;
    let namespace = api.namespace("hooks").await;
    let rendered = documents(&template(CHART, &namespace, &["webhook.enabled=true"], &[]).await.unwrap());
    let accounts = of_kind(&rendered, "ServiceAccount");
    for account in &accounts {
        api.admin().kubectl_with(&["apply", "-f", "-"], &account.to_string()).await.ok();
    }
    let job = &named(&rendered, "Job", "operator-uninstall");
    let test = named(&rendered, "Pod", "operator-selftest");
    let deployment = of_kind(&rendered, "Deployment")[0];
    let of_operators = deployment["spec"]["selector"]["matchLabels"].as_object().unwrap();
    for pod in [&job["spec"]["template"], test] {
        assert_restricted(api, &namespace, pod).await;
        let is_operator = of_operators.iter().all(|(key, value)| pod["metadata"]["labels"][key] == *value);
        assert!(!is_operator, "{pod}");
    }
    // Rights are there before the Job, and go with it.
    let weight = |document: &Value| {
        document["metadata"]["annotations"]["helm.sh/hook-weight"].as_str().unwrap().parse::<i32>().unwrap()
    };
    let hooks = rendered.iter().filter(|document| document["metadata"]["annotations"]["helm.sh/hook"] == "pre-delete");
    let hooks: Vec<_> = hooks.collect();
    assert!(hooks.len() == 6, "{hooks:#?}");
    for hook in hooks.iter().filter(|hook| hook["kind"] != "Job") {
        assert!(weight(hook) < weight(job), "{hook}");
        let policy = hook["metadata"]["annotations"]["helm.sh/hook-delete-policy"].as_str().unwrap();
        assert!(policy.contains("hook-succeeded"), "{hook}");
    }
    let without = template(CHART, &namespace, &["uninstall.enabled=false"], &[]).await.unwrap();
    assert!(!without.contains("pre-delete"));
}
