//! TLS, roles and limits on real captures: who is let in, as whom, and what strangers cannot use up.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

#[path = "support/authority.rs"]
mod authority;
#[path = "support/etcd.rs"]
#[allow(dead_code, reason = "shared with the tests on etcd")]
mod etcd;
#[path = "support/processes.rs"]
#[allow(dead_code, reason = "shared with the tests on etcd")]
mod processes;

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use authority::{Authority, Papers, Subject, replace};
use capturedrain::{
    tls::{Current, Dialer, Files},
    wire::pb::{self, capture_service_client::CaptureServiceClient, drain_service_client::DrainServiceClient},
};
use processes::{Cluster, Options, run, wait_for};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time,
};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt as _;

/// Three captures in one process behind mutual TLS, and who may ask them.
struct Fort {
    folder: TempDir,
    authority: Authority,
    server: Papers,
    anna: Papers,
    cluster: Cluster,
}

impl Fort {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("first");
        let server = authority.issue(folder.path(), "server", &Subject::new("the captures", "capture"));
        let anna = authority.issue(folder.path(), "anna", &Subject::new("anna", "client"));
        let options = Options { server: server.options("tls"), client: anna.options("tls"), secure: true };
        let store = format!("embedded:{}", folder.path().join("store.redb").display());
        let mut cluster = Cluster::with("fort", &store, options);
        cluster.start_several("capture", 3);
        cluster.wait_for_captures(3).await;
        Self { folder, authority, server, anna, cluster }
    }

    /// `host:port` of one of the captures.
    fn addr(&self, n: u16) -> String {
        let first = self.cluster.addr("capture");
        let (host, port) = first.rsplit_once(':').unwrap();
        format!("{host}:{}", port.parse::<u16>().unwrap() + n)
    }

    fn issue(&self, subject: &Subject<'_>) -> Papers {
        self.authority.issue(self.folder.path(), subject.name, subject)
    }

    /// Calls without a certificate.
    fn stranger(&self) -> Dialer {
        Dialer::secure(Current::fixed(&Files { ca: Some(self.anna.ca.clone()), identity: None }).unwrap())
    }
}

