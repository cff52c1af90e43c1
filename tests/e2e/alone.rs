//! The host of their own that stories have: what is left of it when a run is killed half-way.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use tokio::process;

use crate::wait::wait_for;

const ALONE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/alone");
const PATIENCE: Duration = Duration::from_secs(20);

/// The folders that runs have as their `/tmp`.
fn folders() -> BTreeSet<PathBuf> {
    let all = fs::read_dir("/var/tmp").unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.to_string_lossy().contains("/capturedrain-alone.")).collect()
}

/// A run that has begun, in the background a process with that argument; and its folder.
async fn begin(argument: &str) -> (process::Child, PathBuf) {
    let before = folders();
    let script =
        format!("mkdir /sys/fs/cgroup/pids/capturedrain-{argument}; sleep {argument} & touch /tmp/begun; wait");
    let mut command = process::Command::new(ALONE);
    command.args(["sh", "-c", &script]).stdin(Stdio::null()).kill_on_drop(true);
    let child = command.spawn().unwrap();
    let folder = wait_for(PATIENCE, "a run to begin", async || {
        folders().into_iter().find(|folder| !before.contains(folder) && folder.join("begun").exists())
    })
    .await;
    (child, folder)
}

fn is_running(argument: &str) -> bool {
    let lines = fs::read_dir("/proc").unwrap().filter_map(|entry| fs::read(entry.unwrap().path().join("cmdline")).ok());
    lines.into_iter().any(|line| line == format!("sleep\0{argument}\0").into_bytes())
}

#[tokio::test]
async fn what_a_killed_run_leaves_is_gone_after_the_next_and_what_goes_on_is_not() {
    if fs::read_dir("/root").is_err() {
        eprintln!("left out: tools/alone needs root");
        return;
    }
    let (mut killed, left) = begin("86401").await;
    let (going, kept) = begin("86402").await;
    killed.kill().await.unwrap();
    wait_for(PATIENCE, "its processes to end", async || (!is_running("86401")).then_some(())).await;
    assert!(left.exists(), "nobody was there to remove it");
    let next = Command::new(ALONE).args(["true"]).status().unwrap();
    assert!(next.success());
    assert!(!left.exists() && kept.join("begun").exists(), "{left:?} {kept:?}");
    assert!(!PathBuf::from("/sys/fs/cgroup/pids/capturedrain-86401").exists());
    assert!(is_running("86402"));
    drop(going);
    wait_for(PATIENCE, "the other one's end", async || (!is_running("86402")).then_some(())).await;
    assert!(Command::new(ALONE).args(["true"]).status().unwrap().success());
    assert!(!kept.exists());
}
