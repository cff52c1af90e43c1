//! What tests of the eviction webhook share: an operator that answers evictions of one namespace, and callers who evict.

use std::{net::TcpListener, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time;

use crate::{
    api_server::{self, SERVICE_ADDRESS, access::Access},
    shop::{Operator, Shop, wait_for},
};

/// The name of the webhook in its configuration.
const WEBHOOK: &str = "evictions.capturedrain.io";

/// What an eviction was answered.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    /// The status of a refusal; `Null` when it went well.
    pub(crate) status: Value,
}

impl Answer {
    pub(crate) fn message(&self) -> String {
        self.status["message"].as_str().unwrap_or_default().to_owned()
    }

    pub(crate) fn cause(&self) -> &str {
        self.status["details"]["causes"][0]["reason"].as_str().unwrap_or_default()
    }
}

/// Somebody evicts.
#[derive(Clone)]
pub(crate) struct Caller {
    client: Client,
    namespace: String,
}

impl Caller {
    pub(crate) async fn new(access: &Access, namespace: &str) -> Self {
        Self { client: access.client().await, namespace: namespace.to_owned() }
    }

    /// One attempt, with delete options as given.
    pub(crate) async fn evict_with(&self, pod: &str, options: Value, query: &str) -> Answer {
        let mut eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": self.namespace}});
        if !options.is_null() {
            eviction["deleteOptions"] = options;
        }
        let path = format!("/api/v1/namespaces/{}/pods/{pod}/eviction{query}", self.namespace);
        let request = axum::http::Request::post(path).header("Content-Type", "application/json");
        let request = request.body(eviction.to_string().into_bytes()).unwrap();
        match self.client.request_text(request).await {
            Ok(_) => Answer { code: 201, status: Value::Null },
            Err(kube::Error::Api(status)) => {
                Answer { code: status.code, status: serde_json::to_value(&*status).unwrap() }
            }
            Err(error) => panic!("{error}"),
        }
    }

    pub(crate) async fn evict(&self, pod: &str) -> Answer {
        self.evict_with(pod, Value::Null, "").await
    }

    /// Tries until it is answered so.
    pub(crate) async fn evict_until(&self, pod: &str, code: u16) -> Answer {
        wait_for(&format!("an eviction of {pod} to be answered {code}"), async || {
            let answer = self.evict(pod).await;
            (answer.code == code).then_some(answer)
        })
        .await
    }
}

/// Has the evictions of a namespace sent to a port of this host.
pub(crate) async fn configure(shop: &Shop, name: &str, port: u16, failure_policy: &str) {
    apply(shop, name, webhook(shop, port, failure_policy)).await;
}

/// A configuration with this webhook. Who is believed stays as it is.
async fn apply(shop: &Shop, name: &str, webhook: Value) {
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": name}, "webhooks": [webhook],
    });
    shop.apply(&configuration.to_string()).await;
}

fn webhook(shop: &Shop, port: u16, failure_policy: &str) -> Value {
    json!({
        "name": WEBHOOK,
        "admissionReviewVersions": ["v1"],
        "sideEffects": "NoneOnDryRun",
        "failurePolicy": failure_policy,
        "timeoutSeconds": 5,
        "clientConfig": {"url": format!("https://{SERVICE_ADDRESS}:{port}/evictions")},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods/eviction"], "scope": "Namespaced"}],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": shop.namespace}},
        "matchConditions": [{"name": "pods-of-captures", "expression": "request.name.matches('-[0-9]+$')"}],
    })
}

/// An operator that answers evictions.
pub(crate) struct Gate {
    pub(crate) operator: Operator,
    pub(crate) port: u16,
}

impl Gate {
    /// Starts one for a configuration, and waits for nothing.
    pub(crate) fn start(access: &Access, namespace: &str, configuration: &str, more: &[&str]) -> Self {
        let port = TcpListener::bind((SERVICE_ADDRESS, 0)).unwrap().local_addr().unwrap().port();
        Self::start_at(access, namespace, configuration, port, more)
    }

