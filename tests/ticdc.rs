//! `CaptureDrain`s of kind `TiCDC`: against this project's own captures, which speak that API, and against a cluster that
//! is played, in every way in which one can be old, mixed, restarting or mistaken. In none of them is a capture taken for
//! drained that is not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

#[path = "support/etcd.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod etcd;
#[path = "support/fake.rs"]
mod fake;
#[path = "support/processes.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod processes;

use std::time::Duration;

use capturedrain::{
    operator::{backend::TiCdc, reconcile},
    resource::{CaptureDrain, ending, find, is_drained, is_finished, parse, stalled},
    tls::Dialer,
};
use fake::{Fake, Reply, complaint, left};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use processes::{Cluster, wait_for};
use serde_json::Value;
use tokio::time;

const PATIENCE: Duration = Duration::from_mins(1);
/// Between two requests of a backend under test.
const INTERVAL: Duration = Duration::from_millis(40);
/// A release that drains, and the three captures of a cluster that runs it.
const GOOD: &str = "v7.5.6";
const ALL_GOOD: [&str; 3] = [GOOD, GOOD, GOOD];
const PUT: &str = "PUT /api/v1/captures/drain";

fn drain(target: &str) -> CaptureDrain {
    let text = format!(
        "apiVersion: capturedrain.io/v1alpha1\nkind: CaptureDrain\nmetadata: {{name: of-{target}}}\nspec:\n  \
         clusterRef: {{serviceName: cdc, kind: TiCDC}}\n  target: {{captureID: {target}}}\n"
    );
    parse(&text, "test").unwrap().remove(0)
}

fn backend(servers: Vec<String>, login: Option<(&str, &str)>) -> TiCdc {
    capturedrain::tls::install_provider();
    let login = login.map(|(user, password)| (user.to_owned(), password.to_owned()));
    TiCdc::with_interval(servers, Dialer::plain().unwrap(), login, INTERVAL)
}

fn way(fake: &Fake) -> TiCdc {
    backend(fake.servers(), None)
}

/// Reconciles until something is so. Each state on the way is shown to `watch`.
async fn until(
    backend: &TiCdc,
    drain: &mut CaptureDrain,
    what: &str,
    mut is: impl FnMut(&CaptureDrain) -> bool,
    mut watch: impl FnMut(&CaptureDrain),
) {
    let rounds = async {
        loop {
            reconcile(backend, drain).await;
            watch(drain);
            if is(drain) {
                return;
            }
            time::sleep(INTERVAL / 4).await;
        }
    };
    let reached = time::timeout(PATIENCE, rounds).await;
    assert!(reached.is_ok(), "waited for {what}: {:#?}", drain.status);
}

async fn until_drained(backend: &TiCdc, drain: &mut CaptureDrain) {
    until(backend, drain, "the proof", is_drained, |_| {}).await;
}

fn sentence(drain: &CaptureDrain, kind: &str) -> String {
    let conditions = &drain.status.as_ref().unwrap().conditions;
    find(conditions, kind).map(|condition| condition.message.clone()).unwrap_or_default()
}

fn reason(drain: &CaptureDrain, kind: &str) -> String {
    let conditions = &drain.status.as_ref().unwrap().conditions;
    find(conditions, kind).map(|condition| condition.reason.clone()).unwrap_or_default()
}

