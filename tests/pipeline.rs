//! The data path by itself: dispatchers and table triggers on a real etcd and on the synthetic stream, and whether the
//! comparison of sink and source notices what it should.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

#[path = "support/disk.rs"]
mod disk;
#[path = "support/etcd.rs"]
#[allow(dead_code, reason = "shared with the tests of the store")]
mod etcd;
#[path = "support/feed.rs"]
#[allow(dead_code, reason = "shared with the tests of the mirror")]
mod feed;

#[path = "support/proxy.rs"]
mod proxy;

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
};

use capturedrain::{
    pipeline::{probe, synthetic_table},
    verify,
};
use capturedrain_core::{
    model::{ChangefeedConfig, CommitTs},
    work::{DispatcherKey, WorkEvent},
};
use disk::SmallDisk;
use etcd::Etcd;
use etcd_client::Client;
use etcd_client::{Txn, TxnOp};
use feed::{Feed, delete, put, table};
use proxy::Proxy;

const SYNTHETIC: &str = "synthetic://?tables=1&rate=200&keys=20";

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
    let config = ChangefeedConfig { source: SYNTHETIC.into(), sink: sink.into(), start_ts: 0, span_max_keys: 0 };
    probe(&config, None).await.unwrap().start_ts
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
    let (span, at) = feed.birth("orders").await;
    assert_eq!(at, birth);
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
async fn keys_without_a_segment_are_not_lost_whichever_comes_first() {
    let etcd = Etcd::start().await;
    let mut client = Client::connect([etcd.client_url()], None).await.unwrap();
    for (round, keys) in [["a//x", "a/top", "a/"], ["b/top", "b/", "b//x"]].iter().enumerate() {
        // A prefix that ends before the slash: what follows it begins with an empty segment.
        for prefix in ["/", ""].map(|slash| format!("/{}{slash}", &keys[0][..1])) {
            let folder = tempfile::tempdir().unwrap();
            let source = format!("{}{prefix}", etcd.url());
            let mut feed = Feed::new(&source, &format!("file://{}", folder.path().display()));
            let start = put(&mut client, "/elsewhere", "x").await;
            feed.trigger(start);
            put(&mut client, &format!("/{}", keys[0]), "1").await;
            let (span, birth) = feed.birth("").await;
            let key = feed.start(&span, 1, birth - 1);
            for late in &keys[1..] {
                put(&mut client, &format!("/{late}"), "2").await;
            }
            let end = delete(&mut client, &format!("/{}", keys[2])).await;
            feed.reaches(&key, end).await;
            feed.stop(&key).await;
            let proof = verify::against_etcd(folder.path(), &source, end).await.unwrap();
            assert!(proof.is_good() && proof.rows == 4, "{prefix}, round {round}: {proof}");
            for key in keys {
                delete(&mut client, &format!("/{key}")).await;
            }
        }
    }
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

/// A dispatcher whose connection stands still after the first rows of its snapshot have come.
async fn half_a_snapshot(etcd: &Etcd, client: &mut Client, folder: &Path) -> (Proxy, Feed, DispatcherKey) {
    for n in 0..2000 {
        client.put(format!("/shop/t/{n:05}"), "x".repeat(200), None).await.unwrap();
    }
    let proxy = Proxy::before(etcd.client_port()).await;
    proxy.stall_after(200_000);
    let source = format!("etcd://127.0.0.1:{}/shop/", proxy.port());
    let mut feed = Feed::new(&source, &format!("file://{}", folder.display()));
    let key = feed.start(&table("/shop/", "t"), 1, 0);
    let written = || {
        fs::read_dir(folder.join("t"))
            .is_ok_and(|_| files(&folder.join("t")).iter().any(|f| f.metadata().unwrap().len() > 0))
    };
    feed::wait_until("the first page", written).await;
    (proxy, feed, key)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_deleted_while_a_snapshot_is_interrupted_does_not_stay() {
    let etcd = Etcd::start().await;
    let mut client = Client::connect([etcd.client_url()], None).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (proxy, mut feed, key) = half_a_snapshot(&etcd, &mut client, folder.path()).await;
    let end = delete(&mut client, "/shop/t/00000").await;
    proxy.release();
    proxy.cut();
    feed.reaches(&key, end).await;
    feed.stop(&key).await;
    let proof = verify::against_etcd(folder.path(), &format!("{}/shop/", etcd.url()), end).await.unwrap();
    assert!(proof.is_good(), "{proof}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_compacted_away_begins_anew_under_another_writer() {
    let etcd = Etcd::start().await;
    let mut client = Client::connect([etcd.client_url()], None).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (proxy, mut feed, _) = half_a_snapshot(&etcd, &mut client, folder.path()).await;
    let end = delete(&mut client, "/shop/t/00000").await;
    client.compact(i64::try_from(end).unwrap(), None).await.unwrap();
    proxy.release();
    proxy.cut();
    let (error, fatal) = feed.failure().await;
    assert!(!fatal && error.contains("begins anew"), "{error}");
    let key = feed.start(&table("/shop/", "t"), 2, 0);
    feed.reaches(&key, end).await;
    feed.stop(&key).await;
    let proof = verify::against_etcd(folder.path(), &format!("{}/shop/", etcd.url()), end).await.unwrap();
    assert!(proof.is_good(), "{proof}");
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_fill_a_message_do_not_stop_anything() {
    let etcd = Etcd::start().await;
    let mut client = Client::connect([etcd.client_url()], None).await.unwrap();
    // 1000 of 8 KB, then some that are as large as etcd takes.
    for n in 0..1000 {
        client.put(format!("/shop/t/a{n:05}"), vec![b'x'; 8 << 10], None).await.unwrap();
    }
    for n in 0..6 {
        client.put(format!("/shop/t/b{n}"), vec![b'y'; 1_400 << 10], None).await.unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let source = format!("{}/shop/", etcd.url());
    let mut feed = Feed::new(&source, &format!("file://{}", folder.path().display()));
    let start = put(&mut client, "/elsewhere", "x").await;
    let key = feed.start(&table("/shop/", "t"), 1, 0);
    feed.reaches(&key, start).await;
    let ends = feed.stop(&key).await;
    // Transactions of many large values, far above what one message of a watch may have, while nobody watches.
    let mut end = 0;
    for _ in 0..3 {
        let ops: Vec<_> = (0..128).map(|n| TxnOp::put(format!("/shop/t/c{n}"), vec![b'z'; 10 << 10], None)).collect();
        let done = client.txn(Txn::new().and_then(ops)).await.unwrap();
        end = CommitTs::try_from(done.header().unwrap().revision()).unwrap();
    }
    let key = feed.start(&table("/shop/", "t"), 2, ends);
    feed.reaches(&key, end).await;
    feed.stop(&key).await;
    let proof = verify::against_etcd(folder.path(), &source, end).await.unwrap();
    assert!(proof.is_good() && proof.rows == 1006 + 3 * 128, "{proof}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_larger_than_a_message_comes_whole() {
    // Larger requests than etcd takes by default: 128 values of 100 KB are 12.5 MiB in one revision.
    let etcd = Etcd::start_with(&["--max-request-bytes", "20000000"]).await;
    let mut client = Client::connect([etcd.client_url()], None).await.unwrap();
    let start = put(&mut client, "/elsewhere", "x").await;
    let folder = tempfile::tempdir().unwrap();
    let source = format!("{}/shop/", etcd.url());
    let mut feed = Feed::new(&source, &format!("file://{}", folder.path().display()));
    let key = feed.start(&table("/shop/", "t"), 1, start);
    feed.trigger(start);
    let ops: Vec<_> = (0..128).map(|n| TxnOp::put(format!("/shop/t/{n}"), vec![b'z'; 100 << 10], None)).collect();
    let done = client.txn(Txn::new().and_then(ops)).await.unwrap();
    let end = CommitTs::try_from(done.header().unwrap().revision()).unwrap();
    feed.birth("t").await;
    feed.reaches(&key, end).await;
    feed.stop(&key).await;
    let proof = verify::against_history(folder.path(), &source, start, end).await.unwrap();
    assert!(proof.is_good() && proof.rows == 128, "{proof}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_does_not_answer_does_not_stop_a_source_that_has_others() {
    let etcd = Etcd::start().await;
    let mut client = Client::connect([etcd.client_url()], None).await.unwrap();
    let start = put(&mut client, "/elsewhere", "x").await;
    let source = format!("etcd://127.0.0.1:1,127.0.0.1:{}/shop/", etcd.client_port());
    let mut feed = Feed::new(&source, "blackhole://");
    let key = feed.start(&table("/shop/", "t"), 1, start);
    let end = put(&mut client, "/shop/t/1", "x").await;
    feed.reaches(&key, end).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_span_is_split_in_its_middle_however_many_keys_it_has() {
    let etcd = Etcd::start().await;
    let mut client = Client::connect([etcd.client_url()], None).await.unwrap();
    for from in (0..21_000).step_by(120) {
        let ops: Vec<_> = (from..from + 120).map(|n| TxnOp::put(format!("/shop/t/{n:06}"), "v", None)).collect();
        client.txn(Txn::new().and_then(ops)).await.unwrap();
    }
    let source = format!("{}/shop/", etcd.url());
    let mut feed = Feed::new(&source, "blackhole://");
    let config = ChangefeedConfig { span_max_keys: 20_500, ..(*feed.config).clone() };
    feed.config = config.into();
    let start = put(&mut client, "/elsewhere", "x").await;
    feed.start(&table("/shop/", "t"), 1, start);
    let split = feed.until("a split", |event| match event {
        WorkEvent::Checkpoint { split_at, .. } => split_at.clone(),
        _ => None,
    });
    assert_eq!(&*split.await, b"/shop/t/010500");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_a_sink_has_from_half_a_snapshot_go_when_the_source_has_them_no_more() {
    let etcd = Etcd::start().await;
    let mut client = Client::connect([etcd.client_url()], None).await.unwrap();
    for key in ["gone/1", "here/1", "top"] {
        put(&mut client, &format!("/shop/{key}"), "v").await;
    }
    let folder = tempfile::tempdir().unwrap();
    let source = format!("{}/shop/", etcd.url());
    let mut feed = Feed::new(&source, &format!("file://{}", folder.path().display()));
    let first = feed.start(&table("/shop/", "gone"), 1, 0);
    feed.reaches(&first, 2).await;
    // Whoever knew of its checkpoint dies; then the table ends.
    feed.stop(&first).await;
    let end = delete(&mut client, "/shop/gone/1").await;
    feed.trigger(0);
    let (born, ended) = feed
        .until("the tables", |event| match event {
            WorkEvent::Tables { born, ended, .. } if !born.is_empty() => Some((born.clone(), ended.clone())),
            _ => None,
        })
        .await;
    assert_eq!(ended, [("gone".into(), end)]);
    for ((span, birth), n) in born.iter().zip(2..) {
        let key = feed.start(span, n, birth - 1);
        feed.reaches(&key, end).await;
    }
    let proof = verify::against_etcd(folder.path(), &source, end).await.unwrap();
    assert!(proof.is_good() && born.len() == 3, "{proof}");
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
    let span = table("/shop/", "t");
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
