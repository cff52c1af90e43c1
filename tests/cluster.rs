//! Real captures on a real etcd: whole drains, and what happens when processes die in the middle of them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

#[path = "support/etcd.rs"]
mod etcd;
#[path = "support/lossy.rs"]
mod lossy;
#[path = "support/processes.rs"]
#[allow(dead_code, reason = "shared with the tests of the command line")]
mod processes;

use std::time::Duration;

use capturedrain::verify;
use processes::{Cluster, Writer, wait_for};

const TABLES: usize = 8;

/// Three captures that replicate a range which is being written to, and the folder that they replicate into.
async fn replicating(name: &str) -> (etcd::Etcd, Cluster, Writer, tempfile::TempDir) {
    let etcd = etcd::Etcd::start().await;
    let sink = tempfile::tempdir().unwrap();
    let writer = Writer::start(&etcd.client_url(), "/shop/", TABLES).await;
    let mut cluster = Cluster::new(name, &etcd.url());
    for id in ["a", "b", "c"] {
        cluster.start(id);
    }
    cluster.wait_for_captures(3).await;
    let source = format!("{}/shop/", etcd.url());
    let target = format!("file://{}", sink.path().display());
    // From before the first write, so that every row counts, not only what each key ends with.
    let create = ["changefeed", "create", "--id", "shop", "--start-ts", "1"];
    cluster.ok(&[&create[..], &["--source", &source, "--sink", &target]].concat()).await;
    cluster.wait_for_dispatchers("shop", TABLES as u64).await;
    (etcd, cluster, writer, sink)
}

