//! What is told of a run besides its status: an event for each transition.

use crate::{
    resource::{CaptureDrainStatus, DRAINED, FINISHED, STALLED, find, is_true},
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

/// What happened between two statuses of a run, in the order of its telling.
pub fn notes(before: Option<&CaptureDrainStatus>, after: &CaptureDrainStatus) -> Vec<Note> {
    let nothing = CaptureDrainStatus::default();
    let before = before.unwrap_or(&nothing);
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
        notes.push(end(after, message(FINISHED)));
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

fn end(after: &CaptureDrainStatus, sentence: String) -> Note {
    let reason = find(&after.conditions, FINISHED).map(|finished| finished.reason.as_str()).unwrap_or_default();
    match reason {
        "PodGone" | "CaptureStopping" => Note::normal("DrainSucceeded", sentence),
        "Withdrawn" => Note::normal("DrainWithdrawn", sentence),
        "CancelUnsupported" => Note::warning("DrainWithdrawn", sentence),
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
