//! A capture leaves a cluster of processes on a real etcd, in three ways that take turns: how long that takes, and how much
//! lag it adds.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_precision_loss,
    reason = "a measurement that cannot go on has failed, and what it counts is small"
)]

#[path = "../../tests/support/etcd.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod etcd;
mod lag;
#[path = "../../tests/support/processes.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod processes;
#[path = "../report.rs"]
#[allow(dead_code, reason = "shared with other benchmarks")]
mod report;

use std::{
    cell::Cell,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use capturedrain::{
    client::Client,
    verify::Feed,
    view::{CaptureView, ChangefeedView, NewChangefeed},
};
use etcd::Etcd;
use lag::Lag;
use processes::{Cluster, wait_for};
use report::{Report, is_quick, median, percentile};
use tempfile::TempDir;

const CAPTURES: [&str; 4] = ["a", "b", "c", "d"];
const CHANGEFEEDS: usize = 100;
const TABLES: u64 = 100;
/// Rows a second and table.
const RATE: u64 = 1;
/// By how much the tables of a changefeed take turns: it has a row every so many milliseconds.
const STAGGER_MS: u64 = 10;
/// How often each way is measured.
const ROUNDS: usize = 3;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_mins(5);
/// For how long the lag has to be as it was before anything happens, and after it.
const CALM: Duration = Duration::from_secs(3);
/// By how much the lag of a calm cluster may be above what it usually is, in milliseconds.
const CALM_MARGIN_MS: u64 = 500;
/// What a drained restart may add to the lag of a changefeed, in milliseconds, at the 99th percentile.
const LAG_MAX_MS: f64 = 1000.0;

/// How a capture leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It is drained, then it ends.
    Drain,
    /// SIGTERM with `--shutdown-timeout 0s`: it ends with all its work, and gives its lease back.
    Shutdown,
    /// SIGKILL.
    Kill,
}

impl Way {
    const ALL: [Self; 3] = [Self::Drain, Self::Shutdown, Self::Kill];

    fn title(self) -> &'static str {
        match self {
            Self::Drain => "drained",
            Self::Shutdown => "SIGTERM",
            Self::Kill => "killed",
        }
    }
}

/// What one departure took.
struct Departure {
    way: Way,
    /// From the order to leave to the end of the process.
    left: Duration,
    /// From the order until all work runs elsewhere.
    moved: Duration,
    /// By how much the lag of each changefeed was above its highest before, at its worst moment.
    added_ms: Vec<f64>,
}

/// What is measured.
struct World {
    cluster: Cluster,
    lag: Lag,
    _etcd: Etcd,
    _folder: TempDir,
}

/// A folder for the sinks: in memory where that is possible, since the machine's disk is not what is measured.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.unwrap()
}

