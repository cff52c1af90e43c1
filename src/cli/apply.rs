//! `capturedrain apply -f`: runs `CaptureDrain` manifests against a cluster, the file in place of the API server.

use std::{io::Read as _, path::PathBuf, time::Duration};

use clap::Args;
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use tokio::time::{self, Instant};

use super::{
    Common, Format,
    drain::silent,
    exit::{Exit, Failure},
    print, say,
    signals::Signals,
    ticdc::TiCdcArgs,
};
use crate::{
    client::{Client, SILENCE},
    operator::{
        backend::{Backend, TiCdc},
        reconcile,
    },
    resource::{CaptureDrain, ClusterKind, ManifestError, ending, is_drained, is_finished, parse, stalled, to_yaml},
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
      kind: CaptureDrain      # or TiCDC
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
    #[command(flatten)]
    ticdc: TiCdcArgs,
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
    let mut drains = read(&args.file)?;
    let ways = Ways::new(&args, common, &drains)?;
    let mut signals = Signals::listen()?;
    let mut news = std::pin::pin!(ways.news().fuse());
    let mut silent_since = None;
    let left = loop {
        tokio::select! {
            () = round(&ways, &mut drains) => {}
            exit = signals.next() => break Some(exit),
        }
        if !args.wait || drains.iter().all(is_over) {
            break None;
        }
        // Of this project's clusters `news` tells that.
        let is_away = |drain: &CaptureDrain| is_ticdc(drain) && stalled(drain) == Some("ClusterUnreachable");
        silent_since = drains.iter().any(is_away).then(|| silent_since.unwrap_or_else(Instant::now));
        if silent_since.is_some_and(|since| since.elapsed() >= SILENCE) {
            show(&drains, common)?;
            return Err(silent("nothing is asked for any more"));
        }
        tokio::select! {
            heard = time::timeout(ROUND, news.next()) => if matches!(heard, Ok(None)) {
                show(&drains, common)?;
                return Err(silent("what was asked for goes on once they do"));
            },
            exit = signals.next() => break Some(exit),
        }
    };
    if left.is_some() && !drains.iter().all(is_ticdc) {
        say("what was asked for goes on; `capturedrain status` shows it, `capturedrain cancel` calls it off");
    }
    if left.is_some() && drains.iter().any(is_ticdc) {
        say("TiCDC is not asked any more, what it has begun it may finish; apply the same file to go on");
    }
    show(&drains, common)?;
    Ok(left.unwrap_or_else(|| drains.iter().map(outcome).find(|exit| *exit != Exit::Done).unwrap_or(Exit::Done)))
}

fn is_ticdc(drain: &CaptureDrain) -> bool {
    drain.spec.cluster_ref.kind == ClusterKind::TiCdc
}

/// The ways to the servers: they may be asked as one kind of cluster or as the other.
struct Ways {
    own: Option<Client>,
    ticdc: Option<TiCdc>,
}

impl Ways {
    /// Those that the drains need.
    fn new(args: &ApplyArgs, common: &Common, drains: &[CaptureDrain]) -> Result<Self, Failure> {
        let needs = |kind| drains.iter().any(|drain| drain.spec.cluster_ref.kind == kind);
        let own = needs(ClusterKind::CaptureDrain).then(|| common.client()).transpose()?;
        let ticdc = needs(ClusterKind::TiCdc).then(|| args.ticdc.connect(common)).transpose()?;
        Ok(Self { own, ticdc })
    }

    fn of(&self, drain: &CaptureDrain) -> Option<&dyn Backend> {
        match drain.spec.cluster_ref.kind {
            ClusterKind::CaptureDrain => self.own.as_ref().map(|client| client as &dyn Backend),
            ClusterKind::TiCdc => self.ticdc.as_ref().map(|ticdc| ticdc as &dyn Backend),
        }
    }

    /// Something for each change of this project's cluster, nothing for `TiCDC`'s, which tells of none. It ends when
    /// nobody answers for too long.
    fn news(&self) -> BoxStream<'static, ()> {
        match &self.own {
            Some(client) => client.watch().map(drop).boxed(),
            None => stream::pending().boxed(),
        }
    }
}

/// Looks after each, and tells of those that have come to something else.
async fn round(ways: &Ways, drains: &mut [CaptureDrain]) {
    for drain in drains {
        let Some(backend) = ways.of(drain) else { continue };
        let before = phase(drain);
        reconcile(backend, drain).await;
        tell(drain, before.as_deref());
    }
}

/// Whether waiting longer brings nothing: a deadline that has passed is for a person to decide, certificates and releases
/// are to mend.
fn is_over(drain: &CaptureDrain) -> bool {
    is_finished(drain)
        || is_drained(drain)
        || matches!(stalled(drain), Some("DeadlineHeld" | "NoProgress" | "Unauthorized" | "DrainUnsupported"))
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