/// Ends the writes, waits until all of them are in the sink, and compares.
async fn prove(etcd: &etcd::Etcd, cluster: &Cluster, writer: Writer, sink: &tempfile::TempDir) {
    let revision = writer.stop().await;
    cluster.wait_for_checkpoint("shop", revision).await;
    let source = format!("{}/shop/", etcd.url());
    let proof = verify::against_history(sink.path(), &source, 1, revision).await.unwrap();
    assert!(proof.is_good(), "{proof}");
    assert!(proof.rows > 0, "{proof}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_is_drained_and_nothing_is_lost() {
    let (etcd, cluster, writer, sink) = replicating("whole").await;
    let target = cluster.a_follower().await;
    cluster.ok(&["drain", &target, "--wait"]).await;
    let captures = cluster.json(&["captures"]).await;
    let drained = captures.as_array().unwrap().iter().find(|c| c["id"] == target.as_str()).unwrap();
    assert_eq!(drained["liveness"], "Stopping", "{captures}");
    assert_eq!(cluster.json(&["history"]).await[0]["outcome"], "Drained");
    prove(&etcd, &cluster, writer, &sink).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_coordinator_is_killed_in_the_middle_and_its_successor_goes_on_under_the_same_epoch() {
    let (etcd, mut cluster, writer, sink) = replicating("killed").await;
    let target = cluster.a_follower().await;
    let coordinator = cluster.coordinator().await;
    // A target that stands still cannot be proven empty, so the coordinator surely dies in the middle.
    cluster.suspend(&target).await;
    let epoch = cluster.json(&["drain", &target]).await["drain_epoch"].clone();
    cluster.kill(&coordinator);
    cluster.resume(&target).await;
    let ended = wait_for(Duration::from_secs(90), "the drain to end", || async {
        let history = cluster.try_json(&["history"]).await?;
        history.as_array()?.last().cloned()
    })
    .await;
    assert_eq!(ended["outcome"], "Drained", "{ended}");
    assert_eq!(ended["drain_epoch"], epoch, "{ended}");
    prove(&etcd, &cluster, writer, &sink).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_coordinator_itself_is_drained() {
    let (etcd, cluster, writer, sink) = replicating("itself").await;
    let coordinator = cluster.coordinator().await;
    cluster.ok(&["drain", &coordinator, "--wait"]).await;
    assert_ne!(cluster.coordinator().await, coordinator);
    prove(&etcd, &cluster, writer, &sink).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_that_gets_sigterm_is_drained_before_it_ends() {
    let (etcd, mut cluster, writer, sink) = replicating("sigterm").await;
    let target = cluster.a_follower().await;
    let status = cluster.terminate(&target).await;
    assert!(status.success(), "{status}");
    // The capture had its proof from the store; the coordinator may read it there a moment later.
    let end = wait_for(Duration::from_secs(10), "the end of the drain", || async {
        cluster.try_json(&["history"]).await?.as_array()?.first().cloned()
    })
    .await;
    assert_eq!((&end["outcome"], &end["target"]), (&"Drained".into(), &target.as_str().into()), "{end}");
    prove(&etcd, &cluster, writer, &sink).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_that_has_no_time_for_its_drain_says_so_by_its_exit_code() {
    let (_etcd, mut cluster, _writer, _sink) = replicating("hurried").await;
    cluster.shutdown_timeout("2s");
    cluster.start("late");
    cluster.shutdown_timeout("60s");
    cluster.start("twice-int");
    cluster.start("twice-term");
    cluster.wait_for_captures(6).await;
    // One drain at a time, and a target that stands still cannot be proven empty: the others have to wait.
    let coordinator = cluster.coordinator().await;
    let target = ["a", "b", "c"].into_iter().rfind(|id| *id != coordinator).unwrap();
    cluster.suspend(target).await;
    cluster.ok(&["drain", target]).await;
    assert_eq!(cluster.insist("twice-int", "-INT").await.code(), Some(130));
    assert_eq!(cluster.insist("twice-term", "-TERM").await.code(), Some(143));
    assert_eq!(cluster.terminate("late").await.code(), Some(6));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_that_is_killed_loses_nothing() {
    let (etcd, mut cluster, writer, sink) = replicating("crash").await;
    let target = cluster.a_follower().await;
    cluster.kill(&target);
    cluster.wait_for_captures(2).await;
    prove(&etcd, &cluster, writer, &sink).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stops_waiting_is_told_that_the_drain_goes_on() {
    let (etcd, cluster, writer, sink) = replicating("waiting").await;
    let target = cluster.a_follower().await;
    cluster.suspend(&target).await;
    for (signal, exit) in [("-INT", 130), ("-TERM", 143)] {
        let (code, sentence) = cluster.waiter(&["drain", &target, "--wait"]).await.end_by(signal).await;
        assert_eq!((code, sentence.contains("goes on")), (exit, true), "{sentence}");
        assert!(sentence.contains(&format!("capturedrain cancel {target}")), "{sentence}");
    }
    let (code, sentence) = cluster.run(&["drain", &cluster.coordinator().await]).await;
    assert_eq!((code, sentence.contains("one drain at a time")), (4, true), "{sentence}");
    cluster.resume(&target).await;
    cluster.ok(&["drain", &target, "--wait"]).await;
    prove(&etcd, &cluster, writer, &sink).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_is_told_by_the_exit_code_how_it_ended() {
    let (etcd, mut cluster, writer, sink) = replicating("exits").await;
    let target = cluster.a_follower().await;
    let wait = ["drain", &target, "--wait", "--deadline", "1s"];
    for (policy, exit, says) in [("hold", 7, "is held; the drain goes on"), ("proceed", 6, "may go with work left")] {
        // A target that stands still cannot be proven empty.
        cluster.suspend(&target).await;
        let (code, sentence) = cluster.run(&[&wait[..], &["--on-deadline", policy]].concat()).await;
        assert_eq!((code, sentence.contains(says)), (exit, true), "{sentence}");
        cluster.ok(&["cancel", &target]).await;
        cluster.resume(&target).await;
        cluster.wait_for_captures(3).await;
    }
    cluster.suspend(&target).await;
    let waiter = cluster.waiter(&["drain", &target, "--wait"]).await;
    cluster.ok(&["cancel", &target]).await;
    assert_eq!(waiter.end().await.0, 8);
    let waiter = cluster.waiter(&["drain", &target, "--wait"]).await;
    cluster.kill(&target);
    assert_eq!(waiter.end().await.0, 9);
    prove(&etcd, &cluster, writer, &sink).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changefeed_whose_source_is_compacted_past_its_checkpoint_fails_and_says_why() {
    let (etcd, cluster, writer, _sink) = replicating("fails").await;
    cluster.ok(&["changefeed", "pause", "shop"]).await;
    wait_for(Duration::from_secs(30), "the dispatchers to end", || async {
        let captures = cluster.try_json(&["captures"]).await?;
        captures.as_array()?.iter().all(|capture| capture["dispatcher_count"] == 0).then_some(())
    })
    .await;
    // What is written and compacted while nobody reads it is lost to a changefeed that goes on from its checkpoint.
    let mut client = etcd_client::Client::connect([etcd.client_url()], None).await.unwrap();
    let put = client.put("/shop/t0/late", "x", None).await.unwrap();
    let revision = put.header().unwrap().revision();
    client.compact(revision, None).await.unwrap();
    cluster.ok(&["changefeed", "resume", "shop"]).await;
    let failed = wait_for(Duration::from_secs(30), "the changefeed to fail", || async {
        cluster.try_json(&["changefeed", "get", "shop"]).await.filter(|feed| feed["state"] == "failed")
    })
    .await;
    let error = failed["error"]["message"].as_str().unwrap();
    assert!(error.contains("compacted") && error.contains("shop"), "{failed}");
    assert_eq!(cluster.json(&["changefeed", "list"]).await[0]["state"], "failed");
    writer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_knew_only_the_coordinator_follows_its_successor() {
    let (etcd, mut cluster, writer, sink) = replicating("follows").await;
    let target = cluster.a_follower().await;
    let coordinator = cluster.coordinator().await;
    cluster.suspend(&target).await;
    let waiter = cluster.waiter_at(&["drain", &target, "--wait"], &cluster.server(&coordinator)).await;
    cluster.kill(&coordinator);
    cluster.resume(&target).await;
    let (code, said) = waiter.end().await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("the coordinator is lost"), "{said}");
    prove(&etcd, &cluster, writer, &sink).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_cluster_that_is_gone_is_told_so() {
    let (_etcd, mut cluster, _writer, _sink) = replicating("gone").await;
    let target = cluster.a_follower().await;
    cluster.suspend(&target).await;
    let waiter = cluster.waiter(&["drain", &target, "--wait"]).await;
    for id in ["a", "b", "c"] {
        cluster.kill(id);
    }
    let (code, said) = waiter.end().await;
    assert_eq!((code, said.contains("goes on once they do")), (5, true), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_goes_away_and_comes_back_and_nothing_is_lost() {
    let (mut etcd, cluster, writer, sink) = replicating("outage").await;
    // The writer writes to the same etcd, so it has to be done first.
    let revision = writer.stop().await;
    etcd.restart().await;
    cluster.wait_for_captures(3).await;
    let target = cluster.a_follower().await;
    cluster.ok(&["drain", &target, "--wait"]).await;
    cluster.wait_for_checkpoint("shop", revision).await;
    let source = format!("{}/shop/", etcd.url());
    let proof = verify::against_etcd(sink.path(), &source, revision).await.unwrap();
    assert!(proof.is_good(), "{proof}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_compacted_past_the_start_is_refused_by_name() {
    let (etcd, cluster, writer, _sink) = replicating("compacted").await;
    let revision = writer.stop().await;
    let mut client = etcd_client::Client::connect([etcd.client_url()], None).await.unwrap();
    client.compact(i64::try_from(revision).unwrap(), None).await.unwrap();
    let source = format!("{}/shop/", etcd.url());
    let create = ["changefeed", "create", "--id", "late", "--source", &source, "--sink", "blackhole://"];
    let (code, sentence) = cluster.run(&[&create[..], &["--start-ts", "2"]].concat()).await;
    assert_eq!((code, sentence.contains("compacted")), (4, true), "{sentence}");
    let (code, sentence) = cluster.run(&[&create[..], &["--start-ts", "99999999"]].concat()).await;
    assert_eq!((code, sentence.contains("behind 99999999")), (4, true), "{sentence}");
    let nothing = format!("{}/nothing/", etcd.url());
    let create = ["changefeed", "create", "--id", "empty", "--source", &nothing, "--sink", "blackhole://"];
    let (code, note) = cluster.run(&create).await;
    assert_eq!((code, note.contains("no keys below /nothing/")), (0, true), "{note}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_is_cancelled_and_a_drained_capture_released() {
    let (etcd, cluster, writer, sink) = replicating("cancel").await;
    let target = cluster.a_follower().await;
    cluster.ok(&["drain", &target, "--wait"]).await;
    assert_eq!(cluster.run(&["cancel", &target]).await.0, 4, "too late to cancel");
    cluster.ok(&["release", &target]).await;
    wait_for(Duration::from_secs(30), "the capture to be alive again", || async {
        let captures = cluster.try_json(&["captures"]).await?;
        captures.as_array()?.iter().find(|c| c["id"] == target.as_str() && c["liveness"] == "Alive").cloned()
    })
    .await;
    prove(&etcd, &cluster, writer, &sink).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_is_cancelled_although_the_answer_was_lost() {
    let (_etcd, cluster, _writer, _sink) = replicating("lost").await;
    let target = cluster.a_follower().await;
    cluster.suspend(&target).await;
    let waiter = cluster.waiter(&["drain", &target, "--wait"]).await;
    // The first connection looks up which drain is on.
    let way = lossy::way_to(&cluster.server(&cluster.coordinator().await), 1).await;
    let (code, sentence) = processes::run(&["cancel", &target], &way).await;
    assert_eq!(code, 0, "{sentence}");
    let (code, said) = waiter.end().await;
    assert_eq!(code, 8, "{said}");
    assert_eq!(cluster.run(&["cancel", &target]).await.0, 4, "no drain is on any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_refused_with_a_sentence_and_an_exit_code() {
    let (_etcd, cluster, _writer, _sink) = replicating("refused").await;
    let (code, sentence) = cluster.run(&["drain", "nobody"]).await;
    assert_eq!((code, sentence.contains("nobody")), (3, true), "{sentence}");
    let (code, sentence) = cluster.run(&["release", "a"]).await;
    assert_eq!((code, sentence.contains("not stopping")), (4, true), "{sentence}");
    let (code, sentence) = cluster.run(&["changefeed", "get", "nothing"]).await;
    assert_eq!((code, sentence.contains("nothing")), (3, true), "{sentence}");
    let (code, _) = cluster.run(&["drain"]).await;
    assert_eq!(code, 2);
}
