//! Broken versions of single rules: the simulation has to catch each. They exist in builds with the feature `mutants`
//! only; everywhere else [`Mutants::has`] is the constant `false`.

/// A rule that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mutant {
    /// A capture creates work although the state that it heard lists it as not `Alive`.
    NoSeal,
    /// A destination needs not have heard the latest state.
    NoEchoGate,
    /// A late drain state replaces a newer one.
    TakesLateState,
    /// A capture obeys a coordinator of a lower term.
    AcceptsLowerTerm,
    /// A capture takes messages for a former life of itself.
    IgnoresNodeEpoch,
    /// A doubled or late start of a maintainer starts an old placement again.
    StartsOldPlacement,
    /// A host of dispatchers obeys a maintainer of a lower epoch.
    AcceptsLowerMaintainer,
    /// A stop kills whatever dispatcher the span has.
    StopKillsNewer,
    /// The write that completes a drain does not compare the record.
    CompletionIgnoresRecord,
    /// Completion does not wait for the target's own inventory.
    ProofWithoutInventory,
    /// Completion does not wait for the maintainers.
    ProofWithoutMaintainers,
    /// A liveness mark of a former registration is believed.
    BelievesFormerLife,
    /// Nobody becomes `Alive` again when nobody is.
    NoException,
    /// A move that was sent its stop is turned back onto the target.
    TurnsMoveBack,
    /// An unacknowledged stop becomes a start when its time is up.
    StartsWithoutAck,
    /// The winner of an election acts without showing that it is registered and `Alive`.
    WinnerActsUnchecked,
    /// A capture registers anew after its hook had the proof.
    RegistersAfterProof,
    /// A capture registers although its hook was told that it never would.
    RegistersAfterPromise,
    /// A coordinator places work before every capture has answered.
    PlacesBeforeBootstrap,
    /// A maintainer moves dispatchers off the capture that it still lives on itself.
    DispatchersFirst,
    /// A maintainer ignores its share of the moves.
    IgnoresShare,
    /// The coordinator ignores the limit of maintainer moves.
    IgnoresBatch,
    /// A maintainer goes and its table trigger stays.
    TriggerLeftBehind,
    /// Spans that are planned and do not run yet do not count in the checkpoint.
    CheckpointSkipsPlanned,
    /// A maintainer's write of its position does not compare its placement.
    PositionUnfenced,
    /// A new drain gets the number of the last one.
    ReusesEpoch,
    /// A move whose time is up is forgotten.
    ForgetsMove,
    /// The drain state is sent once, and not repeated.
    SaysItOnce,
    /// A capture that is not `Alive` stays in the election.
    CandidateWhileDraining,
    /// A drain starts without its target's liveness.
    RecordWithoutLiveness,
    /// Coordinator writes do not compare the election key.
    WritesWithoutTerm,
    /// Spans of a lost capture are not planned again.
    OrphansSpans,
    /// A table that is born anew while its last span is being dropped goes with it.
    DropsReborn,
    /// A failure of a dispatcher is told once, and not repeated.
    FailsOnce,
    /// A new coordinator does not count the moves that its predecessor began.
    ForgetsPredecessor,
    /// A drain starts without comparing that there is none, and which epoch was the last.
    StartIgnoresRecord,
    /// A drain whose target is gone goes on for ever.
    WaitsForTheGone,
    /// A coordinator that is drained itself keeps its office for the time being.
    KeepsOffice,
    /// A capture that keeps its lease and is not heard is waited for.
    EvictsNobody,
    /// Who is to be avoided gets work while others may still hear of the drain.
    HurriesToTheAvoided,
    /// A call is answered before what it promises is persisted.
    AnswersFirst,
    /// Maintainers whose starts are done are still waited for.
    NeverRests,
    /// The sink takes what a writer writes that was replaced.
    SinkUnfenced,
    /// A changefeed that is paused keeps its place.
    PausesInPlace,
}

/// Which rule is broken in a process, if any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mutants {
    #[cfg(feature = "mutants")]
    broken: Option<Mutant>,
}

impl Mutants {
    /// Breaks one rule.
    #[cfg(feature = "mutants")]
    pub fn only(mutant: Mutant) -> Self {
        Self { broken: Some(mutant) }
    }

    /// Whether this rule is broken.
    #[cfg(feature = "mutants")]
    pub fn has(self, mutant: Mutant) -> bool {
        self.broken == Some(mutant)
    }

    /// Whether this rule is broken: never, in a build that is shipped.
    #[cfg(not(feature = "mutants"))]
    #[allow(clippy::unused_self, reason = "the same call as with the feature")]
    pub const fn has(self, _mutant: Mutant) -> bool {
        false
    }
}
