//! The custom resource: one object, one run.

#![allow(clippy::duplicated_attributes, reason = "columns of one type each name it")]
#![allow(clippy::doc_markdown, reason = "`kubectl explain` shows these comments as they are")]

use k8s_openapi::{
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::{CustomResource, CustomResourceExt as _, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rules;

/// What is to be drained, and within which limits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "capturedrain.io",
    version = "v1alpha1",
    kind = "CaptureDrain",
    plural = "capturedrains",
    shortname = "cdrain",
    category = "capturedrain",
    doc = "Empties a capture of a change-data-capture cluster before its pod goes away: maintainers move first, dispatchers \
           follow, and then the condition Drained is True. One object is one run. Deleting it withdraws the drain.",
    namespaced,
    status = "CaptureDrainStatus",
    derive = "PartialEq",
    printcolumn(json_path = ".spec.target.podName", name = "Pod", type_ = "string"),
    printcolumn(json_path = ".status.captureID", name = "Capture", type_ = "string", priority = 1),
    printcolumn(json_path = ".status.phase", name = "Phase", type_ = "string"),
    printcolumn(json_path = ".status.liveness", name = "Liveness", type_ = "string"),
    printcolumn(json_path = ".status.progress.remaining.maintainers", name = "Maintainers", type_ = "integer"),
    printcolumn(json_path = ".status.progress.remaining.dispatchers", name = "Dispatchers", type_ = "integer"),
    printcolumn(json_path = ".metadata.creationTimestamp", name = "Age", type_ = "date")
)]
#[x_kube(validation = Rule::new("self.onDeadline != 'Proceed' || has(self.deadlineSeconds)").message(rules::PROCEED))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CaptureDrainSpec {
    /// The cluster that the capture belongs to, reached through a Service of the same namespace. It cannot be changed.
    #[x_kube(
        validation = Rule::new("self == oldSelf").message("clusterRef cannot be changed: make a new CaptureDrain"),
        validation = Rule::new("!has(self.userSecretName) || self.kind == 'TiCDC'").message(rules::USER_KIND)
    )]
    pub cluster_ref: ClusterRef,
    /// The capture that is drained: write one of podName and captureID. It cannot be changed.
    #[x_kube(
        validation = Rule::new("self == oldSelf").message("target cannot be changed: make a new CaptureDrain"),
        validation = Rule::new("has(self.podName) != has(self.captureID)").message(rules::ONE_TARGET)
    )]
    pub target: Target,
    /// How long the drain may take, in seconds from its start: 1 to 31536000. onDeadline says what follows. Without it the
    /// drain takes as long as it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 31536000").message(rules::DEADLINE))]
    pub deadline_seconds: Option<i64>,
    /// After how many seconds without progress the drain counts as stalled: 1 to 31536000. A stalled drain goes on trying.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 31536000").message(rules::PROGRESS))]
    pub progress_deadline_seconds: Option<i64>,
    /// What follows when deadlineSeconds are over and work is left. Hold keeps the pod: the condition Stalled becomes True
    /// with the reason DeadlineHeld, and the drain goes on. Proceed lets the pod go with work left: the run ends with the
    /// reason DeadlineProceeded. Proceed needs deadlineSeconds.
    #[serde(default)]
    pub on_deadline: LimitPolicy,
    /// What follows when no other capture could take the work: at once when the drain is asked for; while it is on, after
    /// progressDeadlineSeconds, or 60 seconds without one. Hold keeps the pod until another capture is there. Proceed lets
    /// the pod go with work left: the run ends with the reason NoPeers.
    #[serde(default)]
    pub no_peers_policy: LimitPolicy,
    /// After how many seconds without a new attempt to evict the pod the drain is given up: 1 to 31536000. Without it the
    /// drain stays until it has ended or is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 31536000").message(rules::RELEASE))]
    pub release_after_seconds: Option<i64>,
    /// Why the capture is drained, for the history: at most 1024 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
    /// After how many seconds this object is deleted once it has finished: 0 to 31536000. Without it the object stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 0 && self <= 31536000").message(rules::TTL))]
    pub ttl_seconds_after_finished: Option<i64>,
}

