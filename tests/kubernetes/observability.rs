//! Alerts and the dashboard of the operator's chart: they ask for what is really told, and fire when they should.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
};

use serde_json::{Value, json};
use tokio::process::Command;

use crate::{
    api_server::{self, etcd::guard::Folder},
    gate::scene_with,
    helm::{documents, named, of_kind, template},
    shop::{Operator, Shop, wait_for},
};

const CHART: (&str, &str) = (concat!(env!("CARGO_MANIFEST_DIR"), "/charts/capturedrain-operator"), "operator");
const RUNBOOKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/runbooks");
/// What Prometheus adds to every series, and to the buckets of histograms.
const ADDED: [&str; 5] = ["namespace", "job", "pod", "instance", "le"];
/// What is told: the labels of each series, by its name.
type Told = BTreeMap<String, BTreeSet<String>>;

async fn rendered(values: &[&str]) -> Vec<Value> {
    documents(&template(CHART, "ops", values, &["prometheusrule", "dashboard"]).await.unwrap())
}

async fn alerts(values: &[&str]) -> Value {
    let values = [&["prometheusRule.enabled=true", "dashboard.enabled=true"], values].concat();
    named(&rendered(&values).await, "PrometheusRule", "operator")["spec"].clone()
}

fn rules(alerts: &Value) -> &Vec<Value> {
    alerts["groups"][0]["rules"].as_array().unwrap()
}

async fn dashboard() -> Value {
    let rendered = rendered(&["prometheusRule.enabled=true", "dashboard.enabled=true"]).await;
    let config = of_kind(&rendered, "ConfigMap")[0];
    assert_eq!(config["metadata"]["labels"]["grafana_dashboard"], "1");
    serde_json::from_str(config["data"]["capturedrain.json"].as_str().unwrap()).unwrap()
}

/// Every query of the dashboard, with the labels that its legend shows.
fn queries(dashboard: &Value) -> Vec<(String, Vec<String>)> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().cloned().unwrap_or_default());
    let mut queries: Vec<_> = targets
        .map(|target| {
            let legend = target["legendFormat"].as_str().unwrap().split("{{").skip(1);
            let legend = legend.map(|rest| rest.split("}}").next().unwrap().trim().to_owned()).collect();
            (target["expr"].as_str().unwrap().to_owned(), legend)
        })
        .collect();
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let Some(query) = variable["query"]["query"].as_str() else { continue };
        let (series, label) = query["label_values(".len()..].trim_end_matches(')').rsplit_once(',').unwrap();
        queries.push((series.to_owned(), vec![label.trim().to_owned()]));
    }
    queries
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Series of ours that a query names.
fn series(query: &str) -> BTreeSet<String> {
    let words = query.split(|c| !is_word(c));
    words.filter(|word| word.starts_with("capturedrain_")).map(str::to_owned).collect()
}

/// Labels that a query chooses or groups by.
fn labels(query: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (open, close) in [('{', '}'), ('(', ')')] {
        for (at, _) in query.match_indices(open) {
            let inside = query[at + 1..].split(close).next().unwrap();
            let before = query[..at].trim_end();
            let is_grouping = ["by", "on"].iter().any(|word| before.ends_with(&format!(" {word}")));
            if open == '{' {
                let all = inside.split(',').filter_map(|one| one.split(['=', '!']).next());
                found.extend(all.map(|label| label.trim().to_owned()));
            } else if is_grouping {
                found.extend(inside.split(',').map(|label| label.trim().to_owned()));
            }
        }
    }
    found
}

/// What is wrong with a query.
fn complaints(query: &str, legend: &[String], told: &Told) -> Vec<String> {
    let names = series(query);
    let mut wrong: Vec<_> =
        names.iter().filter(|name| !told.contains_key(*name)).map(|name| format!("nobody tells {name}")).collect();
    let known: BTreeSet<_> = names.iter().filter_map(|name| told.get(name)).flatten().map(String::as_str).collect();
    let asked = labels(query).into_iter().chain(legend.iter().cloned());
    let unknown = asked.filter(|label| !known.contains(label.as_str()) && !ADDED.contains(&label.as_str()));
    wrong.extend(unknown.map(|label| format!("no series of {query} has {label}")));
    wrong
}

