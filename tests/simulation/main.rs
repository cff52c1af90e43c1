//! The core without IO: generated histories of a cluster with everything that can go wrong, and the invariants held after
//! every event.
//!
//! `make simulate SEED=n` replays one history with its log; `make simulate SEEDS=n` runs more of them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a simulation that cannot go on has failed, and its numbers are small"
)]

mod avoid;
mod datapath;
mod faults;
mod identity;
mod measured;
mod mutants;
mod promise;
mod readable;
mod restore;
mod scenario;
mod size;
mod strangers;
mod truth;
mod unheard;
mod world;

use std::env;

use scenario::{Outcome, run};

/// How many histories a plain run generates.
const SEEDS: u64 = 1000;

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

fn fail(seed: u64, outcome: &Outcome) -> ! {
    let tail = outcome.log.len().saturating_sub(80);
    for line in &outcome.log[tail..] {
        eprintln!("{line}");
    }
    let violation = outcome.violation.as_ref().unwrap();
    panic!("seed {seed}: {}: {}\nreplay it with: make simulate SEED={seed}", violation.invariant, violation.what);
}

#[test]
fn invariants_hold_in_every_history() {
    if let Some(seed) = number("CAPTUREDRAIN_SIM_SEED") {
        let outcome = run(seed, None);
        for line in &outcome.log {
            println!("{line}");
        }
        if outcome.violation.is_some() {
            fail(seed, &outcome);
        }
        return;
    }
    let first = number("CAPTUREDRAIN_SIM_START").unwrap_or(1);
    let mut events = 0;
    let mut drained = 0;
    let mut counted = 0;
    for seed in first..first + number("CAPTUREDRAIN_SIM_SEEDS").unwrap_or(SEEDS) {
        let outcome = run(seed, None);
        events += outcome.events;
        drained += outcome.drains_ended;
        counted += outcome.ends_counted.len() as u64;
        assert!(outcome.ends_counted.values().all(|times| *times == 1), "seed {seed}: {:?}", outcome.ends_counted);
        if outcome.violation.is_some() {
            fail(seed, &outcome);
        }
    }
    println!("{events} events, {drained} drains ended, {counted} of them counted");
    assert!(drained > 0, "histories without a drain prove nothing");
}

#[test]
fn the_same_seed_is_the_same_history() {
    let (one, two) = (run(7, None), run(7, None));
    assert_eq!(one.log, two.log);
}

/// Histories that broke an invariant once, each named after what was seen.
#[test]
fn what_once_went_wrong_stays_mended() {
    for (seed, symptom) in [
        (18, "a coordinator that tells itself to stop dispatchers, for ever"),
        (226, "a late creation starts a dispatcher of a changefeed that was removed"),
        (749, "a maintainer on its way to a capture that begins to drain never arrives"),
        (2515, "a table that ended before the checkpoint is worked on for ever by a new maintainer"),
        (6979, "a capture forgets a changefeed of which it has an order and its view does not know yet"),
    ] {
        let outcome = run(seed, None);
        assert_eq!(outcome.violation, None, "{symptom}");
    }
}
