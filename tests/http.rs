//! The HTTP API on real captures: every status, both versions, through followers, and as tools for `TiCDC` use it. Each
//! answer is held to the document that the API serves of itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

#[path = "support/calls.rs"]
mod calls;
#[path = "support/etcd.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod etcd;
#[path = "support/processes.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod processes;
#[path = "support/ticdc.rs"]
mod ticdc;

use std::time::{Duration, Instant};

use calls::{Answer, Calls};
use processes::{Cluster, wait_for};
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use ticdc::{Step, Tool};

const PATIENCE: Duration = Duration::from_mins(1);
const POD_UID: &str = "0c6a7b1e";

/// Captures of one process on an embedded store, by their names and where they listen.
struct Local {
    cluster: Cluster,
    captures: Vec<(String, String)>,
    _folder: TempDir,
}

impl Local {
    async fn start(captures: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = format!("embedded:{}", folder.path().join("store.redb").display());
        let mut cluster = Cluster::new("shop", &store).with_lease("3s", &["--pod-uid", POD_UID]);
        cluster.start_several("capture", captures);
        cluster.wait_for_captures(usize::from(captures)).await;
        let first: url::Url = cluster.url("capture").parse().unwrap();
        let port = first.port().unwrap();
        let name = |n: u16| if captures == 1 { "capture".to_owned() } else { format!("capture-{n}") };
        let captures = (0..captures).map(|n| (name(n), format!("http://127.0.0.1:{}", port + n))).collect();
        Self { cluster, captures, _folder: folder }
    }

    fn url(&self, id: &str) -> &str {
        &self.captures.iter().find(|(name, _)| name == id).unwrap().1
    }

    /// The coordinator first, then the others.
    async fn ranked(&self) -> Vec<(String, String)> {
        let coordinator = self.cluster.coordinator().await;
        let mut ranked = self.captures.clone();
        ranked.sort_by_key(|(id, _)| *id != coordinator);
        ranked
    }
}

fn drain_of(id: &str) -> String {
    format!("/api/v2/captures/{id}/drain")
}

