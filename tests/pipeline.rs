//! The data path by itself: dispatchers and table triggers on a real etcd and on the synthetic stream, and whether the
//! comparison of sink and source notices what it should.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

#[path = "support/disk.rs"]
mod disk;
#[path = "support/etcd.rs"]
#[allow(dead_code, reason = "shared with the tests of the store")]
mod etcd;

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use capturedrain::{
    pipeline::{Pipeline, probe, synthetic_table},
    verify,
};
use capturedrain_core::{
    model::{ChangefeedConfig, ChangefeedEpoch, ChangefeedId, CommitTs, Span, WriterEpoch},
    work::{DispatcherKey, WorkEvent, WorkOrder},
};
use disk::SmallDisk;
use etcd::Etcd;
use etcd_client::Client;
use tokio::{sync::mpsc, time};

const PATIENCE: Duration = Duration::from_secs(30);
const SYNTHETIC: &str = "synthetic://?tables=1&rate=200&keys=20";

/// A data path with one changefeed.
struct Feed {
    pipeline: Pipeline,
    events: mpsc::Receiver<WorkEvent>,
    config: Arc<ChangefeedConfig>,
}

fn id() -> ChangefeedId {
    ChangefeedId::new("feed").unwrap()
}

impl Feed {
    fn new(source: &str, sink: &str) -> Self {
        let (events, inbox) = mpsc::channel(1024);
        let config = ChangefeedConfig {
            source: source.into(),
            sink: sink.into(),
            start_ts: 0,
            span_max_keys: 0,
            unknown: std::collections::BTreeMap::new(),
        };
        Self { pipeline: Pipeline::new(events), events: inbox, config: Arc::new(config) }
    }

    fn start(&mut self, span: &Span, counter: u64, start_ts: CommitTs) -> DispatcherKey {
        let writer_epoch = WriterEpoch { changefeed: ChangefeedEpoch(1), counter };
        let key = DispatcherKey { changefeed: id(), span: span.id(), writer_epoch };
        let order =
            WorkOrder::StartDispatcher { key: key.clone(), span: span.clone(), start_ts, config: self.config.clone() };
        self.pipeline.order(order);
        key
    }

    fn trigger(&mut self, start_ts: CommitTs) {
        let (changefeed, epoch) = (id(), ChangefeedEpoch(1));
        self.pipeline.order(WorkOrder::StartTrigger { changefeed, epoch, start_ts, config: self.config.clone() });
    }

    /// Waits for an event that is the answer.
    async fn until<T>(&mut self, what: &str, mut answer: impl FnMut(&WorkEvent) -> Option<T>) -> T {
        let waiting = async {
            while let Some(event) = self.events.recv().await {
                if let Some(answer) = answer(&event) {
                    return answer;
                }
            }
            panic!("the data path ended before {what}");
        };
        time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {what}"))
    }

    async fn reaches(&mut self, key: &DispatcherKey, ts: CommitTs) -> CommitTs {
        self.until("a checkpoint", |event| match event {
            WorkEvent::Checkpoint { key: of, checkpoint_ts, .. } if of == key && *checkpoint_ts >= ts => {
                Some(*checkpoint_ts)
            }
            WorkEvent::Failed { error, .. } => panic!("{error}"),
            _ => None,
        })
        .await
    }

    async fn stop(&mut self, key: &DispatcherKey) -> CommitTs {
        self.pipeline.order(WorkOrder::StopDispatcher(key.clone()));
        self.until("the stop", |event| match event {
            WorkEvent::Stopped { key: of, checkpoint_ts } if of == key => Some(*checkpoint_ts),
            _ => None,
        })
        .await
    }

    async fn failure(&mut self) -> (String, bool) {
        self.until("a failure", |event| match event {
            WorkEvent::Failed { error, fatal, .. } => Some((error.clone(), *fatal)),
            WorkEvent::TriggerFailed { error, .. } => Some((error.clone(), true)),
            _ => None,
        })
        .await
    }
}

