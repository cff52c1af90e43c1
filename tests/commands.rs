//! The command line as a person meets it: what cannot be done is said in one sentence, with the right exit code.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

#[path = "support/lossy.rs"]
mod lossy;
#[path = "support/processes.rs"]
#[allow(dead_code, reason = "shared with the tests on etcd")]
mod processes;

use std::{collections::BTreeMap, fs, net::TcpListener, path::Path, time::Duration};

use capturedrain::store::{AnyStore, Store as _};
use capturedrain_core::store::{Op, Txn};
use processes::{Cluster, run, wait_for};
use reqwest::Method;
use serde_json::Value;
use tokio::process::Command;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

/// Runs a command that fails, and checks its exit code and its sentence.
async fn fails(args: &[&str], code: i32, says: &str) {
    let (ended, sentence) = run(args, "http://127.0.0.1:9").await;
    assert_eq!(ended, code, "{args:?}: {sentence}");
    let last = sentence.lines().last().unwrap_or_default();
    assert!(last.starts_with("capturedrain: ") && last.contains(says), "{args:?}: {sentence}");
}

fn embedded(path: &Path) -> String {
    format!("embedded:{}", path.display())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_start_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let store = embedded(&folder.path().join("store.redb"));
    fails(&["server", "--store", "etcd://127.0.0.1:9"], 5, "etcd at http://127.0.0.1:9 does not answer").await;
    fails(&["server", "--store", "redis://h:1"], 2, "\"redis://h:1\" is not a store").await;
    fails(&["server", "--store", &store, "--addr", "0.0.0.0:1"], 2, "not a loopback address").await;
    let everywhere = ["server", "--store", &store, "--addr", "0.0.0.0:1", "--insecure"];
    fails(&everywhere, 2, "say with --advertise-addr HOST:PORT where they can").await;
    let nowhere = [&everywhere[..], &["--advertise-addr", "0.0.0.0:1"]].concat();
    fails_to_parse(&nowhere, "name one at which others reach it").await;
    fails(&["server", "--store", "etcd://h:1", "--captures", "3"], 2, "embedded").await;
    fails(&["server", "--store", &store, "--heartbeat", "9s"], 2, "--heartbeat").await;
    let held = TcpListener::bind(&taken).ok();
    fails(&["server", "--store", &store, "--addr", &taken], 12, &format!("cannot listen on {taken}")).await;
    drop(held);
    let damaged = folder.path().join("damaged.redb");
    fs::write(&damaged, vec![7; 65_536]).unwrap();
    fails(&["server", "--store", &embedded(&damaged), "--addr", "127.0.0.1:0"], 12, "damaged.redb is damaged").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_in_use_or_of_a_newer_build_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let url = embedded(&folder.path().join("store.redb"));
    let store = AnyStore::open(&url, "default").await.unwrap();
    fails(&["server", "--store", &url, "--addr", "127.0.0.1:0"], 12, "is in use by another process").await;
    let newer: &[u8] = br#"{"version":99}"#;
    let op = Op::Put { key: "drain/record".into(), value: newer.into(), lease: None };
    store.txn(Txn { compares: Vec::new(), ops: vec![op] }).await.unwrap();
    drop(store);
    fails(&["server", "--store", &url, "--addr", "127.0.0.1:0"], 12, "drain/record has version 99").await;
    let store = AnyStore::open(&url, "default").await.unwrap();
    assert_eq!(&*store.get("drain/record").await.unwrap().unwrap().value, newer);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_of_a_newer_build_ends_the_capture_that_needs_it() {
    let folder = tempfile::tempdir().unwrap();
    let url = embedded(&folder.path().join("store.redb"));
    let info = r#"{"version":1,"id":"x","config":{"source":"synthetic://","sink":"blackhole://","start_ts":1},
                  "state":"running","created_at_ms":1}"#;
    let (key, newer) = ("position/x", r#"{"version":99,"checkpoint":[7,9]}"#);
    let store = AnyStore::open(&url, "default").await.unwrap();
    let put = |key: &str, value: &str| Op::Put { key: key.into(), value: value.as_bytes().into(), lease: None };
    let ops = vec![put("changefeed/info/x", info), put(key, newer)];
    store.txn(Txn { compares: Vec::new(), ops }).await.unwrap();
    drop(store);
    fails(&["server", "--store", &url, "--addr", "127.0.0.1:0"], 12, "the value of position/x has version 99").await;
    let store = AnyStore::open(&url, "default").await.unwrap();
    assert_eq!(&*store.get(key).await.unwrap().unwrap().value, newer.as_bytes());
}

/// Standard output of a command that ends well.
async fn printed(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_capturedrain")).args(args).output().await.unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_shell_gets_its_completions() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = printed(&["completions", shell]).await;
        assert!(script.contains("capturedrain") && script.contains("dry-run"), "{shell}: {script}");
    }
    fails_to_parse(&["completions", "tcsh"], "possible values: bash").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn help_names_variables_and_not_what_they_are_set_to() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_capturedrain"));
    let output = command.args(["drain", "--help"]).env("CAPTUREDRAIN_REASON", "secret").output().await.unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(help.contains("CAPTUREDRAIN_REASON") && !help.contains("secret"), "{help}");
    assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
}

