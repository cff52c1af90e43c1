//! A whole cluster in one process, for a minute: real replication, a drain asked for by a manifest, the coordinator killed
//! half-way, and the proof that the sink has everything.

mod cluster;
mod lag;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use capturedrain_core::model::{CaptureId, ChangefeedId};
use tokio::time::{self, Instant};

use self::{cluster::Cluster, lag::Lag};
use crate::{
    client::ClientError,
    clock::wall,
    node::NodeError,
    reconcile::reconcile,
    resource::{CaptureDrain, ManifestError, is_drained, is_finished, parse},
    store::StoreError,
    verify::{Proof, VerifyError, against_synthetic},
    view::NewChangefeed,
};

/// How long anything in it may take.
const PATIENCE: Duration = Duration::from_secs(40);
/// How often it is looked again.
const LOOK: Duration = Duration::from_millis(10);
/// How long the lag is watched before anything happens.
const CALM: Duration = Duration::from_secs(2);

/// What is shown.
#[derive(Debug, Clone)]
pub struct DemoConfig {
    /// How many changefeeds.
    pub changefeeds: u16,
    /// Tables of each.
    pub tables: u16,
    /// Rows a second and table.
    pub rate: u16,
    /// A folder that is kept; it must not exist.
    pub keep: Option<PathBuf>,
}

/// Why there was nothing to see.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Its folder cannot be made.
    #[error("folder {path} cannot be made: {reason}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: std::io::Error,
    },
    /// A capture did not start.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The store did not open.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cluster did not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Its own manifest is wrong.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The sink cannot be read.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// Something took too long.
    #[error("waited {seconds} s for {0}", seconds = PATIENCE.as_secs())]
    TooSlow(&'static str),
}

/// A folder that goes when this does, unless it is kept.
struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    fn make(keep: Option<PathBuf>) -> Result<Self, DemoError> {
        let kept = keep.is_some();
        let path =
            keep.unwrap_or_else(|| std::env::temp_dir().join(format!("capturedrain-demo-{}", std::process::id())));
        std::fs::create_dir(&path).map_err(|reason| DemoError::Folder { path: path.clone(), reason })?;
        let path = path.canonicalize().map_err(|reason| DemoError::Folder { path: path.clone(), reason })?;
        Ok(Self { path, keep: kept })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep {
            // What cannot be removed from a folder for temporary files is left to the system.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// Says each line with the time since the beginning.
struct Story<'a> {
    began: Instant,
    say: &'a (dyn Fn(String) + Sync),
}

impl Story<'_> {
    fn tell(&self, line: &str) {
        (self.say)(format!("{:6.2}s  {line}", self.began.elapsed().as_secs_f64()));
    }
}

/// Asks again and again until there is an answer.
async fn wait_for<T>(what: &'static str, mut ask: impl AsyncFnMut() -> Option<T>) -> Result<T, DemoError> {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            time::sleep(LOOK).await;
        }
    };
    time::timeout(PATIENCE, asking).await.map_err(|_| DemoError::TooSlow(what))
}

/// Shows a drain. Returns whether the sink was proven equal to the source.
///
/// # Errors
/// When there was nothing to see.
pub async fn demo(config: DemoConfig, say: &(dyn Fn(String) + Sync)) -> Result<bool, DemoError> {
    let story = Story { began: Instant::now(), say };
    let folder = Folder::make(config.keep.clone())?;
    let mut cluster = Cluster::start(&folder.path).await?;
    story.tell(&format!("three captures run on one embedded store: {}", cluster.names().join(", ")));
    let feeds = create(&cluster, &config, &folder.path).await?;
    let dispatchers = u64::from(config.changefeeds) * u64::from(config.tables);
    wait_for("all dispatchers to work", async || (cluster.dispatchers() == dispatchers).then_some(())).await?;
    story.tell(&format!(
        "{} changefeeds with {dispatchers} dispatchers replicate {} rows a second into files",
        config.changefeeds,
        dispatchers * u64::from(config.rate)
    ));
    let lag = Lag::watch(cluster.doors());
    time::sleep(CALM).await;
    let calm = lag.highest_ms();
    story.tell(&format!("highest lag while nothing happens: {calm} ms"));

    let target = cluster.a_follower().ok_or(DemoError::TooSlow("a coordinator"))?;
    let drained = drain(&mut cluster, &target, &lag, &story).await?;
    let proof = prove(&cluster, &feeds, &story).await?;
    summary(&drained, calm, &lag, &proof, &story);
    if folder.keep {
        story.tell(&format!("kept: {}", folder.path.display()));
    }
    Ok(proof.is_good())
}

/// A changefeed of the demo.
struct Feed {
    id: ChangefeedId,
    source: String,
    sink: PathBuf,
    start_ts: u64,
}

