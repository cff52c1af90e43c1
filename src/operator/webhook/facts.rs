//! What is known when an eviction is decided, and whose a pod is.

use std::sync::Arc;

use jiff::Timestamp;

use super::asked::Asked;
use crate::{
    operator::{
        observe::{Cluster, Pod, Unseen},
        rollout::{LABELS_V1, Marks, manager},
    },
    resource::{CaptureDrain, ClusterKind, ClusterRef},
};

/// The label of a capture's pod: the Service of its cluster.
pub const SERVICE: &str = "capturedrain.io/service";
/// The annotation of a capture's pod that names the Secret with which its cluster is called over TLS.
pub const TLS_SECRET: &str = "capturedrain.io/tls-secret-name";
/// The annotation of a pod of `TiCDC` that names the Secret with user and password.
pub const USER_SECRET: &str = "capturedrain.io/user-secret-name";
/// The annotation of a pod that may go at once, when it is `true`.
pub const BREAK_GLASS: &str = "capturedrain.io/break-glass";

/// A pod, as far as it matters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// Which it is.
    pub pod: Pod,
    /// Its labels, at least those that say whose it is.
    pub labels: Marks,
    /// Its annotations, likewise.
    pub annotations: Marks,
    /// `Pending`, `Running`, `Succeeded` or `Failed`.
    pub phase: String,
    /// Where it runs.
    pub node: Option<String>,
}

/// A pod, and how fresh that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// From memory, which may lag.
    Cached(Option<PodFacts>),
    /// Read for this request.
    Live(Option<PodFacts>),
}

impl Seen {
    /// The pod, if there is one.
    pub fn pod(&self) -> Option<&PodFacts> {
        match self {
            Self::Cached(pod) | Self::Live(pod) => pod.as_ref(),
        }
    }

    /// Whether it was read for this request.
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Live(_))
    }
}

/// What stands in the way of a drain that is to begin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Obstacles {
    /// The budget that would refuse the eviction anyway.
    pub budget: Option<String>,
    /// The drain of this pod that a person has withdrawn.
    pub withdrawn: Option<String>,
}

/// What is known.
#[derive(Debug, Clone)]
pub struct Facts {
    /// When.
    pub now: Timestamp,
    /// What is asked for.
    pub asked: Asked,
    /// The pod.
    pub pod: Seen,
    /// Whether its node is cordoned; `None` when that is not known, or it is on none.
    pub is_cordoned: Option<bool>,
    /// The drains of the namespace that name this pod, or did name one of its name.
    pub drains: Vec<Arc<CaptureDrain>>,
    /// What its cluster says at this moment; `None` while nobody has asked.
    pub cluster: Option<Result<Cluster, Unseen>>,
    /// What stands in the way; `None` while nobody has looked.
    pub obstacles: Option<Obstacles>,
}

/// The cluster that a pod's capture belongs to; `None`: it is no capture's.
pub fn whose(pod: &PodFacts) -> Option<ClusterRef> {
    let service = pod.labels.get(SERVICE).filter(|name| !name.is_empty()).cloned();
    let managed = manager(&pod.labels).and_then(|by| by.name);
    let kind = if managed.is_some() { ClusterKind::TiCdc } else { ClusterKind::CaptureDrain };
    let name = service.or_else(|| managed.map(|name| format!("{name}-{}-peer", LABELS_V1[1].1)))?;
    let named = |key: &str| pod.annotations.get(key).filter(|name| !name.is_empty()).cloned();
    Some(ClusterRef {
        service_name: name,
        kind,
        tls_secret_name: named(TLS_SECRET),
        user_secret_name: named(USER_SECRET).filter(|_| kind == ClusterKind::TiCdc),
    })
}
