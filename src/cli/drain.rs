//! `drain`, `cancel`, `release`.

use std::time::Duration;

use capturedrain_core::model::{Answer, CaptureId, DrainEpoch, DrainRequest, OnDeadline, WorkCount};
use clap::{Args, ValueEnum};
use futures::StreamExt as _;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::{
    Common,
    exit::{Exit, Failure},
    progress::Progress,
    say,
    table::count,
    value,
};
use crate::{
    client::{Client, ClientError, ClusterView, SILENCE},
    view::{DrainAccepted, DrainEndView},
};

/// Empty a capture: its maintainers and dispatchers move to others
#[derive(Debug, Args)]
pub(super) struct DrainArgs {
    /// Which
    capture: CaptureId,
    /// Follow it to its end, and exit 0 only on proof that nothing is left
    #[arg(long, short, env = "CAPTUREDRAIN_WAIT")]
    wait: bool,
    /// Only say what would move, to whom, and about how long it would take
    #[arg(long, env = "CAPTUREDRAIN_DRY_RUN")]
    dry_run: bool,
    /// How long it may take
    #[arg(long, env = "CAPTUREDRAIN_DEADLINE", value_name = "DURATION", value_parser = value::duration)]
    deadline: Option<Duration>,
    /// What follows the deadline
    #[arg(long, env = "CAPTUREDRAIN_ON_DEADLINE", value_enum, default_value_t = AtDeadline::Hold)]
    on_deadline: AtDeadline,
    /// Why, for the history
    #[arg(long, env = "CAPTUREDRAIN_REASON", default_value = "", hide_default_value = true)]
    reason: String,
    /// Captures that should rather not get the work
    #[arg(long, env = "CAPTUREDRAIN_AVOID", value_delimiter = ',', value_name = "ID[,ID…]")]
    avoid: Vec<CaptureId>,
    /// Refuse when the capture's pod is not this one
    #[arg(long, env = "CAPTUREDRAIN_POD_UID", value_name = "UID")]
    pod_uid: Option<String>,
    #[command(flatten)]
    asks: Asks,
}

/// Who asks.
#[derive(Debug, Args)]
struct Asks {
    /// Who asks, for the history and the log [default: the user of this process]
    #[arg(long, env = "CAPTUREDRAIN_REQUESTER", value_name = "NAME")]
    requester: Option<String>,
}

impl Asks {
    fn name(self) -> String {
        let user = || std::env::var("USER").or_else(|_| std::env::var("LOGNAME"));
        self.requester.unwrap_or_else(|| format!("{} (command line)", user().unwrap_or_else(|_| "someone".to_owned())))
    }
}

/// What follows the deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AtDeadline {
    /// Hold the pod, and say that the drain is stalled
    Hold,
    /// Let the pod go with work left
    Proceed,
}

/// Call a drain off: the capture works again, what has moved stays where it is
#[derive(Debug, Args)]
pub(super) struct CancelArgs {
    /// Whose
    capture: CaptureId,
    /// Only this drain of it
    #[arg(long, env = "CAPTUREDRAIN_EPOCH", value_name = "NUMBER")]
    epoch: Option<u64>,
    #[command(flatten)]
    asks: Asks,
}

/// Let a capture that is `Stopping` and yet lives on work again
#[derive(Debug, Args)]
pub(super) struct ReleaseArgs {
    /// Which
    capture: CaptureId,
}

pub(super) async fn drain(args: DrainArgs, common: &Common) -> Result<Exit, Failure> {
    if args.on_deadline == AtDeadline::Proceed && args.deadline.is_none() {
        return Err(Failure::usage("--on-deadline proceed needs a --deadline"));
    }
    let client = common.client()?;
    let capture = args.capture;
    let mut request = DrainRequest::new(capture.clone(), args.asks.name());
    request.reason = args.reason;
    request.dry_run = args.dry_run;
    request.avoid = args.avoid;
    request.pod_uid = args.pod_uid.map(Into::into);
    request.deadline_ms = args.deadline.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
    request.on_deadline = match args.on_deadline {
        AtDeadline::Hold => OnDeadline::Hold,
        AtDeadline::Proceed => OnDeadline::Proceed,
    };
    let answer = client.drain(request).await?;
    let (accepted, sentence) = match &answer {
        Answer::Draining { epoch, current } => {
            let work = current.map_or_else(|| "what is left is not known yet".to_owned(), moves);
            (accepted(*current, Some(*epoch)), format!("{capture} is being drained under epoch {epoch}: {work}"))
        }
        Answer::Drained { epoch } => (
            accepted(Some(WorkCount::default()), Some(*epoch)),
            format!("{capture} is empty, proven under epoch {epoch}"),
        ),
        Answer::DryRun { current, destinations } => {
            let to: Vec<_> = destinations.iter().map(ToString::to_string).collect();
            let sentence = format!("{} would move, to {}", moves(*current), to.join(", "));
            (DrainAccepted { destinations: to, ..accepted(Some(*current), None) }, sentence)
        }
        Answer::Done => (accepted(None, None), "done".to_owned()),
    };
    match answer {
        Answer::Draining { epoch, .. } if args.wait => {
            say(&sentence);
            wait(&client, &capture, epoch, common).await
        }
        _ => {
            common.print(&accepted, |_| sentence + "\n")?;
            Ok(Exit::Done)
        }
    }
}

fn moves(work: WorkCount) -> String {
    format!("{} and {}", count(work.maintainers, "maintainer"), count(work.dispatchers, "dispatcher"))
}

