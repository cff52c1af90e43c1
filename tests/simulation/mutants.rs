//! Broken versions of single rules, each of which the simulation has to catch.

use std::{num::NonZero, sync::Mutex, thread};

use capturedrain_core::mutant::Mutant;

use crate::scenario::run;

/// In so many histories each has to be caught.
const SEEDS: u64 = 400;

/// The broken rules.
const ALL: &[Mutant] = &[
    Mutant::NoSeal,
    Mutant::NoEchoGate,
    Mutant::TakesLateState,
    Mutant::AcceptsLowerTerm,
    Mutant::IgnoresNodeEpoch,
    Mutant::StartsOldPlacement,
    Mutant::AcceptsLowerMaintainer,
    Mutant::StopKillsNewer,
    Mutant::CompletionIgnoresRecord,
    Mutant::ProofWithoutInventory,
    Mutant::ProofWithoutMaintainers,
    Mutant::BelievesFormerLife,
    Mutant::NoException,
    Mutant::TurnsMoveBack,
    Mutant::StartsWithoutAck,
    Mutant::WinnerActsUnchecked,
    Mutant::RegistersAfterProof,
    Mutant::PlacesBeforeBootstrap,
    Mutant::DispatchersFirst,
    Mutant::IgnoresShare,
    Mutant::IgnoresBatch,
    Mutant::TriggerLeftBehind,
    Mutant::CheckpointSkipsPlanned,
    Mutant::PositionUnfenced,
    Mutant::ReusesEpoch,
    Mutant::ForgetsMove,
    Mutant::SaysItOnce,
    Mutant::CandidateWhileDraining,
    Mutant::RecordWithoutLiveness,
    Mutant::WritesWithoutTerm,
    Mutant::OrphansSpans,
    Mutant::DropsReborn,
    Mutant::FailsOnce,
    Mutant::ForgetsPredecessor,
    Mutant::PausesInPlace,
];

/// What caught a broken rule, and in which history; `None` when nobody noticed.
fn caught(mutant: Mutant) -> Option<(u64, &'static str)> {
    (1..=SEEDS).find_map(|seed| Some((seed, run(seed, Some(mutant)).violation?.invariant)))
}

#[test]
fn every_broken_rule_is_caught() {
    let left = Mutex::new(ALL.iter());
    let survivors = Mutex::new(Vec::new());
    let work = || {
        while let Some(mutant) = { left.lock().unwrap().next() } {
            match caught(*mutant) {
                Some((seed, invariant)) => println!("{mutant:?}: {invariant} in history {seed}"),
                None => survivors.lock().unwrap().push(mutant),
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(work);
        }
    });
    let survivors = survivors.into_inner().unwrap();
    assert!(survivors.is_empty(), "nobody noticed {survivors:?} in {SEEDS} histories");
}
