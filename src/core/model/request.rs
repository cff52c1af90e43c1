//! What people and programs ask of a cluster, and the answers.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    CaptureId, ChangefeedConfig, ChangefeedId, DrainEpoch, HookReport, NoPeersPolicy, NodeEpoch, OnDeadline,
    UnixMillis, WorkCount,
};

/// Longest name of who asks, in characters: a namespace and a name of Kubernetes fit in.
pub const REQUESTER_MAX_CHARS: usize = 512;
/// Longest reason of a drain, in characters.
pub const REASON_MAX_CHARS: usize = 1024;
/// Longest pod UID, in characters.
pub const POD_UID_MAX_CHARS: usize = 128;
/// Most captures that a drain may avoid.
pub const AVOID_MAX: usize = 256;

/// A part of a request that is longer than it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` is longer than {limit}")]
pub struct TooLong {
    /// Which part.
    pub field: &'static str,
    /// What it may be: a number and its unit.
    pub limit: Limit,
}

/// How long something may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// So many characters.
    Chars(usize),
    /// So many captures.
    Captures(usize),
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Chars(limit) => write!(f, "{limit} characters"),
            Self::Captures(limit) => write!(f, "{limit} captures"),
        }
    }
}

/// Refuses a text that is too long to be kept.
pub(super) fn check_text(field: &'static str, text: &str, limit: usize) -> Result<(), TooLong> {
    // Most texts are short in bytes already, and need no counting.
    let fits = text.len() <= limit || text.chars().count() <= limit;
    if fits { Ok(()) } else { Err(TooLong { field, limit: Limit::Chars(limit) }) }
}

/// Refuses a name of who asks that is too long to be kept.
///
/// # Errors
/// When it is.
pub fn check_requester(requester: &str) -> Result<(), TooLong> {
    check_text("requester", requester, REQUESTER_MAX_CHARS)
}

/// Ties an answer to its request; given out by the process that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// A call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Empty a capture. The same request again adds its requester and replaces `avoid`.
    Drain(DrainRequest),
    /// Call a drain off.
    Cancel {
        /// Its target.
        capture: CaptureId,
        /// Which drain of it, if the caller cares.
        epoch: Option<DrainEpoch>,
        /// Who asks.
        requester: String,
    },
    /// Have a `Stopping` capture that lives on register anew.
    Release {
        /// Which.
        capture: CaptureId,
        /// Which life of it, if the caller cares.
        node_epoch: Option<NodeEpoch>,
    },
    /// Create a changefeed.
    CreateChangefeed {
        /// Its name.
        id: ChangefeedId,
        /// What it replicates.
        config: Arc<ChangefeedConfig>,
    },
    /// Stop a changefeed's work and keep its position.
    PauseChangefeed(ChangefeedId),
    /// Let a paused or failed changefeed go on from its position.
    ResumeChangefeed(ChangefeedId),
    /// Remove a changefeed and its position.
    DeleteChangefeed(ChangefeedId),
    /// Give up being coordinator for a lease period.
    Resign,
    /// Take down how the hook of a pod ended. The same again changes nothing.
    ReportHook(HookReport),
}

/// The call to empty a capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainRequest {
    /// Which.
    pub capture: CaptureId,
    /// The life of it that the caller means.
    pub node_epoch: Option<NodeEpoch>,
    /// The pod that the caller means.
    pub pod_uid: Option<Arc<str>>,
    /// The drain that the caller believes to be on.
    pub epoch: Option<DrainEpoch>,
    /// Who asks.
    pub requester: String,
    /// Why.
    pub reason: String,
    /// How long it may take, in milliseconds.
    pub deadline_ms: Option<u64>,
    /// What follows the deadline.
    pub on_deadline: OnDeadline,
    /// What follows when no other capture is there.
    pub no_peers_policy: NoPeersPolicy,
    /// When the target's pod is killed at the latest, as its hook or somebody else knows.
    pub hook_deadline_ms: Option<UnixMillis>,
    /// Captures that should rather not get the work.
    pub avoid: Vec<CaptureId>,
    /// Only say what would happen.
    pub dry_run: bool,
}

impl DrainRequest {
    /// A plain request: no deadline, no preconditions.
    pub fn new(capture: CaptureId, requester: impl Into<String>) -> Self {
        Self {
            capture,
            node_epoch: None,
            pod_uid: None,
            epoch: None,
            requester: requester.into(),
            reason: String::new(),
            deadline_ms: None,
            on_deadline: OnDeadline::default(),
            no_peers_policy: NoPeersPolicy::default(),
            hook_deadline_ms: None,
            avoid: Vec::new(),
            dry_run: false,
        }
    }

