//! What the operator takes: the time from `kubectl apply` to the proof, calls of the API server, memory.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_precision_loss,
    reason = "a measurement that cannot go on has failed, and what it counts is small"
)]

#[path = "../../tests/support/api_server.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod api_server;
#[path = "../report.rs"]
#[allow(dead_code, reason = "shared with other benchmarks")]
mod report;
#[path = "../../tests/kubernetes/shop.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod shop;

use std::time::Instant;

use api_server::{ApiServer, Setup, etcd::guard::Folder};
use report::{Report, is_quick};
use serde_json::json;
use shop::{Operator, Shop, wait_for};

/// How often a drain is measured.
const ROUNDS: usize = 10;
const QUICK_ROUNDS: usize = 3;
/// Drains that have finished and are kept.
const FINISHED: usize = 1000;
/// The bounds of the design.
const APPLY_MAX_S: f64 = 1.0;
const RESIDENT_MAX_MB: f64 = 50.0;

/// Has every call of the API server written down.
const AUDIT: &str = r#"{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}]}"#;

/// How many calls the operator has made that are no watches.
fn calls(log: &str, user: &str) -> usize {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    // Renewals of the lease go by the clock, not by drains.
    let is_meant = |line: &&str| {
        line.contains(user) && !line.contains(r#""verb":"watch""#) && !line.contains(r#""resource":"leases""#)
    };
    text.lines().filter(is_meant).count()
}

#[tokio::main]
async fn main() {
    let folder = Folder::new();
    let (policy, log) = (folder.write("policy.json", AUDIT), folder.path().join("audit.log").display().to_string());
    let flags = vec![
        format!("--audit-policy-file={}", policy.display()),
        format!("--audit-log-path={log}"),
        "--audit-log-mode=blocking".to_owned(),
    ];
    let api = ApiServer::start_with(Setup { flags, ..Setup::default() }).await;
    let mut shop = Shop::open(&api, "bench", 0).await;
    let account = api.service_account(&shop.namespace, "operator").await;
    let subject = format!("--serviceaccount={}:operator", shop.namespace);
    let bind = ["create", "clusterrolebinding", "operator", "--clusterrole=cluster-admin", &subject];
    shop.admin.kubectl(&bind).await.ok();
    let user = format!("system:serviceaccount:{}:operator", shop.namespace);
    let operator = Operator::start(&account, &shop.namespace, &[]);
    operator.wait_until_leading().await;

    // An API server lets the first object of a CRD wait that was installed a moment ago; nobody is drained here.
    shop.reject(1).await;
    shop.wait_for_end("nobody-0", "NotACapture").await;
    let mut report = Report::new("operator");
    let (mut took, mut made) = (Vec::new(), Vec::new());
    for round in 0..if is_quick() { QUICK_ROUNDS } else { ROUNDS } {
        let (name, target) = (format!("x-{round}"), shop.a_follower().await);
        let (before, began) = (calls(&log, &user), Instant::now());
        shop.drain(&name, &target, json!({})).await;
        let drained = ["wait", "--for=condition=Drained", "--timeout=60s", &format!("cdrain/{name}")];
        shop.kubectl(&drained).await;
        took.push(began.elapsed().as_secs_f64());
        shop.delete_pod(&target).await;
        shop.wait_for_end(&name, "PodGone").await;
        wait_for("the object to be let go", async || {
            shop.object(&name).await?["metadata"]["finalizers"].is_null().then_some(())
        })
        .await;
        made.push((calls(&log, &user) - before) as f64);
        shop.start(&target).await;
        shop.publish().await;
        // The capture that was killed stays registered until its lease is over.
        wait_for("the new capture to be heard", async || {
            let capture = shop.capture(&target).await?;
            (capture["pod_uid"] == shop.uid(&target) && capture["heard"] == true).then_some(())
        })
        .await;
    }
    report.bound("kubectl apply until Drained, idle", "s", &took, APPLY_MAX_S);
    report.tell("calls of the API server, a drain", "", &made);

    shop.kubectl(&["delete", "cdrain", "nobody-0"]).await;
    shop.reject(FINISHED).await;
    wait_for("all to end", async || {
        let ended = operator.metric("capturedrain_operator_drains{phase=\"Failed\"} ").await?;
        (ended >= FINISHED as f64).then_some(())
    })
    .await;
    report.bound("memory with 1000 finished drains", "MB", &[operator.resident_mb() as f64], RESIDENT_MAX_MB);
    report.end();
}
