//! What a capture knows, for doors, people and metrics: a value that is replaced whole.

use std::{collections::BTreeMap, fmt, sync::Arc};

use super::{
    CaptureId, ChangefeedConfig, ChangefeedEpoch, ChangefeedId, ChangefeedState, CommitTs, DrainEnd, DrainEpoch,
    DrainRecord, HookReport, Incarnation, Liveness, NodeEpoch, Registration, UnixMillis, WorkCount,
};

/// What one capture knows. The parts that only a coordinator knows are empty elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// This capture, once registered.
    pub me: Option<Incarnation>,
    /// This capture's own liveness, for its present registration.
    pub liveness: Option<Liveness>,
    /// Whether this capture acts as coordinator.
    pub is_coordinator: bool,
    /// Whether it may be told to serve: registered and up to date with the drain state.
    pub ready: bool,
    /// The coordinator's name and address, when one is known.
    pub coordinator: Option<(CaptureId, Arc<str>)>,
    /// All registered captures.
    pub captures: BTreeMap<CaptureId, CaptureStatus>,
    /// The last drain epoch given out.
    pub last_epoch: DrainEpoch,
    /// What this capture itself has, while it is registered.
    pub work: Option<WorkCount>,
    /// The record of the drain that is on, as this capture sees the store.
    pub record: Option<DrainRecord>,
    /// The drain that is on.
    pub drain: Option<DrainStatus>,
    /// How hooks have ended lately, the latest last.
    pub hook_reports: Vec<HookReport>,
    /// Ended drains, oldest first.
    pub history: Vec<DrainEnd>,
    /// Changefeeds.
    pub changefeeds: BTreeMap<ChangefeedId, ChangefeedStatus>,
}

/// One capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureStatus {
    /// As it registered.
    pub registration: Registration,
    /// For its present registration.
    pub liveness: Liveness,
    /// Whether the coordinator heard it lately.
    pub heard: bool,
    /// What it has; `None` while unknown.
    pub work: Option<WorkCount>,
}

/// How far a drain is; derived, never stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DrainPhase {
    /// Maintainers leave the target.
    MovingMaintainers,
    /// Dispatchers follow.
    MovingDispatchers,
    /// Nothing is known to be left; the proof is awaited.
    Proving,
}

impl DrainPhase {
    /// The name that people and programs see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MovingMaintainers => "MovingMaintainers",
            Self::MovingDispatchers => "MovingDispatchers",
            Self::Proving => "Proving",
        }
    }
}

/// Why a drain does not go on at the moment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Blocker {
    /// No capture may take the work.
    NoDestination,
    /// This capture keeps its lease but is not heard.
    UnheardCapture(CaptureId),
    /// The deadline has passed, and the policy is to hold.
    DeadlineHeld,
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDestination => f.write_str("no other capture may take the work"),
            Self::UnheardCapture(id) => write!(f, "capture {id} keeps its lease and is not heard"),
            Self::DeadlineHeld => f.write_str("the deadline has passed, and the policy is to hold"),
        }
    }
}

/// The drain that is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainStatus {
    /// As persisted.
    pub record: DrainRecord,
    /// How far it is.
    pub phase: DrainPhase,
    /// What the target itself says it has; `None` until it has heard of the drain.
    pub remaining: Option<WorkCount>,
    /// Dispatchers left by changefeed, of those whose maintainer has reported.
    pub remaining_dispatchers: BTreeMap<ChangefeedId, u64>,
    /// Moves on their way: maintainers and dispatchers.
    pub in_flight: WorkCount,
    /// When the remaining count last fell.
    pub last_progress_at_ms: UnixMillis,
    /// What holds it up, in a stable order.
    pub blocked_by: Vec<Blocker>,
    /// Whether the deadline has passed and the policy lets the pod go.
    pub proceeds: bool,
}

/// A changefeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangefeedStatus {
    /// What it replicates.
    pub config: Arc<ChangefeedConfig>,
    /// Whether it runs.
    pub state: ChangefeedState,
    /// Why some of it does not go on for the time being.
    pub warning: Option<String>,
    /// When it was created.
    pub created_at_ms: UnixMillis,
    /// Where its maintainer is.
    pub maintainer: Option<(CaptureId, NodeEpoch, ChangefeedEpoch)>,
    /// How far it is, as its maintainer last said.
    pub checkpoint_ts: Option<CommitTs>,
    /// When the source passed that checkpoint.
    pub checkpoint_at_ms: Option<u64>,
    /// Its dispatchers by capture.
    pub dispatchers: BTreeMap<CaptureId, u64>,
    /// Its moves on their way: of its maintainer, and of dispatchers.
    pub in_flight: WorkCount,
}
