//! `prestop` and `install`.

use std::{
    fs::OpenOptions,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, ValueEnum};

use super::{
    Common,
    exit::{Exit, Failure},
    say,
    signals::Signals,
    ticdc::TiCdcArgs,
    value,
};
use crate::hook::{Config, End, InstallError, NoPeers, Outcome, Run, TiCdcRun, install};

/// `O_NONBLOCK` of Linux: a log that nobody reads must not hold the hook.
const NONBLOCKING: i32 = 0o4000;

/// Hold a pod until its capture is drained: the hook that the kubelet runs before it ends the pod
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  capturedrain prestop
  capturedrain prestop --grace-period 600s --no-peers hold
  capturedrain prestop --kind ticdc --server http://127.0.0.1:8301

In the pod: lifecycle.preStop.exec.command: [/capturedrain, prestop]. --server names the capture of this very pod, and \
nobody else. How a run ended is said to the coordinator, too, and counted there.

Exit codes:
    0  nothing is left, proven; or there was nothing to protect
    4  no other capture is there, or the cluster cannot drain
    5  time is up, and nobody answers
    6  time is up, and the pod goes with work left
    7  the same, since no other capture came (--no-peers hold)
    8  the drain was called off
    9  the server is of another pod
   10  server and hook do not trust each other
  130  Ctrl-C: the drain goes on; 143 the same by SIGTERM")]
pub(super) struct PrestopArgs {
    /// What the capture is
    #[arg(long, env = "CAPTUREDRAIN_KIND", value_name = "KIND", value_enum, default_value_t = Kind::Capturedrain)]
    kind: Kind,
    /// How long the pod has to end, counted from the first run of its hook: its terminationGracePeriodSeconds
    #[arg(long, env = "CAPTUREDRAIN_GRACE_PERIOD", value_name = "DURATION", default_value = "600s", value_parser = value::duration)]
    grace_period: Duration,
    /// How much of that is left to the server, half of a short time at most
    #[arg(long, env = "CAPTUREDRAIN_PRESTOP_MARGIN", value_name = "DURATION", default_value = "10s", value_parser = value::duration)]
    margin: Duration,
    /// What follows when no other capture is there: the pod goes with its work, or is held until time is up
    #[arg(long, env = "CAPTUREDRAIN_NO_PEERS", value_name = "POLICY", value_enum, default_value_t = WithoutPeers::Proceed)]
    no_peers: WithoutPeers,
    /// The pod
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pod_name: Option<String>,
    /// Its UID: a server of another pod is refused
    #[arg(long, env = "POD_UID", value_name = "UID")]
    pod_uid: Option<String>,
    /// Where the container's log is written: nobody hears what a hook says itself. Captures of this project log for it
    #[arg(long, env = "CAPTUREDRAIN_CONTAINER_LOG", value_name = "FILE", default_value = "/proc/1/fd/1")]
    container_log: PathBuf,
    #[command(flatten)]
    ticdc: TiCdcArgs,
}

/// What a capture is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Capturedrain,
    Ticdc,
}

/// What follows when no other capture is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum WithoutPeers {
    Proceed,
    Hold,
}

/// Copy this binary into a folder, for the hook of a pod whose image has none
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  capturedrain install /capturedrain

For an init container, and a folder that it shares with the container of the hook. The file appears whole or not at all.")]
pub(super) struct InstallArgs {
    /// The folder, which has to be there
    folder: PathBuf,
}

impl From<InstallError> for Failure {
    fn from(error: InstallError) -> Self {
        Self::environment(error)
    }
}

pub(super) fn install_into(args: &InstallArgs) -> Result<Exit, Failure> {
    let path = install(&args.folder)?;
    say(&format!("{} is there", path.display()));
    Ok(Exit::Done)
}

fn exit(outcome: Outcome) -> Exit {
    match outcome {
        Outcome::Proven | Outcome::NothingLeft => Exit::Done,
        Outcome::NoPeers | Outcome::Unsupported => Exit::Refused,
        Outcome::Unreachable => Exit::Unreachable,
        Outcome::Deadline => Exit::Proceeded,
        Outcome::Stalled => Exit::Stalled,
        Outcome::Withdrawn => Exit::Withdrawn,
        Outcome::OtherPod => Exit::TargetGone,
        Outcome::Unauthorized => Exit::Unauthorised,
        Outcome::Signal => Exit::Terminated,
    }
}

pub(super) async fn run(args: PrestopArgs, common: &Common) -> Result<Exit, Failure> {
    if common.server.len() != 1 {
        return Err(Failure::usage("a hook asks the capture of its own pod: name one --server"));
    }
    let signals = Signals::listen()?;
    let config = Config {
        pod_name: args.pod_name,
        pod_uid: args.pod_uid.filter(|uid| !uid.is_empty()),
        grace_period: args.grace_period,
        margin: args.margin,
        no_peers: match args.no_peers {
            WithoutPeers::Proceed => NoPeers::Proceed,
            WithoutPeers::Hold => NoPeers::Hold,
        },
    };
    match args.kind {
        Kind::Capturedrain => Ok(of_capture(Run::new(common.client()?, config), signals).await),
        Kind::Ticdc => {
            let run = TiCdcRun::new(args.ticdc.connect(common)?, config);
            Ok(of_ticdc(run, signals, &args.container_log).await)
        }
    }
}

/// What a signal leaves behind.
fn by_signal() -> End {
    End {
        outcome: Outcome::Signal,
        sentence: "the hook was ended by a signal; a drain that has begun goes on".to_owned(),
    }
}

async fn of_capture(mut run: Run, mut signals: Signals) -> Exit {
    let (end, exit) = tokio::select! {
        end = run.wait() => {
            let exit = exit(end.outcome);
            (end, exit)
        }
        exit = signals.next() => (by_signal(), exit),
    };
    say(&end.sentence);
    let reported = tokio::select! {
        reported = run.report(&end) => reported,
        _ = signals.next() => false,
    };
    if !reported {
        say("the coordinator was not told");
    }
    exit
}

async fn of_ticdc(mut run: TiCdcRun, mut signals: Signals, log: &Path) -> Exit {
    let tell = |sentence: &str| tell(log, sentence);
    tokio::select! {
        end = run.wait(tell) => {
            tell(&end.sentence);
            exit(end.outcome)
        }
        exit = signals.next() => {
            tell("the hook was ended by a signal; the drain ends with it");
            exit
        }
    }
}

/// Says it here, and in the log of the container.
fn tell(log: &Path, sentence: &str) {
    say(sentence);
    if let Ok(mut log) = OpenOptions::new().append(true).custom_flags(NONBLOCKING).open(log) {
        // A log that is full or gone holds no pod.
        let _ = writeln!(log, "capturedrain prestop: {sentence}");
    }
}
