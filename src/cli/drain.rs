//! `drain`, `cancel`, `release`.

use std::time::Duration;

use capturedrain_core::model::{Answer, CaptureId, DrainEpoch, DrainRequest, OnDeadline, Plan, WorkCount};
use clap::{Args, ValueEnum};
use futures::StreamExt as _;
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};

use super::{
    Common,
    exit::{Exit, Failure},
    progress::Progress,
    say,
    signals::Signals,
    table::{count, roughly, table, time},
    value,
};
use crate::{
    client::{Client, ClientError, ClusterView, SILENCE},
    view::{DrainAccepted, DrainEndView},
};

/// Empty a capture: its maintainers and dispatchers move to others
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  capturedrain drain capture-1 --dry-run
  capturedrain drain capture-1 --wait --reason 'node upgrade'
  capturedrain drain capture-1 --wait --deadline 10m --on-deadline proceed
  capturedrain drain capture-1 -o json | jq .drain_epoch

Asked for again, it is the drain that is on: with --wait that one is followed.

Exit codes, with --wait:
    0  nothing is left, proven
    3  there is no such capture
    4  refused: another drain is on, or no other capture is there
    5  nobody answers
    6  the deadline has passed, and the capture may go with work left
    7  the deadline has passed, and the capture is held
    8  called off
    9  the capture is gone, or not the one that is meant
  130  Ctrl-C: the drain goes on; 143 the same by SIGTERM")]
pub(super) struct DrainArgs {
    /// Which one: a name that `capturedrain captures` lists
    capture: CaptureId,
    /// Follow it to its end, and exit 0 only on proof that nothing is left
    #[arg(long, short, env = "CAPTUREDRAIN_WAIT")]
    wait: bool,
    /// Only say what would move, to whom, and about how long it would take
    #[arg(long, env = "CAPTUREDRAIN_DRY_RUN")]
    dry_run: bool,
    /// How long it may take, such as 90s or 10m
    #[arg(long, env = "CAPTUREDRAIN_DEADLINE", value_name = "DURATION", value_parser = value::duration)]
    deadline: Option<Duration>,
    /// What follows the deadline: the capture is held, or may go with work left
    #[arg(long, env = "CAPTUREDRAIN_ON_DEADLINE", value_name = "POLICY", value_enum, default_value_t = AtDeadline::Hold)]
    on_deadline: AtDeadline,
    /// Why, for the history
    #[arg(long, env = "CAPTUREDRAIN_REASON", value_name = "TEXT", default_value = "", hide_default_value = true)]
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
        self.requester.unwrap_or_else(|| format!("{} (cli)", user().unwrap_or_else(|_| "someone".to_owned())))
    }
}

/// What follows the deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AtDeadline {
    Hold,
    Proceed,
}

/// Call a drain off: the capture works again, what has moved stays
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  capturedrain cancel capture-1
  capturedrain cancel capture-1 --epoch 7   only if that is the drain that is on

A drain that has ended in proof cannot be called off: see `capturedrain release`.")]
pub(super) struct CancelArgs {
    /// The capture that is being drained
    capture: CaptureId,
    /// Only this drain of it
    #[arg(long, env = "CAPTUREDRAIN_EPOCH", value_name = "NUMBER")]
    epoch: Option<u64>,
    #[command(flatten)]
    asks: Asks,
}

/// Let a drained capture that did not go work again
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  capturedrain release capture-1

A drained capture is `Stopping` and gets no work. One that stayed after all works again by itself after its \
--stopping-timeout, or at once by this command.")]
pub(super) struct ReleaseArgs {
    /// The capture that is `Stopping`
    capture: CaptureId,
}

pub(super) async fn drain(args: DrainArgs, common: &Common) -> Result<Exit, Failure> {
    if args.on_deadline == AtDeadline::Proceed && args.deadline.is_none() {
        return Err(Failure::usage("--on-deadline proceed needs a --deadline"));
    }
    let client = common.client()?;
    let mut signals = Signals::listen()?;
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
    let wait_for_end = args.wait && !args.dry_run;
    let answer = tokio::select! {
        answer = client.drain(request) => answer?,
        exit = signals.next() => {
            if !args.dry_run {
                say(&format!("the drain of {capture} may have begun: `capturedrain status {capture}` shows it"));
            }
            return Ok(exit);
        }
    };
    let sentence = sentence(&capture, &answer);
    match answer {
        Answer::Draining { epoch, .. } if wait_for_end => {
            say(&sentence);
            wait(&client, &capture, epoch, signals, common).await
        }
        _ => {
            common.print(&DrainAccepted::of(&answer), |_| sentence + "\n")?;
            Ok(Exit::Done)
        }
    }
}

/// What came of the request, for people.
fn sentence(capture: &CaptureId, answer: &Answer) -> String {
    let work = |work: &WorkCount| {
        format!("{} and {}", count(work.maintainers, "maintainer"), count(work.dispatchers, "dispatcher"))
    };
    match answer {
        Answer::Draining { epoch, current } => {
            let left = current.as_ref().map_or_else(|| "what is left is not known yet".to_owned(), work);
            format!("{capture} is being drained under epoch {epoch}: {left}")
        }
        Answer::Drained { epoch } => format!("{capture} is empty, proven under epoch {epoch}"),
        Answer::DryRun { current, plan, .. } => format!("{} would leave {capture}\n{}", work(current), planned(plan)),
        Answer::Done => "done".to_owned(),
    }
}

/// What would go where, and how long that takes.
fn planned(plan: &Plan) -> String {
    if plan.moves.is_empty() {
        return "nothing would move".to_owned();
    }
    let row = |(id, work): (&CaptureId, &WorkCount)| {
        [id.to_string(), work.maintainers.to_string(), work.dispatchers.to_string()]
    };
    let rows: Vec<_> = plan.moves.iter().map(row).collect();
    let (limits, pace) = (plan.limits, time(plan.move_ms));
    let why = if plan.is_measured { "as in the last drain" } else { "a guess, since no drain was measured yet" };
    format!(
        "{}it would take about {}: {pace} a move, {why},\nwith {} and {} on the move at once",
        table(["TO", "MAINTAINERS", "DISPATCHERS"], &rows),
        roughly(plan.estimate_ms),
        count(limits.maintainers, "maintainer"),
        count(limits.dispatchers, "dispatcher"),
    )
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
async fn wait(
    client: &Client,
    capture: &CaptureId,
    epoch: DrainEpoch,
    mut signals: Signals,
    common: &Common,
) -> Result<Exit, Failure> {
    let mut progress = Progress::new(capture);
    let mut views = std::pin::pin!(client.watch());
    let mut second = interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let view = tokio::select! {
            view = views.next() => view,
            _ = second.tick() => {
                progress.tick();
                continue;
            }
            exit = signals.next() => return Ok(left(capture, &mut progress, exit)),
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
                    "the coordinator is lost, and the drain stands in the store: waiting for the next ({why})"
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
    common
        .print(end, |end| format!("{} {what} (epoch {}, {})\n", end.target, end.drain_epoch, time(end.duration_ms)))?;
    Ok(exit)
}

/// Nobody answers any more.
pub(super) fn silent(but: &str) -> Failure {
    let seconds = SILENCE.as_secs();
    let sentence = format!("no capture of the cluster has answered for {seconds} s; {but}: see `capturedrain status`");
    Failure::new(Exit::Unreachable, sentence)
}

fn left(capture: &CaptureId, progress: &mut Progress, exit: Exit) -> Exit {
    progress.leave();
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
