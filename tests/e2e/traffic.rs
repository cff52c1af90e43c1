//! Rows that are written to a source all the time, and seen in the sink: none lost, none out of order, and how late.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use capturedrain::verify;
use etcd_client::{Client, EventType, WatchOptions};
use tokio::{task::JoinHandle, time};

use crate::{
    api_server::etcd::Etcd,
    nodes::{HOST, PATIENCE},
    proof::{self, Copies},
    wait::wait_for,
};

/// Rows of the source and of the sink are below this.
pub(crate) const PREFIX: &str = "/shop/";
const TABLES: u64 = 12;
const KEYS: u64 = 20;
/// Between two rows.
const PAUSE: Duration = Duration::from_millis(10);

/// What was seen in the sink.
#[derive(Default)]
struct Seen {
    copies: Copies,
    /// For each row: when it was seen, and how long after it had been written, in milliseconds.
    lags: Vec<(u64, u64)>,
}

/// Two etcds with a writer at one end and a watcher at the other.
pub(crate) struct Traffic {
    pub(crate) source: Etcd,
    pub(crate) sink: Etcd,
    writer: JoinHandle<()>,
    watcher: JoinHandle<()>,
    seen: Arc<Mutex<Seen>>,
}

pub(crate) fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// Writes rows whose values are never the same: a number, and when.
async fn write(url: String) {
    let mut client = Client::connect([url], None).await.unwrap();
    for number in 0_u64.. {
        let key = format!("{PREFIX}t{}/{}", number % TABLES, number / TABLES % KEYS);
        client.put(key, format!("{number} {}", now_ms()), None).await.unwrap();
        time::sleep(PAUSE).await;
    }
}

/// Notes each row of the sink as it comes.
async fn watch(url: String, seen: Arc<Mutex<Seen>>) {
    let mut client = Client::connect([url], None).await.unwrap();
    let options = WatchOptions::new().with_prefix().with_start_revision(1);
    let mut stream = client.watch(PREFIX, Some(options)).await.unwrap();
    while let Some(news) = stream.message().await.unwrap() {
        let now = now_ms();
        let mut seen = seen.lock().unwrap();
        for event in news.events() {
            let row = event.kv().unwrap();
            let value = (event.event_type() == EventType::Put).then(|| row.value().to_vec());
            let written =
                value.as_deref().and_then(|value| std::str::from_utf8(value).ok()?.split(' ').nth(1)?.parse().ok());
            if let Some(written) = written {
                seen.lags.push((now, now.saturating_sub(written)));
            }
            let key = row.key_str().unwrap().trim_start_matches(PREFIX).to_owned();
            proof::add(&mut seen.copies, vec![(key, value)]);
        }
    }
}

/// How late rows were: of so many, at the 99th percentile and at most, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lag {
    pub(crate) rows: usize,
    pub(crate) p99: u64,
    pub(crate) max: u64,
}

impl Traffic {
    /// Begins to write, and to watch.
    pub(crate) async fn start() -> Self {
        let (source, sink) = (Etcd::start_at(HOST, FAST).await, Etcd::start_at(HOST, FAST).await);
        let seen = Arc::default();
        let writer = tokio::spawn(write(source.client_url()));
        let watcher = tokio::spawn(watch(sink.client_url(), Arc::clone(&seen)));
        Self { source, sink, writer, watcher, seen }
    }

    /// The ends as a changefeed takes them.
    pub(crate) fn urls(&self) -> [String; 2] {
        [&self.source, &self.sink].map(|etcd| format!("{}{PREFIX}", etcd.url()))
    }

    /// How late the rows were that were written since then.
    pub(crate) fn lag_since(&self, since_ms: u64) -> Lag {
        let seen = self.seen.lock().unwrap();
        let mut lags: Vec<_> = seen.lags.iter().filter(|(at, lag)| at - lag >= since_ms).map(|(_, lag)| *lag).collect();
        lags.sort_unstable();
        let at = |share: usize| lags.get((lags.len() * share / 100).min(lags.len().saturating_sub(1))).copied();
        Lag { rows: lags.len(), p99: at(99).unwrap_or_default(), max: at(100).unwrap_or_default() }
    }

    /// Waits until rows that are written now are seen.
    pub(crate) async fn wait_until_it_flows(&self) {
        let since = now_ms();
        wait_for(PATIENCE, "rows in the sink", async || {
            let seen = self.seen.lock().unwrap();
            seen.lags.iter().rev().any(|(at, lag)| at - lag > since).then_some(())
        })
        .await;
    }

    /// Stops writing, and proves that the sink has got all of it, in order by key.
    pub(crate) async fn prove(&mut self) {
        self.writer.abort();
        let _ = (&mut self.writer).await;
        let [source, sink] = [&self.source, &self.sink].map(|etcd| format!("{}{PREFIX}", etcd.url()));
        let proof = wait_for(PATIENCE, "the sink to have it all", async || {
            let proof = verify::against_mirror(&source, &sink).await.unwrap();
            (proof.is_good() && proof.rows > 0).then_some(proof)
        });
        proof.await;
        let end = Client::connect([self.source.client_url()], None).await.unwrap().status().await.unwrap();
        let end = u64::try_from(end.header().unwrap().revision()).unwrap();
        let truth = proof::truth(&source, PREFIX, end).await;
        wait_for(PATIENCE, "the watcher to have seen it all", async || {
            proof::in_order(&truth, &self.seen.lock().unwrap().copies).ok()
        })
        .await;
        self.watcher.abort();
    }
}

/// An etcd of tests need not survive the machine.
pub(crate) const FAST: &[&str] = &["--unsafe-no-fsync"];