async fn get(dialer: &Dialer, addr: &str, path: &str) -> (u16, Value) {
    let answer = dialer.http().get(dialer.url(addr, path)).send().await.unwrap();
    let status = answer.status().as_u16();
    let text = answer.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

async fn channel(dialer: &Dialer, addr: &str) -> tonic::transport::Channel {
    dialer.endpoint(addr).unwrap().connect().await.unwrap()
}

async fn deliver(dialer: &Dialer, addr: &str) -> tonic::Status {
    let mut captures = CaptureServiceClient::new(channel(dialer, addr).await);
    let nonsense = tokio_stream::iter([pb::Envelope::default()]);
    captures.deliver(nonsense).await.unwrap_err()
}

async fn list(dialer: &Dialer, addr: &str) -> Result<pb::ListCapturesResponse, tonic::Status> {
    let mut drains = DrainServiceClient::new(channel(dialer, addr).await);
    drains.list_captures(pb::ListCapturesRequest {}).await.map(tonic::Response::into_inner)
}

fn reason(status: &tonic::Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

/// A requester stands in the history for the drain of a capture.
async fn asked_by(cluster: &Cluster, target: &str) -> Value {
    let history = wait_for(Duration::from_secs(10), "the end of the drain", || async {
        let history = cluster.try_json(&["history"]).await?;
        history.as_array()?.iter().rev().find(|end| end["target"] == target).cloned()
    });
    history.await["requesters"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn captures_with_mutual_tls_on_an_etcd_with_tls_drain_each_other_and_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("of captures");
    let of_etcd = Authority::new("of etcd");
    let etcd = of_etcd.issue(folder.path(), "etcd", &Subject::new("etcd", ""));
    let guest = of_etcd.issue(folder.path(), "guest", &Subject::new("cdc", ""));
    let server = authority.issue(folder.path(), "server", &Subject::new("the captures", "capture"));
    let anna = authority.issue(folder.path(), "anna", &Subject::new("anna", "client"));
    let etcd = etcd::Etcd::start_with_tls(etcd.ca, etcd.cert, etcd.key).await;
    let options = Options {
        server: [server.options("tls"), guest.options("etcd")].concat(),
        client: anna.options("tls"),
        secure: true,
    };
    let mut cluster = Cluster::with("tls", &etcd.url(), options);
    for id in ["a", "b", "c"] {
        cluster.start(id);
    }
    cluster.wait_for_captures(3).await;
    let sink = format!("file://{}", folder.path().join("sink").display());
    cluster.ok(&["changefeed", "create", "--id", "f", "--source", "synthetic://", "--sink", &sink]).await;
    cluster.wait_for_dispatchers("f", 8).await;
    let target = cluster.a_follower().await;
    cluster.ok(&["drain", &target, "--wait", "--requester", "somebody else"]).await;
    assert_eq!(asked_by(&cluster, &target).await, serde_json::json!(["anna"]));
    cluster.ok(&["release", &target]).await;
    wait_for(Duration::from_secs(30), "the capture to be alive again", || async {
        let captures = cluster.try_json(&["captures"]).await?;
        captures.as_array()?.iter().all(|capture| capture["liveness"] == "Alive").then_some(())
    })
    .await;
    // SIGTERM: the capture asks the coordinator by itself, with its own certificate.
    let other = cluster.a_follower().await;
    assert!(cluster.terminate(&other).await.success());
    assert_eq!(asked_by(&cluster, &other).await, serde_json::json!([format!("shutdown of {other}")]));
    // An etcd that the captures do not believe is said to be one.
    let store = etcd.url();
    let (code, sentence) = run(
        &[&["server", "--store", &store, "--addr", "127.0.0.1:0"][..], &strs(&server.options("etcd"))].concat(),
        "",
    )
    .await;
    assert_eq!((code, sentence.contains("none of the CAs that are believed here")), (5, true), "{sentence}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_captures_certificate_gets_the_proof() {
    let fort = Fort::start().await;
    let captures = fort.cluster.json(&["captures"]).await;
    let follower = captures.as_array().unwrap().iter().find(|capture| capture["is_coordinator"] == false).unwrap();
    let (target, addr) = (follower["id"].as_str().unwrap(), follower["address"].as_str().unwrap());
    let hook = ["prestop", "--pod-name", "cdc-1", "--grace-period", "60s"];
    let (client, capture) = (fort.anna.options("tls"), fort.server.options("tls"));
    let (code, sentence) = run(&[&hook[..], &strs(&client)].concat(), &format!("https://{addr}")).await;
    assert_eq!((code, sentence.contains("capturedrain://capture")), (10, true), "{sentence}");
    let (code, sentence) = run(&[&hook[..], &strs(&capture)].concat(), &format!("https://{addr}")).await;
    assert_eq!((code, sentence.contains("is empty, proven")), (0, true), "{sentence}");
    assert_eq!(asked_by(&fort.cluster, target).await, serde_json::json!(["prestop of cdc-1"]));
}

fn strs(options: &[String]) -> Vec<&str> {
    options.iter().map(String::as_str).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_by_http_is_passed_on_with_the_name_of_the_one_who_asked() {
    let fort = Fort::start().await;
    let dialer = fort.anna.dialer();
    let captures = fort.cluster.json(&["captures"]).await;
    let is_follower = |capture: &&Value| capture["is_coordinator"] == false;
    let follower = captures.as_array().unwrap().iter().find(is_follower).unwrap();
    let (target, addr) = (follower["id"].as_str().unwrap(), follower["address"].as_str().unwrap());
    // What the caller says himself counts nowhere, also not at the capture that passes the call on.
    let url = dialer.url(addr, &format!("/api/v2/captures/{target}/drain?requester=bert"));
    let answer = dialer.http().put(url).header("capturedrain-requester", "carl").send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 202, "{answer:?}");
    assert_eq!(asked_by(&fort.cluster, target).await, serde_json::json!(["anna"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wrong_role_is_refused_at_both_doors() {
    let fort = Fort::start().await;
    let addr = fort.addr(0);
    // A client is no capture.
    let status = deliver(&fort.anna.dialer(), &addr).await;
    assert_eq!((status.code(), reason(&status).as_str()), (Code::PermissionDenied, "PERMISSION_DENIED"), "{status}");
    assert!(
        status.message().contains("anna may not") && status.message().contains("capturedrain://capture"),
        "{status}"
    );
    // A capture may do both: its nonsense is read.
    assert_eq!(deliver(&fort.server.dialer(), &addr).await.code(), Code::InvalidArgument);
    assert!(matches!(get(&fort.server.dialer(), &addr, "/api/v2/status").await, (200, _)));
    // A certificate without a role that counts is neither.
    let nobody = fort.issue(&Subject::new("nobody", "operator"));
    let (status, error) = get(&nobody.dialer(), &addr, "/api/v2/captures").await;
    assert_eq!((status, &error["error_code"]), (403, &"CDC:ErrUnauthorized".into()), "{error}");
    assert!(error["error_msg"].as_str().unwrap().contains("capturedrain://client"), "{error}");
    assert_eq!(list(&nobody.dialer(), &addr).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(deliver(&nobody.dialer(), &addr).await.code(), Code::PermissionDenied);
    for command in [&["captures"][..], &["changefeed", "list"]] {
        let (code, sentence) = fort.cluster.run_with(command, &nobody.options("tls")).await;
        assert_eq!((code, sentence.contains("not authorised: nobody may not")), (10, true), "{sentence}");
    }
    assert_eq!(get(&nobody.dialer(), &addr, "/healthz").await.0, 200);
    // TiCDC's tools take a 403 for "drained".
    let dialer = nobody.dialer();
    let drain = dialer.http().put(dialer.url(&addr, "/api/v1/captures/drain")).json(&serde_json::json!({}));
    assert_eq!(drain.send().await.unwrap().status().as_u16(), 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_there_is_health_and_nothing_else() {
    let fort = Fort::start().await;
    let (addr, stranger) = (fort.addr(0), fort.stranger());
    for path in ["/healthz", "/readyz"] {
        assert_eq!(get(&stranger, &addr, path).await.0, 200, "{path}");
    }
    let mut health = HealthClient::new(channel(&stranger, &addr).await);
    health.check(HealthCheckRequest::default()).await.unwrap();
    for path in ["/api/v2/status", "/api/v2/health", "/api/v2/captures", "/metrics", "/", "/no/such/path"] {
        let (status, error) = get(&stranger, &addr, path).await;
        assert_eq!((status, &error["reason"]), (401, &"UNAUTHENTICATED".into()), "{path}: {error}");
    }
    let status = list(&stranger, &addr).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unauthenticated, "UNAUTHENTICATED"), "{status}");
    assert_eq!(deliver(&stranger, &addr).await.code(), Code::Unauthenticated);
    let mut reflection = tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient::new(
        channel(&stranger, &addr).await,
    );
    let asked = reflection.server_reflection_info(tokio_stream::empty()).await;
    assert_eq!(asked.unwrap_err().code(), Code::Unauthenticated);
    let ca = &fort.anna.options("tls")[..2];
    for command in [&["captures"][..], &["changefeed", "list"]] {
        let (code, sentence) = fort.cluster.run_with(command, ca).await;
        assert_eq!((code, sentence.contains("give --tls-cert and --tls-key")), (10, true), "{sentence}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_trust_whom_is_said_in_one_sentence() {
    let fort = Fort::start().await;
    let foreign = Authority::new("foreign");
    let eve = foreign.issue(fort.folder.path(), "eve", &Subject::new("eve", "client"));
    let check = async |options: Vec<String>, code, says: &str| {
        for command in [&["captures"][..], &["changefeed", "list"]] {
            let began = Instant::now();
            let (ended, sentence) = fort.cluster.run_with(command, &options).await;
            assert_eq!((ended, sentence.contains(says)), (code, true), "{command:?}: {sentence}");
            assert_eq!(sentence.lines().count(), 1, "{sentence}");
            assert!(began.elapsed() < Duration::from_secs(8), "{command:?} does not try what cannot work");
        }
    };
    // The client does not believe the server.
    check(eve.options("tls"), 10, "none of the CAs that are believed here").await;
    // The server does not believe the client.
    let posing = Papers { ca: fort.anna.ca.clone(), ..eve.clone() };
    check(posing.options("tls"), 10, "does not believe the CA of the certificate").await;
    // The client's own files.
    let missing = Papers { key: "/nonexistent/key.pem".into(), ..fort.anna.clone() };
    check(missing.options("tls"), 12, "TLS file /nonexistent/key.pem cannot be read").await;
    let old = fort.issue(&Subject::new("old", "client").expired());
    check(old.options("tls"), 12, "old-cert.pem expired at 2").await;
    check(fort.anna.options("tls")[2..4].to_vec(), 2, "--tls-cert and --tls-key go together").await;
    // The wrong protocol.
    let clear = fort.cluster.servers().replace("https://", "http://");
    let addr = fort.addr(0);
    for command in [&["captures"][..], &["changefeed", "list"]] {
        let (code, sentence) = run(command, &clear).await;
        assert_eq!((code, sentence.contains(&format!("speaks TLS: use https://{addr}"))), (2, true), "{sentence}");
    }
    check([&fort.anna.options("tls")[..], &["--server".to_owned(), clear]].concat(), 2, "make all https://").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_tls_is_told_when_the_server_has_none() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::new("clear", &format!("embedded:{}", folder.path().join("store.redb").display()));
    cluster.start("only");
    cluster.wait_for_captures(1).await;
    let anna = Authority::new("x").issue(folder.path(), "anna", &Subject::new("anna", "client"));
    let secure = cluster.servers().replace("http://", "https://");
    for command in [&["captures"][..], &["changefeed", "list"]] {
        let (code, sentence) = run(&[command, &strs(&anna.options("tls"))].concat(), &secure).await;
        assert_eq!((code, sentence.contains("does not speak TLS: use http://")), (2, true), "{sentence}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_speaks_http_to_a_tls_port_is_told_so_in_http() {
    let fort = Fort::start().await;
    let mut stream = TcpStream::connect(fort.addr(0)).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    time::timeout(Duration::from_secs(5), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("this port speaks TLS: use https://"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_files_that_are_no_good_end_the_server_with_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let authority = Authority::new("first");
    let good = authority.issue(path, "good", &Subject::new("a", "capture"));
    let garbage = path.join("garbage.pem");
    fs::write(&garbage, "no certificate").unwrap();
    let store = format!("embedded:{}", path.join("store.redb").display());
    let check = async |papers: Papers, says: &str| {
        let options = papers.options("tls");
        let args = [&["server", "--store", &store, "--addr", "127.0.0.1:0"][..], &strs(&options)].concat();
        let (code, sentence) = run(&args, "").await;
        let last = sentence.lines().last().unwrap_or_default();
        assert_eq!((code, last.contains(says)), (12, true), "{says}: {sentence}");
        assert!(!sentence.contains("PRIVATE"), "{sentence}");
    };
    let issue = |stem, subject: &Subject<'_>| authority.issue(path, stem, subject);
    check(Papers { ca: path.join("none.pem"), ..good.clone() }, "none.pem cannot be read").await;
    check(Papers { cert: path.join("none.pem"), ..good.clone() }, "none.pem cannot be read").await;
    check(Papers { key: path.to_owned(), ..good.clone() }, "it is not a file").await;
    check(Papers { ca: garbage.clone(), ..good.clone() }, "garbage.pem has no certificate in PEM form").await;
    check(Papers { cert: garbage.clone(), ..good.clone() }, "garbage.pem has no certificate in PEM form").await;
    check(Papers { key: garbage, ..good.clone() }, "garbage.pem has no private key in PEM form").await;
    let other = issue("other", &Subject::new("b", "capture"));
    check(Papers { key: other.key, ..good.clone() }, "does not belong to certificate").await;
    check(issue("old", &Subject::new("a", "capture").expired()), "old-cert.pem expired at 2").await;
    check(issue("new", &Subject::new("a", "capture").not_before_tomorrow()), "new-cert.pem is valid only from 2").await;
    check(issue("client", &Subject::new("a", "client")), "client-cert.pem is not a capture's").await;
    check(issue("none", &Subject::new("a", "")), "none-cert.pem is not a capture's").await;
    let elsewhere = Subject { ip: [127, 0, 0, 9], ..Subject::new("a", "capture") };
    check(issue("elsewhere", &elsewhere), "it is not valid for 127.0.0.1").await;
    let foreign = Authority::new("foreign").issue(path, "foreign", &Subject::new("a", "capture"));
    check(Papers { ca: good.ca.clone(), ..foreign }, "no CA that is believed has signed it").await;
    let ca = ["--tls-ca", good.ca.to_str().unwrap()];
    let (code, sentence) = run(&[&["server", "--store", &store][..], &ca].concat(), "").await;
    assert_eq!((code, sentence.contains("needs --tls-cert and --tls-key")), (2, true), "{sentence}");
    let etcd = good.options("etcd");
    let (code, sentence) = run(&[&["server", "--store", &store][..], &strs(&etcd)].concat(), "").await;
    assert_eq!((code, sentence.contains("are for etcd://")), (2, true), "{sentence}");
}

/// Calls again and again, each call on a connection of its own, and counts.
struct Caller {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<Vec<String>>,
}

impl Caller {
    fn start(dialer: Dialer, addrs: Vec<String>) -> Self {
        let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counted) = (stop.clone(), made.clone());
        let task = tokio::spawn(async move {
            let mut failures = Vec::new();
            for addr in addrs.iter().cycle() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let by_http = dialer.http().get(dialer.url(addr, "/api/v2/status")).send().await;
                match by_http {
                    Ok(answer) if answer.status().is_success() => {}
                    other => failures.push(format!("{addr}: {other:?}")),
                }
                let by_grpc = async {
                    let endpoint = dialer.endpoint(addr).map_err(|error| format!("{error:?}"))?;
                    let channel = endpoint.connect().await.map_err(|error| format!("{error:?}"))?;
                    match DrainServiceClient::new(channel).list_captures(pb::ListCapturesRequest {}).await {
                        Err(status) if reason(&status) != "NOT_COORDINATOR" => Err(format!("{status:?}")),
                        _ => Ok(()),
                    }
                };
                if let Err(failure) = by_grpc.await {
                    failures.push(format!("{addr}: {failure}"));
                }
                counted.fetch_add(2, Ordering::Relaxed);
            }
            failures
        });
        Self { stop, made, task }
    }

    async fn stop(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self.task.await.unwrap();
        (self.made.load(Ordering::Relaxed), failures)
    }
}

/// Waits until every capture shows a certificate that a CA has signed.
async fn wait_for_certificates_of(ca: &Path, papers: &Papers, addrs: &[String]) {
    let dialer = Papers { ca: ca.to_owned(), ..papers.clone() }.dialer();
    wait_for(Duration::from_secs(20), "the new certificates", || async {
        for addr in addrs {
            dialer.endpoint(addr).unwrap().connect().await.ok()?;
        }
        Some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_and_ca_are_renewed_without_a_failed_call() {
    let fort = Fort::start().await;
    let addrs: Vec<_> = (0..3).map(|n| fort.addr(n)).collect();
    let second = Authority::new("second");
    let both = format!("{}{}", fort.authority.pem(), second.pem());
    // Whoever calls follows his files, too.
    let bert = fort.issue(&Subject::new("bert", "client"));
    let followed = Current::follow(bert.files(), Arc::new(|_| Ok(()))).unwrap();
    let caller = Caller::start(Dialer::secure(followed), addrs.clone());
    let old_ca = fort.folder.path().join("old-ca.pem");
    let new_ca = fort.folder.path().join("new-ca.pem");
    replace(&old_ca, &fort.authority.pem());
    replace(&new_ca, &second.pem());
    // What is no good changes nothing: half a certificate, then one of a client.
    let whole = fs::read_to_string(&fort.server.cert).unwrap();
    let before = caller.made.load(Ordering::Relaxed);
    replace(&fort.server.cert, &whole[..whole.len() / 2]);
    time::sleep(Duration::from_secs(3)).await;
    let (cert, key) = fort.authority.sign(&Subject::new("anna", "client"));
    replace(&fort.server.key, &key);
    replace(&fort.server.cert, &cert);
    time::sleep(Duration::from_secs(3)).await;
    assert!(caller.made.load(Ordering::Relaxed) > before, "calls go on");
    // First both CAs are believed by all, then certificates change, then the old CA goes.
    let (cert, key) = fort.authority.sign(&Subject::new("the captures", "capture"));
    replace(&fort.server.key, &key);
    replace(&fort.server.cert, &cert);
    replace(&fort.server.ca, &both);
    replace(&bert.ca, &both);
    let new_anna = second.issue(fort.folder.path(), "new-anna", &Subject::new("anna", "client"));
    let accepted = Papers { ca: old_ca.clone(), ..new_anna.clone() };
    wait_for(Duration::from_secs(20), "the new CA to be believed", || async {
        let mut answers = true;
        for addr in &addrs {
            answers &= list_or_elsewhere(&accepted.dialer(), addr).await;
        }
        answers.then_some(())
    })
    .await;
    let (cert, key) = second.sign(&Subject::new("the captures", "capture"));
    replace(&fort.server.key, &key);
    replace(&fort.server.cert, &cert);
    let (cert, key) = second.sign(&Subject::new("bert", "client"));
    replace(&bert.key, &key);
    replace(&bert.cert, &cert);
    wait_for_certificates_of(&new_ca, &new_anna, &addrs).await;
    // A call that is open and whose certificate stays good is not cut, one of the old CA is.
    time::sleep(Duration::from_secs(3)).await;
    replace(&fort.server.ca, &second.pem());
    replace(&bert.ca, &second.pem());
    let refused = Papers { ca: new_ca.clone(), ..fort.anna.clone() };
    wait_for(Duration::from_secs(20), "the old CA to be refused", || async {
        let endpoint = refused.dialer().endpoint(&addrs[0]).unwrap();
        let Ok(channel) = endpoint.connect().await else { return Some(()) };
        let answer = DrainServiceClient::new(channel).list_captures(pb::ListCapturesRequest {}).await;
        answer.is_err_and(|status| reason(&status) != "NOT_COORDINATOR").then_some(())
    })
    .await;
    let (made, failures) = caller.stop().await;
    assert!(
        failures.is_empty(),
        "{} of {made} calls failed: {:#?}",
        failures.len(),
        &failures[..failures.len().min(3)]
    );
    assert!(made > 100, "{made} calls");
    // The captures speak to each other as before.
    let target = fort.cluster.a_follower_with(&new_anna.options("tls")).await;
    let (code, sentence) = fort.cluster.run_with(&["drain", &target, "--wait"], &new_anna.options("tls")).await;
    assert_eq!(code, 0, "{sentence}");
}

async fn list_or_elsewhere(dialer: &Dialer, addr: &str) -> bool {
    let Ok(channel) = dialer.endpoint(addr).unwrap().connect().await else { return false };
    match DrainServiceClient::new(channel).list_captures(pb::ListCapturesRequest {}).await {
        Ok(_) => true,
        Err(status) => reason(&status) == "NOT_COORDINATOR",
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_call_ends_when_its_certificate_is_no_longer_trusted() {
    let fort = Fort::start().await;
    let second = Authority::new("second");
    let dialer = fort.anna.dialer();
    let mut watches = Vec::new();
    for n in 0..3 {
        let mut drains = DrainServiceClient::new(channel(&dialer, &fort.addr(n)).await);
        if let Ok(watch) = drains.watch_drain(pb::WatchDrainRequest {}).await {
            watches.push(watch.into_inner());
        }
    }
    let [watch] = &mut watches[..] else { panic!("{} coordinators", watches.len()) };
    watch.message().await.unwrap().expect("the present state");
    let (cert, key) = second.sign(&Subject::new("the captures", "capture"));
    replace(&fort.server.key, &key);
    replace(&fort.server.cert, &cert);
    replace(&fort.server.ca, &second.pem());
    let ended = async { while matches!(watch.message().await, Ok(Some(_))) {} };
    time::timeout(Duration::from_secs(15), ended).await.expect("an end of the call");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_ca_file_the_system_says_who_is_believed_and_nobody_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("of the system");
    let server = authority.issue(folder.path(), "server", &Subject::new("the captures", ""));
    let store = format!("embedded:{}", folder.path().join("store.redb").display());
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let command = |args: &[&str], roots: &Path| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_capturedrain"));
        command.args(args).env("SSL_CERT_FILE", roots).env_remove("SSL_CERT_DIR").kill_on_drop(true);
        command
    };
    let addr = format!("127.0.0.1:{port}");
    let options = &server.options("tls")[2..];
    let args = ["server", "--store", &store, "--addr", &addr, "--lease", "3s", "--log", "off"];
    let _server = command(&[&args[..], &strs(options)].concat(), &server.ca).spawn().unwrap();
    let url = format!("https://{addr}");
    let asked = ["captures", "--server", &url];
    wait_for(Duration::from_secs(20), "an answer", || async {
        command(&asked, &server.ca).output().await.unwrap().status.success().then_some(())
    })
    .await;
    let other = folder.path().join("other.pem");
    replace(&other, &Authority::new("other").pem());
    let refused = command(&asked, &other).output().await.unwrap();
    assert_eq!(refused.status.code(), Some(10), "{refused:?}");
}

/// As in a pod when its Service is gone: the capture is called by an address, and its certificate has the name.
#[tokio::test(flavor = "multi_thread")]
async fn a_capture_that_is_called_by_an_address_proves_the_name_that_it_should_have() {
    let folder = tempfile::tempdir().unwrap();
    let (name, authority) = ("cdc-0.cdc-peer.shop.svc", Authority::new("first"));
    let hosts = ["*.cdc-peer.shop.svc"];
    let subject = Subject { hosts: &hosts, ip: [127, 0, 0, 9], ..Subject::new("the captures", "capture") };
    let papers = authority.issue(folder.path(), "captures", &subject);
    let tls = papers.options("tls");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (addr, known_as) = (format!("127.0.0.1:{port}"), format!("{name}:{port}"));
    let store = format!("embedded:{}", folder.path().join("store.redb").display());
    let args = ["server", "--store", &store, "--id", "cdc-0", "--addr", &addr, "--advertise-addr", &known_as];
    let _server = tokio::process::Command::new(env!("CARGO_BIN_EXE_capturedrain"))
        .args([&args[..], &strs(&tls), &["--lease", "3s", "--log", "off"]].concat())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let url = format!("https://{addr}");
    let asked =
        async |args: &[&str], name: &str| run(&[args, &strs(&tls), &["--tls-server-name", name]].concat(), &url).await;
    wait_for(Duration::from_secs(20), "an answer", || async {
        (asked(&["captures"], name).await.0 == 0).then_some(())
    })
    .await;
    for args in [&["changefeed", "list"][..], &["prestop", "--grace-period", "20s"]] {
        let (ended, sentence) = asked(args, name).await;
        assert_eq!(ended, 0, "{args:?}: {sentence}");
    }
    let (code, sentence) = asked(&["captures"], "cdc-0.elsewhere").await;
    assert_eq!((code, sentence.contains("not valid for")), (10, true), "{sentence}");
    let (code, _) = run(&[&["captures"], &strs(&tls)[..]].concat(), &url).await;
    assert_eq!(code, 10, "without the option the address has to be proven");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_half_open_clients_do_not_stop_others() {
    let fort = Fort::start().await;
    let addr = fort.addr(0);
    // More than there are seats: silent ones, and ones in the middle of a handshake.
    let mut idle = Vec::new();
    for n in 0..700 {
        let mut stream = TcpStream::connect(&addr).await.unwrap();
        if n % 2 == 0 {
            // The beginning of a handshake record that never comes.
            stream.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
        }
        idle.push(stream);
    }
    let dialer = fort.anna.dialer();
    for _ in 0..20 {
        let began = Instant::now();
        assert_eq!(get(&dialer, &addr, "/api/v2/status").await.0, 200);
        list_or_elsewhere(&dialer, &addr).await;
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
    // And they are gone after a while.
    let mut last = idle.pop().unwrap();
    let mut rest = Vec::new();
    let gone = time::timeout(Duration::from_secs(8), last.read_to_end(&mut rest)).await;
    gone.expect("the end of a connection that says nothing").ok();
    fort.cluster.ok(&["captures"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_100_mb_is_refused_at_once() {
    let fort = Fort::start().await;
    let dialer = fort.anna.dialer();
    for path in ["/api/v2/changefeeds", "/healthz", "/api/v2/captures/x/drain"] {
        let began = Instant::now();
        let call = dialer.http().post(dialer.url(&fort.addr(0), path)).body(vec![b' '; 100 << 20]);
        let answer = call.send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 413, "{path}");
        let error: Value = answer.json().await.unwrap();
        assert!(error["error_msg"].as_str().unwrap().contains("longer than 65536 bytes"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(5), "{path}: {:?}", began.elapsed());
    }
    // By gRPC.
    let mut drains = DrainServiceClient::new(channel(&dialer, &fort.addr(0)).await);
    let request = pb::DrainCaptureRequest { reason: "x".repeat(100 << 20), ..pb::DrainCaptureRequest::default() };
    let status = drains.drain_capture(request).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
}
