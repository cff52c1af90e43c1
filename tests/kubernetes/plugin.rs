//! `kubectl capturedrain` against a real API server: what it shows, what it misses, and how it ends.

use std::{os::unix::fs::symlink, process::Stdio};

use k8s_openapi::api::core::v1::Node;
use kube::{Api, api::PostParams};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    time,
};

use crate::{
    api_server::{
        self, ApiServer, Setup,
        access::{Access, kubernetes_command},
        etcd::guard::Folder,
    },
    operator::{scene, scene_with},
    shop::{Operator, PATIENCE, Shop, wait_for},
    trouble::grant,
};

const BINARY: &str = env!("CARGO_BIN_EXE_capturedrain");

/// The binary under the name by which kubectl finds it, in a folder of its own.
fn installed() -> Folder {
    let folder = Folder::new();
    symlink(BINARY, folder.path().join("kubectl-capturedrain")).unwrap();
    folder
}

/// Code, standard output and standard error of the plugin.
async fn run(access: &Access, args: &[&str]) -> (i32, String, String) {
    let folder = installed();
    let mut command = Command::new(folder.path().join("kubectl-capturedrain"));
    command.args(args).arg("--kubeconfig").arg(access.kubeconfig());
    ended(&mut command).await
}

async fn ended(command: &mut Command) -> (i32, String, String) {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = time::timeout(PATIENCE, command.output()).await.expect("a command that ends").unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

async fn status(shop: &Shop) -> Value {
    let (code, stdout, stderr) = run(&shop.admin, &["status", "-n", &shop.namespace, "-o", "json"]).await;
    assert_eq!(code, 0, "{stderr}");
    serde_json::from_str(&stdout).unwrap()
}

/// The sentence of a node, once it has one that contains this.
async fn wait_for_why(shop: &Shop, node: &str, words: &str) -> Value {
    let mut last = Value::Null;
    let found = time::timeout(PATIENCE, async {
        loop {
            last = status(shop).await;
            let nodes = last["clusters"][0]["nodes"].as_array().cloned().unwrap_or_default();
            let found = nodes.into_iter().find(|at| at["node"] == node);
            if found.is_some_and(|node| node["why"].as_str().is_some_and(|why| why.contains(words))) {
                return;
            }
            time::sleep(std::time::Duration::from_millis(50)).await;
        }
    });
    assert!(found.await.is_ok(), "{node} does not say \"{words}\": {last:#}");
    last
}

/// A node that takes no pods, with one on it.
async fn cordon(shop: &Shop, pod: &str) -> String {
    let node = format!("{}-{pod}", shop.namespace);
    let nodes: Api<Node> = Api::all(shop.admin.client().await);
    let object = json!({"metadata": {"name": node}, "spec": {"unschedulable": true}});
    nodes.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    shop.bind(pod, &node).await;
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_in_its_middle_and_the_one_behind_it_are_shown() {
    let (shop, _operator) = scene_with("plugin", 30, "30s").await;
    let target = shop.a_follower().await;
    let coordinator = shop.coordinator().await;
    let other = ["cdc-0", "cdc-1", "cdc-2"].into_iter().find(|pod| *pod != target && *pod != coordinator).unwrap();
    let (full, next) = (cordon(&shop, &target).await, cordon(&shop, other).await);
    // Nothing leaves it.
    shop.suspend(&target);
    shop.drain("x", &target, json!({})).await;
    wait_for("a beginning", async || shop.status("x").await["epoch"].as_i64()).await;
    wait_for_why(&shop, &next, &format!("waits for {other}, which nobody drains")).await;
    shop.drain("y", other, json!({})).await;
    shop.wait_for_condition("y", "Reconciling", "True", "Queued").await;
    let moving = format!("waits for {target}, whose drain cdrain/x goes on: Moving");
    wait_for_why(&shop, &full, &moving).await;
    let queued = format!("waits for {other}, whose drain cdrain/y is queued behind cdrain/x, which goes on: Moving");
    let seen = wait_for_why(&shop, &next, &queued).await;
    assert_eq!(seen["drains"][0]["name"], "x", "{seen:#}");
    assert_eq!((&seen["drains"][0]["target"], &seen["drains"][0]["liveness"]), (&json!(target), &json!("Draining")));
    assert_eq!(seen["clusters"][0]["coordinator"], coordinator.as_str(), "{seen:#}");
    let folder = installed();
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let mut kubectl = Command::new(kubernetes_command("kubectl"));
    kubectl.args(["capturedrain", "status", "-n", &shop.namespace]).env("PATH", path);
    kubectl.env("KUBECONFIG", shop.admin.kubeconfig());
    let (code, stdout, stderr) = ended(&mut kubectl).await;
    assert_eq!(code, 0, "{stderr}");
    let first = stdout.lines().next().unwrap_or_default().split_whitespace().collect::<Vec<_>>();
    assert_eq!(first, ["DRAIN", "TARGET", "PHASE", "LIVENESS", "MAINTAINERS", "DISPATCHERS", "AGE", "WHY"]);
    assert!(stdout.contains(&format!("\n{next} does not empty: it {queued}")), "{stdout}");
    shop.resume(&target);
    let held = format!("waits for {target}, whose drain cdrain/x is proven empty");
    wait_for_why(&shop, &full, &held).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cordoned_node_says_that_there_is_no_destination() {
    let (mut shop, _operator) = scene("nowhere", 20).await;
    let target = shop.coordinator().await;
    let node = cordon(&shop, &target).await;
    for pod in ["cdc-0", "cdc-1", "cdc-2"].into_iter().filter(|pod| *pod != target) {
        shop.delete_pod(pod).await;
    }
    shop.wait_for_captures(1).await;
    shop.drain("x", &target, json!({})).await;
    let why = format!("waits for {target}, whose drain cdrain/x is stalled: NoDestination");
    wait_for_why(&shop, &node, &why).await;
    // With nobody else left, a check fails as well.
    let (code, found) = check(&shop.admin, &shop.namespace, &[]).await;
    assert_eq!((code, level(&found, "captures")), (12, "failure"), "{found:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_what_changes_until_it_is_stopped() {
    let (shop, _operator) = scene("watch", 10).await;
    let mut command = Command::new(BINARY);
    command.args(["kubectl", "status", "--watch", "-n", &shop.namespace, "--kubeconfig"]);
    command.arg(shop.admin.kubeconfig()).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut watch = command.spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let target = shop.a_follower().await;
    shop.drain("x", &target, json!({})).await;
    let wanted = format!("drain {}/x of {target}: Drained, 0 of ", shop.namespace);
    let told = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains(&wanted) {
                return;
            }
        }
        panic!("the watch has ended");
    };
    time::timeout(PATIENCE, told).await.expect("the drain's end to be told");
    let pid = watch.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().await.unwrap().success());
    let ended = time::timeout(PATIENCE, watch.wait()).await.expect("an end").unwrap();
    assert_eq!(ended.code(), Some(130));
}

#[tokio::test(flavor = "multi_thread")]
async fn captures_are_shown_by_their_nodes_before_anybody_drains_them() {
    let shop = Shop::open(api_server::shared().await, "nobody", 10).await;
    shop.kubectl(&["label", "pod", "--all", "capturedrain.io/service=cdc"]).await;
    let (target, coordinator) = (shop.a_follower().await, shop.coordinator().await);
    let node = cordon(&shop, &target).await;
    let seen = wait_for_why(&shop, &node, &format!("waits for {target}, which nobody drains")).await;
    assert_eq!((&seen["drains"], &seen["clusters"][0]["coordinator"]), (&json!([]), &json!(coordinator)), "{seen:#}");
    let captures =
        seen["clusters"][0]["nodes"].as_array().unwrap().iter().filter_map(|node| node["captures"].as_array());
    assert_eq!(captures.flatten().filter(|capture| capture["heard"] == true).count(), 3, "{seen:#}");
    // A check finds them as well.
    let (_, found) = check(&shop.admin, &shop.namespace, &[]).await;
    assert_eq!((level(&found, "service"), level(&found, "captures")), ("ok", "ok"), "{found:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_knows_an_operator_by_another_lease_and_asks_for_the_very_secret() {
    let api = ApiServer::start().await;
    let shop = Shop::open(&api, "named", 0).await;
    api.service_account(&shop.namespace, "op").await;
    grant(&shop, "op", Some(7)).await;
    shop.kubectl(&["label", "serviceaccount", "op", "app.kubernetes.io/name=capturedrain-operator"]).await;
    let operator = Operator::start_elsewhere(&shop.admin, &shop.namespace, "default", &["--lease-name", "mine"]);
    operator.wait_until_leading().await;
    shop.drain_of(
        "x",
        json!({"captureID": "cdc-0"}),
        json!({"clusterRef": {"serviceName": "cdc", "tlsSecretName": "tls"}}),
    )
    .await;
    let (_, found) = check(&shop.admin, &shop.namespace, &[]).await;
    assert!(message(&found, "operator").ends_with("leads, by Lease default/mine"), "{found:#}");
    assert!(message(&found, "rights-operator").contains("get secrets/tls"), "{found:#}");
    let role = ["create", "role", "secrets", "--verb=get", "--resource=secrets", "--resource-name=tls"];
    shop.kubectl(&role).await;
    let subject = format!("--serviceaccount={}:op", shop.namespace);
    shop.kubectl(&["create", "rolebinding", "secrets", "--role=secrets", &subject]).await;
    wait_for("the right to be known", async || {
        let (_, found) = check(&shop.admin, &shop.namespace, &[]).await;
        (!message(&found, "rights-operator").contains("secrets")).then_some(())
    })
    .await;
}

/// Exit code and findings.
pub(crate) async fn check(access: &Access, namespace: &str, more: &[&str]) -> (i32, Value) {
    let args = [&["check", "-n", namespace, "-o", "json"], more].concat();
    let (code, stdout, stderr) = run(access, &args).await;
    let found = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("no findings: {code}: {stderr}"));
    (code, found)
}

pub(crate) fn level<'a>(found: &'a Value, check: &str) -> &'a str {
    let all = found.as_array().unwrap();
    all.iter().find(|finding| finding["check"] == check).map_or("", |finding| finding["level"].as_str().unwrap())
}

