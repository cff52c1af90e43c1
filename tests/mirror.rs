//! The mirror: an etcd range that becomes a copy of another, by fenced writers; alone, and by whole clusters.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

#[path = "support/etcd.rs"]
#[allow(dead_code, reason = "shared with the tests of the store")]
mod etcd;
#[path = "support/feed.rs"]
#[allow(dead_code, reason = "shared with the tests of the data path")]
mod feed;
#[path = "support/processes.rs"]
#[allow(dead_code, reason = "shared with the tests of the command line")]
mod processes;
#[path = "support/proxy.rs"]
mod proxy;

use std::{
    collections::BTreeMap,
    env, fs,
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Duration,
};

use capturedrain::{
    pipeline::{PipelineError, probe},
    verify,
};
use capturedrain_core::{
    model::{ChangefeedConfig, CommitTs, Span},
    work::WorkEvent,
};
use etcd::Etcd;
use etcd_client::{Certificate, Client, ConnectOptions, EventType, GetOptions, Identity, TlsOptions, WatchOptions};
use feed::{Feed, delete, put, table};
use processes::{Cluster, Writer};
use proxy::Proxy;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tokio::{sync::oneshot, task::JoinHandle, time};

/// Two etcds, a feed from one into the other, and clients of both.
struct Pair {
    source: Etcd,
    sink: Etcd,
    from: Client,
    to: Client,
    feed: Feed,
}

impl Pair {
    async fn start() -> Self {
        let (source, sink) = (Etcd::start().await, Etcd::start().await);
        let from = Client::connect([source.client_url()], None).await.unwrap();
        let to = Client::connect([sink.client_url()], None).await.unwrap();
        let feed = Feed::new(&format!("{}/shop/", source.url()), &format!("{}/copy/", sink.url()));
        Self { source, sink, from, to, feed }
    }

    fn config(&self) -> ChangefeedConfig {
        (*self.feed.config).clone()
    }

    /// The mirror is what the source is.
    async fn prove(&self) {
        let proof = verify::against_mirror(&self.feed.config.source, &self.feed.config.sink).await.unwrap();
        assert!(proof.is_good(), "{proof}");
    }

    async fn copied(&mut self, key: &str) -> Option<String> {
        let got = self.to.get(format!("/copy/{key}"), None).await.unwrap();
        got.kvs().first().map(|kv| kv.value_str().unwrap().to_owned())
    }

    async fn refused(&mut self, what: &str) {
        let (error, fatal) = self.feed.failure().await;
        assert!(!fatal && error.contains("refuses writer"), "{what}: {error}");
    }
}

