//! Gathers what `check` judges of the eviction webhook: the configurations that there are, and what an eviction that is
//! only rehearsed comes to.

use axum::http::{Request, header};
use futures::future;
use k8s_openapi::api::{
    admissionregistration::v1::{MutatingWebhook, MutatingWebhookConfiguration},
    core::v1::{Namespace, Pod},
};
use kube::{Api, Client, ResourceExt as _, api::ListParams, client::Body};
use serde_json::json;

use super::{Trouble, facts::ServiceFacts};
use crate::operator::{member, rollout::Marks, webhook::WEBHOOK};

/// Of the webhook.
#[derive(Debug, Clone)]
pub struct HookFacts {
    /// Ours of each configuration, by the configuration's name.
    pub hooks: Result<Vec<(String, MutatingWebhook)>, Trouble>,
    /// The labels of the namespace; `None` when they may not be read.
    pub labels: Option<Marks>,
    /// What a rehearsed eviction of one pod of each Service came to.
    pub rehearsals: Vec<Rehearsal>,
}

/// An eviction that was rehearsed.
#[derive(Debug, Clone)]
pub struct Rehearsal {
    /// Of which pod.
    pub pod: String,
    /// Whether its labels say whose it is.
    pub is_marked: bool,
    /// The warnings that came back.
    pub warnings: Result<Vec<String>, Trouble>,
}

/// Gathers it.
pub(super) async fn facts(client: &Client, namespace: &str, services: &[ServiceFacts]) -> HookFacts {
    let configurations = Api::<MutatingWebhookConfiguration>::all(client.clone());
    let list = configurations.list(&ListParams::default()).await;
    let hooks = list.map_err(Trouble::reading("MutatingWebhookConfigurations")).map(|list| {
        let ours = |configuration: MutatingWebhookConfiguration| {
            let name = configuration.name_any();
            let hooks = configuration.webhooks.unwrap_or_default().into_iter();
            hooks.filter(|hook| hook.name == WEBHOOK).map(move |hook| (name.clone(), hook))
        };
        list.items.into_iter().flat_map(ours).collect()
    });
    let found = Api::<Namespace>::all(client.clone()).get_opt(namespace).await;
    let labels = found.ok().flatten().map(|namespace| namespace.labels().clone());
    let pods = services.iter().filter_map(|service| running(service.pods.as_deref().unwrap_or_default()));
    let rehearsals = future::join_all(pods.map(|pod| rehearse(client, namespace, pod))).await;
    HookFacts { hooks, labels, rehearsals }
}

/// The first pod that runs.
fn running(pods: &[Pod]) -> Option<&Pod> {
    let is_running = |pod: &&Pod| pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"));
    pods.iter().find(|pod| is_running(pod) && pod.metadata.deletion_timestamp.is_none())
}

async fn rehearse(client: &Client, namespace: &str, pod: &Pod) -> Rehearsal {
    let name = pod.name_any();
    let is_marked = member::cluster(pod.labels(), pod.annotations()).is_some();
    let warnings = evict(client, namespace, &name).await;
    Rehearsal { pod: name, is_marked, warnings }
}

/// Nothing happens, but for the answer.
async fn evict(client: &Client, namespace: &str, pod: &str) -> Result<Vec<String>, Trouble> {
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": pod, "namespace": namespace },
        "deleteOptions": { "dryRun": ["All"] },
    });
    let what = format!("the answer to a rehearsed eviction of pod {pod}");
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/eviction?dryRun=All");
    let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
    let request = request.body(Body::from(eviction.to_string().into_bytes()));
    let request = request.map_err(|error| Trouble::reading(&what)(kube::Error::HttpError(error)))?;
    let response = client.send(request).await.map_err(Trouble::reading(&what))?;
    let (parts, body) = response.into_parts();
    if !parts.status.is_success() {
        let bytes = body.collect_bytes().await.map_err(Trouble::reading(&what))?;
        let status = serde_json::from_slice(&bytes).unwrap_or_default();
        return Err(Trouble::reading(&what)(kube::Error::Api(Box::new(status))));
    }
    let warnings = parts.headers.get_all(header::WARNING).into_iter();
    Ok(warnings.filter_map(|warning| Some(warning.to_str().ok()?.to_owned())).collect())
}