async fn create(cluster: &Cluster, config: &DemoConfig, folder: &Path) -> Result<Vec<Feed>, DemoError> {
    let mut feeds = Vec::new();
    for n in 0..config.changefeeds {
        let Ok(id) = ChangefeedId::new(format!("feed-{n}")) else { continue };
        let source = format!("synthetic://?tables={}&rate={}&keys=100&seed={n}", config.tables, config.rate);
        let sink = folder.join(id.as_str());
        let new = NewChangefeed {
            id: id.to_string(),
            source: source.clone(),
            sink: format!("file://{}", sink.display()),
            start_ts: None,
            span_max_keys: 0,
        };
        let created = cluster.client().create_changefeed(&new).await?;
        feeds.push(Feed { id, source, sink, start_ts: created.start_ts });
    }
    Ok(feeds)
}

/// What the drain came to.
struct Drained {
    moves: u64,
    took: Duration,
    /// The highest lag before the kill, in milliseconds.
    lag_ms: u64,
    proven: bool,
}

fn manifest(target: &CaptureId) -> Result<CaptureDrain, DemoError> {
    let text = format!(
        "apiVersion: capturedrain.io/v1alpha1\nkind: CaptureDrain\nmetadata:\n  name: demo\nspec:\n  \
         clusterRef:\n    serviceName: demo\n  target:\n    captureID: {target}\n  reason: demo\n"
    );
    let drains = parse(&text, "the demo's manifest")?;
    drains.into_iter().next().ok_or(ManifestError::Empty { file: "the demo's manifest".to_owned() }.into())
}

/// Has the target drained by a manifest, and kills the coordinator when half of the work has left.
async fn drain(cluster: &mut Cluster, target: &CaptureId, lag: &Lag, story: &Story<'_>) -> Result<Drained, DemoError> {
    let mut drain = manifest(target)?;
    let began = Instant::now();
    lag.reset();
    reconcile(cluster.client(), &mut drain).await;
    let epoch = drain.status.as_ref().and_then(|status| status.epoch).unwrap_or_default();
    story.tell(&format!("CaptureDrain/demo asks to empty {target}: epoch {epoch}"));
    let half = wait_for("half of the work to leave", async || cluster.half_way(target)).await?;
    let coordinator = cluster.kill_coordinator().await.ok_or(DemoError::TooSlow("a coordinator"))?;
    let lag_ms = lag.highest_ms();
    story.tell(&format!(
        "{} of {} have left {target}: {coordinator}, the coordinator, is killed",
        half.gone, half.initial
    ));
    let mut coordinated = false;
    let mut phase = None;
    let until = Instant::now() + PATIENCE;
    while !is_finished(&drain) && Instant::now() < until {
        if let Some(next) = cluster.coordinator().filter(|next| !coordinated && *next != coordinator) {
            coordinated = true;
            story.tell(&format!("{next} takes office and goes on under epoch {}", cluster.epoch()));
        }
        reconcile(cluster.client(), &mut drain).await;
        let now = drain.status.as_ref().and_then(|status| status.phase.clone());
        if now != phase
            && let Some(now) = &now
        {
            story.tell(&format!("CaptureDrain/demo: {now}"));
        }
        phase = now;
        time::sleep(LOOK).await;
    }
    let proven = is_drained(&drain);
    let stands = if proven { "is proven empty: its pod may go" } else { "is not proven empty" };
    story.tell(&format!("{target} {stands}"));
    Ok(Drained { moves: half.initial, took: began.elapsed(), lag_ms, proven })
}

/// Waits until all that has happened so far is in the sinks, and compares.
async fn prove(cluster: &Cluster, feeds: &[Feed], story: &Story<'_>) -> Result<Proof, DemoError> {
    let until = wall().0;
    wait_for("the checkpoints", async || cluster.all_past(feeds.iter().map(|feed| &feed.id), until).then_some(()))
        .await?;
    story.tell("all checkpoints have passed: comparing every row of the sinks with the source");
    let mut proof = Proof::default();
    for feed in feeds {
        proof = proof.and(against_synthetic(&feed.sink, &feed.source, feed.start_ts, until)?);
    }
    Ok(proof)
}

fn summary(drained: &Drained, calm: u64, lag: &Lag, proof: &Proof, story: &Story<'_>) {
    let added = |highest: u64| highest.saturating_sub(calm);
    story.tell(&format!(
        "moves: {}; time: {:.2} s, the successor's election included",
        drained.moves,
        drained.took.as_secs_f64()
    ));
    story.tell(&format!(
        "highest lag added: {} ms by the drain; {} ms by the kill, whose work had to fail over",
        added(drained.lag_ms),
        added(lag.highest_ms())
    ));
    let verdict = if proof.is_good() && drained.proven { "PROVEN" } else { "FAILED" };
    story.tell(&format!("proof: {proof}: {verdict}"));
}