/// Runs a command that makes no sense: the parser's own words, and exit code 2.
async fn fails_to_parse(args: &[&str], says: &str) {
    let (code, sentence) = run(args, "").await;
    assert_eq!((code, sentence.contains(says)), (2, true), "{args:?}: {sentence}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_printed_may_be_cut_off() {
    let mut command = Command::new("sh");
    let crd = format!("{} crd | head -1", env!("CARGO_BIN_EXE_capturedrain"));
    let output = command.args(["-c", &crd]).output().await.unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    let full = format!("{} crd > /dev/full", env!("CARGO_BIN_EXE_capturedrain"));
    let output = Command::new("sh").args(["-c", &full]).output().await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.contains("cannot write to standard output")), (Some(12), true), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_does_not_join_a_cluster_whose_protocol_it_does_not_speak() {
    let folder = tempfile::tempdir().unwrap();
    let url = embedded(&folder.path().join("store.redb"));
    let registration = br#"{"version":1,"id":"old","node_epoch":"0000000000000001","advertise_addr":"127.0.0.1:9",
                            "protocol":{"min":7,"max":9},"binary_version":"9.0.0"}"#;
    let store = AnyStore::open(&url, "default").await.unwrap();
    let op = Op::Put { key: "capture/old".into(), value: registration.as_slice().into(), lease: None };
    store.txn(Txn { compares: Vec::new(), ops: vec![op] }).await.unwrap();
    drop(store);
    let says = "capture old, release 9.0.0, speaks protocol 7 to 9, this build 1";
    fails(&["server", "--store", &url, "--addr", "127.0.0.1:0"], 4, says).await;
    let store = AnyStore::open(&url, "default").await.unwrap();
    let captures = store.list("capture/", "capture0").await.unwrap().entries;
    assert_eq!(captures.iter().map(|entry| &*entry.key).collect::<Vec<_>>(), ["capture/old"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_cannot_ask_says_why() {
    fails(&["captures"], 5, "no answer from 127.0.0.1:9: Connection refused").await;
    fails(&["captures", "--server", "ftp://h:1"], 2, "\"ftp://h:1\" is not a server").await;
    fails(&["drain", "b", "--on-deadline", "proceed"], 2, "--on-deadline proceed needs a --deadline").await;
    fails(&["apply", "-f", "/nonexistent.yaml"], 3, "/nonexistent.yaml cannot be read").await;
    let folder = tempfile::tempdir().unwrap();
    let manifest = folder.path().join("drain.yaml");
    let text = "apiVersion: capturedrain.io/v1alpha1\nkind: CaptureDrain\nmetadata: {name: x}\nspec:\n  \
                clusterRef: {serviceName: a}\n  targte: {captureID: b}\n";
    fs::write(&manifest, text).unwrap();
    fails(&["apply", "-f", manifest.to_str().unwrap()], 2, "unknown field `targte`").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_one_cannot_be_drained() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::new("default", &embedded(&folder.path().join("store.redb")));
    cluster.start("only");
    cluster.wait_for_captures(1).await;
    let (code, sentence) = cluster.run(&["drain", "only"]).await;
    assert_eq!((code, sentence.contains("no other capture is alive")), (4, true), "{sentence}");
    let long = "r".repeat(1025);
    for command in [["drain", "only", "--reason", &long], ["cancel", "only", "--requester", &long]] {
        let (code, sentence) = cluster.run(&command).await;
        assert_eq!((code, sentence.contains("is longer than")), (2, true), "{sentence}");
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    for (method, field) in [(Method::PUT, "reason"), (Method::PUT, "requester"), (Method::DELETE, "requester")] {
        let url = format!("{}/api/v2/captures/only/drain?{field}={long}", cluster.servers());
        let answer = reqwest::Client::new().request(method, url).send().await.unwrap();
        let (status, body) = (answer.status().as_u16(), answer.text().await.unwrap());
        assert_eq!((status, body.contains(&format!("`{field}` is longer than"))), (400, true), "{body}");
    }
    let create = |sink: &'static str| ["changefeed", "create", "--id", "f", "--source", "synthetic://", "--sink", sink];
    let (code, sentence) = cluster.run(&create("file:///dev/null/x")).await;
    assert_eq!((code, sentence.contains("sink folder /dev/null/x cannot be used")), (12, true), "{sentence}");
    let (code, sentence) = cluster.run(&create("s3://x")).await;
    assert_eq!((code, sentence.contains("\"s3://x\" is not a sink")), (2, true), "{sentence}");
    let status = cluster.terminate("only").await;
    assert!(status.success(), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_answers_health_and_reflection() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::new("default", &embedded(&folder.path().join("store.redb")));
    cluster.start("only");
    cluster.wait_for_captures(1).await;
    let channel = tonic::transport::Endpoint::from_shared(cluster.servers()).unwrap().connect().await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    let serving = wait_for(Duration::from_secs(10), "a healthy capture", || {
        let mut health = health.clone();
        async move {
            let answer = health.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap().into_inner();
            (answer.status() == tonic_health::pb::health_check_response::ServingStatus::Serving).then_some(())
        }
    });
    serving.await;
    assert!(health.check(tonic_health::pb::HealthCheckRequest { service: "none".to_owned() }).await.is_err());
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(channel);
    let mut answers = reflection.server_reflection_info(tokio_stream::iter([ask])).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) = answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("no list of services");
    };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    for service in ["capturedrain.v1.DrainService", "capturedrain.v1.CaptureService", "grpc.health.v1.Health"] {
        assert!(names.contains(&service), "{names:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_is_applied_and_printed_with_its_status() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::new("default", &embedded(&folder.path().join("store.redb")));
    cluster.start_several("capture", 3);
    cluster.wait_for_captures(3).await;
    cluster.ok(&["changefeed", "create", "--id", "f", "--source", "synthetic://", "--sink", "blackhole://"]).await;
    cluster.wait_for_dispatchers("f", 8).await;
    let target = cluster.a_follower_of_all().await;
    let manifest = folder.path().join("drain.yaml");
    let text = format!(
        "apiVersion: capturedrain.io/v1alpha1\nkind: CaptureDrain\nmetadata: {{name: x}}\nspec:\n  \
         clusterRef: {{serviceName: a}}\n  target: {{captureID: {target}}}\n"
    );
    fs::write(&manifest, text).unwrap();
    let applied = cluster.json(&["apply", "--wait", "-f", manifest.to_str().unwrap()]).await;
    let status = &applied["status"];
    assert_eq!((&status["phase"], &status["captureID"]), (&"Succeeded".into(), &target.as_str().into()), "{applied}");
    let conditions = status["conditions"].as_array().unwrap();
    let drained = conditions.iter().find(|condition| condition["type"] == "Drained").unwrap();
    assert_eq!((&drained["status"], &drained["reason"]), (&"True".into(), &"Proven".into()), "{applied}");
    // Another of a capture that nobody knows ends at once.
    fs::write(&manifest, fs::read_to_string(&manifest).unwrap().replace(&target, "nobody")).unwrap();
    let (code, _) = cluster.run(&["apply", "--wait", "-f", manifest.to_str().unwrap()]).await;
    assert_eq!(code, 3);
}

/// Maintainers and dispatchers by capture.
async fn work(cluster: &Cluster) -> BTreeMap<String, (u64, u64)> {
    let captures = cluster.json(&["captures"]).await;
    let count = |capture: &Value, of: &str| capture[of].as_u64().unwrap();
    let work = |c: &Value| (count(c, "maintainer_count"), count(c, "dispatcher_count"));
    captures.as_array().unwrap().iter().map(|c| (c["id"].as_str().unwrap().to_owned(), work(c))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_the_drain_then_does() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::new("default", &embedded(&folder.path().join("store.redb")));
    cluster.start_several("c", 4);
    cluster.wait_for_captures(4).await;
    for (feed, tables) in [("f", 7), ("g", 4), ("h", 1), ("i", 5), ("j", 2)] {
        let source = format!("synthetic://?tables={tables}");
        cluster.ok(&["changefeed", "create", "--id", feed, "--source", &source, "--sink", "blackhole://"]).await;
        cluster.wait_for_dispatchers(feed, tables).await;
    }
    let (target, avoided) = ("c-0", "c-3");
    let drain = ["drain", target, "--avoid", avoided];
    let before = work(&cluster).await;
    let dry = cluster.json(&[&drain[..], &["--dry-run", "--wait"]].concat()).await;
    assert_eq!((&dry["drain_epoch"], &dry["plan"]["is_measured"]), (&Value::Null, &false.into()), "{dry}");
    assert_eq!(work(&cluster).await, before, "a dry run moves nothing");
    cluster.ok(&[&drain[..], &["--wait"]].concat()).await;
    // Who gets how much depends on who hears of the drain first; what goes, and to whom it may go, does not.
    let moves = dry["plan"]["moves"].as_object().unwrap();
    let planned = |of: &str| moves.values().map(|work| work[of].as_u64().unwrap()).sum::<u64>();
    assert_eq!((planned("maintainers"), planned("dispatchers")), before[target], "{dry}");
    assert_eq!(moves.keys().collect::<Vec<_>>(), ["c-1", "c-2"], "{dry}");
    let after = wait_for(Duration::from_secs(10), "the work to be elsewhere", || async {
        let after = work(&cluster).await;
        let sum = |work: &BTreeMap<String, (u64, u64)>| work.values().map(|(_, dispatchers)| dispatchers).sum::<u64>();
        (sum(&after) == sum(&before)).then_some(after)
    })
    .await;
    assert_eq!((after[target], after[avoided]), ((0, 0), before[avoided]), "{dry}");
    // What it took is what the next one is expected to take. One that is on is told of, dry run or not.
    let dry = cluster.json(&["drain", "c-1", "--dry-run"]).await;
    assert_eq!(dry["plan"]["is_measured"], true, "{dry}");
    let dry = cluster.json(&[&drain[..], &["--dry-run"]].concat()).await;
    assert_eq!((&dry["drain_epoch"], &dry["plan"]), (&1.into(), &Value::Null), "{dry}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_counts_although_its_answer_was_lost() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::new("default", &embedded(&folder.path().join("store.redb")));
    cluster.start_several("c", 2);
    cluster.wait_for_captures(2).await;
    let server = cluster.server("c");
    let create =
        |source: &'static str| ["changefeed", "create", "--id", "f", "--sink", "blackhole://", "--source", source];
    let (code, sentence) = run(&create("synthetic://"), &lossy::way_to(&server, 0).await).await;
    assert_eq!(code, 0, "{sentence}");
    // Without a lost answer, and with another wish, it is a refusal as ever.
    let (code, sentence) = run(&create("synthetic://"), &server).await;
    assert_eq!((code, sentence.contains("exists already")), (4, true), "{sentence}");
    let (code, sentence) = run(&create("synthetic://?tables=2"), &lossy::way_to(&server, 0).await).await;
    assert_eq!((code, sentence.contains("exists already")), (4, true), "{sentence}");
    let delete = ["changefeed", "delete", "f"];
    let (code, sentence) = run(&delete, &lossy::way_to(&server, 0).await).await;
    assert_eq!(code, 0, "{sentence}");
    assert_eq!(run(&delete, &server).await.0, 3);
}
