//! The `CaptureDrain` resource: the type, its manifests, and how it is read.

mod condition;
#[allow(unreachable_pub, reason = "the derive macro makes items of its own public")]
mod crd;
mod manifest;
mod rules;

pub use self::{
    condition::{ACCEPTED, Conditions, DRAINED, FINISHED, RECONCILING, STALLED, SUCCEEDED, find, is_true},
    crd::{
        BlockedBy, CaptureDrain, CaptureDrainSpec, CaptureDrainStatus, ClusterKind, ClusterRef, LimitPolicy, Progress,
        Target, Work, crd_yaml,
    },
    manifest::{ManifestError, parse, to_yaml},
};

/// Whether the run has ended.
pub fn is_finished(drain: &CaptureDrain) -> bool {
    drain.status.as_ref().is_some_and(|status| is_true(&status.conditions, FINISHED))
}

/// Whether the target is proven empty.
pub fn is_drained(drain: &CaptureDrain) -> bool {
    drain.status.as_ref().is_some_and(|status| is_true(&status.conditions, DRAINED))
}

/// Why the run ended, once it has.
pub fn ending(drain: &CaptureDrain) -> Option<&str> {
    reason(drain, FINISHED)
}

/// Why it will not go on by itself, when it will not.
pub fn stalled(drain: &CaptureDrain) -> Option<&str> {
    reason(drain, STALLED)
}

/// The reason of a condition that is `True`.
fn reason<'a>(drain: &'a CaptureDrain, kind: &str) -> Option<&'a str> {
    let status = drain.status.as_ref()?;
    find(&status.conditions, kind).filter(|found| found.status == "True").map(|found| found.reason.as_str())
}
