//! What is known when an eviction is decided.

use std::sync::Arc;

use jiff::Timestamp;

use super::asked::Asked;
use crate::{
    operator::{
        member,
        observe::{Cluster, Pod, Unseen},
        rollout::Marks,
    },
    resource::{CaptureDrain, ClusterRef},
};

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

impl PodFacts {
    /// The cluster that its capture belongs to; `None`: it is no capture's.
    pub fn cluster(&self) -> Option<ClusterRef> {
        member::cluster(&self.labels, &self.annotations)
    }
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
    /// Why a budget would have the eviction refused anyway.
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
    /// Whether its node would not take it again; `None` while nobody has looked.
    pub is_node_closed: Option<bool>,
    /// The drains of the namespace that name this pod, or did name one of its name.
    pub drains: Vec<Arc<CaptureDrain>>,
    /// What its cluster says at this moment; `None` while nobody has asked.
    pub cluster: Option<Result<Cluster, Unseen>>,
    /// What stands in the way; `None` while nobody has looked.
    pub obstacles: Option<Obstacles>,
}
