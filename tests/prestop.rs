//! The hook on real captures and a real etcd: it holds its pod until there is a proof, and says how it ended.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

#[path = "support/etcd.rs"]
#[allow(dead_code, reason = "shared with the tests of whole clusters")]
mod etcd;
#[path = "support/fake.rs"]
#[allow(dead_code, reason = "shared with the tests of TiCDC")]
mod fake;
#[path = "support/processes.rs"]
#[allow(dead_code, reason = "shared with the tests of whole clusters")]
mod processes;

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use capturedrain::{client::Client, view::HookReportView};
use fake::{Fake, Reply, left};
use processes::{Cluster, wait_for};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time,
};

const BINARY: &str = env!("CARGO_BIN_EXE_capturedrain");
const PATIENCE: Duration = Duration::from_mins(1);
const FEEDS: usize = 3;
const TABLES: u64 = 6;
/// Longer than a test stands still for: whoever is suspended keeps its place, and what it is asked for waits.
const LONG_LEASE: &str = "60s";

/// A hook that runs.
struct Hook(Child);

impl Hook {
    /// In the pod of a capture.
    fn start(server: &str, args: &[&str]) -> Self {
        let mut command = Command::new(BINARY);
        command.arg("prestop").args(args).env("CAPTUREDRAIN_SERVER", server);
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        Self(command.spawn().unwrap())
    }

    /// Its exit code, and what it said.
    async fn end(self) -> (i32, String) {
        let output = time::timeout(Duration::from_mins(2), self.0.wait_with_output()).await;
        let output = output.expect("a hook that ends").unwrap();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    async fn expect(self, code: i32, says: &str) {
        let (ended, said) = self.end().await;
        assert_eq!((ended, said.contains(says)), (code, true), "{ended}: {said}");
    }

    async fn signal(&self, signal: &str) {
        let pid = self.0.id().unwrap().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().await.unwrap().success());
    }

    fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

/// A cluster whose captures `a`, `b` and `c` have work, and log into files.
struct World {
    etcd: etcd::Etcd,
    cluster: Cluster,
    logs: TempDir,
}

impl World {
    async fn start(name: &str, lease: &'static str, more: &[&str]) -> Self {
        Self::of(&["a", "b", "c"], name, lease, more).await
    }

    async fn of(ids: &[&str], name: &str, lease: &'static str, more: &[&str]) -> Self {
        let (etcd, logs) = (etcd::Etcd::start().await, tempfile::tempdir().unwrap());
        let cluster = Cluster::new(name, &etcd.url()).with_lease(lease, more);
        let mut world = Self { etcd, cluster, logs };
        for id in ids {
            world.run(id, None);
        }
        world.cluster.wait_for_captures(ids.len()).await;
        world
    }

    /// Gives every capture a maintainer and dispatchers.
    async fn with_work(self) -> Self {
        let source = format!("synthetic://?tables={TABLES}&rate=20");
        for n in 0..FEEDS {
            let id = format!("f{n}");
            let create = ["changefeed", "create", "--id", &id, "--source", &source, "--sink", "blackhole://"];
            self.cluster.ok(&create).await;
            self.cluster.wait_for_dispatchers(&id, TABLES).await;
        }
        self
    }

    fn log(&self, id: &str) -> PathBuf {
        self.logs.path().join(id)
    }

    /// Starts a capture in a pod.
    fn run(&mut self, id: &str, port: Option<u16>) -> u16 {
        let (name, uid) = (format!("pod-{id}"), format!("uid-{id}"));
        let pod = ["--pod-name", &name, "--pod-uid", &uid];
        let log = self.log(id);
        self.cluster.start_logged(id, port, &pod, &log)
    }

    fn hook(&self, id: &str, args: &[&str]) -> Hook {
        let (name, uid) = (format!("pod-{id}"), format!("uid-{id}"));
        Hook::start(&self.cluster.server(id), &[args, &["--pod-name", &name, "--pod-uid", &uid]].concat())
    }

    async fn logged(&self, id: &str, what: &str) {
        let log = self.log(id);
        wait_for(PATIENCE, what, || async { fs::read_to_string(&log).ok()?.contains(what).then_some(()) }).await;
    }

    async fn history(&self, count: usize) -> Vec<Value> {
        wait_for(PATIENCE, "drains that have ended", || async {
            let history = self.cluster.try_json(&["history"]).await?.as_array()?.clone();
            (history.len() >= count).then_some(history)
        })
        .await
    }

    /// Everybody but the coordinator.
    async fn followers(&self) -> (String, [String; 2]) {
        let coordinator = self.cluster.coordinator().await;
        let others: Vec<_> = ["a", "b", "c"].into_iter().filter(|id| *id != coordinator).map(str::to_owned).collect();
        (coordinator, others.try_into().unwrap())
    }