fn files(table: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(table).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| !path.ends_with("spans.jsonl"));
    files.sort_by_key(|path| path.metadata().unwrap().modified().unwrap());
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_goes_on_where_its_predecessor_stopped_and_late_rows_of_that_do_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let start = probe_synthetic(folder.path()).await;
    let mut feed = Feed::new(SYNTHETIC, &format!("file://{}", folder.path().display()));
    let span = synthetic_table(0);
    let first = feed.start(&span, 1, start);
    feed.reaches(&first, start + 200).await;
    let handed_over = feed.stop(&first).await;
    let second = feed.start(&span, 2, handed_over);
    let end = feed.reaches(&second, handed_over + 200).await;
    feed.stop(&second).await;
    let compare = || verify::against_synthetic(folder.path(), SYNTHETIC, start, end).unwrap();
    assert!(compare().is_good(), "{}", compare());

    // The first one wakes up, as if it had been suspended, and writes on.
    let written = files(&folder.path().join("t0"));
    let mut late = OpenOptions::new().append(true).open(&written[0]).unwrap();
    let row =
        format!("{{\"commit_ts\":{},\"op\":\"put\",\"key\":\"t0/000000001\",\"value\":\"late\"}}\n", handed_over + 1);
    late.write_all(row.as_bytes()).unwrap();
    late.write_all(b"{\"commit_ts\":1,\"op\":\"pu").unwrap();
    assert!(compare().is_good(), "late rows count: {}", compare());

    // What is truly missing, or there twice, is noticed.
    let text = fs::read_to_string(&written[1]).unwrap();
    let lines: Vec<_> = text.lines().collect();
    fs::write(&written[1], lines[1..].join("\n") + "\n").unwrap();
    assert_eq!(compare().lost, 1, "{}", compare());
    fs::write(&written[1], format!("{}\n{text}", lines[0])).unwrap();
    assert_eq!(compare().doubled, 1, "{}", compare());
}

async fn probe_synthetic(folder: &Path) -> CommitTs {
    let sink = format!("file://{}", folder.display());
    let config = ChangefeedConfig {
        source: SYNTHETIC.into(),
        sink: sink.into(),
        start_ts: 0,
        span_max_keys: 0,
        unknown: std::collections::BTreeMap::new(),
    };
    probe(&config, None).await.unwrap().start_ts
}

async fn put(client: &mut Client, key: &str, value: &str) -> CommitTs {
    let header = client.put(key, value, None).await.unwrap().header().cloned().unwrap();
    CommitTs::try_from(header.revision()).unwrap()
}

