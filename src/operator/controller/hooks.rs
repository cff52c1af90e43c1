//! Hooks of pods that ended badly: what they said themselves nobody has heard, so an event on the pod says it.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::Recorder;

use super::write;
use crate::{operator::event::of_hook, view::HookReportView};

/// How old an end may be that is still told: a replica that has just begun does not repeat what another has told long ago.
const AGE_MAX_MS: u64 = 600_000;

/// Which ends were told: the pod's UID, and when the run began.
pub(super) type Told = BTreeSet<(u64, String)>;

/// How many of them are remembered.
const TOLD_MAX: usize = 256;

/// Whether an end is to be told: it is bad, new, and its pod is known.
fn is_news(report: &HookReportView, now: Timestamp, told: &mut Told) -> bool {
    let now_ms = u64::try_from(now.as_millisecond()).unwrap_or(0);
    let Some(uid) = &report.pod_uid else { return false };
    if report.pod_name.is_none() || now_ms.saturating_sub(report.ended_at_ms) > AGE_MAX_MS || of_hook(report).is_none()
    {
        return false;
    }
    let is_new = told.insert((report.started_at_ms, uid.clone()));
    while told.len() > TOLD_MAX {
        told.pop_first();
    }
    is_new
}

/// Tells what is new of a cluster's hooks, on their pods, which are in its namespace.
pub(super) async fn tell(
    namespace: &str,
    reports: &[HookReportView],
    now: Timestamp,
    told: &mut Told,
    recorder: &Recorder,
) {
    for report in reports {
        if !is_news(report, now, told) {
            continue;
        }
        let pod = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: report.pod_name.clone(),
            namespace: Some(namespace.to_owned()),
            uid: report.pod_uid.clone(),
            ..ObjectReference::default()
        };
        write::tell_about(recorder, &pod, of_hook(report).into_iter().collect()).await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    #[test]
    fn a_bad_end_is_told_once_and_while_it_is_new() {
        let now = Timestamp::from_millisecond(2_000_000).unwrap();
        let report = HookReportView {
            pod_name: Some("cdc-1".to_owned()),
            pod_uid: Some("uid".to_owned()),
            outcome: "deadline".to_owned(),
            ended_at_ms: 2_000_000,
            ..HookReportView::default()
        };
        let mut told = Told::default();
        assert!(is_news(&report, now, &mut told) && !is_news(&report, now, &mut told));
        let again = HookReportView { started_at_ms: 7, ..report.clone() };
        assert!(is_news(&again, now, &mut told), "another run");
        let old = HookReportView { ended_at_ms: 1_399_999, ..report.clone() };
        let good = HookReportView { outcome: "proven".to_owned(), ..report.clone() };
        let unnamed = HookReportView { pod_name: None, ..report };
        for quiet in [old, good, unnamed] {
            assert!(!is_news(&quiet, now, &mut Told::default()), "{quiet:?}");
        }
    }
}