fn phase(drain: &CaptureDrain) -> &str {
    drain.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn blockers(drain: &CaptureDrain) -> Vec<&str> {
    drain.status.as_ref().unwrap().blocked_by.iter().map(|by| by.kind.as_str()).collect()
}

fn epoch(drain: &CaptureDrain) -> Option<i64> {
    drain.status.as_ref().and_then(|status| status.epoch)
}

fn never_drained(drain: &CaptureDrain) {
    assert!(!is_drained(drain), "taken for drained: {:#?}", drain.status);
}

/// Everything that may come in place of a number, and whether it is one that a person has to look after.
fn nonsense() -> Vec<(Reply, Option<&'static str>)> {
    let text = |status: u16, body: &str| Reply::Text(status, body.to_owned());
    vec![
        (text(202, "{}"), None),
        (text(202, ""), None),
        (text(202, "0"), None),
        (text(202, "null"), None),
        (text(202, r#"{"current_table_count":"0"}"#), None),
        (text(202, r#"{"current_table_count":null}"#), None),
        (text(202, r#"{"current_table_count":-1}"#), None),
        (text(202, r#"{"current_table_count":0"#), None),
        (text(202, "<html>welcome</html>"), None),
        (text(200, r#"{"current_table_count":0}"#), None),
        (text(200, "<html>please log in</html>"), None),
        (text(204, ""), None),
        (text(418, r#"{"current_table_count":0}"#), None),
        (Reply::CutOff(202, r#"{"current_table_count":0}"#.to_owned()), None),
        (Reply::Redirect("/elsewhere".to_owned()), None),
        (complaint(400, "CDC:ErrSchedulerRequestFailed", "only one capture alive"), None),
        (complaint(404, "CDC:ErrCaptureNotExist", "capture not exists"), None),
        (complaint(500, "CDC:ErrOwnerNotFound", "owner not found"), None),
        (text(500, r#"{"current_table_count":0}"#), None),
        (text(502, "<html>bad gateway</html>"), None),
        (text(503, r#"{"current_table_count":0}"#), None),
        (complaint(503, "CDC:ErrSchedulerRequestFailed", "not all captures initialized"), None),
        (text(404, "404 page not found"), Some("DrainUnsupported")),
        (text(401, r#"{"current_table_count":0}"#), Some("Unauthorized")),
        (complaint(401, "CDC:ErrCredentialNotFound", "please specify the user and password"), Some("Unauthorized")),
        (complaint(403, "CDC:ErrUnauthorized", "user anna is not allowed"), Some("Unauthorized")),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_number_is_never_taken_for_0_at_the_start() {
    for (reply, stall) in nonsense() {
        let fake = Fake::start(ALL_GOOD, [reply.clone()]);
        let (backend, mut drain) = (way(&fake), drain("c1"));
        let asked = |_: &CaptureDrain| fake.play().count(PUT) >= 4;
        until(&backend, &mut drain, "four requests", asked, never_drained).await;
        assert_eq!(phase(&drain), "Unknown", "{reply:?}");
        assert_eq!(stalled(&drain), Some(stall.unwrap_or("ClusterUnreachable")), "{reply:?}");
        assert!(!sentence(&drain, "Stalled").is_empty());
        assert_eq!(epoch(&drain), None, "nothing has begun");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_number_is_never_taken_for_0_in_the_middle() {
    for (reply, stall) in nonsense() {
        let fake = Fake::start(ALL_GOOD, [left(3), left(2), reply.clone()]);
        let (backend, mut drain) = (way(&fake), drain("c1"));
        let asked = |drain: &CaptureDrain| {
            let is_told = if stall.is_some() { stalled(drain) == stall } else { blockers(drain) == ["OwnerNotReady"] };
            fake.play().count(PUT) >= 7 && is_told
        };
        until(&backend, &mut drain, &format!("{reply:?}"), asked, never_drained).await;
        assert!(epoch(&drain).is_some());
        if stall.is_none() {
            assert_eq!((phase(&drain), stalled(&drain)), ("Draining", None), "{reply:?}");
            let remaining = drain.status.as_ref().unwrap().progress.as_ref().unwrap().remaining.unwrap();
            assert_eq!((remaining.maintainers, remaining.dispatchers), (None, Some(2)), "{reply:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_takes_too_long_is_none() {
    let fake = Fake::start(ALL_GOOD, [left(1), Reply::Slow(Duration::from_mins(10))]);
    let (backend, mut drain) = (way(&fake), drain("c1"));
    until(&backend, &mut drain, "the wait to end", |drain| blockers(drain) == ["OwnerNotReady"], never_drained).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn zero_is_no_proof_by_itself() {
    // 0 and something else in turn, for a while; then 1 for ever.
    let mut replies = Vec::new();
    for other in [left(1), complaint(503, "CDC:ErrX", "not ready"), Reply::Text(202, "{}".to_owned())] {
        replies.extend([left(0), other.clone(), left(0), other]);
    }
    let count = replies.len();
    let fake = Fake::start(ALL_GOOD, [left(5)].into_iter().chain(replies).chain([left(1)]));
    let (backend, mut drain) = (way(&fake), drain("c1"));
    let asked = |_: &CaptureDrain| fake.play().count(PUT) >= count + 4;
    until(&backend, &mut drain, "all answers", asked, never_drained).await;
    assert_eq!(phase(&drain), "Draining");
    // And when each request finds another owner.
    {
        let mut play = fake.play();
        (play.drain, play.is_restless) = ([left(0)].into(), true);
    }
    let before = fake.play().count(PUT);
    let asked = |_: &CaptureDrain| fake.play().count(PUT) >= before + 6;
    until(&backend, &mut drain, "changing owners", asked, never_drained).await;
    fake.play().is_restless = false;
    until_drained(&backend, &mut drain).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn releases_that_do_not_drain_are_named_and_never_asked() {
    for (versions, at, says) in [
        (["v6.1.7"; 3], "c0", "v6.1.7, which cannot drain"),
        ([GOOD, GOOD, "v5.4.3"], "c2", "v5.4.3, which cannot drain"),
        (["v8.5.5"; 3], "c0", "v8.5.5, which may answer that a capture is empty when it is not"),
        (["v8.5.7", "v8.5.6-release.1", "v8.5.7"], "c1", "v8.5.6-release.1, which may answer"),
        (["None"; 3], "c0", "no release that is known"),
    ] {
        let fake = Fake::start(versions, [left(0)]);
        let (backend, mut drain) = (way(&fake), drain("c1"));
        let stalls = |drain: &CaptureDrain| stalled(drain) == Some("DrainUnsupported");
        for _ in 0..3 {
            until(&backend, &mut drain, "the stall", stalls, never_drained).await;
        }
        let sentence = sentence(&drain, "Stalled");
        assert!(sentence.contains(&format!("capture {at} ")) && sentence.contains(says), "{sentence}");
        assert_eq!((fake.play().count(PUT), epoch(&drain)), (0, None));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_that_does_not_say_its_release_is_waited_for() {
    let fake = Fake::start(ALL_GOOD, [left(0)]);
    fake.play().captures[2].1 = None;
    let (backend, mut drain) = (way(&fake), drain("c1"));
    let stalls = |drain: &CaptureDrain| stalled(drain) == Some("ClusterUnreachable");
    until(&backend, &mut drain, "the stall", stalls, never_drained).await;
    assert!(sentence(&drain, "Stalled").contains("capture c2 at"), "{}", sentence(&drain, "Stalled"));
    assert_eq!(fake.play().count(PUT), 0);
    fake.play().captures[2].1 = Some(GOOD.to_owned());
    until_drained(&backend, &mut drain).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_joins_in_the_middle_ends_the_asking() {
    let fake = Fake::start(ALL_GOOD, [left(3)]);
    let (backend, mut drain) = (way(&fake), drain("c1"));
    until(&backend, &mut drain, "the drain", |drain| phase(drain) == "Draining", never_drained).await;
    let first = epoch(&drain);
    // As a mixed cluster does: it skips the drain, and says 0.
    fake.restart(2, "c9", "v8.5.5");
    fake.play().drain = [left(0)].into();
    let stalls = |drain: &CaptureDrain| stalled(drain) == Some("DrainUnsupported");
    until(&backend, &mut drain, "the stall", stalls, never_drained).await;
    let asked = fake.play().count(PUT);
    for _ in 0..5 {
        reconcile(&backend, &mut drain).await;
        never_drained(&drain);
    }
    assert_eq!(fake.play().count(PUT), asked);
    fake.restart(2, "c10", GOOD);
    until_drained(&backend, &mut drain).await;
    assert_eq!(epoch(&drain), first, "it went on under the same number");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_restarts_is_waited_for() {
    let fake = Fake::start(ALL_GOOD, [left(3), left(2)]);
    let (backend, mut drain) = (way(&fake), drain("c1"));
    until(&backend, &mut drain, "the drain", |drain| phase(drain) == "Draining", never_drained).await;
    let first = epoch(&drain);
    let away = Reply::Text(503, String::new());
    fake.play().instead = std::iter::repeat_n(away, 60).collect();
    let away = |drain: &CaptureDrain| stalled(drain) == Some("ClusterUnreachable");
    until(&backend, &mut drain, "the absence", away, never_drained).await;
    until(&backend, &mut drain, "the return", |drain| phase(drain) == "Draining", never_drained).await;
    fake.play().drain = [left(0)].into();
    until_drained(&backend, &mut drain).await;
    assert_eq!((epoch(&drain), phase(&drain)), (first, "Drained"));
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_that_make_no_sense_are_no_cluster() {
    for reply in [
        Reply::Text(200, "[]".to_owned()),
        Reply::Text(200, r#"[{"id":"c1"}]"#.to_owned()),
        Reply::Text(200, "<html></html>".to_owned()),
        Reply::Text(404, "404 page not found".to_owned()),
        Reply::CutOff(200, "[".to_owned()),
        Reply::Redirect("/elsewhere".to_owned()),
    ] {
        let fake = Fake::start(ALL_GOOD, [left(0)]);
        fake.play().instead = std::iter::repeat_n(reply.clone(), 500).collect();
        let (backend, mut drain) = (way(&fake), drain("c1"));
        for _ in 0..4 {
            reconcile(&backend, &mut drain).await;
            never_drained(&drain);
            assert_eq!(phase(&drain), "Unknown", "{reply:?}");
        }
        assert_eq!(fake.play().count(PUT), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_resigns_before_it_is_drained() {
    let fake = Fake::start(ALL_GOOD, [left(2), left(0)]);
    let (backend, mut drain) = (way(&fake), drain("c0"));
    until_drained(&backend, &mut drain).await;
    let seen = fake.play().seen.clone();
    let at = |what: &str| seen.iter().position(|seen| seen.what == what).unwrap();
    assert!(at("POST /api/v1/owner/resign") < at(PUT));
    let put = &seen[at(PUT)];
    assert_eq!(serde_json::from_str::<Value>(&put.body).unwrap()["capture_id"], "c0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_does_not_end_the_asking_and_is_void_when_work_comes_back() {
    let fake = Fake::start(ALL_GOOD, [left(1), left(0)]);
    let (backend, mut drain) = (way(&fake), drain("c1"));
    until_drained(&backend, &mut drain).await;
    let progress = drain.status.as_ref().unwrap().progress.clone().unwrap();
    assert_eq!(progress.remaining.unwrap().maintainers, None, "unknown, not 0");
    assert_eq!((progress.initial.unwrap().maintainers, progress.in_flight), (None, None));
    let asked = fake.play().count(PUT);
    until(&backend, &mut drain, "more requests", |_| fake.play().count(PUT) > asked + 3, |_| {}).await;
    assert!(is_drained(&drain) && !is_finished(&drain));
    fake.play().drain = [left(4)].into();
    until(&backend, &mut drain, "the end of the proof", |drain| !is_drained(drain), |_| {}).await;
    assert_eq!(phase(&drain), "Draining");
    fake.play().drain = [left(0)].into();
    until_drained(&backend, &mut drain).await;
    fake.restart(1, "c7", GOOD);
    until(&backend, &mut drain, "the end", is_finished, |_| {}).await;
    assert_eq!(ending(&drain), Some("CaptureStopping"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_goes_with_work_on_it_was_not_drained() {
    let fake = Fake::start(ALL_GOOD, [left(4)]);
    let (backend, mut drain) = (way(&fake), drain("c1"));
    until(&backend, &mut drain, "the drain", |drain| phase(drain) == "Draining", never_drained).await;
    fake.restart(1, "c7", GOOD);
    until(&backend, &mut drain, "the end", is_finished, never_drained).await;
    assert_eq!(ending(&drain), Some("TargetGone"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_drain_at_a_time() {
    let fake = Fake::start(ALL_GOOD, [left(4)]);
    let (backend, mut first, mut second) = (way(&fake), drain("c1"), drain("c2"));
    until(&backend, &mut first, "the drain", |drain| phase(drain) == "Draining", never_drained).await;
    until(&backend, &mut second, "the queue", |drain| phase(drain) == "Queued", never_drained).await;
    assert_eq!((reason(&second, "Reconciling").as_str(), blockers(&second)), ("BlockedByDrain", vec!["Drain"]));
    let is_of = |seen: &fake::Seen| seen.body.contains("c2");
    assert!(!fake.play().seen.iter().any(is_of), "the second was not asked for");
    fake.play().drain = [left(0)].into();
    until_drained(&backend, &mut first).await;
    fake.restart(1, "c7", GOOD);
    until(&backend, &mut first, "the end", is_finished, |_| {}).await;
    until_drained(&backend, &mut second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_somebody_else_has_asked_for_is_waited_for() {
    let says = "scheduler request failed, drain already in progress on capture c2";
    let fake = Fake::start(ALL_GOOD, [complaint(500, "CDC:ErrSchedulerRequestFailed", says)]);
    let (backend, mut drain) = (way(&fake), drain("c1"));
    until(&backend, &mut drain, "the queue", |drain| phase(drain) == "Queued", never_drained).await;
    assert_eq!(reason(&drain, "Reconciling"), "BlockedByDrain");
    assert_eq!(drain.status.as_ref().unwrap().blocked_by[0].name.as_deref(), Some("c2"));
    fake.play().drain = [left(1), left(0)].into();
    until_drained(&backend, &mut drain).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_capture_has_nobody_to_leave_its_work_to() {
    let fake = Fake::start(ALL_GOOD, [left(0)]);
    fake.play().listed = 1;
    let (backend, mut drain) = (way(&fake), drain("c0"));
    let stalls = |drain: &CaptureDrain| stalled(drain) == Some("NoDestination");
    until(&backend, &mut drain, "the stall", stalls, never_drained).await;
    assert_eq!(fake.play().count(PUT), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_no_way_back() {
    for proven in [false, true] {
        let fake = Fake::start(ALL_GOOD, [left(u64::from(!proven))]);
        let (backend, mut drain) = (way(&fake), drain("c1"));
        let is = |drain: &CaptureDrain| phase(drain) == if proven { "Drained" } else { "Draining" };
        until(&backend, &mut drain, "the drain", is, |_| {}).await;
        drain.metadata.deletion_timestamp = Some(Time(Timestamp::now()));
        reconcile(&backend, &mut drain).await;
        assert_eq!(ending(&drain), Some("CancelUnsupported"));
        never_drained(&drain);
        // That nothing comes takes time to see; one request may have been on its way.
        let asked = fake.play().count(PUT);
        time::sleep(INTERVAL * 10).await;
        assert!(fake.play().count(PUT) <= asked + 1, "it is asked for still");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_is_taken_back_when_its_grounds_fall_away() {
    let fake = Fake::start(ALL_GOOD, [left(1), left(0)]);
    let (backend, mut drain) = (way(&fake), drain("c1"));
    until_drained(&backend, &mut drain).await;
    // One that cannot drain joins: its 0 would say nothing.
    fake.restart(2, "c9", "v8.5.5");
    let is_refused = |drain: &CaptureDrain| stalled(drain) == Some("DrainUnsupported");
    until(&backend, &mut drain, "the refusal", is_refused, |_| {}).await;
    never_drained(&drain);
    assert_eq!(reason(&drain, "Drained"), "ProgressUnknown");
    fake.restart(2, "c2", GOOD);
    until_drained(&backend, &mut drain).await;
    // Another owner has to say it, too.
    fake.play().drain = [Reply::Slow(INTERVAL * 10), left(0)].into();
    fake.play().owner = 2;
    let is_taken_back = |drain: &CaptureDrain| !is_drained(drain);
    until(&backend, &mut drain, "the doubt", is_taken_back, |_| {}).await;
    assert_eq!((phase(&drain), reason(&drain, "Drained").as_str()), ("Draining", "InProgress"));
    until_drained(&backend, &mut drain).await;
    // Alone, it would be given what the others had.
    fake.play().owner = 0;
    fake.play().captures.swap(0, 1);
    fake.play().listed = 1;
    let is_alone = |drain: &CaptureDrain| !is_drained(drain) && blockers(drain) == ["NoDestination"];
    until(&backend, &mut drain, "the loneliness", is_alone, |_| {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_goes_on_under_the_same_number_and_deadline() {
    let fake = Fake::start(ALL_GOOD, [left(4)]);
    let (first, mut drain) = (way(&fake), drain("c1"));
    let is_on = |drain: &CaptureDrain| phase(drain) == "Draining";
    until(&first, &mut drain, "the drain", is_on, never_drained).await;
    let number = epoch(&drain);
    drop(first);
    let second = way(&fake);
    let asked = fake.play().count(PUT);
    until(&second, &mut drain, "more requests", |_| fake.play().count(PUT) > asked + 3, never_drained).await;
    assert_eq!((epoch(&drain), phase(&drain), stalled(&drain)), (number, "Draining", None));
    drop(second);
    // The same, nine minutes later.
    drain.status.as_mut().unwrap().epoch = number.map(|number| number - 540_000);
    let third = way(&fake);
    let is_held = |drain: &CaptureDrain| stalled(drain) == Some("DeadlineHeld");
    until(&third, &mut drain, "the deadline", is_held, never_drained).await;
    drop(third);
    drain.spec.on_deadline = capturedrain::resource::LimitPolicy::Proceed;
    let fourth = way(&fake);
    until(&fourth, &mut drain, "the end", is_finished, never_drained).await;
    assert_eq!(ending(&drain), Some("DeadlineProceeded"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_login_is_for_the_servers_and_is_never_printed() {
    let fake = Fake::start(ALL_GOOD, [left(1), left(0)]);
    // One server is known; the others are the cluster's word.
    let backend = backend(fake.servers()[..1].to_vec(), Some(("anna", "s3cret")));
    let mut drain = drain("c1");
    until_drained(&backend, &mut drain).await;
    for seen in &fake.play().seen {
        let login = seen.login.as_deref();
        if seen.what == "GET /status" {
            assert_eq!(login, None);
        } else {
            assert_eq!(login, Some("Basic YW5uYTpzM2NyZXQ="), "{}", seen.what);
        }
    }
    let printed = format!("{backend:?} {drain:?}");
    assert!(!printed.contains("s3cret") && !printed.contains("anna"), "{printed}");
}

/// Three captures of this project with dispatchers on each, and the one that coordinates.
async fn own(etcd: &etcd::Etcd) -> (Cluster, String) {
    let mut cluster = Cluster::new("shop", &etcd.url());
    for id in ["a", "b", "c"] {
        cluster.start(id);
    }
    cluster.wait_for_captures(3).await;
    let source = "synthetic://?tables=30&rate=20";
    let create = ["changefeed", "create", "--id", "orders", "--source", source, "--sink", "blackhole://"];
    cluster.ok(&create).await;
    cluster.wait_for_dispatchers("orders", 30).await;
    let coordinator = cluster.coordinator().await;
    (cluster, coordinator)
}

/// Whether a capture is what it was said to be.
async fn assert_empty(cluster: &Cluster, id: &str) {
    let captures = cluster.json(&["captures"]).await;
    let capture = captures.as_array().unwrap().iter().find(|capture| capture["id"] == id).cloned().unwrap();
    assert_eq!((&capture["liveness"], &capture["dispatcher_count"]), (&"Stopping".into(), &0.into()), "{capture}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_drain_of_real_captures_the_owner_included() {
    let etcd = etcd::Etcd::start().await;
    let (mut cluster, coordinator) = own(&etcd).await;
    let servers = ["a", "b", "c"].map(|id| cluster.addr(id)).to_vec();
    let (backend, mut drain) = (backend(servers, None), drain(&coordinator));
    until_drained(&backend, &mut drain).await;
    assert_empty(&cluster, &coordinator).await;
    assert!(epoch(&drain).is_some_and(|epoch| epoch > 1_700_000_000_000), "a moment in milliseconds");
    cluster.terminate(&coordinator).await;
    until(&backend, &mut drain, "the end", is_finished, |_| {}).await;
    assert_eq!((ending(&drain), is_drained(&drain)), (Some("CaptureStopping"), true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_of_this_kind_is_applied_from_the_command_line() {
    let etcd = etcd::Etcd::start().await;
    let (cluster, coordinator) = own(&etcd).await;
    let target = ["a", "b", "c"].into_iter().find(|id| *id != coordinator).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("drain.yaml");
    std::fs::write(&file, capturedrain::resource::to_yaml(&drain(target)).unwrap()).unwrap();
    let path = file.display().to_string();
    cluster.ok(&["apply", "--wait", "-f", &path]).await;
    assert_empty(&cluster, target).await;
    // And what cannot be drained has its exit code and its sentence.
    let fake = Fake::start(["v8.5.5"; 3], [left(0)]);
    std::fs::write(&file, capturedrain::resource::to_yaml(&drain("c1")).unwrap()).unwrap();
    let (code, said) = processes::run(&["apply", "--wait", "-f", &path], &fake.servers().join(",")).await;
    assert_eq!((code, said.contains("DrainUnsupported")), (7, true), "{said}");
    wait_for(PATIENCE, "no request", || async { (fake.play().count(PUT) == 0).then_some(()) }).await;
}