fn accepted(current: Option<WorkCount>, epoch: Option<DrainEpoch>) -> DrainAccepted {
    DrainAccepted {
        current_maintainer_count: current.map(|work| work.maintainers),
        current_dispatcher_count: current.map(|work| work.dispatchers),
        drain_epoch: epoch.map(|epoch| epoch.0),
        destinations: Vec::new(),
    }
}

/// How a drain that is followed stands.
enum Standing {
    On,
    Ended(DrainEndView),
    Proceeds,
    Held,
    /// It has ended, and more has happened since: the history knows.
    Past,
}

fn standing(view: &ClusterView, epoch: DrainEpoch) -> Standing {
    if view.drain.is_draining && view.drain.drain_epoch == epoch.0 {
        let held = view.drain.blocked_by.iter().any(|blocker| blocker.kind == "DeadlineHeld");
        return match (view.drain.proceeds, held) {
            (true, _) => Standing::Proceeds,
            (_, true) => Standing::Held,
            _ => Standing::On,
        };
    }
    match &view.last_end {
        Some(end) if end.drain_epoch == epoch.0 => Standing::Ended(end.clone()),
        Some(end) if end.drain_epoch > epoch.0 => Standing::Past,
        _ if view.drain.drain_epoch > epoch.0 => Standing::Past,
        // A coordinator that has not read the record yet.
        _ => Standing::On,
    }
}

/// Follows a drain to its end.
async fn wait(client: &Client, capture: &CaptureId, epoch: DrainEpoch, common: &Common) -> Result<Exit, Failure> {
    let signals = signal(SignalKind::interrupt()).and_then(|int| Ok((int, signal(SignalKind::terminate())?)));
    let (mut interrupt, mut terminate) =
        signals.map_err(|error| Failure::environment(format!("cannot listen for signals: {error}")))?;
    let mut progress = Progress::new(capture);
    let mut views = std::pin::pin!(client.watch());
    loop {
        let view = tokio::select! {
            view = views.next() => view,
            _ = interrupt.recv() => return Ok(left(capture, &mut progress, Exit::Interrupted)),
            _ = terminate.recv() => return Ok(left(capture, &mut progress, Exit::Terminated)),
        };
        let view = match view {
            Some(Ok(view)) => view,
            Some(Err(error @ ClientError::Unauthorised(_))) => {
                progress.finish();
                return Err(error.into());
            }
            Some(Err(error)) => {
                let why = match error {
                    ClientError::Unreachable { reason, .. } => reason,
                    other => other.to_string(),
                };
                progress.say(&format!(
                    "the coordinator is lost ({why}); the drain stands in the store, waiting for the next"
                ));
                continue;
            }
            None => {
                progress.finish();
                return Err(silent(&format!("the drain of {capture} goes on once they do")));
            }
        };
        let end = match standing(&view, epoch) {
            Standing::On => {
                if view.drain.is_draining {
                    progress.show(&view);
                }
                continue;
            }
            Standing::Proceeds => {
                progress.finish();
                say(&format!("the deadline has passed: {capture} may go with work left"));
                return Ok(Exit::Proceeded);
            }
            Standing::Held => {
                progress.finish();
                say(&format!(
                    "the deadline has passed and {capture} is held; the drain goes on: watch it with `capturedrain \
                     status`, or call it off with `capturedrain cancel {capture}`"
                ));
                return Ok(Exit::Stalled);
            }
            Standing::Ended(end) => end,
            Standing::Past => {
                let ends = client.drains().await?;
                ends.into_iter().find(|end| end.drain_epoch == epoch.0).ok_or_else(|| {
                    Failure::new(Exit::NotFound, format!("the history does not hold epoch {epoch} any more"))
                })?
            }
        };
        progress.finish();
        return ended(&end, common);
    }
}

fn ended(end: &DrainEndView, common: &Common) -> Result<Exit, Failure> {
    let (exit, what) = match end.outcome.as_str() {
        "Drained" => (Exit::Done, "is empty, proven"),
        "Cancelled" => (Exit::Withdrawn, "is not drained: the drain was called off"),
        "TargetGone" => (Exit::TargetGone, "is gone, in the life that was meant"),
        _ => (Exit::Refused, "went back to work: no other capture was there"),
    };
    common.print(end, |end| {
        format!("{} {what} (epoch {}, {})\n", end.target, end.drain_epoch, super::table::time(end.duration_ms))
    })?;
    Ok(exit)
}

/// Nobody answers any more.
pub(super) fn silent(but: &str) -> Failure {
    let seconds = SILENCE.as_secs();
    let sentence = format!("no capture of the cluster has answered for {seconds} s; {but}: see `capturedrain status`");
    Failure::new(Exit::Unreachable, sentence)
}

fn left(capture: &CaptureId, progress: &mut Progress, exit: Exit) -> Exit {
    progress.finish();
    say(&format!("the drain of {capture} goes on; call it off with `capturedrain cancel {capture}`"));
    exit
}

pub(super) async fn cancel(args: CancelArgs, common: &Common) -> Result<Exit, Failure> {
    let capture = args.capture;
    common.client()?.cancel(&capture, args.epoch.map(DrainEpoch), &args.asks.name()).await?;
    let done = json!({ "capture": capture, "result": "cancelled" });
    common.print(&done, |_| format!("the drain of {capture} is called off\n"))?;
    Ok(Exit::Done)
}

pub(super) async fn release(args: ReleaseArgs, common: &Common) -> Result<Exit, Failure> {
    let capture = args.capture;
    common.client()?.release(&capture, None).await?;
    let done = json!({ "capture": capture, "result": "released" });
    common.print(&done, |_| format!("{capture} registers anew and works again\n"))?;
    Ok(Exit::Done)
}
