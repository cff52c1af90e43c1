//! The `CaptureDrain` resource and the stages that reconcile it, pure: whoever runs them brings the cluster.
//!
//! `validate` (which capture is meant) → `plan` (what to do) → the caller acts → `status` (what came of it).

mod condition;
#[allow(unreachable_pub, reason = "the derive macro makes items of its own public")]
mod crd;
mod manifest;
mod plan;
mod status;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test")]
mod tests;
mod validate;

use crate::view::{CaptureView, DrainEndView, DrainView};

pub use self::{
    crd::{
        BlockedBy, CaptureDrain, CaptureDrainSpec, CaptureDrainStatus, ClusterKind, ClusterRef, LimitPolicy, Progress,
        Target, Work, crd_yaml,
    },
    manifest::{ManifestError, parse, to_yaml},
    plan::{Action, Plan, Stage, plan},
    status::{Outcome, ending, is_drained, is_finished, stalled, status},
    validate::{Aim, validate},
};

/// Why nothing is seen of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unseen {
    /// Nobody answers, or nobody who can.
    #[error("{0}")]
    Unreachable(String),
    /// Those who answer and this process do not trust each other.
    #[error("{0}")]
    Unauthorized(String),
}

impl Unseen {
    /// Of the condition `Stalled`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "ClusterUnreachable",
            Self::Unauthorized(_) => "Unauthorized",
        }
    }
}

/// What was seen of a cluster at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// Why nothing was seen; all else is empty then.
    pub unseen: Option<Unseen>,
    /// All registered captures.
    pub captures: Vec<CaptureView>,
    /// The drain that is on.
    pub drain: DrainView,
    /// Drains that have ended, oldest first.
    pub ends: Vec<DrainEndView>,
}
