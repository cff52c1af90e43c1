//! The story: all captures replicate; each in turn leaves, the rest takes its work, and it comes back.

use std::{ops::RangeInclusive, path::Path, time::Duration};

use capturedrain_core::model::{CaptureId, ChangefeedId, CommitTs};
use tokio::{
    task,
    time::{self, Instant},
};

use super::{
    DemoConfig, DemoError, News, Outcome, PATIENCE, RATE_MAX, Way,
    cluster::{Cluster, Tables},
    lag::Lag,
    leave::{Departed, departure, leave},
};
use crate::{
    clock::wall,
    verify::{Feed, Probe, Proof, against_synthetic_by},
    view::NewChangefeed,
};

/// How often it is looked again.
const LOOK: Duration = Duration::from_millis(10);
/// For how long the lag is watched before anything happens.
pub(super) const CALM: Duration = Duration::from_millis(1_500);
/// How many different rates the changefeeds have.
const RATES: u16 = 7;
/// By how much the lag of a calm cluster may differ from what it was before.
const CALM_MARGIN_MS: u64 = 100;

/// Tells whoever watches.
pub(super) struct Stage<'a> {
    began: Instant,
    tell: &'a (dyn Fn(News<'_>) + Sync),
}

impl<'a> Stage<'a> {
    pub(super) fn new(tell: &'a (dyn Fn(News<'_>) + Sync)) -> Self {
        Self { began: Instant::now(), tell }
    }

    pub(super) fn tell(&self, line: &str) {
        (self.tell)(News::Line(&format!("{:6.2}s  {line}", self.began.elapsed().as_secs_f64())));
    }

    pub(super) fn progress(&self, what: &str, done: u64, total: u64) {
        (self.tell)(News::Progress { what, done, total });
    }
}