    /// Whether all of it is short enough to be kept: doors ask this of strangers' requests.
    ///
    /// # Errors
    /// Which part is not.
    pub fn check(&self) -> Result<(), TooLong> {
        check_requester(&self.requester)?;
        check_text("reason", &self.reason, REASON_MAX_CHARS)?;
        check_text("pod_uid", self.pod_uid.as_deref().unwrap_or_default(), POD_UID_MAX_CHARS)?;
        if self.avoid.len() > AVOID_MAX {
            return Err(TooLong { field: "avoid", limit: Limit::Captures(AVOID_MAX) });
        }
        Ok(())
    }
}

/// The answer to a call that was carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The drain is on, persisted.
    Draining {
        /// Its number.
        epoch: DrainEpoch,
        /// What the target last said that it has; `None` while it has not said anything.
        current: Option<WorkCount>,
    },
    /// The target is `Stopping`: proven empty under this epoch.
    Drained {
        /// The drain's number.
        epoch: DrainEpoch,
    },
    /// What a drain would do.
    DryRun {
        /// What would move.
        current: WorkCount,
        /// Who may get work.
        destinations: Vec<CaptureId>,
        /// What each of them would get, and how long that takes.
        plan: Plan,
    },
    /// Carried out, nothing more to say.
    Done,
}

/// What a drain would come to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// What would go where. What runs on the target and is moved nowhere, such as the rest of a paused changefeed, is
    /// stopped instead.
    pub moves: BTreeMap<CaptureId, WorkCount>,
    /// How much may be on the move at once.
    pub limits: WorkCount,
    /// How long a move takes, in milliseconds.
    pub move_ms: u64,
    /// Whether that is what the last drain took; else it is a guess.
    pub is_measured: bool,
    /// How long the drain would take, in milliseconds.
    pub estimate_ms: u64,
}

/// Why a call was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Somebody else decides.
    #[error("this capture is not the coordinator{}", coordinator.as_deref().map(|at| format!("; it is at {at}")).unwrap_or_default())]
    NotCoordinator {
        /// Where, when known.
        coordinator: Option<Arc<str>>,
    },
    /// The coordinator does not know enough yet, or could not tell whether its write took effect. Ask again.
    #[error("the coordinator is not ready: {0}")]
    NotReady(String),
    /// No such capture.
    #[error("capture {0} is not registered")]
    UnknownCapture(CaptureId),
    /// No such changefeed.
    #[error("there is no changefeed {0}")]
    UnknownChangefeed(ChangefeedId),
    /// The name is taken.
    #[error("changefeed {0} exists already")]
    ChangefeedExists(ChangefeedId),
    /// One at a time.
    #[error("capture {target} is being drained under epoch {epoch}; one drain at a time")]
    OtherDrain {
        /// Of whom.
        target: CaptureId,
        /// Its number.
        epoch: DrainEpoch,
    },
    /// Nobody could take the work.
    #[error("no other capture is alive to take the work of {0}; add one, or delete the pod without a drain")]
    NoPeers(CaptureId),
    /// The caller means another life, pod or drain.
    #[error("not the one that is meant: {0}")]
    Mismatch(String),
    /// It is too late, or too early, for that.
    #[error("{0}")]
    Conflict(String),
}

impl Refusal {
    /// A stable word for error details, metrics and logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotCoordinator { .. } => "NOT_COORDINATOR",
            Self::NotReady(_) => "NOT_READY",
            Self::UnknownCapture(_) => "UNKNOWN_CAPTURE",
            Self::UnknownChangefeed(_) => "UNKNOWN_CHANGEFEED",
            Self::ChangefeedExists(_) => "CHANGEFEED_EXISTS",
            Self::OtherDrain { .. } => "OTHER_DRAIN",
            Self::NoPeers(_) => "NO_PEERS",
            Self::Mismatch(_) => "MISMATCH",
            Self::Conflict(_) => "CONFLICT",
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    fn check(change: impl FnOnce(&mut DrainRequest), says: Option<&str>) {
        let mut request = DrainRequest::new(CaptureId::new("b").unwrap(), "someone");
        change(&mut request);
        assert_eq!(request.check().err().map(|error| error.to_string()).as_deref(), says);
    }

    #[test]
    fn what_is_kept_of_a_request_has_limits() {
        check(|_| {}, None);
        check(|request| request.requester = "ü".repeat(512), None);
        check(|request| request.requester = "ü".repeat(513), Some("`requester` is longer than 512 characters"));
        check(|request| request.reason = "r".repeat(1024), None);
        check(|request| request.reason = "r".repeat(1025), Some("`reason` is longer than 1024 characters"));
        check(
            |request| request.pod_uid = Some("u".repeat(129).into()),
            Some("`pod_uid` is longer than 128 characters"),
        );
        let captures = |count| (0..count).map(|n| CaptureId::new(format!("c{n}")).unwrap()).collect();
        check(|request| request.avoid = captures(256), None);
        check(|request| request.avoid = captures(257), Some("`avoid` is longer than 256 captures"));
    }
}
