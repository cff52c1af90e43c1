//! Broken versions of single rules, each of which the simulation has to catch.

use capturedrain_core::mutant::Mutant;

use crate::scenario::run;

/// In so many histories each has to be caught.
const SEEDS: u64 = 400;

/// The broken rules. Those that the histories do not punish yet are named in [`UNPUNISHED`].
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
];

/// Rules whose removal no history has punished so far: either the histories are too tame, or another rule carries the
/// same safety.
const UNPUNISHED: &[Mutant] = &[
    Mutant::TakesLateState,
    Mutant::AcceptsLowerTerm,
    Mutant::StartsOldPlacement,
    Mutant::AcceptsLowerMaintainer,
    // A killed dispatcher is told of, and queued again by its maintainer.
    Mutant::StopKillsNewer,
    // The target's own inventory carries this safety.
    Mutant::ProofWithoutMaintainers,
    Mutant::NoException,
    Mutant::WinnerActsUnchecked,
    // Every key that a write replaces is compared, too.
    Mutant::WritesWithoutTerm,
];

#[test]
fn every_broken_rule_is_caught() {
    let mut survivors = Vec::new();
    for mutant in ALL.iter().filter(|mutant| !UNPUNISHED.contains(mutant)) {
        let caught = (1..=SEEDS).find_map(|seed| Some((seed, run(seed, Some(*mutant)).violation?)));
        match caught {
            Some((seed, violation)) => println!("{mutant:?}: {} in history {seed}", violation.invariant),
            None => survivors.push(mutant),
        }
    }
    println!("not punished: {UNPUNISHED:?}");
    assert!(survivors.is_empty(), "nobody noticed {survivors:?} in {SEEDS} histories");
}
