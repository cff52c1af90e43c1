//! What real captures tell Prometheus, in a drain, after it, and when the coordinator dies.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

#[path = "support/etcd.rs"]
#[allow(dead_code, reason = "shared with the tests of whole clusters")]
mod etcd;
#[path = "support/processes.rs"]
#[allow(dead_code, reason = "shared with the tests of whole clusters")]
mod processes;

use std::{collections::BTreeMap, env, io::Write as _, process::Stdio, time::Duration};

use processes::{Cluster, wait_for};

const PATIENCE: Duration = Duration::from_secs(30);
const FEEDS: usize = 3;
const TABLES: u64 = 6;

/// What only a coordinator tells.
const COORDINATORS: &[&str] =
    &["capture_liveness{", "drain_epoch", "moves_in_flight{", "changefeed_checkpoint_lag_sec"];
/// What is told while a drain is on.
const DRAINS: &[&str] = &["drain_phase{", "drain_remaining_", "drain_last_progress_timestamp_seconds"];

type Page = BTreeMap<String, f64>;

async fn get(url: &str, accept: &str) -> (String, String) {
    // The first caller chooses the TLS library's implementation, which the client wants even without TLS.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let answer = reqwest::Client::new().get(format!("{url}/metrics")).header("accept", accept).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
    (kind, answer.text().await.unwrap())
}

/// All series of a capture and their values, without the prefix of all names.
async fn scrape(url: &str) -> Page {
    let (_, page) = get(url, "*/*").await;
    let series = page.lines().filter(|line| !line.starts_with('#'));
    let read = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.strip_prefix("capturedrain_").expect(line).to_owned(), value.parse().unwrap())
    };
    series.map(read).collect()
}

/// How many series begin so.
fn count(page: &Page, name: &str) -> usize {
    page.keys().filter(|series| series.starts_with(name)).count()
}

/// The sum of one series over captures.
async fn sum(cluster: &Cluster, ids: &[&str], series: &str) -> f64 {
    let mut sum = 0.0;
    for id in ids {
        sum += scrape(&cluster.url(id)).await.get(series).copied().unwrap_or_else(|| panic!("{id} has no {series}"));
    }
    sum
}

fn expect(value: f64, expected: f64, what: &str) {
    assert!((value - expected).abs() < f64::EPSILON, "{what} is {value}, not {expected}");
}

/// Three captures, each with the maintainer of a changefeed, and the dispatchers of all of them.
async fn replicating(name: &str) -> (etcd::Etcd, Cluster) {
    let etcd = etcd::Etcd::start().await;
    let mut cluster = Cluster::new(name, &etcd.url());
    for id in ["a", "b", "c"] {
        cluster.start(id);
    }
    cluster.wait_for_captures(3).await;
    let source = format!("synthetic://?tables={TABLES}&rate=20");
    for n in 0..FEEDS {
        let id = format!("f{n}");
        cluster.ok(&["changefeed", "create", "--id", &id, "--source", &source, "--sink", "blackhole://"]).await;
        cluster.wait_for_dispatchers(&id, TABLES).await;
    }
    (etcd, cluster)
}

