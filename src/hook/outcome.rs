//! How a hook can end.

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The capture is proven empty, and takes no work any more.
    Proven,
    /// The capture has no work, and nobody could have taken any.
    NothingLeft,
    /// No other capture is there, and the pod goes with its work.
    NoPeers,
    /// Time was up, and nobody answered.
    Unreachable,
    /// Time was up, and the pod goes with work left.
    Deadline,
    /// The same, and no other capture was there.
    Stalled,
    /// Somebody called the drain off.
    Withdrawn,
    /// The server is of another pod.
    OtherPod,
    /// Server and hook do not trust each other.
    Unauthorized,
    /// The cluster cannot drain.
    Unsupported,
    /// A signal ended the hook.
    Signal,
}

impl Outcome {
    /// The word for metrics and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Proven => "proven",
            Self::NothingLeft => "nothing_left",
            Self::NoPeers => "no_peers",
            Self::Unreachable => "unreachable",
            Self::Deadline => "deadline",
            Self::Stalled => "stalled",
            Self::Withdrawn => "withdrawn",
            Self::OtherPod => "other_pod",
            Self::Unauthorized => "unauthorized",
            Self::Unsupported => "failed",
            Self::Signal => "signal",
        }
    }
}

/// An end, and one sentence about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// How.
    pub outcome: Outcome,
    /// The same for people.
    pub sentence: String,
}

impl End {
    pub(super) fn new(outcome: Outcome, sentence: impl Into<String>) -> Self {
        Self { outcome, sentence: sentence.into() }
    }
}