fn add(told: &mut Told, page: &str) {
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').unwrap();
        let (name, rest) = series.split_once('{').unwrap_or((series, ""));
        let labels = rest.split("\",").filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
        told.entry(name.to_owned()).or_default().extend(labels);
    }
}

/// Gathers what captures and their operator tell while a capture is drained, until nothing of `wanted` is missing.
async fn gather(shop: &Shop, operator: &Operator, wanted: &BTreeSet<String>) -> Told {
    let mut told = Told::new();
    let mut missing = String::new();
    let all = async || {
        for server in shop.servers().split(',') {
            let page = reqwest::get(format!("{server}/metrics")).await.ok()?.text().await.ok()?;
            add(&mut told, &page);
        }
        add(&mut told, &operator.get("/metrics").await?.1);
        let left: Vec<_> = wanted.iter().filter(|name| !told.contains_key(*name)).cloned().collect();
        if missing != left.join(" ") {
            missing = left.join(" ");
            println!("still missing: {missing}");
        }
        left.is_empty().then_some(())
    };
    wait_for("everything that is asked for to be told", all).await;
    told
}

async fn promtool(args: &[&str], folder: &Folder) -> Result<(), String> {
    let promtool = env::var("CAPTUREDRAIN_PROMTOOL").unwrap_or_else(|_| "promtool".to_owned());
    let output = Command::new(promtool).args(args).current_dir(folder.path()).output().await;
    let output = output.expect("promtool cannot be started: `make tools` installs it");
    let said = [output.stdout, output.stderr].concat();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&said).into_owned()) }
}

#[tokio::test]
async fn alerts_fire_when_they_should_and_at_no_other_time() {
    let folder = Folder::new();
    let alerts = alerts(&[]).await;
    let tests = include_str!("../support/alerts.yaml");
    for alert in rules(&alerts) {
        let name = alert["alert"].as_str().unwrap();
        assert!(tests.contains(&format!("alertname: {name}\n        exp_alerts:")), "{name} is not seen to fire");
        assert!(tests.contains(&format!("alertname: {name}}}")), "{name} is not seen to keep silent");
    }
    fs::write(folder.path().join("tests.yaml"), tests).unwrap();
    let hold = async |alerts: &Value| {
        fs::write(folder.path().join("rules.yaml"), alerts.to_string()).unwrap();
        promtool(&["test", "rules", "tests.yaml"], &folder).await
    };
    hold(&alerts).await.unwrap_or_else(|said| panic!("{said}"));
    // Each of them is held: one that never fires is noticed.
    for (index, alert) in rules(&alerts).iter().enumerate() {
        let mut broken = alerts.clone();
        broken["groups"][0]["rules"][index]["expr"] = "vector(0) > 1".into();
        hold(&broken).await.expect_err(alert["alert"].as_str().unwrap());
    }
}

#[tokio::test]
async fn every_alert_has_a_page_for_whoever_is_woken() {
    let alerts = alerts(&["prometheusRule.runbooks=https://wiki/runbooks/"]).await;
    let mut pages = BTreeSet::from(["README.md".to_owned()]);
    let index = fs::read_to_string(format!("{RUNBOOKS}/README.md")).unwrap();
    for alert in rules(&alerts) {
        let page = format!("{}.md", alert["alert"].as_str().unwrap());
        assert_eq!(alert["annotations"]["runbook_url"], format!("https://wiki/runbooks/{page}"));
        let text = fs::read_to_string(format!("{RUNBOOKS}/{page}")).unwrap_or_default();
        for heading in ["## What it means", "## How to see it", "## What to do"] {
            assert!(text.contains(heading), "{page} has no {heading:?}");
        }
        assert!(index.contains(&format!("({page})")), "{page} is not in the index");
        pages.insert(page);
    }
    let there = fs::read_dir(RUNBOOKS).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(there.collect::<BTreeSet<_>>(), pages);
}