/// Asks again and again until there is an answer.
pub(super) async fn wait_for<T>(what: &'static str, mut ask: impl AsyncFnMut() -> Option<T>) -> Result<T, DemoError> {
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

/// The whole of it.
pub(super) async fn tour(
    cluster: &mut Cluster,
    config: &DemoConfig,
    folder: &Path,
    stage: &Stage<'_>,
) -> Result<Outcome, DemoError> {
    let size = u64::from(config.captures);
    wait_for("the captures to register", async || (cluster.heard() == size).then_some(())).await?;
    stage.tell(&format!("{size} captures run on one embedded store"));
    let (feeds, tables) = create(cluster, config, folder).await?;
    let total = u64::from(config.tables);
    wait_for("all dispatchers to work", async || {
        stage.progress("dispatchers at work", cluster.dispatchers(), total);
        (cluster.dispatchers() == total).then_some(())
    })
    .await?;
    let (changefeeds, rows) = (config.changefeeds, rows_per_second(config));
    stage.tell(&format!("{changefeeds} changefeeds replicate {total} tables, {rows} rows a second, into files"));
    let lag = Lag::watch(Probe::new(&feeds)?)?;
    let mut calm_ms = None;
    let mut departed: Vec<Departed> = Vec::new();
    for way in Way::ALL {
        let before = calm(cluster, &tables, &lag, calm_ms, stage).await?;
        calm_ms = calm_ms.or(Some(before));
        let target = choose(cluster, &departed)?;
        departed.push(leave(cluster, (way, target), (before, limit(before)), &tables, &lag, stage).await?);
    }
    calm(cluster, &tables, &lag, calm_ms, stage).await?;
    let stretches: Vec<_> = departed.iter().map(Departed::rows).collect();
    let (proof, of_stretches) = prove(cluster, &tables, feeds, stretches, stage).await?;
    let departures: Vec<_> =
        departed.iter().zip(&of_stretches).map(|(departed, proof)| departure(departed, &lag, proof)).collect();
    Ok(Outcome {
        captures: config.captures,
        changefeeds,
        tables: config.tables,
        rows_per_second: rows_per_second(config),
        seed: config.seed,
        took_ms: u64::try_from(stage.began.elapsed().as_millis()).unwrap_or(u64::MAX),
        proven: Outcome::prove(&departures, &proof),
        departures,
        proof,
    })
}

/// Tables and rate of a changefeed. Tables that do not divide evenly go to the first ones; rates differ, so that at any
/// moment some row is due soon, and rows do not all come at once.
fn share(config: &DemoConfig, n: u16) -> (u16, u16) {
    let tables = config.tables / config.changefeeds + u16::from(n < config.tables % config.changefeeds);
    let rate = (config.rate + n % RATES).saturating_sub(RATES / 2);
    (tables, rate.clamp(1, RATE_MAX))
}

fn rows_per_second(config: &DemoConfig) -> u64 {
    let shares = (0..config.changefeeds).map(|n| share(config, n));
    shares.map(|(tables, rate)| u64::from(tables) * u64::from(rate)).sum()
}

/// What the lag may be when the cluster is as calm as it was.
fn limit(calm_ms: u64) -> u64 {
    calm_ms + CALM_MARGIN_MS.max(calm_ms / 2)
}

async fn create(cluster: &Cluster, config: &DemoConfig, folder: &Path) -> Result<(Vec<Feed>, Tables), DemoError> {
    let (mut feeds, mut all) = (Vec::new(), Tables::new());
    for n in 0..config.changefeeds {
        let Ok(id) = ChangefeedId::new(format!("feed-{n}")) else { continue };
        let (tables, rate) = share(config, n);
        let seed = config.seed.wrapping_mul(1_000).wrapping_add(n.into());
        let source = format!("synthetic://?tables={tables}&rate={rate}&keys=100&seed={seed}");
        let sink = folder.join(id.as_str());
        let new = NewChangefeed {
            id: id.to_string(),
            source: source.clone(),
            sink: format!("file://{}", sink.display()),
            start_ts: None,
            span_max_keys: 0,
        };
        let created = cluster.client().create_changefeed(&new).await?;
        feeds.push(Feed { source, sink, start_ts: created.start_ts });
        all.insert(id, tables.into());
    }
    Ok((feeds, all))
}

/// Waits until all captures share the work evenly and the lag is low, for long enough. Returns the highest lag then.
async fn calm(
    cluster: &Cluster,
    tables: &Tables,
    lag: &Lag,
    before_ms: Option<u64>,
    stage: &Stage<'_>,
) -> Result<u64, DemoError> {
    let total = tables.values().sum();
    let mut since = Instant::now();
    let calm_ms = wait_for("a calm cluster", async || {
        stage.progress("in place", cluster.in_place(tables), total);
        let now = Instant::now();
        let highest_ms = lag.highest_since(now.checked_sub(CALM / 8).unwrap_or(now));
        let high = highest_ms.is_none_or(|highest| before_ms.is_some_and(|before| highest > limit(before)));
        if high || !cluster.is_balanced(tables) {
            since = now;
        }
        if now.duration_since(since) < CALM { None } else { lag.highest_since(since) }
    })
    .await?;
    stage.tell(&format!("calm: all captures share the work, the highest lag is {calm_ms} ms"));
    Ok(calm_ms)
}

/// A capture that does not coordinate; one that has not left yet, if there is one.
fn choose(cluster: &Cluster, departed: &[Departed]) -> Result<CaptureId, DemoError> {
    let followers = cluster.followers().ok_or(DemoError::TooSlow("a coordinator"))?;
    let times = |id: &CaptureId| departed.iter().filter(|left| left.target == *id).count();
    followers.into_iter().min_by_key(|id| (times(id), id.clone())).ok_or(DemoError::TooSlow("a follower"))
}

/// Waits until all that has happened so far is in the sinks, and compares: over all, and in each stretch.
async fn prove(
    cluster: &Cluster,
    tables: &Tables,
    feeds: Vec<Feed>,
    stretches: Vec<RangeInclusive<CommitTs>>,
    stage: &Stage<'_>,
) -> Result<(Proof, Vec<Proof>), DemoError> {
    let until = wall().0;
    wait_for("the checkpoints", async || cluster.all_past(tables, until).then_some(())).await?;
    stage.tell("all checkpoints have passed: every row of the sinks is compared with the source");
    let mut all = Proof::default();
    let mut parts = vec![Proof::default(); stretches.len()];
    let total = feeds.len() as u64;
    for (n, feed) in feeds.into_iter().enumerate() {
        stage.progress("changefeeds compared", n as u64, total);
        let stretches = stretches.clone();
        let compare = move || against_synthetic_by(&feed.sink, &feed.source, feed.start_ts, until, &stretches);
        let (proof, of_stretches) = task::spawn_blocking(compare).await??;
        all = all.and(proof);
        parts = parts.into_iter().zip(of_stretches).map(|(part, more)| part.and(more)).collect();
    }
    stage.progress("changefeeds compared", total, total);
    Ok((all, parts))
}