    /// How the hook of a capture has ended, as a coordinator tells.
    async fn report(&self, id: &str, outcome: &str) -> HookReportView {
        let servers: Vec<_> = self.cluster.servers().split(',').map(str::to_owned).collect();
        let client = Client::new(&servers).unwrap();
        wait_for(PATIENCE, "the report of the hook", || async {
            let reports = client.status().await.ok()?.hook_reports;
            reports.into_iter().rfind(|report| report.capture == id && report.outcome == outcome)
        })
        .await
    }

    async fn capture(&self, id: &str) -> Option<Value> {
        let captures = self.cluster.try_json(&["captures"]).await?;
        captures.as_array()?.iter().find(|capture| capture["id"] == id).cloned()
    }

    /// How often hooks ended so, by what all captures count.
    async fn counted(&self, outcome: &str) -> u64 {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let series = format!("capturedrain_prestop_runs_total{{outcome=\"{outcome}\"}} ");
        let mut sum = 0;
        for server in self.cluster.servers().split(',') {
            let page = reqwest::get(format!("{server}/metrics")).await.unwrap().text().await.unwrap();
            let line = page.lines().find_map(|line| line.strip_prefix(&series));
            sum += line.expect("a series for every outcome").parse::<u64>().unwrap();
        }
        sum
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_lets_the_pod_go_and_its_capture_never_registers_again() {
    let mut world = World::start("proof", "3s", &["--stopping-timeout", "2s"]).await.with_work().await;
    let (coordinator, [hooked, free]) = world.followers().await;
    world.hook(&hooked, &[]).expect(0, "is empty, proven").await;
    let proven = wait_for(PATIENCE, "the capture", || world.capture(&hooked)).await;
    assert_eq!(proven["liveness"], "Stopping");
    let end = &world.history(1).await[0];
    assert_eq!((&end["outcome"], &end["target"]), (&"Drained".into(), &hooked.as_str().into()), "{end}");
    assert_eq!(end["requesters"], serde_json::json!([format!("prestop of pod-{hooked}")]));
    assert_eq!(world.counted("proven").await, 1);
    world.cluster.ok(&["release", &hooked]).await;
    // Another that was drained after it, and has no hook, comes back by itself: so the first had its time, too.
    world.cluster.ok(&["drain", &free, "--wait"]).await;
    wait_for(PATIENCE, "the other to be back", || async {
        world.capture(&free).await.filter(|capture| capture["liveness"] == "Alive")
    })
    .await;
    let still = wait_for(PATIENCE, "the capture", || world.capture(&hooked)).await;
    assert_eq!((&still["liveness"], &still["node_epoch"]), (&proven["liveness"], &proven["node_epoch"]));
    // What was said of it stands in the store, where a successor reads it.
    world.cluster.kill(&coordinator);
    let report = world.report(&hooked, "proven").await;
    assert_eq!(report.pod_uid, Some(format!("uid-{hooked}")));
    assert!(world.cluster.terminate(&hooked).await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_waits_its_turn_and_the_server_says_so() {
    let world = World::start("turn", LONG_LEASE, &[]).await.with_work().await;
    let (_, [hooked, other]) = world.followers().await;
    world.cluster.suspend(&other).await;
    world.cluster.ok(&["drain", &other]).await;
    let mut hook = world.hook(&hooked, &[]);
    world.logged(&hooked, "the hook waits for another's drain").await;
    assert!(hook.is_running());
    world.cluster.resume(&other).await;
    hook.expect(0, "is empty, proven").await;
    let targets: Vec<_> = world.history(2).await.iter().map(|end| end["target"].clone()).collect();
    assert_eq!(targets, [other.as_str(), hooked.as_str()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_is_on_is_joined_and_the_death_of_its_coordinator_survived() {
    let mut world = World::start("joins", "8s", &[]).await.with_work().await;
    let (coordinator, [hooked, _]) = world.followers().await;
    // A target that stands still cannot be proven empty, so the coordinator surely dies in the middle.
    world.cluster.suspend(&hooked).await;
    let epoch = world.cluster.json(&["drain", &hooked]).await["drain_epoch"].clone();
    let hook = world.hook(&hooked, &[]);
    world.cluster.kill(&coordinator);
    world.cluster.resume(&hooked).await;
    hook.expect(0, "is empty, proven").await;
    let end = &world.history(1).await[0];
    assert_eq!((&end["outcome"], &end["drain_epoch"]), (&"Drained".into(), &epoch), "{end}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_whose_server_is_killed_waits_for_the_next_which_keeps_nothing() {
    let mut world = World::start("server", "6s", &[]).await.with_work().await;
    let (_, [hooked, other]) = world.followers().await;
    world.cluster.suspend(&other).await;
    world.cluster.ok(&["drain", &other]).await;
    let mut hook = world.hook(&hooked, &[]);
    world.logged(&hooked, "the hook waits for another's drain").await;
    let port = world.cluster.addr(&hooked).rsplit_once(':').unwrap().1.parse().unwrap();
    world.cluster.kill(&hooked);
    world.cluster.resume(&other).await;
    assert!(hook.is_running());
    world.run(&hooked, Some(port));
    // It promises before it registers that it will not, or it has registered and is drained.
    hook.expect(0, "its pod may go").await;
    wait_for(PATIENCE, "the former registration to be gone and none to follow", || async {
        let stands = world.capture(&hooked).await;
        stands.is_none_or(|capture| capture["liveness"] == "Stopping").then_some(())
    })
    .await;
    assert!(world.cluster.terminate(&hooked).await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_run_keeps_the_deadline_of_the_first_although_there_is_no_record() {
    let world = World::start("again", LONG_LEASE, &[]).await.with_work().await;
    let (_, [hooked, other]) = world.followers().await;
    world.cluster.suspend(&other).await;
    world.cluster.ok(&["drain", &other]).await;
    let first = world.hook(&hooked, &["--grace-period", "15s", "--margin", "3s"]);
    world.logged(&hooked, "the hook waits for another's drain").await;
    first.signal("-KILL").await;
    first.end().await;
    let second = world.hook(&hooked, &["--grace-period", "600s", "--margin", "3s"]);
    second.expect(6, &format!("{other} is still being drained")).await;
    let report = world.report(&hooked, "deadline").await;
    assert_eq!(report.pod_name, Some(format!("pod-{hooked}")));
    assert!(report.sentence.contains("time is up"), "{report:?}");
    world.cluster.resume(&other).await;
    assert_eq!(world.counted("deadline").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn time_that_is_up_in_the_middle_of_a_drain_is_reported_beyond_the_coordinator() {
    let mut world = World::start("late", LONG_LEASE, &[]).await.with_work().await;
    let (_, [hooked, other]) = world.followers().await;
    // Whose maintainer says nothing may have something on the way to the target.
    world.cluster.suspend(&other).await;
    world.hook(&hooked, &["--grace-period", "20s", "--margin", "15s"]).expect(6, "is not done").await;
    world.report(&hooked, "deadline").await;
    let record = world.cluster.json(&["status"]).await;
    assert_eq!(record["draining_capture_id"], hooked.as_str(), "{record}");
    // The record has it for the next run, which has more time by itself.
    world.hook(&hooked, &["--grace-period", "600s", "--margin", "15s"]).expect(6, "is not done").await;
    world.cluster.ok(&["cancel", &hooked]).await;
    world.cluster.resume(&other).await;
    let coordinator = world.cluster.coordinator().await;
    world.cluster.terminate(&coordinator).await;
    world.report(&hooked, "deadline").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_a_person_calls_off_ends_the_hook() {
    let world = World::start("withdrawn", LONG_LEASE, &[]).await.with_work().await;
    let (_, [hooked, other]) = world.followers().await;
    world.cluster.suspend(&other).await;
    let mut hook = world.hook(&hooked, &[]);
    wait_for(PATIENCE, "the drain to begin", || async {
        let status = world.cluster.try_json(&["status"]).await?;
        (status["draining_capture_id"] == hooked.as_str()).then_some(())
    })
    .await;
    assert!(hook.is_running());
    world.cluster.ok(&["cancel", &hooked]).await;
    hook.expect(8, "was called off").await;
    world.report(&hooked, "withdrawn").await;
    world.cluster.resume(&other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_without_peers_goes_with_its_work_or_is_held() {
    let world = World::of(&["a"], "alone", "3s", &[]).await;
    world.hook("a", &[]).expect(0, "has no work").await;
    let world = world.with_work().await;
    world.hook("a", &[]).expect(4, "no other capture is there").await;
    world.hook("a", &["--no-peers", "hold", "--grace-period", "6s", "--margin", "1s"]).expect(7, "time is up").await;
    for outcome in ["nothing_left", "no_peers", "stalled"] {
        assert_eq!(world.counted(outcome).await, 1, "{outcome}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_without_its_store_has_nothing_to_protect_and_does_not_come_back() {
    let mut world = World::start("store", "3s", &[]).await.with_work().await;
    let (_, [hooked, other]) = world.followers().await;
    world.etcd.kill();
    world.logged(&hooked, "registration is over").await;
    world.hook(&hooked, &[]).expect(0, "is not registered").await;
    world.etcd.restart().await;
    world.cluster.wait_for_captures(2).await;
    world.logged(&other, "over: the store's changes cannot be followed").await;
    assert!(world.cluster.terminate(&hooked).await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_and_servers_that_are_not_meant_have_codes_of_their_own() {
    let world = World::start("codes", LONG_LEASE, &[]).await.with_work().await;
    let (_, [hooked, other]) = world.followers().await;
    let server = world.cluster.server(&hooked);
    Hook::start(&server, &["--pod-uid", "uid-of-another"]).expect(9, "is of another pod").await;
    Hook::start(&world.cluster.servers(), &[]).expect(2, "name one --server").await;
    world.cluster.suspend(&other).await;
    for (signal, code) in [("-TERM", 143), ("-INT", 130)] {
        let hook = world.hook(&hooked, &[]);
        wait_for(PATIENCE, "the drain to begin", || async {
            let status = world.cluster.try_json(&["status"]).await?;
            (status["draining_capture_id"] == hooked.as_str()).then_some(())
        })
        .await;
        hook.signal(signal).await;
        hook.expect(code, "goes on").await;
        world.cluster.ok(&["cancel", &hooked]).await;
    }
    world.report(&hooked, "signal").await;
    world.cluster.resume(&other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_waited_for_until_time_is_up() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let began = Instant::now();
    let hook = Hook::start(&format!("127.0.0.1:{port}"), &["--grace-period", "4s", "--margin", "1s"]);
    hook.expect(5, "time is up").await;
    assert!(began.elapsed() >= Duration::from_secs(3), "{:?}", began.elapsed());
}

/// The hook of a capture of a played cluster, its container's log in a file.
fn of_ticdc(fake: &Fake, at: usize, log: &Path, args: &[&str]) -> Hook {
    fs::write(log, "").unwrap();
    let common = ["--kind", "ticdc", "--container-log", log.to_str().unwrap()];
    Hook::start(&format!("http://{}", fake.servers()[at]), &[&common, args].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_of_ticdc_is_held_until_two_answers_prove_it() {
    let (folder, versions) = (tempfile::tempdir().unwrap(), ["v8.1.0"; 3]);
    let log = folder.path().join("log");
    let fake = Fake::start(versions, [left(3), left(1), left(0)]);
    of_ticdc(&fake, 1, &log, &[]).expect(0, "c1 is empty, proven").await;
    assert!(fake.play().count("PUT /api/v1/captures/drain") >= 4);
    let asked = fake.play().seen.iter().rfind(|seen| seen.what.starts_with("PUT")).unwrap().body.clone();
    assert!(asked.contains("c1"), "{asked}");
    let said = fs::read_to_string(&log).unwrap();
    assert!(said.contains("waiting for the drain of c1") && said.contains("is empty, proven"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_answers_of_ticdc_are_never_a_proof() {
    let (folder, versions) = (tempfile::tempdir().unwrap(), ["v8.1.0"; 3]);
    let short = ["--grace-period", "3s", "--margin", "500ms"];
    for (n, reply) in [
        Reply::Text(200, r#"{"current_table_count":0}"#.to_owned()),
        Reply::Text(202, "{}".to_owned()),
        Reply::Text(404, "404 page not found".to_owned()),
        Reply::Text(500, String::new()),
        Reply::CutOff(202, r#"{"current_table_count":0}"#.to_owned()),
        left(1),
    ]
    .into_iter()
    .enumerate()
    {
        let fake = Fake::start(versions, [reply.clone()]);
        let log = folder.path().join(n.to_string());
        let (code, said) = of_ticdc(&fake, 1, &log, &short).end().await;
        assert!(matches!(code, 4..=6), "{reply:?} ends with {code}: {said}");
        assert!(!said.contains("proven"), "{reply:?}: {said}");
    }
    let old = Fake::start(["v6.1.0"; 3], [left(0)]);
    of_ticdc(&old, 1, &folder.path().join("old"), &[]).expect(4, "cannot drain").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_binary_is_installed_whole_or_not_at_all() {
    async fn install(folder: &Path) -> (i32, String) {
        let output = Command::new(BINARY).arg("install").arg(folder).output().await.unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        assert_eq!(install(folder.path()).await.0, 0);
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["capturedrain"]);
        let there = folder.path().join("capturedrain");
        assert_eq!(fs::metadata(&there).unwrap().permissions().mode() & 0o777, 0o755);
        let version = Command::new(&there).arg("--version").output().await.unwrap();
        assert!(version.status.success());
    }
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    for bad in [file.as_path(), &folder.path().join("missing")] {
        let (code, said) = install(bad).await;
        assert_eq!((code, said.contains("is no folder")), (12, true), "{said}");
    }
    let taken = folder.path().join("taken");
    fs::create_dir_all(taken.join("capturedrain/full")).unwrap();
    let (code, said) = install(&taken).await;
    assert_eq!((code, said.contains("cannot write")), (12, true), "{said}");
    assert_eq!(fs::read_dir(&taken).unwrap().count(), 1, "nothing is left half written");
}