    pub(crate) fn start_at(access: &Access, namespace: &str, configuration: &str, port: u16, more: &[&str]) -> Self {
        let addr = format!("{SERVICE_ADDRESS}:{port}");
        let own = ["--webhook-addr", &addr, "--webhook-host", SERVICE_ADDRESS, "--webhook-name", configuration];
        let linger = if more.contains(&"--webhook-linger") { &[][..] } else { &["--webhook-linger", "1s"] };
        Self { operator: Operator::start(access, namespace, &[&own[..], linger, more].concat()), port }
    }

    pub(crate) async fn wait_until_ready(&self) {
        let mut last = None;
        let ready = async {
            loop {
                last = self.operator.get("/readyz").await;
                if last.as_ref().is_some_and(|(code, _)| *code == 200) {
                    return;
                }
                time::sleep(Duration::from_millis(50)).await;
            }
        };
        let met = time::timeout(crate::shop::PATIENCE, ready).await;
        assert!(met.is_ok(), "the webhook is not ready: {last:?}: {}", self.operator.log());
    }
}

/// Labels a pod as a capture's, and has it run as a kubelet would say.
pub(crate) async fn settle(shop: &Shop, pod: &str) {
    let pods: Api<Pod> = Api::namespaced(shop.admin.client().await, &shop.namespace);
    let labels = json!({"metadata": {"labels": {"capturedrain.io/service": "cdc", "app": "cdc"}}});
    pods.patch(pod, &PatchParams::default(), &Patch::Merge(labels)).await.unwrap();
    run(shop, pod).await;
}

/// Has a pod run, as a kubelet would say.
pub(crate) async fn run(shop: &Shop, pod: &str) {
    let pods: Api<Pod> = Api::namespaced(shop.admin.client().await, &shop.namespace);
    let ready = json!([{"type": "Ready", "status": "True"}]);
    let status = json!({"status": {"phase": "Running", "conditions": ready}});
    pods.patch_status(pod, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

/// A cluster, its operator with the webhook, and somebody who evicts.
pub(crate) async fn scene(stem: &str, tables: usize) -> (Shop, Gate, Caller) {
    scene_with(stem, tables, "3s", &[]).await
}

pub(crate) async fn scene_with(stem: &str, tables: usize, lease: &'static str, more: &[&str]) -> (Shop, Gate, Caller) {
    let shop = Shop::open_with(api_server::shared().await, stem, tables, lease).await;
    for pod in ["cdc-0", "cdc-1", "cdc-2"] {
        settle(&shop, pod).await;
    }
    let (gate, caller) = open(&shop, more).await;
    (shop, gate, caller)
}

/// An operator that answers evictions of a namespace, and somebody who evicts there.
pub(crate) async fn open(shop: &Shop, more: &[&str]) -> (Gate, Caller) {
    let gate = Gate::start(&shop.admin, &shop.namespace, &shop.namespace, more);
    configure(shop, &shop.namespace, gate.port, "Fail").await;
    gate.wait_until_ready().await;
    gate.operator.wait_until_leading().await;
    // A CRD that was just installed may take a while to take its first object.
    shop.reject(1).await;
    let caller = Caller::new(&shop.admin, &shop.namespace).await;
    // The configuration reaches the API server's memory a moment after it was written.
    wait_for("evictions to be sent", async || {
        let rehearsed = caller.evict_with("cdc-9", Value::Null, "?dryRun=All").await;
        assert_eq!(rehearsed.code, 404, "{rehearsed:?}");
        (gate.operator.metric("capturedrain_webhook_requests_total{decision=\"NoPod\"} ").await? > 0.0).then_some(())
    })
    .await;
    (gate, caller)
}

impl Shop {
    /// The drains of a pod, by name.
    pub(crate) async fn drains_of(&self, uid: &str) -> Vec<Value> {
        let selector = format!("capturedrain.io/pod-uid={uid}");
        let list = self.admin.kubectl_json(&["get", "cdrain", "-n", &self.namespace, "-l", &selector]).await;
        list["items"].as_array().unwrap().clone()
    }
}
