//! What goes wrong around the operator: servers that restart, clusters that are gone, rights that are missing, answers that
//! are refused, others who write.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{Method, StatusCode},
    response::{IntoResponse as _, Response},
};
use futures::stream;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::TcpListener,
};

use crate::{
    api_server::{
        self, ApiServer, Setup,
        access::{Access, Credential},
    },
    operator::{scene, scene_with},
    shop::{Operator, Shop, condition, wait_for},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_goes_on_when_the_api_server_restarts() {
    let mut api = ApiServer::start().await;
    let shop = Shop::open_with(&api, "restart", 30, "30s").await;
    let operator = Operator::start(&shop.admin, &shop.namespace, &[]);
    operator.wait_until_leading().await;
    let target = shop.a_follower().await;
    shop.suspend(&target);
    shop.drain("x", &target, json!({})).await;
    let epoch = wait_for("a beginning", async || shop.status("x").await["epoch"].as_i64()).await;
    api.stop();
    shop.resume(&target);
    wait_for("the proof", async || (shop.json(&["history"]).await[0]["outcome"] == "Drained").then_some(())).await;
    api.start_again().await;
    let status = shop.wait_for_condition("x", "Drained", "True", "Proven").await;
    assert_eq!(status["epoch"], epoch, "{status:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_has_not_begun_or_is_over_is_deleted_at_once() {
    let (shop, _operator) = scene("at-once", 0).await;
    shop.make_pod("cdc-3").await;
    shop.drain("waits", "cdc-3", json!({})).await;
    shop.wait_for_condition("waits", "Accepted", "False", "NotACapture").await;
    let target = shop.a_follower().await;
    shop.drain_of("over", json!({"captureID": target}), json!({})).await;
    shop.wait_for_end("over", "CaptureStopping").await;
    for name in ["waits", "over"] {
        shop.kubectl(&["delete", "cdrain", name, "--timeout=20s"]).await;
        assert!(shop.object(name).await.is_none());
    }
    // What is proven is not taken back by the deletion of what has told it.
    assert_eq!(shop.capture(&target).await.unwrap()["liveness"], "Stopping");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_is_let_go_when_its_cluster_is_gone() {
    let (mut shop, operator) = going_on(api_server::shared().await, "gone").await;
    for pod in ["cdc-0", "cdc-1", "cdc-2"] {
        shop.kill(pod);
    }
    shop.kubectl(&["delete", "cdrain", "x", "--timeout=50s"]).await;
    assert!(shop.events("x").await.contains(&"FinalizerReleased".to_owned()), "{}", operator.log());
}

/// A drain that has begun and does not come along, and an operator that lets go of what cannot be called off after 3 s.
async fn going_on(api: &ApiServer, stem: &str) -> (Shop, Operator) {
    let shop = Shop::open_with(api, stem, 30, "30s").await;
    let more = ["--let-go-after", "3s", "--lease-name", &shop.namespace];
    let operator = Operator::start_elsewhere(&shop.admin, &shop.namespace, "default", &more);
    operator.wait_until_leading().await;
    let target = shop.a_follower().await;
    shop.suspend(&target);
    shop.drain("x", &target, json!({})).await;
    wait_for("a beginning", async || shop.status("x").await["epoch"].as_i64()).await;
    (shop, operator)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_ends_with_a_drain_on() {
    let api = ApiServer::start_with(Setup { controllers: true, ..Setup::default() }).await;
    for is_reachable in [true, false] {
        let (mut shop, operator) = going_on(&api, "ending").await;
        if !is_reachable {
            for pod in ["cdc-0", "cdc-1", "cdc-2"] {
                shop.kill(pod);
            }
        }
        let said = shop.admin.kubectl(&["delete", "namespace", &shop.namespace, "--timeout=100s"]).await;
        assert_eq!(said.code, 0, "{}{}\n{}", said.stderr, api.log("kube-controller-manager"), operator.log());
        if is_reachable {
            // It was called off, and not lost.
            assert_eq!(shop.json(&["history"]).await[0]["outcome"], "Cancelled", "{}", operator.log());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_somebody_else_wrote_is_set_right() {
    let (shop, _operator) = scene("meddled", 0).await;
    let target = shop.a_follower().await;
    shop.drain("x", &target, json!({})).await;
    shop.wait_for_condition("x", "Drained", "True", "NothingToDrain").await;
    shop.patch_status("x", &json!({"status": {"phase": "Nonsense", "conditions": null, "liveness": "Alive"}})).await;
    let status = shop.wait_for_condition("x", "Drained", "True", "NothingToDrain").await;
    assert_eq!((status["phase"].as_str(), status["liveness"].as_str()), (Some("Drained"), Some("Stopping")));
    // An epoch of its own invention gets no proof: the cluster is asked again.
    shop.patch_status("x", &json!({"status": {"epoch": 77, "conditions": null}})).await;
    let status = shop.wait_for_condition("x", "Drained", "True", "NothingToDrain").await;
    assert_eq!(status["epoch"], 1, "{status:#}");
}

/// A server in front of the API server which refuses a share of the calls that change something.
async fn moody(api: &ApiServer) -> (Access, tokio::process::Child) {
    let mut command = api.admin().kubectl_command(&["proxy", "--port=0"]);
    let mut proxy = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(proxy.stdout.take().unwrap()).read_line(&mut line).await.unwrap();
    let behind = format!("http://{}", line.trim().rsplit(' ').next().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mood = Arc::new((behind, reqwest::Client::new(), std::sync::atomic::AtomicU64::new(0)));
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(pass).with_state(mood)).await });
    let file = std::path::PathBuf::from(api.file("moody.kubeconfig"));
    (Access::write(file, &url, "", &Credential::Token("any".to_owned())), proxy)
}

type Mood = Arc<(String, reqwest::Client, std::sync::atomic::AtomicU64)>;

async fn pass(State(mood): State<Mood>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let turn = mood.2.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    // Mixed, since one in turn can hit the same call of a sequence each time.
    let refusal = match (turn.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) % 4 {
        0 => Some((StatusCode::TOO_MANY_REQUESTS, "TooManyRequests")),
        1 if parts.method != Method::GET => Some((StatusCode::CONFLICT, "Conflict")),
        _ => None,
    };
    if let Some((code, reason)) = refusal {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "not now",
            "reason": reason, "code": code.as_u16(),
        });
        return (code, axum::Json(status)).into_response();
    }
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut call = mood.1.request(parts.method, format!("{}{path}", mood.0)).body(body);
    for name in ["content-type", "accept"] {
        if let Some(value) = parts.headers.get(name) {
            call = call.header(name, value);
        }
    }
    let Ok(answer) = call.send().await else { return StatusCode::BAD_GATEWAY.into_response() };
    let (status, kind) = (answer.status(), answer.headers().get("content-type").cloned());
    let chunks = stream::unfold(answer, |mut answer| async {
        let chunk = answer.chunk().await.transpose()?;
        Some((chunk, answer))
    });
    let mut response = Response::new(Body::from_stream(chunks));
    *response.status_mut() = status;
    if let Some(kind) = kind {
        response.headers_mut().insert("content-type", kind);
    }
    response
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_calls_are_made_again() {
    let api = api_server::shared().await;
    let mut shop = Shop::open(api, "moody", 20).await;
    let (access, _proxy) = moody(api).await;
    let operator = Operator::start(&access, &shop.namespace, &[]);
    let leads = tokio::time::timeout(std::time::Duration::from_secs(55), operator.wait_until_leading()).await;
    assert!(leads.is_ok(), "{}", operator.log());
    let target = shop.a_follower().await;
    shop.drain("x", &target, json!({})).await;
    shop.wait_for_condition("x", "Drained", "True", "Proven").await;
    shop.delete_pod(&target).await;
    shop.wait_for_end("x", "PodGone").await;
    assert_eq!(shop.json(&["history"]).await.as_array().unwrap().len(), 1, "{}", operator.log());
}

/// Everything that the operator may do: group, resource, verb.
const RIGHTS: [(&str, &str, &str); 17] = [
    ("capturedrain.io", "capturedrains", "list"),
    ("capturedrain.io", "capturedrains", "watch"),
    ("capturedrain.io", "capturedrains", "patch"),
    ("capturedrain.io", "capturedrains", "get"),
    ("capturedrain.io", "capturedrains", "delete"),
    ("capturedrain.io", "capturedrains/status", "patch"),
    ("", "services", "get"),
    ("", "secrets", "get"),
    ("discovery.k8s.io", "endpointslices", "list"),
    ("", "pods", "list"),
    ("", "pods", "watch"),
    ("events.k8s.io", "events", "create"),
    ("events.k8s.io", "events", "patch"),
    ("coordination.k8s.io", "leases", "get"),
    ("coordination.k8s.io", "leases", "create"),
    ("coordination.k8s.io", "leases", "patch"),
    ("coordination.k8s.io", "leases", "update"),
];

/// Grants everything but one thing.
pub(crate) async fn grant(shop: &Shop, account: &str, without: Option<usize>) {
    let rules: Vec<_> = (0..RIGHTS.len())
        .filter(|right| Some(*right) != without)
        .map(|right| {
            let (group, resource, verb) = RIGHTS[right];
            json!({"apiGroups": [group], "resources": [resource], "verbs": [verb]})
        })
        .collect();
    let meta = json!({"name": account, "namespace": shop.namespace});
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": meta, "rules": rules});
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": meta,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": shop.namespace}],
    });
    for object in [role, binding] {
        shop.apply(&object.to_string()).await;
    }
}