/// Asks again and again, until the answer has this status.
async fn until_status(calls: &Calls, method: Method, server: &str, path: &str, status: u16) -> Answer {
    wait_for(PATIENCE, &format!("{status} from {path}"), || async {
        let answer = calls.send(method.clone(), server, path, None, None).await.ok()?;
        (answer.status == status).then_some(answer)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_does_what_its_document_says() {
    let local = Local::start(3).await;
    let calls = Calls::of(&local.captures[0].1).await;
    who_is_there(&calls, &local).await;
    what_is_no_call_is_refused(&calls, &local).await;
    changefeeds(&calls, &local).await;
    bodies(&calls, &local).await;
    drain_by_drain_to_the_last(&calls, &local).await;
    drop(local);
    alone(&calls).await;
    let (seen, unseen) = calls.coverage();
    // What takes a coordinator that dies or a drain that is held is shown by the tests on etcd.
    let elsewhere = |answer: &String| {
        answer.ends_with(" 503")
            || ["put /api/v2/captures/{id}/drain 409", "delete /api/v2/captures/{id}/drain 412"]
                .contains(&answer.as_str())
            || ["delete /api/v2/captures/{id}/drain 200", "get /api/v2/health 500"].contains(&answer.as_str())
    };
    let missing: Vec<_> = unseen.iter().filter(|answer| !elsewhere(answer)).collect();
    assert!(missing.is_empty(), "documented, and never seen: {missing:?}\nseen: {seen:?}");
}

async fn who_is_there(calls: &Calls, local: &Local) {
    let ranked = local.ranked().await;
    let (coordinator, _) = &ranked[0];
    for (id, url) in &ranked {
        let list = calls.get(url, "/api/v2/captures").await.json;
        assert_eq!(list["total"], 3, "{list}");
        let mine = list["items"].as_array().unwrap().iter().find(|item| item["id"] == id.as_str()).unwrap().clone();
        assert_eq!(mine["address"], url.strip_prefix("http://").unwrap(), "{mine}");
        assert_eq!((&mine["cluster_id"], &mine["pod_uid"]), (&json!("shop"), &json!(POD_UID)), "{mine}");
        assert_eq!(mine["is_owner"], json!(id == coordinator), "{mine}");
        let brief = calls.get(url, "/api/v1/captures").await.json;
        assert_eq!(brief.as_array().unwrap().len(), 3, "{brief}");
        for path in ["/api/v2/status", "/api/v1/status", "/status"] {
            let status = calls.get(url, path).await.json;
            assert_eq!((&status["id"], &status["liveness"]), (&json!(id), &json!(0)), "{status}");
            assert_eq!(status["is_owner"], json!(id == coordinator), "{status}");
        }
        for path in ["/api/v1/health", "/api/v2/health", "/healthz"] {
            assert_eq!(calls.get(url, path).await.status, 200, "{path}");
        }
        assert_eq!(calls.get(url, "/readyz").await.status, 200);
        assert_eq!(calls.get(url, "/metrics").await.status, 200);
        assert_eq!(calls.get(url, "/api/openapi.json").await.json["info"]["title"], "capturedrain");
    }
}

async fn what_is_no_call_is_refused(calls: &Calls, local: &Local) {
    for (_, url) in local.ranked().await {
        for path in ["/", "/api/v2", "/api/v2/capture", "/api/v3/captures", "/api/v2/captures/", "/capturedrain.v1.X/Y"]
        {
            let answer = calls.get(&url, path).await;
            assert_eq!((answer.status, answer.code()), (404, "CDC:ErrAPINotFound"), "{path}: {}", answer.text);
        }
        for (method, path, allow) in [
            (Method::POST, "/api/v2/captures", "GET,HEAD"),
            (Method::POST, "/api/v2/captures/x/drain", "PUT,GET,HEAD,DELETE"),
            (Method::PUT, "/api/v2/changefeeds/x", "GET,HEAD,DELETE"),
            (Method::DELETE, "/api/v1/captures/drain", "PUT"),
            (Method::GET, "/api/v2/owner/resign", "POST"),
            (Method::PATCH, "/healthz", "GET,HEAD"),
        ] {
            let answer = calls.send(method.clone(), &url, path, None, None).await.unwrap();
            assert_eq!((answer.status, answer.code()), (405, "CDC:ErrAPIMethodNotAllowed"), "{method} {path}");
            assert_eq!(answer.allow, allow, "{method} {path}");
        }
    }
}

/// The body that `TiCDC`'s own client sends.
fn as_ticdc(id: &str) -> Value {
    json!({
        "namespace": "default", "changefeed_id": id, "start_ts": 0, "target_ts": 0, "sink_uri": "blackhole://",
        "replica_config": {"memory_quota": 1024}, "pd_addrs": [], "ca_path": "", "cert_path": "", "key_path": "",
    })
}

fn with(mut body: Value, field: &str, value: Value) -> Value {
    body[field] = value;
    body
}

async fn changefeeds(calls: &Calls, local: &Local) {
    let ranked = local.ranked().await;
    let follower = &ranked[2].1;
    let create =
        |body: Value| async move { calls.send_json(Method::POST, follower, "/api/v2/changefeeds", &body).await };
    let refused = create(as_ticdc("orders")).await;
    assert_eq!((refused.status, refused.text.contains("source is missing")), (400, true), "{}", refused.text);
    let orders = with(as_ticdc("orders"), "source", json!("synthetic://?tables=12&rate=20"));
    let created = create(orders.clone()).await;
    assert_eq!(
        (created.status, &created.json["id"], &created.json["state"]),
        (200, &json!("orders"), &json!("normal"))
    );
    assert_eq!(created.json["warnings"], json!(["the field \"replica_config\" has no effect here"]));
    let again = create(orders.clone()).await;
    assert_eq!((again.status, again.code()), (400, "CDC:ErrChangeFeedAlreadyExists"));
    for (field, value, says) in [
        ("target_ts", json!(7), "target_ts"),
        ("namespace", json!("other"), "no namespace \"other\""),
        ("sink_uri", json!(""), "sink_uri is missing"),
        ("sink_uri", json!("s3://x"), "is not a sink"),
        ("source", json!("mysql://h:1/x"), "mysql://h:1/x"),
        ("changefeed_id", json!("../x"), "is not a name"),
        ("start_ts", json!("now"), "expected u64"),
    ] {
        let body = with(with(orders.clone(), "changefeed_id", json!("other")), field, value);
        let answer = create(body).await;
        assert_eq!((answer.status, answer.code()), (400, "CDC:ErrAPIInvalidParam"), "{field}");
        assert!(answer.text.replace("\\\"", "\"").contains(says), "{field}: {}", answer.text);
    }
    // Our own field names do as well, and who gives no name gets one.
    let nameless = create(json!({"source": "synthetic://?tables=1", "sink": "blackhole://"})).await;
    assert_eq!(nameless.status, 200, "{}", nameless.text);
    let nameless = nameless.json["id"].as_str().unwrap().to_owned();
    watch_changefeed(calls, follower, &ranked[0].1).await;
    let list = calls.get(follower, "/api/v2/changefeeds").await.json;
    assert_eq!((&list["total"], &list["items"][1]["id"]), (&json!(2), &json!("orders")), "{list}");
    let gone = format!("/api/v2/changefeeds/{nameless}");
    assert_eq!(calls.delete(follower, &gone).await.json, json!({"deleted": true}));
    assert_eq!(calls.delete(follower, &gone).await.json, json!({"deleted": false}));
    assert_eq!(calls.delete(follower, "/api/v2/changefeeds/a%20b").await.status, 400);
    for path in ["", "/pause", "/resume"] {
        let method = if path.is_empty() { Method::GET } else { Method::POST };
        let answer = calls.send(method, follower, &format!("{gone}{path}"), None, None).await.unwrap();
        assert_eq!((answer.status, answer.code()), (400, "CDC:ErrChangeFeedNotExists"), "{path}");
    }
}

/// What becomes of the changefeed `orders`, seen through any capture at once.
async fn watch_changefeed(calls: &Calls, one: &str, other: &str) {
    let path = "/api/v2/changefeeds/orders";
    let running = wait_for(PATIENCE, "a checkpoint", || async {
        let feed = calls.get(one, path).await.json;
        (feed["checkpoint_ts"].is_u64() && feed["checkpoint_time"].is_string()).then_some(feed)
    })
    .await;
    assert_eq!((&running["sink_uri"], &running["error"]), (&json!("blackhole://"), &Value::Null), "{running}");
    assert_eq!(running["checkpoint_ts"], running["checkpoint_tso"], "{running}");
    let workers: Vec<_> = running["dispatchers"].as_object().unwrap().keys().cloned().collect();
    let listed = running["task_status"].as_array().unwrap().iter().map(|task| task["capture_id"].as_str().unwrap());
    assert!(listed.eq(workers.iter().map(String::as_str)), "{running}");
    let in_state = |state: &str| {
        let path = format!("/api/v2/changefeeds?namespace=default&state={state}");
        async move { calls.get(other, &path).await.json["total"].clone() }
    };
    assert_eq!(calls.post(one, &format!("{path}/pause?namespace=default")).await.json, json!({}));
    // Whoever asks next sees what was done.
    assert_eq!(calls.get(other, path).await.json["state"], "stopped");
    assert_eq!((in_state("stopped").await, in_state("normal").await), (json!(1), json!(1)));
    assert_eq!((in_state("all").await, in_state("finished").await), (json!(2), json!(0)));
    let answer = calls.get(other, "/api/v2/changefeeds?state=asleep").await;
    assert_eq!((answer.status, answer.text.contains("asleep")), (400, true), "{}", answer.text);
    let elsewhere = json!({"overwrite_checkpoint_ts": 7});
    let answer = calls.send_json(Method::POST, one, &format!("{path}/resume"), &elsewhere).await;
    assert_eq!((answer.status, answer.text.contains("overwrite_checkpoint_ts")), (400, true), "{}", answer.text);
    let resume = json!({"overwrite_checkpoint_ts": 0, "ca_path": ""});
    assert_eq!(calls.send_json(Method::POST, one, &format!("{path}/resume"), &resume).await.json, json!({}));
    assert_eq!(calls.get(other, path).await.json["state"], "normal");
    assert_eq!(calls.post(one, &format!("{path}/resume")).await.status, 200, "a body may be left out");
    for query in ["?namespace=other", "?keyspace=other"] {
        assert_eq!(calls.get(one, &format!("{path}{query}")).await.status, 400, "{query}");
    }
}

async fn bodies(calls: &Calls, local: &Local) {
    let ranked = local.ranked().await;
    let long = json!({"capture_id": "x".repeat(70 << 10)}).to_string();
    for (method, path) in [
        (Method::PUT, "/api/v1/captures/drain"),
        (Method::POST, "/api/v2/changefeeds"),
        (Method::POST, "/api/v2/changefeeds/orders/resume"),
    ] {
        let send = |server: &str, kind: Option<&'static str>, body: &str| {
            let (server, body, method) = (server.to_owned(), body.to_owned(), method.clone());
            async move { calls.send(method, &server, path, kind, Some(body)).await.unwrap() }
        };
        for (_, url) in &ranked[..2] {
            for body in [
                "{\"capture_id\":",
                "[]",
                "nonsense",
                "{\"capture_id\": 7, \"overwrite_checkpoint_ts\": \"x\", \"start_ts\": \"x\"}",
            ] {
                let answer = send(url, None, body).await;
                assert_eq!((answer.status, answer.code()), (400, "CDC:ErrAPIInvalidParam"), "{path} {body}");
            }
            let answer = send(url, Some("text/plain"), "{}").await;
            assert_eq!((answer.status, answer.code()), (415, "CDC:ErrAPIUnsupportedMediaType"), "{path}");
            // As `curl -d` sends it: understood, and then refused for what is in it.
            let answer = send(url, Some("application/x-www-form-urlencoded"), "{").await;
            assert_eq!(answer.status, 400, "{path}");
        }
        let answer = send(&ranked[0].1, Some("application/json"), &long).await;
        assert_eq!((answer.status, answer.code()), (413, "CDC:ErrAPIBodyTooLarge"), "{path}");
    }
}

/// Drains one after the other, in every way to ask; who is left cannot be drained.
async fn drain_by_drain_to_the_last(calls: &Calls, local: &Local) {
    let ranked = local.ranked().await;
    let [(owner, _), (second, second_url), (third, third_url)] = ranked.as_slice() else { panic!("{ranked:?}") };
    let path = drain_of(third);
    refusals_of_a_drain(calls, third_url, third).await;
    let dry = calls.put(second_url, &format!("{path}?dry_run=true")).await;
    assert_eq!((dry.status, &dry.json["drain_epoch"]), (202, &Value::Null), "{}", dry.text);
    let to = dry.json["destinations"].as_array().unwrap();
    assert!(!to.is_empty() && !to.contains(&json!(third)), "{}", dry.text);
    assert_eq!(calls.get(second_url, &path).await.json["is_draining"], false, "a dry run does nothing");
    let begun = calls.put(second_url, &format!("{path}?pod_uid={POD_UID}&reason=upgrade&requester=me")).await;
    assert_eq!((begun.status, &begun.json["drain_epoch"]), (202, &json!(1)), "{}", begun.text);
    assert!(begun.json["current_dispatcher_count"].is_u64(), "{}", begun.text);
    let proven = until_status(calls, Method::PUT, second_url, &path, 200).await;
    let zeros = json!({"current_maintainer_count": 0, "current_dispatcher_count": 0, "drain_epoch": 1});
    assert_eq!(proven.json, zeros);
    assert_eq!(calls.put(second_url, &format!("{path}?drain_epoch=1")).await.status, 200);
    assert_eq!(calls.put(second_url, &format!("{path}?drain_epoch=2")).await.status, 412);
    let shown = calls.get(third_url, &path).await.json;
    assert_eq!((&shown["is_draining"], &shown["liveness"]), (&json!(false), &json!("Stopping")), "{shown}");
    assert_eq!((&shown["remaining_dispatcher_count"], &shown["drain_epoch"]), (&json!(0), &json!(1)), "{shown}");
    let late = calls.delete(second_url, &path).await;
    assert_eq!((late.status, late.code()), (409, "CDC:ErrDrainCaptureConflict"));
    let history = calls.get(second_url, "/api/v2/drains").await.json;
    let end = &history["items"][0];
    assert_eq!(
        (&end["target"], &end["outcome"], &end["reason"]),
        (&json!(third), &json!("Drained"), &json!("upgrade"))
    );
    assert_eq!(end["requesters"], json!(["me", "http"]), "{history}");
    until_status(calls, Method::GET, third_url, "/readyz", 503).await;
    assert_eq!(calls.get(third_url, "/api/v2/status").await.json["liveness"], 2);
    // The next, in the first version and as the owner that it is after a resignation.
    let mut tool = Tool::new(calls, local.url(owner), owner);
    assert_eq!(tool.step().await, Step::Resigned, "the owner resigns first");
    assert_eq!(tool.run(PATIENCE).await, Ok(()));
    until_status(calls, Method::PUT, second_url, &drain_of(owner), 200).await;
    // Whoever asked for the last one would have all work stop.
    let last = calls.put(second_url, &drain_of(second)).await;
    assert_eq!((last.status, last.code()), (400, "CDC:ErrDrainCaptureNoPeers"));
    let last = calls.send_json(Method::PUT, second_url, "/api/v1/captures/drain", &json!({"capture_id": second})).await;
    assert_eq!((last.status, last.code()), (503, "CDC:ErrDrainCaptureNoPeers"));
}

async fn refusals_of_a_drain(calls: &Calls, server: &str, id: &str) {
    let path = drain_of(id);
    let too_long = format!("reason={}", "x".repeat(1025));
    for query in ["dry_run=maybe", "dryrun=true", "node_epoch=zz", "deadline_ms=-1", too_long.as_str()] {
        let answer = calls.put(server, &format!("{path}?{query}")).await;
        assert_eq!((answer.status, answer.code()), (400, "CDC:ErrAPIInvalidParam"), "{query}");
    }
    for query in ["node_epoch=00000000000000ff", "pod_uid=other", "drain_epoch=77"] {
        let answer = calls.put(server, &format!("{path}?{query}")).await;
        assert_eq!((answer.status, answer.code()), (412, "CDC:ErrDrainCaptureMismatch"), "{query}: {}", answer.text);
    }
    let nobody = drain_of("nobody");
    for answer in
        [calls.put(server, &nobody).await, calls.get(server, &nobody).await, calls.delete(server, &nobody).await]
    {
        assert_eq!((answer.status, answer.code()), (404, "CDC:ErrCaptureNotExist"));
    }
    let unnamed = drain_of("a%20b");
    for answer in
        [calls.put(server, &unnamed).await, calls.get(server, &unnamed).await, calls.delete(server, &unnamed).await]
    {
        assert_eq!((answer.status, answer.code()), (400, "CDC:ErrAPIInvalidParam"));
    }
    let none = calls.delete(server, &path).await;
    assert_eq!((none.status, none.code()), (409, "CDC:ErrDrainCaptureConflict"));
    let none = calls.get(server, &path).await.json;
    assert_eq!((&none["is_draining"], &none["liveness"]), (&json!(false), &json!("Alive")), "{none}");
    assert_eq!(none["remaining_dispatcher_count"], Value::Null, "nobody counts without a drain: {none}");
    let unknown =
        calls.send_json(Method::PUT, server, "/api/v1/captures/drain", &json!({"capture_id": "nobody"})).await;
    assert_eq!((unknown.status, unknown.code()), (400, "CDC:ErrCaptureNotExist"));
}

/// A cluster of one: it cannot be drained, and when its coordinator resigns there is none for a lease period.
async fn alone(calls: &Calls) {
    let local = Local::start(1).await;
    let (id, url) = &local.captures[0];
    local.cluster.coordinator().await;
    let answer = calls.send_json(Method::PUT, url, "/api/v1/captures/drain", &json!({"capture_id": id})).await;
    assert_eq!((answer.status, answer.code()), (400, "CDC:ErrSchedulerRequestFailed"));
    // Tools do not even ask.
    assert_eq!(Tool::new(calls, url, id).step().await, Step::Drained);
    for (path, status) in [("/api/v1/owner/resign", 202), ("/api/v2/owner/resign", 200)] {
        let asked = Instant::now();
        assert_eq!(calls.post(url, path).await.status, status);
        for (method, path) in [
            (Method::PUT, drain_of(id)),
            (Method::GET, drain_of(id)),
            (Method::DELETE, drain_of(id)),
            (Method::GET, "/api/v2/captures".to_owned()),
            (Method::GET, "/api/v1/captures".to_owned()),
            (Method::GET, "/api/v2/drains".to_owned()),
            (Method::GET, "/api/v2/changefeeds".to_owned()),
            (Method::GET, "/api/v2/changefeeds/x".to_owned()),
            (Method::DELETE, "/api/v2/changefeeds/x".to_owned()),
            (Method::POST, "/api/v2/changefeeds/x/pause".to_owned()),
            (Method::POST, "/api/v2/changefeeds/x/resume".to_owned()),
            (Method::POST, "/api/v2/owner/resign".to_owned()),
            (Method::POST, "/api/v1/owner/resign".to_owned()),
            (Method::GET, "/api/v2/health".to_owned()),
        ] {
            let answer = calls.send(method.clone(), url, &path, None, None).await.unwrap();
            assert_eq!((answer.status, answer.code()), (503, "CDC:ErrNotOwner"), "{method} {path}");
        }
        let drain = json!({"capture_id": id});
        assert_eq!(calls.send_json(Method::PUT, url, "/api/v1/captures/drain", &drain).await.status, 503);
        let new = json!({"source": "synthetic://", "sink": "blackhole://"});
        assert_eq!(calls.send_json(Method::POST, url, "/api/v2/changefeeds", &new).await.status, 503);
        assert_eq!(calls.get(url, "/api/v1/health").await.status, 500, "tools take any other status for healthy");
        assert_eq!(calls.get(url, "/api/v2/status").await.json["is_owner"], false);
        until_status(calls, Method::GET, url, "/api/v2/health", 200).await;
        assert!(asked.elapsed() >= Duration::from_secs(3), "back in office after {:?}", asked.elapsed());
    }
}

/// Three captures as processes on an etcd, with a changefeed, and a lease that outlives a short stop.
async fn on_etcd(name: &str) -> (etcd::Etcd, Cluster, Calls) {
    let etcd = etcd::Etcd::start().await;
    let mut cluster = Cluster::new(name, &etcd.url()).with_lease("8s", &[]);
    for id in ["a", "b", "c"] {
        cluster.start(id);
    }
    cluster.wait_for_captures(3).await;
    let source = ["--source", "synthetic://?tables=30&rate=5", "--sink", "blackhole://"];
    cluster.ok(&[&["changefeed", "create", "--id", "f"], &source[..]].concat()).await;
    cluster.wait_for_dispatchers("f", 30).await;
    let calls = Calls::of(&cluster.url("a")).await;
    (etcd, cluster, calls)
}

async fn liveness(calls: &Calls, server: &str, id: &str) -> Value {
    let list = calls.get(server, "/api/v2/captures").await.json;
    let found = list["items"].as_array().and_then(|items| items.iter().find(|item| item["id"] == id).cloned());
    found.unwrap_or_default()["liveness"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_drain_is_on_others_wait_and_it_can_be_called_off() {
    let (_etcd, cluster, calls) = on_etcd("held").await;
    let owner = cluster.coordinator().await;
    let [target, other] = ["a", "b", "c"].into_iter().filter(|id| *id != owner).collect::<Vec<_>>()[..] else {
        panic!()
    };
    let server = cluster.url(&owner);
    // A target that stands still is proven empty by nobody.
    cluster.suspend(target).await;
    let begun = calls.put(&server, &drain_of(target)).await;
    assert_eq!((begun.status, &begun.json["drain_epoch"]), (202, &json!(1)), "{}", begun.text);
    assert!(begun.json["current_dispatcher_count"].as_u64().unwrap() > 0, "{}", begun.text);
    let again = calls.put(&server, &drain_of(target)).await;
    assert_eq!((again.status, &again.json["drain_epoch"]), (202, &json!(1)), "{}", again.text);
    let shown = calls.get(&cluster.url(other), &drain_of(target)).await.json;
    assert_eq!((&shown["is_draining"], &shown["draining_capture_id"]), (&json!(true), &json!(target)), "{shown}");
    assert_eq!(
        (&shown["liveness"], &shown["remaining_dispatcher_count"]),
        (&json!("Draining"), &Value::Null),
        "{shown}"
    );
    let refused = calls.put(&server, &drain_of(other)).await;
    assert_eq!((refused.status, refused.code()), (409, "CDC:ErrDrainCaptureInProgress"));
    assert_eq!(refused.json["facts"], json!({"target": target, "epoch": "1"}));
    for id in [target, other] {
        // Of version 1 both are told to wait, and neither is told of an error.
        let count = calls.send_json(Method::PUT, &server, "/api/v1/captures/drain", &json!({"capture_id": id})).await;
        assert!(count.status == 202 && count.json["current_table_count"].as_u64() > Some(0), "{id}: {}", count.text);
    }
    let another = calls.delete(&server, &format!("{}?drain_epoch=2", drain_of(target))).await;
    assert_eq!((another.status, another.code()), (412, "CDC:ErrDrainCaptureMismatch"));
    let off = calls.delete(&server, &format!("{}?drain_epoch=1&requester=me", drain_of(target))).await;
    assert_eq!((off.status, off.json), (200, json!({})));
    assert_eq!(liveness(&calls, &server, target).await, "Alive");
    assert_eq!(calls.get(&server, "/api/v2/drains").await.json["items"][0]["outcome"], "Cancelled");
    cluster.resume(target).await;
    until_status(&calls, Method::PUT, &server, &drain_of(target), 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_of_ticdc_is_never_told_0_while_the_coordinator_dies() {
    let (_etcd, mut cluster, calls) = on_etcd("killed").await;
    let owner = cluster.coordinator().await;
    let target = ["a", "b", "c"].into_iter().find(|id| *id != owner).unwrap();
    let mut tool = Tool::new(&calls, &cluster.url(target), target);
    // Its first step begins the drain, by way of the target, which then stands still.
    assert!(matches!(tool.step().await, Step::Left(1..)), "{:?}", tool.steps);
    cluster.suspend(target).await;
    cluster.kill(&owner);
    cluster.resume(target).await;
    assert_eq!(tool.run(PATIENCE).await, Ok(()));
    assert!(tool.steps.contains(&Step::Retry), "nobody coordinated for a while: {:?}", tool.steps);
    let survivor = cluster.coordinator().await;
    let history = calls.get(&cluster.url(&survivor), "/api/v2/drains").await.json;
    assert_eq!((&history["total"], &history["items"][0]["outcome"]), (&json!(1), &json!("Drained")), "{history}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_of_ticdc_rolls_a_whole_cluster() {
    let (_etcd, mut cluster, calls) = on_etcd("rolled").await;
    let owner = cluster.coordinator().await;
    // The owner first, which has to resign before.
    let mut order = ["a", "b", "c"];
    order.sort_by_key(|id| *id != owner);
    for id in order {
        let owns = cluster.coordinator().await == id;
        let mut tool = Tool::new(&calls, &cluster.url(id), id);
        assert_eq!(tool.run(PATIENCE).await, Ok(()));
        assert_eq!(tool.steps.contains(&Step::Resigned), owns, "{id}: {:?}", tool.steps);
        assert!(cluster.terminate(id).await.success(), "{id}");
        cluster.start(id);
        cluster.wait_for_captures(3).await;
        let server = cluster.url(id);
        let registered = wait_for(PATIENCE, "the new process", || async {
            (liveness(&calls, &server, id).await == "Alive").then_some(())
        });
        registered.await;
        wait_for(PATIENCE, "health", || async {
            (calls.get(&server, "/api/v1/health").await.status == 200).then_some(())
        })
        .await;
    }
    let history = calls.get(&cluster.url("a"), "/api/v2/drains").await.json;
    let outcomes: Vec<_> = history["items"].as_array().unwrap().iter().map(|end| end["outcome"].clone()).collect();
    assert_eq!(outcomes, ["Drained", "Drained", "Drained"], "{history}");
}