async fn delete(client: &mut Client, key: &str) -> CommitTs {
    let header = client.delete(key, None).await.unwrap().header().cloned().unwrap();
    CommitTs::try_from(header.revision()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_born_and_end_and_the_sink_is_the_history() {
    let etcd = Etcd::start().await;
    let mut client = Client::connect([etcd.client_url()], None).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let source = format!("{}/shop/", etcd.url());
    let mut feed = Feed::new(&source, &format!("file://{}", folder.path().display()));
    let start = put(&mut client, "/elsewhere", "x").await;
    feed.trigger(start);
    let birth = put(&mut client, "/shop/orders/1", "\u{e4}").await;
    let born = |event: &WorkEvent| match event {
        WorkEvent::Tables { born, .. } => born.first().cloned(),
        _ => None,
    };
    let (span, at) = feed.until("the birth", born).await;
    assert_eq!((&*span.table, at), ("orders", birth));
    let key = feed.start(&span, 1, birth - 1);
    client.put("/shop/orders/2", vec![255, 0], None).await.unwrap();
    delete(&mut client, "/shop/orders/1").await;
    let end = delete(&mut client, "/shop/orders/2").await;
    let ended = |event: &WorkEvent| match event {
        WorkEvent::Tables { ended, .. } => ended.first().cloned(),
        _ => None,
    };
    // The dispatcher's checkpoints come meanwhile, so the end is looked for first.
    assert_eq!(feed.until("the end", ended).await, ("orders".into(), end));
    // A key without a table of its own, and one of another prefix: neither is of this span.
    put(&mut client, "/shop/top", "x").await;
    let quiet = put(&mut client, "/shoq/orders/1", "x").await;
    let checkpoint = feed.reaches(&key, quiet).await;
    assert!(checkpoint >= quiet, "an idle span stays behind at {checkpoint}");
    feed.stop(&key).await;
    let proof = verify::against_etcd(folder.path(), &source, end).await.unwrap();
    assert!(proof.is_good() && proof.rows == 4, "{proof}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changefeed_without_a_start_begins_with_what_is_there() {
    let etcd = Etcd::start().await;
    let mut client = Client::connect([etcd.client_url()], None).await.unwrap();
    for n in 0..2500 {
        client.put(format!("/shop/t/{n:05}"), "there", None).await.unwrap();
    }
    client.put("/shop/top", "of no table", None).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let source = format!("{}/shop/", etcd.url());
    let mut feed = Feed::new(&source, &format!("file://{}", folder.path().display()));
    feed.trigger(0);
    let born = |event: &WorkEvent| match event {
        WorkEvent::Tables { born, .. } if born.len() == 2 => Some(born.clone()),
        _ => None,
    };
    let tables = feed.until("both tables", born).await;
    let keys: Vec<_> = tables.iter().zip(1..).map(|((span, birth), n)| feed.start(span, n, birth - 1)).collect();
    let last = put(&mut client, "/shop/t/00007", "later").await;
    // Nothing is written any more: the checkpoints have to come by progress alone.
    let mut behind: Vec<_> = keys.iter().collect();
    feed.until("both checkpoints", |event| {
        let passed = |of: &DispatcherKey| {
            matches!(event, WorkEvent::Checkpoint { key, checkpoint_ts, .. } if key == of && *checkpoint_ts >= last)
        };
        behind.retain(|key| !passed(key));
        behind.is_empty().then_some(())
    })
    .await;
    let proof = verify::against_etcd(folder.path(), &source, last).await.unwrap();
    assert!(proof.is_good() && proof.rows >= 2501, "{proof}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_compacted_past_the_checkpoint_fails_and_leaves_no_silent_gap() {
    let etcd = Etcd::start().await;
    let mut client = Client::connect([etcd.client_url()], None).await.unwrap();
    let first = put(&mut client, "/shop/t/1", "a").await;
    put(&mut client, "/shop/t/1", "b").await;
    let last = put(&mut client, "/shop/t/1", "c").await;
    client.compact(i64::try_from(last).unwrap(), None).await.unwrap();
    let source = format!("{}/shop/", etcd.url());
    let mut feed = Feed::new(&source, "blackhole://");
    let span = Span { table: "t".into(), start: b"/shop/t/"[..].into(), end: b"/shop/t0"[..].into() };
    feed.start(&span, 1, first);
    let (error, fatal) = feed.failure().await;
    assert!(fatal && error.contains("compacted") && error.contains(&source), "{error}");
    feed.trigger(first);
    let (error, _) = feed.failure().await;
    assert!(error.contains("compacted"), "{error}");
    feed.start(&span, 2, last + 1000);
    let (error, fatal) = feed.failure().await;
    assert!(fatal && error.contains("restored or replaced"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_named_and_nothing_is_lost_when_there_is_room_again() {
    let Some(disk) = SmallDisk::mount("1m") else { return eprintln!("skipped: mounting a small disk needs root") };
    let sink = disk.path().join("sink");
    let start = probe_synthetic(&sink).await;
    let ballast = disk.path().join("ballast");
    // To the last byte, but for what the folder itself needs.
    let _ = fs::write(&ballast, vec![0; 900 << 10]);
    let source = "synthetic://?tables=1&rate=1000&keys=20&value_bytes=1000";
    let mut feed = Feed::new(source, &format!("file://{}", sink.display()));
    let span = synthetic_table(0);
    let first = feed.start(&span, 1, start);
    let (error, fatal, checkpoint) = feed
        .until("the full disk", |event| match event {
            WorkEvent::Failed { error, fatal, checkpoint_ts, .. } => Some((error.clone(), *fatal, *checkpoint_ts)),
            _ => None,
        })
        .await;
    let file = format!("{}-1.1-{start}.jsonl", first.span);
    assert!(!fatal && error.contains(&file) && error.contains("free space"), "{error}");
    fs::remove_file(&ballast).unwrap();
    let second = feed.start(&span, 2, checkpoint);
    let end = feed.reaches(&second, checkpoint + 50).await;
    feed.stop(&second).await;
    let proof = verify::against_synthetic(&sink, source, start, end).unwrap();
    assert!(proof.is_good(), "{proof}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_cannot_be_made_fails_for_good() {
    let mut feed = Feed::new(SYNTHETIC, "file:///dev/null/sink");
    feed.start(&synthetic_table(0), 1, 1);
    let (error, fatal) = feed.failure().await;
    assert!(fatal && error.contains("/dev/null/sink") && error.contains("cannot be used"), "{error}");
}