/// CPU time of a process, in seconds; 100 ticks are one.
fn cpu(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

/// Resident memory of a process, in MiB.
fn resident(pid: u32) -> f64 {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 4096.0 / f64::from(1 << 20)
}

impl World {
    async fn start() -> Self {
        let (etcd, folder) = (Etcd::start().await, folder());
        let more = ["--balance-cooldown", "1s"];
        let mut cluster = Cluster::new("bench", &etcd.url()).with_lease("10s", &more).with_heartbeat("1s");
        cluster.shutdown_timeout("0s");
        for id in CAPTURES {
            cluster.start(id);
        }
        cluster.wait_for_captures(CAPTURES.len()).await;
        let client = Client::new(&[cluster.server(CAPTURES[0])]).unwrap();
        let mut feeds = Vec::new();
        for n in 0..CHANGEFEEDS {
            let source = format!("synthetic://?tables={TABLES}&rate={RATE}&stagger_ms={STAGGER_MS}&keys=100&seed={n}");
            let sink = folder.path().join(format!("f{n:03}"));
            let id = format!("f{n:03}");
            let target = format!("file://{}", sink.display());
            let new = NewChangefeed { id, source: source.clone(), sink: target, start_ts: None, span_max_keys: 0 };
            let created = client.create_changefeed(&new).await.unwrap();
            feeds.push(Feed { source, sink, start_ts: created.start_ts });
        }
        let lag = Lag::watch(&feeds);
        Self { cluster, lag, _etcd: etcd, _folder: folder }
    }

    fn client(&self) -> Client {
        Client::new(&self.cluster.servers().split(',').map(str::to_owned).collect::<Vec<_>>()).unwrap()
    }

    /// What the coordinator knows; `None` while there is none.
    async fn seen(&self) -> Option<(Vec<CaptureView>, Vec<ChangefeedView>)> {
        let client = self.client();
        Some((client.captures().await.ok()?, client.changefeeds().await.ok()?))
    }

    /// Waits until all captures share the work evenly and the lag is low. Returns since when.
    async fn settle(&self, usual_ms: Option<u64>) -> Instant {
        let share = CHANGEFEEDS / CAPTURES.len();
        let least = share as u64 * TABLES * 9 / 10;
        let since = Cell::new(None);
        wait_for(PATIENCE, "a calm cluster", async || {
            let (captures, feeds) = self.seen().await?;
            let even = captures.len() == CAPTURES.len()
                && captures.iter().all(|capture| {
                    capture.heard
                        && capture.maintainer_count.is_some_and(|count| count >= share as u64 - 1)
                        && capture.dispatcher_count.is_some_and(|count| count >= least)
                });
            let whole = feeds.iter().all(|feed| feed.dispatchers.values().sum::<u64>() == TABLES);
            let now = Instant::now();
            let lag = self.lag.highest(now.checked_sub(CALM).unwrap(), now).into_iter().max()?;
            if !even || !whole || usual_ms.is_some_and(|usual| lag > usual + CALM_MARGIN_MS) {
                since.set(None);
                return None;
            }
            let began = since.get().unwrap_or(now);
            since.set(Some(began));
            (now.duration_since(began) > CALM).then_some(began)
        })
        .await
    }

    async fn leave(&mut self, way: Way, usual_ms: u64) -> Departure {
        let target = self.cluster.a_follower().await;
        let ordered = Instant::now();
        let before = self.lag.highest(ordered.checked_sub(CALM).unwrap(), ordered);
        match way {
            Way::Drain => {
                self.cluster.ok(&["drain", &target, "--wait"]).await;
                self.cluster.terminate(&target).await;
            }
            Way::Shutdown => drop(self.cluster.terminate(&target).await),
            Way::Kill => self.cluster.kill(&target),
        }
        let left = ordered.elapsed();
        let moved = wait_for(PATIENCE, "the work to run elsewhere", async || {
            let (_, feeds) = self.seen().await?;
            let elsewhere = |feed: &ChangefeedView| {
                feed.maintainer.as_ref().is_some_and(|host| *host != target)
                    && !feed.dispatchers.contains_key(&target)
                    && feed.dispatchers.values().sum::<u64>() == TABLES
            };
            feeds.iter().all(elsewhere).then(|| ordered.elapsed())
        })
        .await;
        wait_for(PATIENCE, "the lag to be low again", async || {
            let now = Instant::now();
            let lag = self.lag.highest(now.checked_sub(CALM).unwrap(), now).into_iter().max()?;
            (lag <= usual_ms + CALM_MARGIN_MS).then_some(())
        })
        .await;
        let highest = self.lag.highest(ordered, Instant::now());
        let added_ms = highest.iter().zip(&before).map(|(most, before)| most.saturating_sub(*before) as f64).collect();
        self.cluster.start(&target);
        self.cluster.wait_for_captures(CAPTURES.len()).await;
        Departure { way, left, moved, added_ms }
    }

    /// What a calm cluster uses: processors of all captures together, and memory of the largest.
    async fn cost(&self) -> (f64, f64) {
        let pids = CAPTURES.map(|id| self.cluster.pid(id));
        let spent = || pids.into_iter().map(cpu).sum::<f64>();
        let (before, began) = (spent(), Instant::now());
        tokio::time::sleep(CALM).await;
        let used = (spent() - before) / began.elapsed().as_secs_f64();
        (used, pids.into_iter().map(resident).fold(0.0, f64::max))
    }
}

fn summary(report: &mut Report, departures: &[Departure]) {
    for way in Way::ALL {
        let of = |value: &dyn Fn(&Departure) -> f64| -> Vec<f64> {
            departures.iter().filter(|departure| departure.way == way).map(value).collect()
        };
        let title = way.title();
        report.tell(&format!("{title}: until it has ended"), "s", &of(&|d| d.left.as_secs_f64()));
        report.tell(&format!("{title}: until all runs elsewhere"), "s", &of(&|d| d.moved.as_secs_f64()));
        for percent in [50, 99, 100] {
            let added = of(&|departure| percentile(&departure.added_ms, percent));
            let name = if percent == 100 { "highest".to_owned() } else { format!("p{percent}") };
            let case = format!("{title}: lag added, {name}");
            if way == Way::Drain && percent == 99 {
                report.bound(&case, "ms", &added, LAG_MAX_MS);
            } else {
                report.tell(&case, "ms", &added);
            }
        }
    }
}

#[tokio::main]
async fn main() {
    let rounds = if is_quick() { 1 } else { ROUNDS };
    let mut world = World::start().await;
    let calm_since = world.settle(None).await;
    let usual_ms = world.lag.highest(calm_since, Instant::now()).into_iter().max().unwrap();
    let mut costs = Vec::new();
    let mut departures = Vec::new();
    for round in 0..rounds {
        costs.push(world.cost().await);
        for n in 0..Way::ALL.len() {
            // Each way comes first once.
            let way = Way::ALL[(round + n) % Way::ALL.len()];
            world.settle(Some(usual_ms)).await;
            let departure = world.leave(way, usual_ms).await;
            eprintln!("round {} of {rounds}: {}", round + 1, way.title());
            departures.push(departure);
        }
    }
    let mut report = Report::new("processes");
    report.tell("calm: lag of the slowest", "ms", &[usual_ms as f64]);
    report.tell("calm: processors in use", "", &costs.iter().map(|cost| cost.0).collect::<Vec<_>>());
    report.tell("calm: memory of a capture", "MiB", &[median(&costs.iter().map(|cost| cost.1).collect::<Vec<_>>())]);
    summary(&mut report, &departures);
    report.end();
}