fn message<'a>(found: &'a Value, check: &str) -> &'a str {
    let all = found.as_array().unwrap();
    all.iter().find(|finding| finding["check"] == check).map_or("", |finding| finding["message"].as_str().unwrap())
}

/// A certificate of 2020, with its key.
fn old_certificate() -> (String, String) {
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2020, 12, 31);
    let key = KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_finds_what_is_missing() {
    let (shop, _operator) = scene("check", 0).await;
    let service = ["--service", "cdc"];
    let (code, found) = check(&shop.admin, &shop.namespace, &service).await;
    assert_eq!(code, 0, "{found:#}");
    let well = ["version", "crd", "operator", "rights-status", "rights-apply", "service", "captures"];
    for name in well {
        assert_eq!(level(&found, name), "ok", "{name}: {found:#}");
    }
    assert_eq!(level(&found, "capture-versions"), "ok", "{found:#}");
    let empty = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "empty"},
        "spec": {"ports": [{"port": 8300}]}});
    shop.apply(&empty.to_string()).await;
    let (code, found) = check(&shop.admin, &shop.namespace, &["--service", "empty"]).await;
    assert_eq!((code, level(&found, "service")), (5, "failure"), "{found:#}");
    let (code, found) = check(&shop.admin, &shop.namespace, &["--service", "none"]).await;
    assert_eq!((code, level(&found, "service")), (3, "failure"), "{found:#}");
    let (certificate, key) = old_certificate();
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "old"}, "type": "kubernetes.io/tls",
        "stringData": {"ca.crt": certificate, "tls.crt": certificate, "tls.key": key}});
    shop.apply(&secret.to_string()).await;
    let (code, found) = check(&shop.admin, &shop.namespace, &["--service", "cdc", "--tls-secret", "old"]).await;
    assert_eq!((code, level(&found, "tls")), (10, "failure"), "{found:#}");
    let (code, found) = check(&shop.admin, &shop.namespace, &["--service", "cdc", "--tls-secret", "none"]).await;
    assert_eq!((code, level(&found, "tls")), (3, "failure"), "{found:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_without_rights_is_told_which_are_missing() {
    let api = api_server::shared().await;
    let namespace = api.namespace("rights").await;
    let stranger = api.user("stranger", "");
    let (code, found) = check(&stranger, &namespace, &[]).await;
    assert_eq!((code, level(&found, "rights-status")), (10, "failure"), "{found:#}");
    assert!(found.to_string().contains("list capturedrains"), "{found:#}");
    assert_eq!((level(&found, "operator"), level(&found, "crd")), ("skipped", "skipped"), "{found:#}");
    let (code, _, stderr) = run(&stranger, &["status", "-n", &namespace]).await;
    assert_eq!(code, 10, "{stderr}");
    assert!(stderr.starts_with("kubectl capturedrain: CaptureDrains cannot be read: "), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_without_the_crd_and_one_that_is_away_are_told_apart() {
    let mut api = ApiServer::start_with(Setup { crd: false, ..Setup::default() }).await;
    let namespace = api.namespace("bare").await;
    let admin = api.admin().clone();
    let (code, found) = check(&admin, &namespace, &[]).await;
    assert_eq!((code, level(&found, "crd"), level(&found, "operator")), (3, "failure", "failure"), "{found:#}");
    let (code, _, stderr) = run(&admin, &["status", "-n", &namespace]).await;
    assert_eq!(code, 3, "{stderr}");
    assert!(stderr.contains("install the CRD with"), "{stderr}");
    api.stop();
    for command in ["status", "check"] {
        let (code, _, stderr) = run(&admin, &[command, "-n", &namespace]).await;
        assert_eq!(code, 5, "{command}: {stderr}");
    }
    let folder = Folder::new();
    let nowhere = folder.path().join("none").display().to_string();
    let args = ["kubectl", "status", "--kubeconfig", &nowhere];
    let (code, _, stderr) = ended(Command::new(BINARY).args(args)).await;
    assert_eq!(code, 12, "{stderr}");
    drop(api);
}