fn part(start: &str, end: &str) -> Span {
    Span { table: "t".into(), start: start.as_bytes().into(), end: end.as_bytes().into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_follows_puts_and_deletes_of_all_tables_and_has_nothing_else() {
    let mut pair = Pair::start().await;
    for key in ["/shop/t/1", "/shop/t/2", "/shop/top", "/shop//x", "/shoq/t/1"] {
        put(&mut pair.from, key, "there").await;
    }
    pair.feed.trigger(0);
    let tables = pair
        .feed
        .until("the tables", |event| match event {
            WorkEvent::Tables { born, .. } if born.len() == 2 => Some(born.clone()),
            _ => None,
        })
        .await;
    let keys: Vec<_> = tables.iter().zip(1..).map(|((span, birth), n)| pair.feed.start(span, n, birth - 1)).collect();
    for n in 0..500 {
        put(&mut pair.from, &format!("/shop/t/{}", n % 7), &n.to_string()).await;
    }
    delete(&mut pair.from, "/shop/t/3").await;
    let end = delete(&mut pair.from, "/shop/top").await;
    for key in &keys {
        // The other one's checkpoints come meanwhile.
        pair.feed.reaches_at_last(key, end).await;
    }
    pair.prove().await;
    let all = pair.to.get("/", Some(GetOptions::new().with_range("0"))).await.unwrap();
    assert!(all.kvs().iter().all(|kv| kv.key().starts_with(b"/copy/")), "readers see more than data");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_was_replaced_never_writes_again() {
    let mut pair = Pair::start().await;
    let start = put(&mut pair.from, "/shop/t/1", "one").await;
    let span = table("/shop/", "t");
    let first = pair.feed.start(&span, 1, start - 1);
    pair.feed.reaches(&first, start).await;
    // As if the first one had been suspended: it is not stopped, and does not know.
    let second = pair.feed.start(&span, 2, start);
    pair.feed.reaches(&second, start).await;
    let end = put(&mut pair.from, "/shop/t/1", "two").await;
    pair.feed
        .until("the end of the first", |event| match event {
            WorkEvent::Failed { key, error, fatal, .. } if *key == first => {
                assert!(!fatal && error.contains("writer 1.2 was there"), "{error}");
                Some(())
            }
            WorkEvent::Failed { error, .. } => panic!("{error}"),
            _ => None,
        })
        .await;
    pair.feed.reaches(&second, end).await;
    assert_eq!(pair.copied("t/1").await.as_deref(), Some("two"));
    pair.prove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_that_comes_late_is_refused() {
    let mut pair = Pair::start().await;
    let start = put(&mut pair.from, "/shop/t/1", "one").await;
    let span = table("/shop/", "t");
    let second = pair.feed.start(&span, 2, start - 1);
    pair.feed.reaches(&second, start).await;
    pair.feed.start(&span, 1, 0);
    pair.refused("an earlier writer").await;
    // The one that is there is not disturbed.
    let end = put(&mut pair.from, "/shop/t/1", "two").await;
    pair.feed.reaches(&second, end).await;
    pair.prove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_a_split_fence_the_whole_off_in_any_order_and_a_merge_fences_the_parts_off() {
    let mut pair = Pair::start().await;
    let start = put(&mut pair.from, "/shop/t/a", "one").await;
    put(&mut pair.from, "/shop/t/x", "one").await;
    let whole = pair.feed.start(&table("/shop/", "t"), 1, start - 1);
    pair.feed.reaches(&whole, start + 1).await;
    let high = pair.feed.start(&part("/shop/t/m", "/shop/t0"), 3, start + 1);
    pair.feed.reaches(&high, start + 1).await;
    let low = pair.feed.start(&part("/shop/t/", "/shop/t/m"), 2, start + 1);
    pair.feed.reaches(&low, start + 1).await;
    put(&mut pair.from, "/shop/t/a", "two").await;
    let end = put(&mut pair.from, "/shop/t/x", "two").await;
    pair.refused("the whole").await;
    for key in [&low, &high] {
        pair.feed.reaches_at_last(key, end).await;
    }
    pair.prove().await;
    // One that overlaps both, from before the second.
    pair.feed.start(&part("/shop/t/k", "/shop/t/p"), 2, start);
    pair.refused("an overlapping one").await;
    let merged = pair.feed.start(&table("/shop/", "t"), 4, start);
    pair.feed.reaches(&merged, end).await;
    let end = put(&mut pair.from, "/shop/t/x", "three").await;
    pair.refused("the upper part").await;
    pair.feed.reaches_at_last(&merged, end).await;
    pair.prove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_snapshot_leaves_nothing_behind_that_the_source_has_no_more() {
    let mut pair = Pair::start().await;
    for n in 0..3000 {
        put(&mut pair.from, &format!("/shop/t/{n:05}"), "v").await;
    }
    let span = table("/shop/", "t");
    pair.feed.start(&span, 1, 0);
    let to = pair.to.clone();
    let count = move || {
        let mut to = to.clone();
        async move { to.get("/copy/", Some(GetOptions::new().with_prefix().with_count_only())).await.unwrap().count() }
    };
    processes::wait_for(Duration::from_secs(30), "some keys", || async { (count().await > 100).then_some(()) }).await;
    // It dies with all that runs here.
    let mut again = Feed::new(&pair.feed.config.source, &pair.feed.config.sink);
    std::mem::swap(&mut pair.feed, &mut again);
    drop(again);
    for n in 0..50 {
        delete(&mut pair.from, &format!("/shop/t/{n:05}")).await;
    }
    let end = put(&mut pair.from, "/shop/t/00100", "later").await;
    let second = pair.feed.start(&span, 2, 0);
    pair.feed.reaches(&second, end).await;
    pair.prove().await;
    // And a table that is gone altogether.
    put(&mut pair.to, "/copy/gone/1", "from half a snapshot").await;
    pair.feed.trigger(0);
    let (gone, birth) = pair.feed.birth("gone").await;
    let third = pair.feed.start(&gone, 3, birth - 1);
    pair.feed.reaches(&third, end).await;
    pair.prove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_answers_and_a_sink_that_goes_away_double_and_lose_nothing() {
    let mut pair = Pair::start().await;
    let proxy = Proxy::before(pair.sink.client_port()).await;
    let sink = format!("etcd://127.0.0.1:{}/copy/", proxy.port());
    let mut feed = Feed::new(&pair.feed.config.source, &sink);
    let start = put(&mut pair.from, "/shop/t/0", "first").await;
    let seen = Watcher::start(&pair.sink, "/copy/").await;
    let key = feed.start(&table("/shop/", "t"), 1, start - 1);
    feed.reaches(&key, start).await;
    let mut end = start;
    for round in 0..40 {
        // The answer to what is written next is lost.
        proxy.stall_after(0);
        for n in 0..20 {
            end = put(&mut pair.from, &format!("/shop/t/{}", n % 5), &format!("{round}-{n}")).await;
        }
        time::sleep(Duration::from_millis(20)).await;
        proxy.cut();
        proxy.release();
    }
    feed.reaches(&key, end).await;
    pair.sink.restart().await;
    let end = put(&mut pair.from, "/shop/t/0", "after").await;
    feed.reaches(&key, end).await;
    pair.prove().await;
    Box::pin(compare(seen, &pair.source, &pair.sink, start - 1, end)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_a_sink_that_does_not_answer() {
    let mut pair = Pair::start().await;
    let start = put(&mut pair.from, "/shop/t/0", "first").await;
    let key = pair.feed.start(&table("/shop/", "t"), 1, start - 1);
    pair.feed.reaches(&key, start).await;
    pair.sink.kill();
    put(&mut pair.from, "/shop/t/0", "second").await;
    assert_eq!(pair.feed.stop(&key).await, start);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_cannot_be_is_refused_with_a_sentence() {
    let mut pair = Pair::start().await;
    let config = pair.config();
    let refusal = |config: ChangefeedConfig, start_ts: Option<CommitTs>| async move {
        probe(&config, start_ts).await.map_err(|error: PipelineError| error.to_string())
    };
    let says = |refused: Result<_, String>, what: &str| {
        let sentence = refused.map(|_: capturedrain::pipeline::Probe| ()).expect_err(what);
        assert!(sentence.contains(what), "{sentence}");
    };
    assert!(refusal(config.clone(), None).await.is_ok());
    let to = |sink: String| ChangefeedConfig { sink: sink.into(), ..config.clone() };
    says(refusal(to(format!("{}/shop/copy/", pair.source.url())), None).await, "overlaps its source");
    assert!(refusal(to(format!("{}/copy/", pair.source.url())), None).await.is_ok(), "beside the source is well");
    says(refusal(to(format!("{}/capturedrain/x/", pair.sink.url())), None).await, "clusters keep their state");
    says(refusal(to("etcd://127.0.0.1:1/copy/".into()), None).await, "does not answer");
    says(refusal(to(format!("{}/copy", pair.sink.url())), None).await, "has to end with a slash");
    let missing = format!("{}/copy/?ca=/nowhere/ca.pem", pair.sink.url());
    says(refusal(to(missing), None).await, "/nowhere/ca.pem");
    put(&mut pair.to, "/copy/foreign", "x").await;
    says(refusal(config.clone(), None).await, "has 1 keys below /copy/ already");
    // Who says from where the copy is goes on from there.
    let start = put(&mut pair.from, "/shop/t/1", "v").await;
    assert!(refusal(config.clone(), Some(start)).await.is_ok());
    let key = pair.feed.start(&table("/shop/", "t"), 1, start);
    pair.feed.reaches(&key, start).await;
    says(refusal(config.clone(), Some(start)).await, "overlaps the mirror below /copy/");
    says(refusal(to(format!("{}/copy/more/", pair.sink.url())), None).await, "overlaps the mirror below /copy/");
    // Another source into the same mirror, created at the same time.
    let mut other = Feed::new(&format!("{}/other/", pair.source.url()), &config.sink);
    other.start(&table("/other/", "t"), 9, start);
    let (error, fatal) = other.failure().await;
    assert!(fatal && error.contains("is the mirror of changefeed feed"), "{error}");
    let left = pair.to.get("capturedrain-mirror/probe", Some(GetOptions::new().with_prefix())).await.unwrap();
    assert!(left.kvs().is_empty(), "a probe leaves something behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_the_mirror_does_not_take_fails_with_its_sentence() {
    let mut pair = Pair::start().await;
    pair.sink = Etcd::start_with(&["--max-request-bytes", "100000"]).await;
    pair.feed = Feed::new(&pair.feed.config.source, &format!("{}/copy/", pair.sink.url()));
    let start = put(&mut pair.from, "/shop/t/0", &"x".repeat(200_000)).await;
    pair.feed.start(&table("/shop/", "t"), 1, start - 1);
    let (error, fatal) = pair.feed.failure().await;
    assert!(fatal && error.contains("--max-request-bytes"), "{error}");
}

/// An etcd that speaks TLS and asks for certificates, with the folder of the files.
struct SecretEtcd {
    folder: tempfile::TempDir,
    port: u16,
    process: Child,
}

impl Drop for SecretEtcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl SecretEtcd {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name).display().to_string();
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(vec![]).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        fs::write(file("ca.pem"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
        let issuer = Issuer::new(ca, ca_key);
        for name in ["server", "client"] {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            fs::write(file(&format!("{name}.pem")), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
            fs::write(file(&format!("{name}.key")), key.serialize_pem()).unwrap();
        }
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (port, peer) = (free(), format!("http://127.0.0.1:{}", free()));
        let client = format!("https://127.0.0.1:{port}");
        let process = Command::new(env::var("CAPTUREDRAIN_ETCD").unwrap_or_else(|_| "etcd".to_owned()))
            .args(["--data-dir", &file("data"), "--log-level", "error"])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--client-cert-auth"])
            .args(["--cert-file", &file("server.pem"), "--key-file", &file("server.key")])
            .args(["--trusted-ca-file", &file("ca.pem")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { folder, port, process }
    }

    fn url(&self, prefix: &str, cert: &str) -> String {
        let folder = self.folder.path().display();
        let Self { port, .. } = self;
        format!("etcd://127.0.0.1:{port}{prefix}?ca={folder}/ca.pem&cert={folder}/{cert}.pem&key={folder}/client.key")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_and_mirrors_speak_tls() {
    let etcd = SecretEtcd::start();
    let config = |sink: &str| ChangefeedConfig {
        source: etcd.url("/shop/", "client").into(),
        sink: sink.into(),
        start_ts: 0,
        span_max_keys: 0,
    };
    let sink = etcd.url("/copy/", "client");
    processes::wait_for(Duration::from_secs(30), "etcd", || async { probe(&config(&sink), None).await.ok() }).await;
    for (bad, what) in [
        (format!("etcd://127.0.0.1:{}/copy/", etcd.port), "does not answer"),
        (etcd.url("/copy/", "nobody"), "nobody.pem cannot be used"),
        (etcd.url("/copy/", "data/member/snap/db"), "cannot be used"),
    ] {
        let sentence = probe(&config(&bad), None).await.expect_err(what).to_string();
        assert!(sentence.contains(what) && !sentence.contains("BEGIN"), "{sentence}");
    }
    // The data goes the same way.
    let pem = |name: &str| fs::read(etcd.folder.path().join(name)).unwrap();
    let tls = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(pem("ca.pem")))
        .identity(Identity::from_pem(pem("client.pem"), pem("client.key")));
    let address = format!("https://127.0.0.1:{}", etcd.port);
    let mut client = Client::connect([address], Some(ConnectOptions::new().with_tls(tls))).await.unwrap();
    let end = put(&mut client, "/shop/t/1", "secret").await;
    let mut feed = Feed::new(&etcd.url("/shop/", "client"), &sink);
    let key = feed.start(&table("/shop/", "t"), 1, 0);
    feed.reaches(&key, end).await;
    let proof = verify::against_mirror(&feed.config.source, &sink).await.unwrap();
    assert!(proof.is_good(), "{proof}");
}

/// Every value of every key of a range, in the order in which watchers see them.
struct Watcher {
    stop: oneshot::Sender<i64>,
    task: JoinHandle<BTreeMap<String, Vec<Option<String>>>>,
}

impl Watcher {
    async fn start(etcd: &Etcd, prefix: &'static str) -> Self {
        let mut client = Client::connect([etcd.client_url()], None).await.unwrap();
        let from = client.get(prefix, None).await.unwrap().header().unwrap().revision();
        let (stop, mut stopped) = oneshot::channel();
        let url = etcd.client_url();
        let task = tokio::spawn(async move {
            let (mut seen, mut next, mut until) = (BTreeMap::<_, Vec<_>>::new(), from + 1, None);
            // The watch is made anew when its etcd was away.
            while until.is_none_or(|until| next <= until) {
                let again = async {
                    let mut client = Client::connect([&url], None).await?;
                    let options = WatchOptions::new().with_prefix().with_start_revision(next);
                    let mut watch = client.watch(prefix, Some(options)).await?;
                    while until.is_none_or(|until| next <= until) {
                        let message = tokio::select! {
                            message = watch.message() => message?,
                            end = &mut stopped, if until.is_none() => {
                                until = Some(end.unwrap());
                                continue;
                            }
                        };
                        let Some(message) = message else { break };
                        for event in message.events() {
                            let kv = event.kv().unwrap();
                            let value =
                                (event.event_type() == EventType::Put).then(|| kv.value_str().unwrap().to_owned());
                            let key = kv.key_str().unwrap().strip_prefix(prefix).unwrap();
                            seen.entry(key.to_owned()).or_default().push(value);
                            next = kv.mod_revision() + 1;
                        }
                    }
                    Ok::<_, etcd_client::Error>(())
                };
                if again.await.is_err() {
                    time::sleep(Duration::from_millis(50)).await;
                }
            }
            seen
        });
        Self { stop, task }
    }
}

/// For each key, what was seen is what the source had, in its order and each but once, and ends as that. Values may be left
/// out.
async fn compare(watcher: Watcher, source: &Etcd, sink: &Etcd, start: CommitTs, end: CommitTs) {
    let mut client = Client::connect([sink.client_url()], None).await.unwrap();
    // A last write of one's own, so that the watch has an end.
    let last = client.put("/copy/~end", "", None).await.unwrap().header().unwrap().revision();
    watcher.stop.send(last).unwrap();
    let mut seen = time::timeout(Duration::from_secs(30), watcher.task).await.expect("all is seen").unwrap();
    client.delete("/copy/~end", None).await.unwrap();
    seen.remove("~end");
    let history = verify::history(&format!("{}/shop/", source.url()), start, end).await.unwrap();
    let mut truth = BTreeMap::<String, Vec<Option<String>>>::new();
    for (key, value) in history {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        truth.entry(text(key).strip_prefix("/shop/").unwrap().to_owned()).or_default().push(value.map(text));
    }
    assert!(!seen.is_empty() && seen.keys().all(|key| truth.contains_key(key)), "keys that the source never had");
    for (key, values) in truth {
        let copies = seen.remove(&key).unwrap_or_default();
        assert_eq!(copies.last(), values.last(), "{key} does not end as in the source");
        let mut values = values.iter();
        for copy in &copies {
            assert!(values.any(|value| value == copy), "{key}: {copy:?} is out of order in {copies:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_see_no_value_again_after_a_later_one_when_a_writer_is_killed() {
    let mut pair = Pair::start().await;
    let start = put(&mut pair.from, "/shop/t/0", "first").await;
    let seen = Watcher::start(&pair.sink, "/copy/").await;
    let mut end = start;
    for counter in 1..6 {
        for n in 0..200 {
            end = put(&mut pair.from, &format!("/shop/t/{}", n % 3), &format!("{counter}-{n}")).await;
        }
        // Each begins where the first one began: nobody knows how far the others were.
        let mut feed = Feed::new(&pair.feed.config.source, &pair.feed.config.sink);
        let key = feed.start(&table("/shop/", "t"), counter, start - 1);
        feed.reaches(&key, end).await;
    }
    pair.prove().await;
    Box::pin(compare(seen, &pair.source, &pair.sink, start - 1, end)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_by_a_cluster_equals_its_source_through_a_drain_and_a_kill() {
    let (source, sink) = (Etcd::start().await, Etcd::start().await);
    let writer = Writer::start(&source.client_url(), "/shop/", 8).await;
    let seen = Watcher::start(&sink, "/copy/").await;
    let mut cluster = Cluster::new("mirror", &source.url());
    for id in ["a", "b", "c"] {
        cluster.start(id);
    }
    cluster.wait_for_captures(3).await;
    let (from, to) = (format!("{}/shop/", source.url()), format!("{}/copy/", sink.url()));
    let create = ["changefeed", "create", "--id", "shop", "--start-ts", "1", "--source", &from, "--sink", &to];
    cluster.ok(&create).await;
    cluster.wait_for_dispatchers("shop", 8).await;
    let (code, sentence) =
        cluster.run(&["changefeed", "create", "--id", "two", "--source", &from, "--sink", &to]).await;
    assert!(code == 4 && sentence.contains("overlaps the mirror"), "{code}: {sentence}");
    let target = cluster.a_follower().await;
    cluster.ok(&["drain", &target, "--wait"]).await;
    cluster.ok(&["release", &target]).await;
    cluster.wait_for_captures(3).await;
    let coordinator = cluster.coordinator().await;
    cluster.kill(&coordinator);
    cluster.wait_for_captures(2).await;
    let end = writer.stop().await;
    cluster.wait_for_checkpoint("shop", end).await;
    let proof = verify::against_mirror(&from, &to).await.unwrap();
    assert!(proof.is_good() && proof.rows > 0, "{proof}");
    Box::pin(compare(seen, &source, &sink, 1, end)).await;
}
