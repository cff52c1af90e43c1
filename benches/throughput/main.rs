//! How fast rows go from one etcd into another, beside `etcdctl make-mirror` of the same rows in the same run.
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
#[path = "../../tests/support/feed.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod feed;
#[path = "../report.rs"]
#[allow(dead_code, reason = "shared with other benchmarks")]
mod report;

use std::{
    env,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use etcd::Etcd;
use etcd_client::{Client, GetOptions, Txn, TxnOp};
use feed::{Feed, table};
use report::{Report, is_quick};
use tokio::{
    process::{Child, Command},
    time,
};

/// How often each is measured; they take turns.
const ROUNDS: usize = 5;
const QUICK_ROUNDS: usize = 2;
/// Rows of a transaction of the source, and how many rows a run has.
const CASES: [(usize, usize); 2] = [(100, 100_000), (1, 10_000)];
/// Keys that the rows are of.
const KEYS: usize = 10_000;
const VALUE_BYTES: usize = 100;
/// How often it is asked whether the last row has arrived.
const LOOK: Duration = Duration::from_millis(2);
/// How long a run may take.
const PATIENCE: Duration = Duration::from_mins(2);

/// A history of the source.
struct History {
    /// All rows are above this revision.
    before: u64,
    rows: usize,
    /// How many keys they leave behind.
    keys: usize,
}

/// Writes a history, of which the last row is of the key `end`.
async fn write(client: &mut Client, prefix: &str, (rows_each, rows): (usize, usize)) -> History {
    let first = client.put(format!("{prefix}t/begin"), "", None).await.unwrap();
    let before = u64::try_from(first.header().unwrap().revision()).unwrap();
    let value = "v".repeat(VALUE_BYTES);
    for txn in 0..rows / rows_each {
        let last = (txn + 1) * rows_each == rows;
        let ops = (0..rows_each).map(|n| {
            let key = format!("{prefix}t/{:08}", (txn * rows_each + n) % KEYS);
            let is_end = last && n + 1 == rows_each;
            TxnOp::put(if is_end { format!("{prefix}t/end") } else { key }, value.clone(), None)
        });
        client.txn(Txn::new().and_then(ops.collect::<Vec<_>>())).await.unwrap();
    }
    // The last row has a key of its own, in place of the one whose turn it was.
    let keys = if rows > KEYS { KEYS + 1 } else { rows };
    History { before, rows, keys }
}

/// Waits until the last row is there.
async fn wait_for_last(client: &mut Client, prefix: &str) {
    let waiting = async {
        while client.get(format!("{prefix}t/end"), None).await.unwrap().count() == 0 {
            time::sleep(LOOK).await;
        }
    };
    time::timeout(PATIENCE, waiting).await.expect("the last row");
}

/// The last row proves that all came only when none was left out.
async fn assert_whole(client: &mut Client, prefix: &str, history: &History) {
    let options = GetOptions::new().with_prefix().with_count_only();
    let found = client.get(format!("{prefix}t/"), Some(options)).await.unwrap().count();
    assert_eq!(usize::try_from(found).unwrap(), history.keys, "keys below {prefix}");
}

/// Rows a second of the data path.
async fn ours(source: &Etcd, sink: &Etcd, (from, to): (&str, &str), history: &History) -> f64 {
    let mut client = Client::connect([sink.client_url()], None).await.unwrap();
    let mut feed = Feed::new(&format!("{}{from}", source.url()), &format!("{}{to}", sink.url()));
    let began = Instant::now();
    let _key = feed.start(&table(from, "t"), 1, history.before);
    // What it tells is taken, as a capture would.
    tokio::select! {
        () = wait_for_last(&mut client, to) => {}
        (error, _) = feed.failure() => panic!("{error}"),
    }
    let took = began.elapsed();
    assert_whole(&mut client, to, history).await;
    history.rows as f64 / took.as_secs_f64()
}

/// Rows a second of `etcdctl make-mirror`.
async fn theirs(source: &Etcd, sink: &Etcd, (from, to): (&str, &str), history: &History) -> f64 {
    let mut client = Client::connect([sink.client_url()], None).await.unwrap();
    let began = Instant::now();
    let mut mirror = make_mirror(source, sink, (from, to), history.before + 1);
    wait_for_last(&mut client, to).await;
    let took = began.elapsed();
    mirror.kill().await.unwrap();
    assert_whole(&mut client, to, history).await;
    history.rows as f64 / took.as_secs_f64()
}

fn make_mirror(source: &Etcd, sink: &Etcd, (from, to): (&str, &str), revision: u64) -> Child {
    let etcd = PathBuf::from(env::var_os("CAPTUREDRAIN_ETCD").unwrap_or_else(|| "etcd".into()));
    Command::new(etcd.with_file_name("etcdctl"))
        .args(["make-mirror", "--endpoints", &source.client_url(), "--prefix", from, "--dest-prefix", to])
        .args(["--rev", &revision.to_string(), sink.client_url().trim_start_matches("http://")])
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .expect("etcdctl lies beside etcd")
}

#[tokio::main]
async fn main() {
    let rounds = if is_quick() { QUICK_ROUNDS } else { ROUNDS };
    let mut report = Report::new("throughput");
    for case in CASES {
        let (source, sink) = (Etcd::start().await, Etcd::start().await);
        let mut client = Client::connect([source.client_url()], None).await.unwrap();
        let history = write(&mut client, "/from/", case).await;
        let (mut our_rates, mut their_rates) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            let (our_prefix, their_prefix) = (format!("/ours{round}/"), format!("/theirs{round}/"));
            // Each comes first every other time.
            for first in [true, false] {
                if first == (round % 2 == 0) {
                    our_rates.push(ours(&source, &sink, ("/from/", &our_prefix), &history).await);
                } else {
                    their_rates.push(theirs(&source, &sink, ("/from/", &their_prefix), &history).await);
                }
            }
        }
        let what = format!("transactions of {}", case.0);
        report.beside(&what, "rows/s", &our_rates, "etcdctl make-mirror", &their_rates);
        report.tell(&format!("  make-mirror of {}", case.0), "rows/s", &their_rates);
    }
    report.end();
}
