//! Stage 2, validate: which capture is meant, and whether it still is the one that was accepted.

use jiff::Timestamp;

use super::observe::{Cluster, Observed, Pod, PodSeen};
use crate::{
    resource::{CaptureDrain, CaptureDrainStatus, ClusterKind, Target},
    view::CaptureView,
};

/// How old a pod may be without its capture having registered.
pub const REGISTRATION_PATIENCE_SECONDS: i64 = 60;

/// What the target of a resource is at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Aim {
    /// The cluster is not seen.
    Unseen,
    /// This capture, in the life that is meant.
    Present(Box<CaptureView>),
    /// Its pod is there, and young: its capture has not registered yet.
    Starting,
    /// It was accepted, and is not registered any more.
    Gone,
    /// It was accepted, and its pod is not there any more.
    PodGone,
    /// It was accepted, and is registered in another life.
    Replaced(Box<CaptureView>),
    /// There is no such pod.
    PodNotFound,
    /// No registered capture has this name, or is in this pod.
    NotACapture,
}

/// Finds the capture that a resource means.
pub fn validate(drain: &CaptureDrain, observed: &Observed) -> Aim {
    let status = drain.status.clone().unwrap_or_default();
    let Ok(cluster) = &observed.cluster else { return Aim::Unseen };
    let (target, pod) = (&drain.spec.target, &observed.around.pod);
    let is_ticdc = drain.spec.cluster_ref.kind == ClusterKind::TiCdc;
    let aim = if status.node_epoch.is_some() {
        again(target, &status, cluster, pod, is_ticdc)
    } else {
        first(target, cluster, pod, observed.now)
    };
    if is_ticdc { with_pod(aim, pod) } else { aim }
}

/// A capture of `TiCDC` does not know its pod; Kubernetes does.
fn with_pod(aim: Aim, pod: &PodSeen) -> Aim {
    let PodSeen::There(pod) = pod else { return aim };
    let within = |mut capture: Box<CaptureView>| {
        capture.pod_uid.get_or_insert_with(|| pod.uid.clone());
        capture
    };
    match aim {
        Aim::Present(capture) => Aim::Present(within(capture)),
        Aim::Replaced(capture) => Aim::Replaced(within(capture)),
        other => other,
    }
}

/// It was accepted before.
fn again(target: &Target, status: &CaptureDrainStatus, cluster: &Cluster, pod: &PodSeen, is_ticdc: bool) -> Aim {
    let is_pod_gone = target.pod_name.is_some()
        && match pod {
            PodSeen::Unasked => false,
            PodSeen::Missing => true,
            PodSeen::There(pod) => status.pod_uid.as_ref().is_some_and(|uid| *uid != pod.uid),
        };
    if is_pod_gone {
        return Aim::PodGone;
    }
    let Some(found) = cluster.captures.iter().find(|at| Some(&at.id) == status.capture_id.as_ref()) else {
        // A process of `TiCDC` that starts anew takes another id, in the same pod.
        let heir = cluster.captures.iter().find(|at| is_ticdc && is_of_target(at, target, pod));
        return heir.map_or(Aim::Gone, |heir| Aim::Replaced(Box::new(heir.clone())));
    };
    let is_same = Some(&found.node_epoch) == status.node_epoch.as_ref()
        && status.pod_uid.as_ref().is_none_or(|uid| found.pod_uid.as_ref().is_none_or(|found| found == uid));
    if is_same { Aim::Present(Box::new(found.clone())) } else { Aim::Replaced(Box::new(found.clone())) }
}

/// Whether a capture is in the pod that a target names.
fn is_of_target(capture: &CaptureView, target: &Target, pod: &PodSeen) -> bool {
    let Some(name) = &target.pod_name else { return false };
    match pod {
        PodSeen::There(pod) => is_in(capture, name, pod),
        PodSeen::Unasked => capture.pod_name.as_ref() == Some(name),
        PodSeen::Missing => false,
    }
}

/// It was not accepted yet.
fn first(target: &Target, cluster: &Cluster, pod: &PodSeen, now: Timestamp) -> Aim {
    let is_meant = |uid: Option<&String>| target.pod_uid.as_ref().is_none_or(|meant| Some(meant) == uid);
    let Some(name) = &target.pod_name else {
        let found = cluster.captures.iter().find(|at| Some(&at.id) == target.capture_id.as_ref());
        return match found.filter(|found| is_meant(found.pod_uid.as_ref())) {
            Some(found) => Aim::Present(Box::new(found.clone())),
            None => Aim::NotACapture,
        };
    };
    match pod {
        PodSeen::Missing => Aim::PodNotFound,
        PodSeen::There(pod) if !is_meant(Some(&pod.uid)) => Aim::PodNotFound,
        PodSeen::There(pod) => match cluster.captures.iter().find(|capture| is_in(capture, name, pod)) {
            Some(found) => Aim::Present(Box::new(found.clone())),
            None if now.as_second() - pod.created_at.as_second() < REGISTRATION_PATIENCE_SECONDS => Aim::Starting,
            None => Aim::NotACapture,
        },
        PodSeen::Unasked => match cluster.captures.iter().find(|at| at.pod_name.as_ref() == Some(name)) {
            None => Aim::PodNotFound,
            Some(found) if is_meant(found.pod_uid.as_ref()) => Aim::Present(Box::new(found.clone())),
            Some(_) => Aim::NotACapture,
        },
    }
}

/// Whether a capture is in a pod: by the UID if it knows its own, otherwise by its address.
pub fn is_in(capture: &CaptureView, name: &str, pod: &Pod) -> bool {
    if let Some(uid) = &capture.pod_uid {
        return *uid == pod.uid;
    }
    let host = capture.address.rsplit_once(':').map_or(capture.address.as_str(), |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    pod.ips.iter().any(|ip| ip == host) || host.split('.').next() == Some(name)
}
