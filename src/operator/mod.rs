//! Turns a `CaptureDrain` into a drain of the cluster that it names, stage by stage:
//!
//! [`observe`] (what is there) → [`validate`](mod@validate) (which capture is meant) → [`plan`](mod@plan) (what to do) →
//! [`apply`](mod@apply) (do it) → [`status`](mod@status) (what came of it). The second, third and fifth are pure.
//! A cluster is reached through a [`backend`]. What an eviction is answered is decided in [`webhook`], with which
//! certificate in [`certificates`].

pub mod apply;
pub mod avoid;
pub mod backend;
pub mod certificates;
pub mod controller;
pub mod due;
pub mod event;
pub mod leaving;
pub mod member;
pub mod observe;
pub mod plan;
pub mod queue;
pub mod rollout;
pub mod status;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test")]
mod tests;
pub mod validate;
pub mod webhook;

use self::{apply::apply, backend::Backend, observe::Observed, plan::plan, status::status, validate::validate};
use crate::resource::CaptureDrain;

/// The annotation that says when somebody last tried to evict the pod, RFC 3339.
pub const ATTEMPTED_AT: &str = "capturedrain.io/eviction-attempted-at";
/// The annotation of a drain that is deleted because the operator is being removed.
pub const UNINSTALLED: &str = "capturedrain.io/uninstalled";

/// One round without Kubernetes: what came of it is in the status.
pub async fn reconcile(backend: &dyn Backend, drain: &mut CaptureDrain) {
    let cluster = backend.look().await;
    let observed = Observed::now(cluster);
    let aim = validate(drain, &observed);
    let plan = plan(drain, &aim, &observed);
    let outcome = apply(backend, &plan.action).await;
    drain.status = Some(status(drain, &aim, &plan, &outcome, &observed));
}