/// How to reach the cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterRef {
    /// A Service of the same namespace, with the cluster's captures behind it. Its port is the one that is called
    /// capturedrain, grpc, ticdc or http, or its only one.
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message(rules::SERVICE_NAME))]
    pub service_name: String,
    /// What answers there. CaptureDrain is this project's coordinator, by gRPC. TiCDC is TiCDC's open API.
    #[serde(default)]
    pub kind: ClusterKind,
    /// A Secret of the same namespace with the CA of the cluster (ca.crt) and the client's certificate and key (tls.crt and
    /// tls.key). Without it the cluster is reached without TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new(SUBDOMAIN).message(rules::TLS_SECRET))]
    pub tls_secret_name: Option<String>,
    /// A Secret of the same namespace with user and password, for kind TiCDC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new(SUBDOMAIN).message(rules::USER_SECRET))]
    pub user_secret_name: Option<String>,
}

/// What pods and Secrets may be called, in CEL.
const SUBDOMAIN: &str = "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')";

/// What answers at a cluster's Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema)]
pub enum ClusterKind {
    /// This project's coordinator.
    #[default]
    CaptureDrain,
    /// `TiCDC`'s open API.
    #[serde(rename = "TiCDC")]
    TiCdc,
}

/// Which capture is meant: by exactly one of its pod and its name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Target {
    /// The pod of the same namespace that the capture runs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new(SUBDOMAIN).message(rules::POD_NAME))]
    pub pod_name: Option<String>,
    /// The capture's own name, for captures that are not in pods.
    #[serde(default, rename = "captureID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    #[x_kube(validation = Rule::new("self.matches('^[-_A-Za-z0-9][-_.A-Za-z0-9]*$')").message(rules::CAPTURE_ID))]
    pub capture_id: Option<String>,
    /// The UID of the capture's pod: another pod of the same name is not meant.
    #[serde(default, rename = "podUID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    #[x_kube(validation = Rule::new("self != ''").message(rules::POD_UID))]
    pub pod_uid: Option<String>,
}

impl Target {
    /// Whether a capture is meant, by its name or by that of its pod.
    pub fn names(&self, capture: &str, pod: Option<&str>) -> bool {
        self.capture_id.as_deref() == Some(capture) || self.pod_name.is_some() && self.pod_name.as_deref() == pod
    }
}

/// What follows when a limit is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum LimitPolicy {
    /// Hold the pod, and say so.
    #[default]
    Hold,
    /// Let the pod go with work left.
    Proceed,
}

/// How the run stands.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CaptureDrainStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One word for people, as Pending, Queued, Draining or Drained; programs read the conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// The capture that was found to be meant.
    #[serde(default, rename = "captureID", skip_serializing_if = "Option::is_none")]
    pub capture_id: Option<String>,
    /// Its pod's UID.
    #[serde(default, rename = "podUID", skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// The number of the capture's registration: a restart brings another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_epoch: Option<String>,
    /// The drain's number: a later drain has a higher one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<i64>,
    /// Alive while the capture works as always, Draining while work leaves it, Stopping once it is empty for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub liveness: Option<String>,
    /// The capture that coordinates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coordinator: Option<String>,
    /// Who asked for the drain, first to last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub requesters: Vec<String>,
    /// How much was there, how much is left, and how much is moving. An unknown number is absent, never 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// How many drains come first; 0 or absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_position: Option<i64>,
    /// What holds it up: another drain, or a limit that was met.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub blocked_by: Vec<BlockedBy>,
    /// When the drain began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When what is left last fell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_progress_time: Option<Time>,
    /// When the run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// Accepted: the target was found. Drained: it is proven empty. Reconciling: the drain goes on. Stalled: it does not go on
    /// by itself. Succeeded: how it ended. Finished: it has ended, in whatever way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// How much has left. An unknown number is absent, never 0.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// What was on the target when the drain began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial: Option<Work>,
    /// What is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining: Option<Work>,
    /// Moves on their way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<i64>,
}

/// How much work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Work {
    /// One a changefeed; absent while unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintainers: Option<i64>,
    /// One a table span; absent while unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dispatchers: Option<i64>,
}

/// What holds a drain up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BlockedBy {
    /// What it is.
    pub kind: String,
    /// Which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
}

impl BlockedBy {
    /// By this, since a moment that the status will tell.
    pub fn new(kind: &str, name: Option<String>) -> Self {
        Self { kind: kind.to_owned(), name, since: None }
    }
}

/// The custom resource definition, as YAML.
///
/// # Errors
/// When it cannot be written, which only a bug can bring about.
pub fn crd_yaml() -> Result<String, serde_yaml::ser::Error> {
    let crd: CustomResourceDefinition = CaptureDrain::crd();
    serde_yaml::to_string(&crd)
}
