//! Stores that fail under real processes.

use std::{fs, net::TcpListener, path::Path, process::Stdio, time::Duration};

use capturedrain_core::model::{AVOID_MAX, NAME_MAX_BYTES};
use tokio::{
    process::{Child, Command},
    time,
};

use crate::{
    disk::SmallDisk,
    etcd::Etcd,
    processes::{Cluster, run, wait_for},
};

/// How long the tries of a server are counted.
const WINDOW: Duration = Duration::from_secs(3);
/// What a server may do in that time: write twice a second, and what it had under way.
const TRIES_MAX: usize = 8;

/// How many transactions an etcd has answered, well or not.
async fn transactions(etcd: &Etcd) -> usize {
    // Fails only when one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let page = reqwest::get(format!("{}/metrics", etcd.client_url())).await.unwrap().text().await.unwrap();
    let lines = page.lines().filter(|line| line.starts_with("grpc_server_handled_total"));
    let lines = lines.filter(|line| line.contains("grpc_method=\"Txn\""));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_without_space_is_not_asked_without_a_pause() {
    let etcd = Etcd::start_with(&["--quota-backend-bytes", "16777216"]).await;
    let mut cluster = Cluster::new("full", &etcd.url());
    cluster.start("only");
    cluster.wait_for_captures(1).await;
    let mut client = etcd_client::Client::connect([etcd.client_url()], None).await.unwrap();
    let ballast = vec![b'x'; 1 << 20];
    let mut full = false;
    for n in 0..64 {
        full = full || client.put(format!("/ballast/{n}"), ballast.clone(), None).await.is_err();
    }
    assert!(full, "the quota is not reached");
    let create = ["changefeed", "create", "--id", "f", "--source", "synthetic://", "--sink", "blackhole://"];
    let creating = cluster.run(&create);
    let counting = async {
        let before = transactions(&etcd).await;
        wait_for(Duration::from_secs(10), "a first attempt", || async {
            (transactions(&etcd).await > before).then_some(())
        })
        .await;
        let before = transactions(&etcd).await;
        time::sleep(WINDOW).await;
        let tries = transactions(&etcd).await - before;
        assert!((1..=TRIES_MAX).contains(&tries), "{tries} transactions within {WINDOW:?}");
    };
    let (ended, ()) = tokio::join!(creating, counting);
    assert_eq!(ended.0, 5, "{ended:?}");
}

/// Takes what a disk has left, to the last byte.
fn fill(disk: &SmallDisk) {
    let _ = fs::write(disk.path().join("ballast"), vec![0; 1 << 20]);
}

/// Two captures in one process on one file, and where they answer.
fn serve(store: &str, log: &Path) -> (Child, String) {
    let port = loop {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if port < u16::MAX && TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
            break port;
        }
    };
    let child = Command::new(env!("CARGO_BIN_EXE_capturedrain"))
        .args(["server", "--store", store, "--captures", "2", "--id", "s", "--addr", &format!("127.0.0.1:{port}")])
        .args(["--lease", "3s", "--heartbeat", "300ms", "--log", "warn"])
        .stdin(Stdio::null())
        .stderr(fs::File::create(log).unwrap())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    (child, format!("http://127.0.0.1:{port}"))
}

/// Waits until a command ends well.
async fn until_done(server: &str, args: &[&str]) {
    wait_for(Duration::from_mins(1), &format!("{args:?}"), || async { (run(args, server).await.0 == 0).then_some(()) })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_on_a_disk_that_fills_goes_on_when_there_is_room_and_has_lost_nothing() {
    let Some(disk) = SmallDisk::mount("1m") else {
        return eprintln!("skipped: mounting a small disk needs root");
    };
    let folder = tempfile::tempdir().unwrap();
    let (store, log) = (format!("embedded:{}", disk.path().join("store").display()), folder.path().join("log"));
    let (mut child, server) = serve(&store, &log);
    let create = ["changefeed", "create", "--id", "f", "--source", "synthetic://", "--sink", "blackhole://"];
    until_done(&server, &create).await;
    until_done(&server, &["drain", "s-1", "--dry-run"]).await;

    fill(&disk);
    // The largest record that there can be does not fit into what the file has left.
    let avoid: Vec<_> = (0..AVOID_MAX).map(|n| format!("--avoid={n:0>NAME_MAX_BYTES$}")).collect();
    let drain: Vec<_> = ["drain", "s-1"].into_iter().chain(avoid.iter().map(String::as_str)).collect();
    let asked = run(&drain, &server);
    let counting = async {
        let tries = || fs::read_to_string(&log).unwrap().matches("no telling whether a transaction").count();
        wait_for(Duration::from_secs(10), "a first attempt", || async { (tries() > 0).then_some(()) }).await;
        let before = tries();
        time::sleep(WINDOW).await;
        tries() - before
    };
    let ((code, sentence), tries) = tokio::join!(asked, counting);
    assert!(code == 5 && sentence.contains("the store did not answer"), "{code}: {sentence}");
    // The changefeed's maintainer tries, too.
    assert!(tries <= 2 * TRIES_MAX, "{tries} attempts within {WINDOW:?}");
    let said = fs::read_to_string(&log).unwrap();
    assert!(said.contains("cannot be used: I/O error: No space left on device"), "{said}");
    assert_eq!(child.try_wait().unwrap(), None, "the server goes on");

    fs::remove_file(disk.path().join("ballast")).unwrap();
    until_done(&server, &["drain", "s-1", "--wait"]).await;
    assert_eq!(run(&["changefeed", "get", "f"], &server).await.0, 0, "what was answered is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_does_not_start_on_a_full_disk_and_says_so() {
    let Some(disk) = SmallDisk::mount("1m") else {
        return eprintln!("skipped: mounting a small disk needs root");
    };
    fill(&disk);
    let store = format!("embedded:{}", disk.path().join("store").display());
    let (code, said) = run(&["server", "--store", &store, "--addr", "127.0.0.1:0"], "").await;
    let sentence = said.lines().last().unwrap_or_default();
    assert!(code == 12 && sentence.starts_with("capturedrain: embedded store"), "{code}: {said}");
    assert!(sentence.contains("No space left on device"), "{said}");
}
