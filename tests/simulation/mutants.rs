//! Broken versions of single rules, each of which the simulation has to catch.

use std::{collections::BTreeMap, num::NonZero, sync::Mutex, thread};

use capturedrain_core::mutant::Mutant;

use crate::scenario::run;

/// In so many histories each has to be caught.
const SEEDS: u64 = 800;

/// The broken rules, each with the invariant that it breaks.
const ALL: &[(Mutant, &str)] = &[
    (Mutant::NoSeal, "sealed_target"),
    (Mutant::NoEchoGate, "no_new_work_on_target"),
    (Mutant::TakesLateState, "fenced_command"),
    (Mutant::AcceptsLowerTerm, "fenced_command"),
    (Mutant::IgnoresNodeEpoch, "fenced_command"),
    (Mutant::StartsOldPlacement, "one_owner"),
    (Mutant::AcceptsLowerMaintainer, "fenced_command"),
    (Mutant::StopKillsNewer, "fenced_command"),
    (Mutant::CompletionIgnoresRecord, "liveness_forward"),
    (Mutant::ProofWithoutInventory, "proof_of_completion"),
    (Mutant::ProofWithoutMaintainers, "proof_of_completion"),
    (Mutant::BelievesFormerLife, "proof_of_completion"),
    (Mutant::NoException, "coordinator_exists"),
    (Mutant::TurnsMoveBack, "progress"),
    (Mutant::StartsWithoutAck, "checkpoint_covers_plan"),
    (Mutant::WinnerActsUnchecked, "no_draining_coordinator"),
    (Mutant::RegistersAfterProof, "proof_is_final"),
    (Mutant::RegistersAfterPromise, "proof_is_final"),
    (Mutant::PlacesBeforeBootstrap, "checkpoint_covers_plan"),
    (Mutant::DispatchersFirst, "maintainer_first"),
    (Mutant::IgnoresShare, "batch_bound"),
    (Mutant::IgnoresBatch, "batch_bound"),
    (Mutant::TriggerLeftBehind, "trigger_with_maintainer"),
    (Mutant::CheckpointSkipsPlanned, "checkpoint_covers_plan"),
    (Mutant::PositionUnfenced, "checkpoint_forward"),
    (Mutant::ReusesEpoch, "single_target"),
    (Mutant::ForgetsMove, "progress"),
    (Mutant::SaysItOnce, "told_in_time"),
    (Mutant::CandidateWhileDraining, "coordinator_exists"),
    (Mutant::RecordWithoutLiveness, "no_draining_without_record"),
    (Mutant::WritesWithoutTerm, "fenced_command"),
    (Mutant::OrphansSpans, "no_orphan"),
    (Mutant::DropsReborn, "checkpoint_covers_plan"),
    (Mutant::FailsOnce, "no_orphan"),
    (Mutant::ForgetsPredecessor, "batch_bound"),
    (Mutant::PausesInPlace, "no_orphan"),
    (Mutant::StartIgnoresRecord, "single_target"),
    (Mutant::WaitsForTheGone, "progress"),
    (Mutant::KeepsOffice, "no_draining_coordinator"),
    (Mutant::AnswersFirst, "answered_is_persisted"),
    (Mutant::NeverRests, "at_rest"),
    (Mutant::SinkUnfenced, "one_owner"),
];

/// In which history a broken rule broke its invariant; else which other invariants it broke, and how often.
fn caught(mutant: Mutant, invariant: &str) -> Result<u64, BTreeMap<&'static str, u64>> {
    let mut others = BTreeMap::new();
    for seed in 1..=SEEDS {
        match run(seed, Some(mutant)).violation {
            Some(violation) if violation.invariant == invariant => return Ok(seed),
            Some(violation) => *others.entry(violation.invariant).or_default() += 1,
            None => {}
        }
    }
    Err(others)
}

#[test]
fn every_broken_rule_is_caught() {
    let left = Mutex::new(ALL.iter());
    let survivors = Mutex::new(Vec::new());
    let work = || {
        while let Some((mutant, invariant)) = { left.lock().unwrap().next() } {
            match caught(*mutant, invariant) {
                Ok(seed) => println!("{mutant:?}: {invariant} in history {seed}"),
                Err(others) => survivors.lock().unwrap().push((mutant, invariant, others)),
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(work);
        }
    });
    let survivors = survivors.into_inner().unwrap();
    assert!(survivors.is_empty(), "not noticed in {SEEDS} histories: {survivors:?}");
}