/// Where a missing right shows.
enum Sign {
    /// In the condition `Stalled`, by this reason.
    Condition(&'static str),
    /// In the log and in `/readyz`, as something that cannot be watched.
    Watch(&'static str),
    /// In a line of the log.
    Log(&'static str),
    /// Nowhere: it is needed in rare cases only.
    Nowhere,
}

fn sign((_, resource, verb): (&str, &str, &str)) -> Sign {
    match (resource, verb) {
        ("capturedrains", "list" | "watch") => Sign::Watch("capturedrains"),
        ("pods", "list" | "watch") => Sign::Watch("pods"),
        ("capturedrains", "patch") => Sign::Log("cannot write the finalizer of"),
        ("capturedrains/status", "patch") => Sign::Log("cannot write the status of"),
        ("capturedrains", "delete") => Sign::Log("cannot delete"),
        ("services" | "endpointslices" | "secrets", _) => Sign::Condition("Unauthorized"),
        ("events", "create") => Sign::Log("an event was refused"),
        ("leases", "get" | "create" | "patch") => Sign::Log("lease"),
        _ => Sign::Nowhere,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_missing_right_is_told_and_none_ends_the_operator() {
    let api = api_server::shared().await;
    let shop = Shop::open(api, "rights", 0).await;
    let target = shop.a_follower().await;
    for (without, right) in RIGHTS.into_iter().enumerate() {
        let account = format!("without-{without}");
        let access = api.service_account(&shop.namespace, &account).await;
        grant(&shop, &account, Some(without)).await;
        let name = format!("x-{without}");
        let tls = right.1 == "secrets";
        let mut spec = json!({"ttlSecondsAfterFinished": 0});
        if tls {
            spec["clusterRef"] = json!({"serviceName": "cdc", "tlsSecretName": "none"});
        }
        shop.drain_of(&name, json!({"captureID": target}), spec).await;
        let lease = ["--lease-name", &account];
        let operator = Operator::start(&access, &shop.namespace, &lease);
        let told = async || match sign(right) {
            Sign::Condition(reason) => (condition(&shop.status(&name).await, "Stalled")
                == ("True".to_owned(), reason.to_owned()))
                .then_some(()),
            Sign::Watch(what) => {
                let (code, said) = operator.get("/readyz").await?;
                let logged = operator.log().contains("cannot be watched");
                (code == 503 && logged && said.contains(&format!("{what} cannot be watched"))).then_some(())
            }
            Sign::Log(words) => {
                let log = operator.log();
                log.lines().any(|line| line.contains(words) && line.contains("forbidden")).then_some(())
            }
            Sign::Nowhere => operator.get("/healthz").await.map(drop),
        };
        wait_for(&format!("a sign of the missing {right:?}: {}", operator.log()), told).await;
        assert_eq!(operator.get("/healthz").await.unwrap().0, 200, "it still runs");
        let rounds = operator.log().lines().filter(|line| line.contains("WARN")).count();
        assert!(rounds < 30, "it says so too often: {}", operator.log());
        drop(operator);
        let patch = json!({"metadata": {"finalizers": null}}).to_string();
        let freed = ["patch", "cdrain", &name, "-n", &shop.namespace, "--type=merge", "-p", &patch];
        let _ = shop.admin.kubectl(&freed).await;
        let _ = shop.admin.kubectl(&["delete", "cdrain", &name, "-n", &shop.namespace, "--ignore-not-found"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_cannot_be_found_is_told_with_what_is_missing() {
    let (shop, _operator) = scene_with("missing", 0, "3s").await;
    let check = async |name: &str, cluster: Value, reason: &str, words: &str| {
        shop.drain_of(name, json!({"captureID": "cdc-0"}), json!({ "clusterRef": cluster })).await;
        let status = shop.wait_for_condition(name, "Stalled", "True", reason).await;
        let stalled =
            status["conditions"].as_array().unwrap().iter().find(|is| is["type"] == "Stalled").unwrap().clone();
        assert!(stalled["message"].as_str().unwrap().contains(words), "{stalled:#}");
    };
    check("a", json!({"serviceName": "nobody"}), "ClusterUnreachable", "there is no Service nobody").await;
    let lonely = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "lonely"},
        "spec": {"clusterIP": "None", "ports": [{"port": 1}]},
    });
    shop.apply(&lonely.to_string()).await;
    check("b", json!({"serviceName": "lonely"}), "ClusterUnreachable", "no pod is behind Service lonely").await;
    let secret = json!({"serviceName": "cdc", "tlsSecretName": "none"});
    check("c", secret, "Unauthorized", "there is no Secret").await;
    // A deleted one is let go at once, since nothing was begun.
    shop.kubectl(&["delete", "cdrain", "a", "--timeout=20s"]).await;
}
