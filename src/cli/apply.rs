//! `capturedrain apply -f`: runs `CaptureDrain` manifests against a cluster, the file in place of the API server.

use std::{io::Read as _, path::PathBuf, time::Duration};

use clap::Args;
use futures::StreamExt as _;
use tokio::time;

use super::{
    Common, Format,
    drain::silent,
    exit::{Exit, Failure},
    print, say,
    signals::Signals,
};
use crate::{
    client::Client,
    operator::reconcile,
    resource::{CaptureDrain, ManifestError, ending, is_drained, is_finished, parse, stalled, to_yaml},
};

/// How long without news the next round comes at the latest.
const ROUND: Duration = Duration::from_secs(1);

/// Run the `CaptureDrain`s of a file without Kubernetes
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  capturedrain apply --wait -f - <<'YAML'
  apiVersion: capturedrain.io/v1alpha1
  kind: CaptureDrain
  metadata:
    name: node-upgrade
  spec:
    clusterRef:
      serviceName: cdc        # ignored here: --server says where the cluster is
    target:
      captureID: capture-1    # or podName: capture-1
    deadlineSeconds: 600
    onDeadline: Proceed
  YAML

Prints each with its status. The exit code is that of the first that did not go well, as of `capturedrain drain --wait`.")]
pub(super) struct ApplyArgs {
    /// The file; `-` is standard input
    #[arg(long, short, env = "CAPTUREDRAIN_FILE", value_name = "FILE")]
    file: PathBuf,
    /// Go on until each has ended, or its target is proven empty
    #[arg(long, short, env = "CAPTUREDRAIN_WAIT")]
    wait: bool,
}

fn read(file: &PathBuf) -> Result<Vec<CaptureDrain>, Failure> {
    let name = if file.as_os_str() == "-" { "standard input".to_owned() } else { file.display().to_string() };
    let mut text = String::new();
    let read = if file.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text).map(drop)
    } else {
        std::fs::read_to_string(file).map(|read| text = read)
    };
    let cannot = |error| Failure::new(Exit::NotFound, format!("{name} cannot be read: {error}"));
    read.map_err(cannot)?;
    let drains = parse(&text, &name)?;
    if drains.is_empty() { Err(ManifestError::Empty { file: name }.into()) } else { Ok(drains) }
}

pub(super) async fn run(args: ApplyArgs, common: &Common) -> Result<Exit, Failure> {
    let client = common.client()?;
    let mut drains = read(&args.file)?;
    let mut signals = Signals::listen()?;
    let mut news = std::pin::pin!(client.watch().fuse());
    let left = loop {
        tokio::select! {
            () = round(&client, &mut drains) => {}
            exit = signals.next() => break Some(exit),
        }
        if !args.wait || drains.iter().all(is_over) {
            break None;
        }
        tokio::select! {
            heard = time::timeout(ROUND, news.next()) => if matches!(heard, Ok(None)) {
                show(&drains, common)?;
                return Err(silent("what was asked for goes on once they do"));
            },
            exit = signals.next() => break Some(exit),
        }
    };
    if left.is_some() {
        say("what was asked for goes on; `capturedrain status` shows it, `capturedrain cancel` calls it off");
    }
    show(&drains, common)?;
    Ok(left.unwrap_or_else(|| drains.iter().map(outcome).find(|exit| *exit != Exit::Done).unwrap_or(Exit::Done)))
}

/// Looks after each, and tells of those that have come to something else.
async fn round(client: &Client, drains: &mut [CaptureDrain]) {
    for drain in drains {
        let before = phase(drain);
        reconcile(client, drain).await;
        tell(drain, before.as_deref());
    }
}

/// Whether waiting longer brings nothing: a deadline that has passed is for a person to decide, certificates to mend.
fn is_over(drain: &CaptureDrain) -> bool {
    is_finished(drain)
        || is_drained(drain)
        || matches!(stalled(drain), Some("DeadlineHeld" | "NoProgress" | "Unauthorized"))
}

fn phase(drain: &CaptureDrain) -> Option<String> {
    drain.status.as_ref().and_then(|status| status.phase.clone())
}

fn tell(drain: &CaptureDrain, before: Option<&str>) {
    let now = phase(drain);
    if let Some(now) = now.filter(|now| Some(now.as_str()) != before) {
        let reason = ending(drain).or(stalled(drain)).map(|reason| format!(" ({reason})")).unwrap_or_default();
        say(&format!("{}: {now}{reason}", drain.metadata.name.as_deref().unwrap_or_default()));
    }
}

fn show(drains: &[CaptureDrain], common: &Common) -> Result<(), Failure> {
    if common.printing.output == Format::Json {
        return match drains {
            [one] => common.print(one, |_| String::new()),
            several => common.print(&several, |_| String::new()),
        };
    }
    let documents: Result<Vec<_>, _> = drains.iter().map(to_yaml).collect();
    let documents = documents.map_err(|error| Failure::new(Exit::Internal, error))?;
    print(&documents.join("---\n"))
}

fn outcome(drain: &CaptureDrain) -> Exit {
    match (ending(drain), stalled(drain)) {
        (Some("PodGone" | "CaptureStopping"), _) | (None, None) => Exit::Done,
        (Some("Withdrawn" | "EvictionAbandoned"), _) => Exit::Withdrawn,
        (Some("TargetGone" | "TargetReplaced"), _) => Exit::TargetGone,
        (Some("PodNotFound" | "NotACapture"), _) => Exit::NotFound,
        (Some("DeadlineProceeded"), _) => Exit::Proceeded,
        (Some(_), _) => Exit::Refused,
        (None, Some("ClusterUnreachable")) => Exit::Unreachable,
        (None, Some("Unauthorized")) => Exit::Unauthorised,
        (None, Some(_)) => Exit::Stalled,
    }
}
