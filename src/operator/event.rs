//! What is told of a run besides its status: an event for each transition.

use super::{ATTEMPTED_AT, UNINSTALLED};
use crate::{
    resource::{CaptureDrain, CaptureDrainStatus, DRAINED, FINISHED, STALLED, find, is_true},
    view::HookReportView,
};

/// Something to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Whether a person should look.
    pub is_warning: bool,
    /// One word.
    pub reason: &'static str,
    /// One sentence.
    pub sentence: String,
}

impl Note {
    fn normal(reason: &'static str, sentence: impl Into<String>) -> Self {
        Self { is_warning: false, reason, sentence: sentence.into() }
    }

    fn warning(reason: &'static str, sentence: impl Into<String>) -> Self {
        Self { is_warning: true, reason, sentence: sentence.into() }
    }
}

/// What is told on a pod whose hook has ended so; nothing when the pod goes as it should.
pub fn of_hook(report: &HookReportView) -> Option<Note> {
    let is_good = matches!(report.outcome.as_str(), "proven" | "nothing_left");
    let sentence = format!("the hook of capture {} ended with {}: {}", report.capture, report.outcome, report.sentence);
    (!is_good).then(|| Note::warning("PreStopFailed", sentence))
}

/// What happened between the status that a run has and its next one, in the order of its telling.
pub fn notes(drain: &CaptureDrain, after: &CaptureDrainStatus) -> Vec<Note> {
    let nothing = CaptureDrainStatus::default();
    let before = drain.status.as_ref().unwrap_or(&nothing);
    let mut notes = Vec::new();
    let message = |kind: &str| find(&after.conditions, kind).map(|is| is.message.clone()).unwrap_or_default();
    let began = |kind: &str| is_true(&after.conditions, kind) && !is_true(&before.conditions, kind);
    let phase = |status: &CaptureDrainStatus| status.phase.clone().unwrap_or_default();
    if phase(after) == "Queued" && phase(before) != "Queued" {
        notes.push(Note::normal("DrainQueued", message("Reconciling")));
    }
    if let Some(epoch) = after.epoch.filter(|_| before.epoch != after.epoch) {
        let capture = after.capture_id.as_deref().unwrap_or_default();
        notes.push(Note::normal("DrainStarted", format!("capture {capture} is being drained under epoch {epoch}")));
    }
    notes.extend(stall(before, after, &message(STALLED)));
    if began(DRAINED) {
        notes.push(Note::normal("Drained", message(DRAINED)));
    }
    if began(FINISHED) {
        notes.push(end(drain, after, message(FINISHED)));
    }
    notes
}

fn stall(before: &CaptureDrainStatus, after: &CaptureDrainStatus, sentence: &str) -> Option<Note> {
    let reason = |status: &CaptureDrainStatus| {
        find(&status.conditions, STALLED)
            .filter(|stalled| stalled.status == "True")
            .map(|stalled| stalled.reason.clone())
    };
    match (reason(before), reason(after)) {
        (before, Some(now)) if before.as_ref() != Some(&now) => {
            let is_late = now == "DeadlineHeld";
            Some(Note::warning(if is_late { "DeadlineExceeded" } else { "DrainStalled" }, format!("{now}: {sentence}")))
        }
        (Some(was), None) if !is_true(&after.conditions, FINISHED) => {
            Some(Note::normal("DrainResumed", format!("{was} is over")))
        }
        _ => None,
    }
}

/// How a drain was given up. Evictions that follow are refused where a person did it.
fn given_up(drain: &CaptureDrain, reason: &str) -> &'static str {
    let has = |name| drain.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(name));
    let is_uninstalled = has(ATTEMPTED_AT) && has(UNINSTALLED);
    // One that was not deleted was not asked for by evictions any more.
    let is_left = reason == "CancelUnsupported" && drain.metadata.deletion_timestamp.is_none();
    if is_uninstalled || is_left { "EvictionAbandoned" } else { "DrainWithdrawn" }
}

fn end(drain: &CaptureDrain, after: &CaptureDrainStatus, sentence: String) -> Note {
    let reason = find(&after.conditions, FINISHED).map(|finished| finished.reason.as_str()).unwrap_or_default();
    match reason {
        "PodGone" | "CaptureStopping" => Note::normal("DrainSucceeded", sentence),
        "Withdrawn" => Note::normal(given_up(drain, reason), sentence),
        "CancelUnsupported" => Note::warning(given_up(drain, reason), sentence),
        "EvictionAbandoned" => Note::normal("EvictionAbandoned", sentence),
        "DeadlineProceeded" => Note::warning("DeadlineExceeded", sentence),
        "NoPeers" => Note::warning("NoPeers", sentence),
        "PodNotFound" | "NotACapture" => {
            let why = find(&after.conditions, "Accepted").map(|is| is.message.clone()).unwrap_or(sentence);
            Note::warning("DrainRejected", why)
        }
        _ => Note::warning("TargetGone", sentence),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

    use super::*;
    use crate::operator::tests::drain;

    #[test]
    fn a_drain_that_a_person_gave_up_is_told_from_one_that_nobody_asks_for_any_more() {
        let check = |reason: &str, is_deleted: bool, annotations: &[&str], expected: &str| {
            let mut drain = drain("captureID: b");
            let pairs = annotations.iter().map(|name| ((*name).to_owned(), "x".to_owned()));
            drain.metadata.annotations = Some(pairs.collect());
            drain.metadata.deletion_timestamp = is_deleted.then_some(Time(jiff::Timestamp::UNIX_EPOCH));
            let finished = Condition {
                type_: FINISHED.to_owned(),
                status: "True".to_owned(),
                reason: reason.to_owned(),
                message: String::new(),
                last_transition_time: Time(jiff::Timestamp::UNIX_EPOCH),
                observed_generation: None,
            };
            let after = CaptureDrainStatus { conditions: vec![finished], ..CaptureDrainStatus::default() };
            let told: Vec<_> = notes(&drain, &after).into_iter().map(|note| note.reason).collect();
            assert_eq!(told, [expected], "{reason}, deleted: {is_deleted}, {annotations:?}");
        };
        let by_eviction = [ATTEMPTED_AT];
        // By deletion, or by a command of the cluster's own.
        for is_deleted in [true, false] {
            check("Withdrawn", is_deleted, &by_eviction, "DrainWithdrawn");
        }
        check("CancelUnsupported", true, &by_eviction, "DrainWithdrawn");
        check("CancelUnsupported", false, &by_eviction, "EvictionAbandoned");
        check("EvictionAbandoned", false, &by_eviction, "EvictionAbandoned");
        check("Withdrawn", true, &[ATTEMPTED_AT, UNINSTALLED], "EvictionAbandoned");
        check("CancelUnsupported", true, &[ATTEMPTED_AT, UNINSTALLED], "EvictionAbandoned");
        check("Withdrawn", true, &[UNINSTALLED], "DrainWithdrawn");
    }
}
