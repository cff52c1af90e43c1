//! `status`, `captures`, `history`: what is going on, who is there, how earlier drains ended.

use capturedrain_core::model::CaptureId;
use clap::Args;

use super::{
    Common,
    exit::{Exit, Failure},
    table::{known, roughly, table, time},
};
use crate::{
    client::ClusterView,
    clock::wall,
    view::{CaptureView, DrainEndView, DrainView},
};

/// Say what is going on: the drain that is on, or how the last one ended
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  capturedrain status
  capturedrain status capture-1
  capturedrain status -o json | jq '{phase, remaining_dispatcher_count}'")]
pub(super) struct StatusArgs {
    /// Only what concerns this capture
    capture: Option<CaptureId>,
}

pub(super) async fn status(args: StatusArgs, common: &Common) -> Result<Exit, Failure> {
    let mut view = common.client()?.status().await?;
    view.drain.eta_seconds = view.eta_seconds(wall());
    if let Some(capture) = &args.capture {
        let Some(found) = view.captures.iter().find(|at| at.id == capture.as_str()) else {
            return Err(Failure::new(Exit::NotFound, format!("capture {capture} is not registered")));
        };
        if view.drain.draining_capture_id.as_deref() != Some(capture.as_str()) {
            let liveness = Some(found.liveness.clone());
            view.drain = DrainView { drain_epoch: view.drain.drain_epoch, liveness, ..DrainView::default() };
            view.last_end = view.last_end.filter(|end| end.target == capture.as_str());
        }
    }
    let drain = view.drain.clone();
    common.print(&drain, |_| status_text(&view, args.capture.as_ref()))?;
    Ok(Exit::Done)
}

fn status_text(view: &ClusterView, capture: Option<&CaptureId>) -> String {
    let drain = &view.drain;
    if !drain.is_draining {
        let stands = match (capture, &drain.liveness) {
            (Some(capture), Some(liveness)) => format!("{capture} is {liveness} and not being drained\n"),
            _ => "no drain is on\n".to_owned(),
        };
        let last = view.last_end.as_ref().map(|end| {
            let (target, outcome, epoch) = (&end.target, &end.outcome, end.drain_epoch);
            format!("the last one, of {target} under epoch {epoch}, ended {} as {outcome}\n", utc(&end.ended_at))
        });
        return stands + &last.unwrap_or_default();
    }
    let initial = drain.initial.unwrap_or_default();
    let lines = [
        ("capture", drain.draining_capture_id.clone().unwrap_or_default()),
        ("epoch", drain.drain_epoch.to_string()),
        ("phase", drain.phase.clone().unwrap_or_default()),
        ("maintainers", format!("{} of {} left", known(drain.remaining_maintainer_count), initial.maintainers)),
        ("dispatchers", format!("{} of {} left", known(drain.remaining_dispatcher_count), initial.dispatchers)),
        ("time left", drain.eta_seconds.map_or("-".to_owned(), |s| format!("about {}", roughly(s * 1000)))),
        ("since", drain.started_at.as_deref().map(utc).unwrap_or_default()),
        ("asked by", drain.requesters.join(", ")),
        ("reason", drain.reason.clone().unwrap_or_else(|| "-".to_owned())),
        ("held up by", blocked(drain).unwrap_or_else(|| "-".to_owned())),
    ];
    super::lines(&lines)
}

/// A moment as people read it: `2026-01-31 12:00:00Z`.
fn utc(moment: &str) -> String {
    let seconds = moment.split(['.', 'Z']).next().unwrap_or_default();
    format!("{}Z", seconds.replace('T', " "))
}

/// What holds a drain up, in words; `None` when nothing does.
pub(super) fn blocked(drain: &DrainView) -> Option<String> {
    let words = drain.blocked_by.iter().map(|blocker| match (blocker.kind.as_str(), &blocker.name) {
        ("NoDestination", _) => "no other capture may take the work".to_owned(),
        ("UnheardCapture", Some(name)) => format!("{name} is registered but not heard"),
        ("DeadlineHeld", _) => "the deadline has passed, the pod is held".to_owned(),
        (kind, Some(name)) => format!("{kind} {name}"),
        (kind, None) => kind.to_owned(),
    });
    let words = words.collect::<Vec<_>>().join("; ");
    (!words.is_empty()).then_some(words)
}

pub(super) async fn captures(common: &Common) -> Result<Exit, Failure> {
    let captures = common.client()?.captures().await?;
    common.print(&captures, |captures| {
        let rows: Vec<_> = captures.iter().map(capture_row).collect();
        table(["CAPTURE", "LIVENESS", "ROLE", "MAINTAINERS", "DISPATCHERS", "ADDRESS"], &rows)
    })?;
    Ok(Exit::Done)
}

fn capture_row(capture: &CaptureView) -> [String; 6] {
    let role = match (capture.is_coordinator, capture.heard) {
        (true, _) => "coordinator",
        (false, true) => "-",
        (false, false) => "unheard",
    };
    [
        capture.id.clone(),
        capture.liveness.clone(),
        role.to_owned(),
        known(capture.maintainer_count),
        known(capture.dispatcher_count),
        capture.address.clone(),
    ]
}

pub(super) async fn history(common: &Common) -> Result<Exit, Failure> {
    let drains = common.client()?.drains().await?;
    common.print(&drains, |drains| {
        let row = |end: &DrainEndView| {
            let moved = end.initial.maintainers + end.initial.dispatchers;
            let by = end.requesters.first().cloned().unwrap_or_default();
            [
                end.drain_epoch.to_string(),
                end.target.clone(),
                end.outcome.clone(),
                utc(&end.ended_at),
                time(end.duration_ms),
                moved.to_string(),
                by,
            ]
        };
        let rows: Vec<_> = drains.iter().map(row).collect();
        table(["EPOCH", "CAPTURE", "OUTCOME", "ENDED", "TOOK", "WORK", "ASKED BY"], &rows)
    })?;
    Ok(Exit::Done)
}
