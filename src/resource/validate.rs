//! Which capture is meant, and whether it still is the one that was accepted.

use super::{CaptureDrain, Observed};
use crate::view::CaptureView;

/// What the target of a resource is at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Aim {
    /// This capture, in the life that is meant.
    Present(CaptureView),
    /// It was accepted, and is not registered any more.
    Gone,
    /// It was accepted, and is registered in another life.
    Replaced(CaptureView),
    /// No registered capture is in this pod.
    PodNotFound,
    /// No registered capture has this name, or not with this pod.
    NotACapture,
}

/// Finds the capture that a resource means.
pub fn validate(drain: &CaptureDrain, observed: &Observed) -> Aim {
    let target = &drain.spec.target;
    let status = drain.status.clone().unwrap_or_default();
    let by_target = |capture: &&CaptureView| match (&target.capture_id, &target.pod_name) {
        (Some(id), _) => capture.id == *id,
        (None, pod_name) => pod_name.is_some() && capture.pod_name == *pod_name,
    };
    let found = match &status.capture_id {
        Some(accepted) => observed.captures.iter().find(|capture| capture.id == *accepted),
        None => observed.captures.iter().find(by_target),
    };
    let accepted = status.node_epoch.is_some();
    let Some(found) = found else {
        return match (accepted, &target.pod_name) {
            (true, _) => Aim::Gone,
            (false, Some(_)) => Aim::PodNotFound,
            (false, None) => Aim::NotACapture,
        };
    };
    let meant = |pinned: Option<&String>, is: Option<&str>| pinned.is_none_or(|pinned| is == Some(pinned));
    if accepted {
        let same = meant(status.node_epoch.as_ref(), Some(&found.node_epoch))
            && meant(status.pod_uid.as_ref(), found.pod_uid.as_deref());
        return if same { Aim::Present(found.clone()) } else { Aim::Replaced(found.clone()) };
    }
    if meant(target.pod_uid.as_ref(), found.pod_uid.as_deref()) {
        Aim::Present(found.clone())
    } else {
        Aim::NotACapture
    }
}
