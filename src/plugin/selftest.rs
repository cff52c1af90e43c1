//! Whether an operator that was just installed does its work, seen from inside the cluster: its webhook is called as the API
//! server would call it.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        admissionregistration::v1::{MutatingWebhook, MutatingWebhookConfiguration},
        coordination::v1::Lease,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, Client, CustomResourceExt as _};
use serde_json::{Value, json};

use super::{
    Trouble,
    facts::is_served,
    findings::{Fault, Finding, Level, crd, operator},
    trouble::innermost,
};
use crate::{
    operator::controller::namespaced,
    resource::CaptureDrain,
    tls::{Current, Dialer, Pem, distrust},
};

/// How long the webhook may take: as long as the API server waits for one by default.
const PATIENCE: Duration = Duration::from_secs(10);
/// The port of a Service when a webhook names none.
const PORT: i32 = 443;
/// Whom the webhook is asked about, and by whom: a pod that is nowhere.
const NOBODY: &str = "capturedrain-selftest";

/// What is looked at.
#[derive(Debug, Clone)]
pub struct SelfTest {
    /// Where the operator's Lease is, and what it is called.
    pub lease: (String, String),
    /// The name of its `MutatingWebhookConfiguration`; `None`: it has none.
    pub webhook: Option<String>,
}

/// Looks once, and says what it is like.
pub async fn selftest(client: &Client, wanted: &SelfTest) -> Vec<Finding> {
    let crds = Api::<CustomResourceDefinition>::all(client.clone());
    let found = crds.get(CaptureDrain::crd_name()).await.map_err(Trouble::reading("the CRD"));
    let (namespace, name) = &wanted.lease;
    let lease = namespaced::<Lease>(client, Some(namespace)).get_opt(name).await;
    let leases = lease.map(|lease| lease.into_iter().collect()).map_err(Trouble::reading(&format!("Lease {name}")));
    let served = is_served(client).await;
    let mut findings = vec![
        seen(crd(&served, &found), served.as_ref().err().or(found.as_ref().err())),
        seen(operator(&leases, Timestamp::now()), leases.as_ref().err()),
    ];
    if let Some(name) = &wanted.webhook {
        findings.extend(webhooks(client, name, namespace).await);
    }
    findings
}

/// From inside everything is to be seen: what is not is a failure.
fn seen(finding: Finding, trouble: Option<&Trouble>) -> Finding {
    match trouble {
        Some(trouble) if finding.level == Level::Skipped => {
            Finding { level: Level::Failure(trouble.fault()), ..finding }
        }
        _ => finding,
    }
}

fn finding(fault: Fault, message: impl Into<String>) -> Finding {
    Finding::new("webhook", Level::Failure(fault), message)
}

async fn webhooks(client: &Client, name: &str, namespace: &str) -> Vec<Finding> {
    let what = format!("MutatingWebhookConfiguration {name}");
    let configs = Api::<MutatingWebhookConfiguration>::all(client.clone());
    let config = match configs.get(name).await.map_err(Trouble::reading(&what)) {
        Ok(config) => config,
        Err(trouble) => return vec![finding(trouble.fault(), trouble.to_string())],
    };
    let webhooks = config.webhooks.unwrap_or_default();
    if webhooks.is_empty() {
        return vec![finding(Fault::NotFound, format!("{what} has no webhooks"))];
    }
    let mut findings = Vec::new();
    for webhook in &webhooks {
        findings.push(call(webhook, namespace).await.unwrap_or_else(|finding| finding));
    }
    findings
}

/// Calls a webhook. A finding of what is wrong is an error here.
async fn call(webhook: &MutatingWebhook, namespace: &str) -> Result<Finding, Finding> {
    let name = &webhook.name;
    let Some(bundle) = webhook.client_config.ca_bundle.clone().filter(|bundle| !bundle.0.is_empty()) else {
        let message = format!("{name} has no caBundle: the operator fills it in, its log says why it has not");
        return Err(finding(Fault::Environment, message));
    };
    let url = url(webhook).ok_or_else(|| finding(Fault::Environment, format!("{name} names no Service")))?;
    let pem = Pem { ca: Some(bundle.0), identity: None };
    let believed = Current::of_pem(&format!("the caBundle of {name}"), pem);
    let believed = believed.map_err(|error| finding(Fault::Environment, error.to_string()))?;
    let review = review(namespace);
    let uid = review["request"]["uid"].clone();
    let asked = Dialer::secure(believed).http().post(&url).json(&review).timeout(PATIENCE).send().await;
    let answer = asked.map_err(|error| match distrust(&error) {
        Some(why) => finding(Fault::Unauthorised, format!("{url} is not believed by the caBundle of {name}: {why}")),
        None => finding(Fault::Unreachable, format!("{url} does not answer: {}", innermost(&error))),
    })?;
    let status = answer.status();
    let answer = answer.json::<Value>().await.unwrap_or_default();
    if answer["response"]["uid"] != uid || uid.is_null() {
        return Err(finding(Fault::Environment, format!("{url} answers {status}, and not as a webhook does")));
    }
    if answer["response"]["allowed"] != true {
        let why = answer["response"]["status"]["message"].as_str().unwrap_or("no reason");
        return Err(finding(Fault::Environment, format!("{name} denies the eviction of a pod that is nowhere: {why}")));
    }
    Ok(Finding::new("webhook", Level::Ok, format!("{name} answers, and its caBundle is who signs for it")))
}

fn url(webhook: &MutatingWebhook) -> Option<String> {
    let config = &webhook.client_config;
    let of_service = config.service.as_ref().map(|service| {
        let path = service.path.as_deref().unwrap_or_default().trim_start_matches('/');
        let port = service.port.unwrap_or(PORT);
        format!("https://{}.{}.svc:{port}/{path}", service.name, service.namespace)
    });
    of_service.or_else(|| config.url.clone())
}

/// The eviction of a pod that is nowhere, for show.
fn review(namespace: &str) -> Value {
    let of = |group: &str, kind: &str| json!({"group": group, "version": "v1", "kind": kind});
    let pods = json!({"group": "", "version": "v1", "resource": "pods"});
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": NOBODY, "operation": "CREATE", "dryRun": true, "name": NOBODY, "namespace": namespace,
            "kind": of("policy", "Eviction"), "requestKind": of("policy", "Eviction"),
            "resource": pods, "requestResource": pods, "subResource": "eviction", "requestSubResource": "eviction",
            "userInfo": {"username": NOBODY},
            "object": {
                "apiVersion": "policy/v1", "kind": "Eviction",
                "metadata": {"name": NOBODY, "namespace": namespace},
                "deleteOptions": {"dryRun": ["All"]},
            },
        },
    })
}
