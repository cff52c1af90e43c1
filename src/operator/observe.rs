//! Stage 1, observe: what a round sees of the cluster, and of what surrounds it.

use capturedrain_core::model::CaptureId;
use jiff::Timestamp;

use crate::{
    resource::BlockedBy,
    view::{CaptureView, DrainEndView, DrainView, HookReportView},
};

/// Why nothing is seen of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unseen {
    /// Nobody answers, or nobody who can.
    #[error("{0}")]
    Unreachable(String),
    /// Those who answer and this process do not trust each other, or what is needed to reach them may not be read.
    #[error("{0}")]
    Unauthorized(String),
    /// It answers, and cannot drain.
    #[error("{0}")]
    Unsupported(String),
}

impl Unseen {
    /// Of the condition `Stalled`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "ClusterUnreachable",
            Self::Unauthorized(_) => "Unauthorized",
            Self::Unsupported(_) => "DrainUnsupported",
        }
    }
}

/// What a cluster says of itself at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cluster {
    /// All registered captures.
    pub captures: Vec<CaptureView>,
    /// The drain that is on.
    pub drain: DrainView,
    /// Drains that have ended, oldest first; read after the rest.
    pub ends: Vec<DrainEndView>,
    /// How hooks of pods have ended lately, the latest last.
    pub hook_reports: Vec<HookReportView>,
}

/// The pod that is meant, as Kubernetes has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PodSeen {
    /// Nobody was asked: there is no Kubernetes, or a capture is meant and not a pod.
    #[default]
    Unasked,
    /// There is no pod of this name.
    Missing,
    /// There is one.
    There(Pod),
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pod {
    /// Its UID.
    pub uid: String,
    /// Its addresses.
    pub ips: Vec<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Whether it is being deleted.
    pub is_deleting: bool,
}

/// What surrounds a drain; nothing when there is no Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Surroundings {
    /// The pod that is meant.
    pub pod: PodSeen,
    /// What comes first, the next one first: other `CaptureDrain`s of the same cluster, and pods that are to come back.
    pub ahead: Vec<BlockedBy>,
    /// A rollout of somebody else's that must not be disturbed.
    pub rollout: Option<BlockedBy>,
    /// Captures that should rather not get the work.
    pub avoid: Vec<CaptureId>,
    /// Which of them the cluster was told last; `None` while it was told nothing.
    pub avoid_told: Option<Vec<CaptureId>>,
}

/// What one round sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// When.
    pub now: Timestamp,
    /// The cluster, or why nothing is seen of it.
    pub cluster: Result<Cluster, Unseen>,
    /// What surrounds the drain.
    pub around: Surroundings,
}

impl Observed {
    /// A cluster without surroundings.
    pub fn now(cluster: Result<Cluster, Unseen>) -> Self {
        Self { now: Timestamp::now(), cluster, around: Surroundings::default() }
    }
}
