//! What the operator takes: the time from `kubectl apply` to the proof, from an eviction to its answer, calls of the API
//! server, memory.
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
#[path = "../../tests/kubernetes/gate.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod gate;
#[path = "../report.rs"]
#[allow(dead_code, reason = "shared with other benchmarks")]
mod report;
#[path = "../../tests/kubernetes/shop.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod shop;

use std::time::{Duration, Instant};

use api_server::{ApiServer, SERVICE_ADDRESS, Setup, etcd::guard::Folder};
use gate::{Gate, configure, settle};
use report::{Report, is_quick, percentile};
use serde_json::json;
use shop::{Operator, Shop, wait_for};
use tokio::time;

/// How often a drain is measured.
const ROUNDS: usize = 10;
const QUICK_ROUNDS: usize = 3;
/// Drains that have finished and are kept.
const FINISHED: usize = 1000;
/// The bounds of the design.
const APPLY_MAX_S: f64 = 1.0;
const RESIDENT_MAX_MB: f64 = 50.0;
const EVICTION_MAX_MS: f64 = 5.0;
/// How many evictions are asked about in a second, and for how many seconds.
const EVICTIONS_PER_SECOND: u64 = 200;
const SECONDS: u64 = 10;

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

/// Milliseconds from each eviction to its answer, which is a denial from memory, over TLS and as an API server asks.
async fn evictions(api: &ApiServer) -> Vec<f64> {
    let shop = Shop::open_with(api, "evictions", 30, "60s").await;
    let target = shop.a_follower().await;
    settle(&shop, &target).await;
    let gate = Gate::start(&shop.admin, &shop.namespace, &shop.namespace, &[]);
    configure(&shop, &shop.namespace, gate.port, "Ignore").await;
    gate.wait_until_ready().await;
    // Nothing leaves a capture that is suspended.
    shop.suspend(&target);
    let url = format!("https://{SERVICE_ADDRESS}:{}/evictions", gate.port);
    let client = reqwest::Client::builder().tls_danger_accept_invalid_certs(true).build().unwrap();
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "bench", "name": target, "namespace": shop.namespace, "operation": "CREATE",
            "userInfo": {"username": "bench"}, "object": {"kind": "Eviction", "metadata": {"name": target}},
        },
    });
    let ask = move || {
        let request = client.post(&url).body(review.to_string()).header("content-type", "application/json");
        async move {
            let began = Instant::now();
            let answer = request.send().await.unwrap().text().await.unwrap();
            (began.elapsed().as_secs_f64() * 1000.0, answer.contains("is being drained"))
        }
    };
    wait_for("a drain that is on", async || ask().await.1.then_some(())).await;
    let mut ticks = time::interval(Duration::from_millis(1000 / EVICTIONS_PER_SECOND));
    let mut asked = Vec::new();
    for _ in 0..EVICTIONS_PER_SECOND * SECONDS {
        ticks.tick().await;
        asked.push(tokio::spawn(ask()));
    }
    let mut took = Vec::new();
    for answer in asked {
        let (ms, is_denied) = answer.await.unwrap();
        assert!(is_denied, "an eviction is not denied");
        took.push(ms);
    }
    took
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

    let took = evictions(&api).await;
    report.bound("eviction to denial, p50 at 200/s", "ms", &[percentile(&took, 50)], EVICTION_MAX_MS);
    report.bound("eviction to denial, p99 at 200/s", "ms", &[percentile(&took, 99)], EVICTION_MAX_MS);

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