fn lint(page: &str) {
    let promtool = env::var("CAPTUREDRAIN_PROMTOOL").unwrap_or_else(|_| "promtool".to_owned());
    let checking = std::process::Command::new(&promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let missing =
        |error| panic!("{promtool} cannot be started ({error}): `make tools` installs it, `make test` names it");
    let mut checking = checking.unwrap_or_else(missing);
    checking.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let said = checking.wait_with_output().unwrap();
    let complaints = [said.stdout, said.stderr].concat();
    assert!(said.status.success() && complaints.is_empty(), "{}\n{page}", String::from_utf8_lossy(&complaints));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_is_told_while_it_is_on_and_counted_when_it_has_ended() {
    let (_etcd, cluster) = replicating("counted").await;
    let (coordinator, target) = (cluster.coordinator().await, cluster.a_follower().await);
    let leaving = wait_for(PATIENCE, "work on the target", || async {
        let captures = cluster.try_json(&["captures"]).await?;
        let found = captures.as_array()?.iter().find(|capture| capture["id"] == target.as_str())?;
        let has = |work: &str| found[work].as_f64().is_some_and(|count| count > 0.0);
        (has("maintainer_count") && has("dispatcher_count")).then(|| found.clone())
    })
    .await;
    // A target that stands still says nothing, so that what is left on it is unknown.
    cluster.suspend(&target).await;
    cluster.ok(&["drain", &target]).await;
    let page = wait_for(PATIENCE, "the drain to be told", || async {
        Some(scrape(&cluster.url(&coordinator)).await).filter(|page| count(page, "drain_phase{") > 0)
    })
    .await;
    expect(page[&format!("capture_liveness{{capture=\"{target}\",liveness=\"Draining\"}}")], 1.0, "the liveness");
    expect(page[&format!("drain_phase{{target=\"{target}\",phase=\"MovingMaintainers\"}}")], 1.0, "the phase");
    assert_eq!((count(&page, "drain_phase{"), count(&page, "drain_remaining_")), (3, 0), "{page:?}");
    expect(page["drain_epoch"], 1.0, "the epoch");
    let (_, text) = get(&cluster.url(&coordinator), "*/*").await;
    lint(&text);
    cluster.resume(&target).await;
    cluster.ok(&["drain", &target, "--wait"]).await;
    let page = wait_for(PATIENCE, "the end to be counted", || async {
        let page = scrape(&cluster.url(&coordinator)).await;
        (page["drains_total{outcome=\"Drained\"}"] > 0.0).then_some(page)
    })
    .await;
    for name in DRAINS {
        assert_eq!(count(&page, name), 0, "{name} is left: {page:?}");
    }
    let all = ["a", "b", "c"];
    expect(sum(&cluster, &all, "drains_total{outcome=\"Drained\"}").await, 1.0, "drains that ended");
    expect(sum(&cluster, &all, "drain_duration_seconds_count").await, 1.0, "durations");
    expect(sum(&cluster, &all, "drain_ack_duration_seconds_count").await, 1.0, "acknowledgements");
    let took = sum(&cluster, &all, "drain_duration_seconds_sum").await;
    let heard = sum(&cluster, &all, "drain_ack_duration_seconds_sum").await;
    assert!(heard > 0.0 && heard <= took, "heard of after {heard} s, ended after {took} s");
    for (kind, work) in [("maintainer", "maintainer_count"), ("dispatcher", "dispatcher_count")] {
        let ended = sum(&cluster, &all, &format!("moves_total{{kind=\"{kind}\",outcome=\"done\"}}")).await
            + sum(&cluster, &all, &format!("moves_total{{kind=\"{kind}\",outcome=\"retried\"}}")).await;
        let (left, durations) = (&leaving[work], format!("move_duration_seconds_count{{kind=\"{kind}\"}}"));
        assert!(ended >= left.as_f64().unwrap() && ended > 0.0, "{ended} {kind}s moved of {left}");
        expect(sum(&cluster, &all, &durations).await, ended, &durations);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_successor_of_a_coordinator_tells_what_it_told_and_nobody_else_does() {
    let (_etcd, mut cluster) = replicating("successor").await;
    let coordinator = cluster.coordinator().await;
    let page = wait_for(PATIENCE, "the lag of all changefeeds", || async {
        let page = scrape(&cluster.url(&coordinator)).await;
        (count(&page, "changefeed_checkpoint_lag_seconds{") == FEEDS).then_some(page)
    })
    .await;
    assert_eq!(count(&page, "capture_liveness{"), 9, "{page:?}");
    let lag = page["changefeed_checkpoint_lag_seconds{changefeed=\"f0\"}"];
    assert!(lag < PATIENCE.as_secs_f64(), "a lag of {lag} s");
    cluster.kill(&coordinator);
    let left: Vec<_> = ["a", "b", "c"].into_iter().filter(|id| *id != coordinator).collect();
    let pages = wait_for(PATIENCE, "a successor that knows all", || async {
        let pages = [scrape(&cluster.url(left[0])).await, scrape(&cluster.url(left[1])).await];
        let told = |page: &Page| {
            count(page, "capture_liveness{") == 6 && count(page, "changefeed_checkpoint_lag_seconds{") == FEEDS
        };
        pages.iter().any(told).then_some(pages)
    })
    .await;
    let [successor, other] = if pages[0]["is_coordinator"] > 0.0 { [0, 1] } else { [1, 0] }.map(|n| &pages[n]);
    expect(successor["is_coordinator"], 1.0, "is_coordinator of the successor");
    expect(other["is_coordinator"], 0.0, "is_coordinator of the other");
    for name in COORDINATORS {
        assert!(count(successor, name) > 0, "{name} is missing: {successor:?}");
        assert_eq!(count(other, name), 0, "{name} is told by a follower: {other:?}");
    }
    let dead = format!("capture_liveness{{capture=\"{coordinator}\"");
    assert_eq!(count(successor, &dead), 0, "{successor:?}");
    expect(other["drains_total{outcome=\"Drained\"}"], 0.0, "drains, counted from zero everywhere");
}

#[tokio::test(flavor = "multi_thread")]
async fn captures_of_one_process_tell_each_their_own_in_the_format_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::new("several", &format!("embedded:{}", folder.path().join("store.redb").display()));
    cluster.start_several("s", 2);
    cluster.wait_for_captures(2).await;
    let first = cluster.url("s");
    let (host, port) = first.rsplit_once(':').unwrap();
    let second = format!("{host}:{}", port.parse::<u16>().unwrap() + 1);
    let coordinates = |page: Page| page["is_coordinator"];
    let both = [coordinates(scrape(&first).await), coordinates(scrape(&second).await)];
    expect(both[0] + both[1], 1.0, "the number of coordinators");
    for url in [&first, &second] {
        let (kind, text) = get(url, "text/plain").await;
        assert_eq!((kind.as_str(), text.contains("# EOF")), ("text/plain; version=0.0.4; charset=utf-8", false));
        assert!(text.contains("\n# TYPE capturedrain_drains_total counter\n"), "{text}");
        lint(&text);
        let (kind, open) = get(url, "application/openmetrics-text;version=1.0.0,*/*;q=0.1").await;
        assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
        assert!(open.contains("\n# TYPE capturedrain_drains counter\n") && open.ends_with("# EOF\n"), "{open}");
    }
}