#[tokio::test(flavor = "multi_thread")]
async fn dashboard_and_alerts_ask_for_what_is_told() {
    let mut asked = queries(&dashboard().await);
    let alerts = alerts(&[]).await;
    let of_alerts = rules(&alerts).iter().map(|rule| (rule["expr"].as_str().unwrap().to_owned(), Vec::new()));
    // The API server's have labels of their own; another test sees them.
    asked.extend(of_alerts.filter(|(query, _)| !query.contains("apiserver_")));
    assert!(asked.len() > 30, "{asked:?}");
    let wanted: BTreeSet<_> = asked.iter().flat_map(|(query, _)| series(query)).collect();
    let (shop, gate, _caller) = scene_with("asked", 600, "3s", &[]).await;
    let lost = json!({"clusterRef": {"serviceName": "nobody"}});
    shop.drain_of("lost", json!({"captureID": "x"}), lost).await;
    shop.wait_for_condition("lost", "Stalled", "True", "ClusterUnreachable").await;
    let target = shop.a_follower().await;
    // Some of it is told only while the drain is on.
    let (told, ()) = tokio::join!(gather(&shop, &gate.operator, &wanted), shop.drain("x", &target, json!({})));
    let wrong: Vec<_> = asked.iter().flat_map(|(query, legend)| complaints(query, legend, &told)).collect();
    assert_eq!(wrong, Vec::<String>::new());
    // The checks can fail.
    assert_eq!(complaints("sum by (nope) (capturedrain_nope{no=\"1\"})", &["not".to_owned()], &told).len(), 4);
}

#[tokio::test]
async fn the_dashboard_is_written_in_prometheus_language() {
    let folder = Folder::new();
    let spoken = |query: &str| query.replace("$__rate_interval", "5m").replace("$__range", "1h");
    let queries = queries(&dashboard().await);
    let recorded = queries.iter().enumerate();
    let rules: Vec<_> =
        recorded.map(|(n, (query, _))| json!({"record": format!("query_{n}"), "expr": spoken(query)})).collect();
    let check = async |rules: Value| {
        let file = json!({"groups": [{"name": "dashboard", "rules": rules}]});
        fs::write(folder.path().join("queries.yaml"), file.to_string()).unwrap();
        promtool(&["check", "rules", "queries.yaml"], &folder).await
    };
    check(json!(rules)).await.unwrap_or_else(|said| panic!("{said}"));
    check(json!([{"record": "x", "expr": "sum by capturedrain_x"}])).await.unwrap_err();
}

#[tokio::test]
async fn the_api_server_tells_of_webhooks_that_it_cannot_call_what_the_alert_asks_for() {
    let api = api_server::shared().await;
    let namespace = api.namespace("uncalled").await;
    let admin = api.admin();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "namespace": namespace},
        "spec": {"containers": [{"name": "x", "image": "x"}]},
    });
    admin.kubectl_with(&["apply", "-f", "-"], &pod.to_string()).await.ok();
    let webhook = |policy: &str| {
        json!({
            "name": format!("{}.uncalled.capturedrain.io", policy.to_lowercase()),
            "clientConfig": {"url": "https://127.0.0.1:1/"}, "failurePolicy": policy, "sideEffects": "None",
            "admissionReviewVersions": ["v1"], "timeoutSeconds": 1,
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            "rules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods/eviction"],
            }],
        })
    };
    let config = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": namespace}, "webhooks": [webhook("Ignore"), webhook("Fail")],
    });
    admin.kubectl_with(&["apply", "-f", "-"], &config.to_string()).await.ok();
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "x", "namespace": namespace},
        "deleteOptions": {"dryRun": ["All"]},
    });
    let path = format!("/api/v1/namespaces/{namespace}/pods/x/eviction");
    let told = [
        "apiserver_admission_webhook_fail_open_count{name=\"ignore.",
        "apiserver_admission_webhook_rejection_count{error_type=\"calling_webhook_error\",name=\"fail.",
    ];
    wait_for("both to be counted", async || {
        let _ = admin.kubectl_with(&["create", "--raw", &path, "-f", "-"], &eviction.to_string()).await;
        let page = admin.kubectl(&["get", "--raw", "/metrics"]).await.ok();
        told.iter().all(|series| page.lines().any(|line| line.starts_with(*series))).then_some(())
    })
    .await;
    admin.kubectl(&["delete", "mutatingwebhookconfiguration", &namespace]).await.ok();
    let alerts = alerts(&[]).await;
    let rule = rules(&alerts).iter().find(|rule| rule["alert"] == "CaptureEvictionWebhookFailing").unwrap();
    for series in told {
        assert!(rule["expr"].as_str().unwrap().contains(series.split('{').next().unwrap()));
    }
}
