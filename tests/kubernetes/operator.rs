//! The operator against a real API server and real captures.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    api_server,
    shop::{Operator, Shop, condition, wait_for},
};

/// A cluster and an operator that looks after it.
pub(crate) async fn scene(stem: &str, tables: usize) -> (Shop, Operator) {
    scene_with(stem, tables, "3s").await
}

/// The same, of captures with another lease.
pub(crate) async fn scene_with(stem: &str, tables: usize, lease: &'static str) -> (Shop, Operator) {
    let shop = Shop::open_with(api_server::shared().await, stem, tables, lease).await;
    let operator = Operator::start(&shop.admin, &shop.namespace, &[]);
    operator.wait_until_leading().await;
    (shop, operator)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_drained_and_the_run_ends_when_it_is_gone() {
    let (mut shop, operator) = scene("road", 60).await;
    let target = shop.a_follower().await;
    shop.drain("x", &target, json!({"deadlineSeconds": 300, "reason": "node upgrade"})).await;
    shop.kubectl(&["wait", "--for=condition=Drained", "--timeout=60s", "cdrain/x"]).await;
    let status = shop.status("x").await;
    assert_eq!(
        (status["phase"].as_str(), status["liveness"].as_str()),
        (Some("Drained"), Some("Stopping")),
        "{status:#}"
    );
    assert_eq!(status["podUID"], shop.uid(&target), "{status:#}");
    assert_eq!(status["progress"]["remaining"], json!({"maintainers": 0, "dispatchers": 0}), "{status:#}");
    assert_eq!(condition(&status, "Reconciling").1, "AwaitingPodDeletion", "{status:#}");
    let history = shop.json(&["history"]).await;
    assert_eq!((&history[0]["outcome"], &history[0]["reason"]), (&json!("Drained"), &json!("node upgrade")));
    assert_eq!(history[0]["drain_epoch"], status["epoch"]);
    let held = shop.object("x").await.unwrap()["metadata"]["finalizers"].clone();
    assert_eq!(held, json!(["capturedrain.io/drain"]));
    shop.delete_pod(&target).await;
    let status = shop.wait_for_end("x", "PodGone").await;
    assert_eq!(condition(&status, "Succeeded"), ("True".to_owned(), "PodGone".to_owned()), "{status:#}");
    assert_eq!(condition(&status, "Drained").0, "True", "{status:#}");
    let held = wait_for("the finalizer to go", async || {
        let object = shop.object("x").await?;
        object["metadata"]["finalizers"].is_null().then_some(object)
    })
    .await;
    assert!(held["status"]["completionTime"].is_string());
    let told = wait_for("the last event", async || {
        let events = shop.events("x").await;
        events.iter().any(|reason| reason == "DrainSucceeded").then_some(events)
    })
    .await;
    assert_eq!(told, ["DrainStarted", "Drained", "DrainSucceeded"], "{}", operator.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tour_of_the_readme_is_as_typed() {
    let (mut shop, _operator) = scene("tour", 10).await;
    let readme = include_str!("../../README.md");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    shop.apply(include_str!("../../docs/examples/drain-pod.yaml")).await;
    shop.kubectl(&["wait", "--for=condition=Drained", "--timeout=60s", "cdrain/node-upgrade"]).await;
    let shown = shop.kubectl(&["get", "cdrain"]).await;
    let heading = readme.lines().find(|line| line.starts_with("NAME  ")).unwrap();
    let last = readme.lines().rfind(|line| line.starts_with("node-upgrade  ")).unwrap();
    let shown: Vec<_> = shown.lines().map(words).collect();
    let (but_age, columns) = (|line: &str| words(line)[..6].to_vec(), words(heading).len());
    assert_eq!((&shown[0], shown[1].len()), (&words(heading), columns));
    assert_eq!(shown[1][..6], but_age(last));
    shop.delete_pod("cdc-0").await;
    shop.kubectl(&["wait", "--for=condition=Finished", "--timeout=60s", "cdrain/node-upgrade"]).await;
    wait_for("the events of the tour", async || {
        let told = shop.kubectl(&["describe", "cdrain", "node-upgrade"]).await;
        let events: Vec<_> = told.lines().map(words).collect();
        let promised = readme.lines().filter(|line| line.trim_start().starts_with("Normal  "));
        let is_told = |line: &str| {
            let (line, reason) = (words(line), 1);
            events.iter().any(|event| event.get(reason) == line.get(reason) && event.get(3..) == line.get(3..))
        };
        promised.clone().all(is_told).then(|| assert!(promised.count() > 2))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_capture_is_drained_within_a_second() {
    let (shop, operator) = scene("idle", 0).await;
    let target = shop.a_follower().await;
    // The first drain pays for the way to the cluster.
    let began = Instant::now();
    shop.drain("x", &target, json!({})).await;
    shop.wait_for_condition("x", "Drained", "True", "NothingToDrain").await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}: {}", operator.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_drain_is_called_off_and_what_moved_stays() {
    let (shop, _operator) = scene_with("withdraw", 30, "30s").await;
    let target = shop.a_follower().await;
    shop.suspend(&target);
    shop.drain("x", &target, json!({})).await;
    wait_for("a beginning", async || shop.status("x").await["epoch"].as_i64()).await;
    shop.kubectl(&["delete", "cdrain", "x", "--timeout=60s"]).await;
    shop.resume(&target);
    wait_for("the capture to be back at work", async || {
        (shop.capture(&target).await?["liveness"] == "Alive").then_some(())
    })
    .await;
    assert_eq!(shop.json(&["history"]).await[0]["outcome"], "Cancelled");
    assert!(shop.events("x").await.contains(&"DrainWithdrawn".to_owned()), "{:?}", shop.events("x").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_goes_on_when_the_operator_and_the_coordinator_die() {
    let (mut shop, mut operator) = scene("deaths", 400).await;
    let (target, coordinator) = (shop.a_follower().await, shop.coordinator().await);
    shop.drain("x", &target, json!({})).await;
    let epoch = wait_for("a beginning", async || shop.status("x").await["epoch"].as_i64()).await;
    operator.kill();
    shop.kill(&coordinator);
    operator.run();
    let status = shop.wait_for_condition("x", "Drained", "True", "Proven").await;
    assert_eq!(status["epoch"], epoch, "{status:#}");
    assert_eq!(shop.events("x").await.iter().filter(|reason| *reason == "DrainStarted").count(), 1);
}

fn phases(statuses: &[Value]) -> Vec<&str> {
    statuses.iter().map(|status| status["phase"].as_str().unwrap_or_default()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn drains_of_one_cluster_take_turns_and_the_coordinator_comes_last() {
    let (mut shop, _operator) = scene("queue", 30).await;
    let coordinator = shop.coordinator().await;
    let others: Vec<_> = ["cdc-0", "cdc-1", "cdc-2"].into_iter().filter(|pod| *pod != coordinator).collect();
    // The coordinator's is the oldest.
    shop.drain("of-coordinator", "cdc-9", json!({})).await;
    shop.wait_for_end("of-coordinator", "PodNotFound").await;
    shop.drain("first", others[0], json!({})).await;
    shop.wait_for_condition("first", "Drained", "True", "Proven").await;
    shop.drain("second", &coordinator, json!({})).await;
    let status = shop.wait_for_condition("second", "Reconciling", "True", "Queued").await;
    assert_eq!(status["blockedBy"][0]["name"], "first", "{status:#}");
    assert_eq!(condition(&status, "Accepted"), ("True".to_owned(), "Queued".to_owned()), "{status:#}");
    shop.drain("third", others[1], json!({})).await;
    let status = shop.wait_for_condition("third", "Reconciling", "True", "Queued").await;
    assert_eq!((&status["queuePosition"], &status["blockedBy"][0]["name"]), (&json!(1), &json!("first")), "{status:#}");
    assert_eq!(phases(&[shop.status("first").await]), ["Drained"]);
    // The pod goes and comes back under its name: only then the next one begins, and it is not the coordinator's.
    shop.delete_pod(others[0]).await;
    shop.wait_for_end("first", "PodGone").await;
    shop.start(others[0]).await;
    shop.publish().await;
    let status = shop.wait_for_condition("third", "Drained", "True", "Proven").await;
    assert_eq!(condition(&status, "Accepted").1, "Accepted", "{status:#}");
    assert_eq!(phases(&[shop.status("second").await]), ["Queued"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_speaks_ticdcs_api_is_drained_by_it() {
    let (shop, _operator) = scene("open-api", 30).await;
    let target = shop.a_follower().await;
    // All captures share an address here, and TiCDC's know no pods: so by name.
    let cluster = json!({"serviceName": "cdc", "kind": "TiCDC"});
    shop.drain_of("x", json!({"captureID": target}), json!({ "clusterRef": cluster })).await;
    let status = shop.wait_for_condition("x", "Drained", "True", "Proven").await;
    assert!(status["progress"]["remaining"]["maintainers"].is_null(), "not known, so not told: {status:#}");
    assert_eq!(shop.capture(&target).await.unwrap()["liveness"], "Stopping");
    // There is no way back.
    shop.kubectl(&["delete", "cdrain", "x", "--timeout=60s"]).await;
    let told = shop.events("x").await;
    assert!(told.contains(&"DrainWithdrawn".to_owned()), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_prometheus_is_told_has_no_complaint_of_its_linter() {
    let (shop, operator) = scene("metrics", 0).await;
    let target = shop.a_follower().await;
    shop.drain_of("x", json!({"captureID": target}), json!({})).await;
    shop.wait_for_end("x", "CaptureStopping").await;
    let (code, page) = operator.get("/metrics").await.unwrap();
    assert_eq!(code, 200);
    for series in [
        "capturedrain_operator_leader 1",
        "capturedrain_operator_drains{phase=\"Succeeded\"} 1",
        "capturedrain_operator_queue_depth 0",
        "capturedrain_operator_backend_request_duration_seconds_count{kind=\"CaptureDrain\",method=\"start\"} 1",
    ] {
        assert!(page.lines().any(|line| line == series), "no {series} in\n{page}");
    }
    check_metrics(&page);
}

/// Whether all metrics of a page are in the reference, and without complaint of Prometheus' linter.
pub(crate) fn check_metrics(page: &str) {
    let reference = include_str!("../../docs/reference.md");
    let names = page.lines().filter_map(|line| line.strip_prefix("# TYPE capturedrain_")?.split_once(' '));
    for (name, kind) in names {
        assert!(reference.contains(&format!("| `{name}` | {kind} |")), "{name}, a {kind}, is not in the reference");
    }
    let promtool = std::env::var("CAPTUREDRAIN_PROMTOOL").unwrap_or_else(|_| "promtool".to_owned());
    let mut lint = std::process::Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("promtool cannot be started: `make tools` installs it");
    std::io::Write::write_all(&mut lint.stdin.take().unwrap(), page.as_bytes()).unwrap();
    let said = lint.wait_with_output().unwrap();
    let complaints = [said.stdout, said.stderr].concat();
    assert!(said.status.success() && complaints.is_empty(), "{}", String::from_utf8_lossy(&complaints));
}
