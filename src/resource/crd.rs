//! The custom resource: one object, one run.

#![allow(clippy::duplicated_attributes, reason = "columns of one type each name it")]

use k8s_openapi::{
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::{CustomResource, CustomResourceExt as _, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Empties a capture of a change-data-capture cluster before its pod goes away.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "capturedrain.io",
    version = "v1alpha1",
    kind = "CaptureDrain",
    plural = "capturedrains",
    shortname = "cdrain",
    namespaced,
    status = "CaptureDrainStatus",
    derive = "PartialEq",
    printcolumn(json_path = ".spec.target.podName", name = "Pod", type_ = "string"),
    printcolumn(json_path = ".status.phase", name = "Phase", type_ = "string"),
    printcolumn(json_path = ".status.liveness", name = "Liveness", type_ = "string"),
    printcolumn(json_path = ".status.progress.remaining.maintainers", name = "Maintainers", type_ = "integer"),
    printcolumn(json_path = ".status.progress.remaining.dispatchers", name = "Dispatchers", type_ = "integer"),
    printcolumn(json_path = ".metadata.creationTimestamp", name = "Age", type_ = "date")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CaptureDrainSpec {
    /// The cluster, reached through a Service of the same namespace.
    #[x_kube(validation = Rule::new("self == oldSelf").message("clusterRef cannot be changed: make a new CaptureDrain"))]
    pub cluster_ref: ClusterRef,
    /// The capture that is emptied.
    #[x_kube(
        validation = Rule::new("self == oldSelf").message("target cannot be changed: make a new CaptureDrain"),
        validation = Rule::new("has(self.podName) != has(self.captureID)").message("write exactly one of target.podName and target.captureID")
    )]
    pub target: Target,
    /// How long the drain may take, counted from its start, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self > 0").message("deadlineSeconds has to be above 0"))]
    pub deadline_seconds: Option<i64>,
    /// After how long without progress the drain counts as stalled, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self > 0").message("progressDeadlineSeconds has to be above 0"))]
    pub progress_deadline_seconds: Option<i64>,
    /// What follows the deadline.
    #[serde(default)]
    pub on_deadline: LimitPolicy,
    /// What follows when no other capture could take the work: at once when the drain is asked for; while it is on, after
    /// progressDeadlineSeconds, or 60 seconds without one.
    #[serde(default)]
    pub no_peers_policy: LimitPolicy,
    /// After how long without a new attempt at eviction the drain is given up, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self > 0").message("releaseAfterSeconds has to be above 0"))]
    pub release_after_seconds: Option<i64>,
    /// Why, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
    /// After how long this object is deleted once it has finished, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 0").message("ttlSecondsAfterFinished cannot be negative"))]
    pub ttl_seconds_after_finished: Option<i64>,
}

/// How to reach the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterRef {
    /// A Service of the same namespace.
    #[schemars(length(min = 1, max = 253))]
    pub service_name: String,
    /// What answers there.
    #[serde(default)]
    pub kind: ClusterKind,
    /// A Secret of the same namespace with the client's certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_secret_name: Option<String>,
    /// A Secret of the same namespace with user and password (`TiCDC`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_secret_name: Option<String>,
}

/// What answers at a cluster's Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum ClusterKind {
    /// This project's coordinator.
    #[default]
    CaptureDrain,
    /// `TiCDC`'s open API.
    #[serde(rename = "TiCDC")]
    TiCdc,
}

/// Which capture is meant: by exactly one of its pod and its name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Target {
    /// Its pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub pod_name: Option<String>,
    /// Its name.
    #[serde(default, rename = "captureID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub capture_id: Option<String>,
    /// The UID of its pod: another pod of the same name is not meant.
    #[serde(default, rename = "podUID", skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
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
    /// One word for people; programs read the conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// The capture that was found to be meant.
    #[serde(default, rename = "captureID", skip_serializing_if = "Option::is_none")]
    pub capture_id: Option<String>,
    /// Its pod's UID.
    #[serde(default, rename = "podUID", skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// Its registration's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_epoch: Option<String>,
    /// The drain's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<i64>,
    /// `Alive`, `Draining` or `Stopping`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub liveness: Option<String>,
    /// The capture that coordinates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coordinator: Option<String>,
    /// Who asked for the drain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requesters: Vec<String>,
    /// What is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// How many drains come first; 0 or absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_position: Option<i64>,
    /// What holds it up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
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
    /// `Accepted`, `Drained`, `Reconciling`, `Stalled`, `Succeeded`, `Finished`.
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
