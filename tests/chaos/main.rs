//! Chaos on real processes: captures with mutual TLS replicate an etcd into another and into files, while processes are
//! killed and paused, the network is cut, etcds and a disk go away, and drains are asked for, called off and waited for.
//!
//! `make chaos MINUTES=n` tells stories for so long; `make chaos SEED=n` tells one again: its steps and their times come
//! from the seed, what processes make of them does not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

#[path = "../support/authority.rs"]
#[allow(dead_code, reason = "shared with the tests of TLS")]
mod authority;
#[path = "../support/disk.rs"]
mod disk;
#[path = "../support/etcd.rs"]
#[allow(dead_code, reason = "shared with the tests on etcd")]
mod etcd;
mod field;
mod fleet;
mod ledger;
mod plan;
#[path = "../support/proof.rs"]
mod proof;
mod story;
mod watch;
mod wires;
mod writer;

use std::{
    env, fs,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// What a plain run tells: one with three captures, one with four.
const SEEDS: [u64; 2] = [2, 7];
/// How long the bad time of each is.
const PLAIN: Duration = Duration::from_secs(25);
/// How long it is when there is more time.
const LONG: Duration = Duration::from_mins(1);

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is \"{text}\", which is no whole number")))
}

/// Tells one story; its folder stays when it ends badly.
async fn tell(seed: u64, length: Duration) {
    let folder = tempfile::Builder::new().prefix(&format!("chaos-{seed}-")).tempdir_in(env!("CARGO_TARGET_TMPDIR"));
    // Also when something panics.
    let folder = folder.unwrap().keep();
    println!("seed {seed}: {length:?} of chaos with {} captures", plan::captures(seed).len());
    println!("logs and sinks, until it ends well: {}", folder.display());
    match Box::pin(story::tell(seed, length, &folder)).await {
        Ok(summary) => println!("seed {seed}: {summary}"),
        Err(what) => panic!("seed {seed}: {what}\ntell it again with: make chaos SEED={seed}"),
    }
    fs::remove_dir_all(folder).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_nothing_is_lost_and_every_drain_ends() {
    let minutes = number("CAPTUREDRAIN_CHAOS_MINUTES").map(|minutes| Duration::from_secs(60 * minutes));
    match (number("CAPTUREDRAIN_CHAOS_SEED"), minutes) {
        (Some(seed), length) => tell(seed, length.unwrap_or(LONG)).await,
        (None, None) => {
            for seed in SEEDS {
                tell(seed, PLAIN).await;
            }
        }
        (None, Some(length)) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
            let begun = Instant::now();
            for seed in now.. {
                tell(seed, LONG).await;
                if begun.elapsed() >= length {
                    return;
                }
            }
        }
    }
}
