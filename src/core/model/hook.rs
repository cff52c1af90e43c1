//! What the hook of a capture's pod says when it ends.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    CaptureId, NodeEpoch, UnixMillis, Unknown,
    request::{POD_UID_MAX_CHARS, TooLong, check_text},
};

/// Longest word for an outcome, in characters.
const OUTCOME_MAX_CHARS: usize = 32;
/// Longest name of a pod, in characters: what Kubernetes allows.
const POD_NAME_MAX_CHARS: usize = 253;
/// Longest sentence, in characters.
const SENTENCE_MAX_CHARS: usize = 1024;

/// How the hook of a pod ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookReport {
    /// Whose pod it is.
    pub capture: CaptureId,
    /// In which registration, if it had any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_epoch: Option<NodeEpoch>,
    /// The pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_name: Option<Arc<str>>,
    /// Its UID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<Arc<str>>,
    /// A stable word; one of [`HookReport::OUTCOMES`], or one of a newer build.
    pub outcome: Arc<str>,
    /// The same for people.
    pub sentence: String,
    /// When it began.
    pub started_at_ms: UnixMillis,
    /// When it ended.
    pub ended_at_ms: UnixMillis,
    /// Fields of a newer build.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl HookReport {
    /// The outcomes that this build knows.
    pub const OUTCOMES: [&'static str; 11] = [
        "proven",
        "nothing_left",
        "no_peers",
        "unreachable",
        "deadline",
        "stalled",
        "withdrawn",
        "other_pod",
        "unauthorized",
        "signal",
        "failed",
    ];

    /// The outcome as one of a bounded number of words.
    pub fn known_outcome(&self) -> &'static str {
        Self::OUTCOMES.into_iter().find(|known| *known == &*self.outcome).unwrap_or("other")
    }

    /// Whether the pod goes as it should.
    pub fn is_good(&self) -> bool {
        matches!(&*self.outcome, "proven" | "nothing_left")
    }

    /// Whether this is the same run with the same end, told again.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.capture, self.started_at_ms, &self.outcome, &self.pod_uid)
            == (&other.capture, other.started_at_ms, &other.outcome, &other.pod_uid)
    }

    /// Whether all of it is short enough to be kept.
    ///
    /// # Errors
    /// Which part is not.
    pub fn check(&self) -> Result<(), TooLong> {
        check_text("outcome", &self.outcome, OUTCOME_MAX_CHARS)?;
        check_text("sentence", &self.sentence, SENTENCE_MAX_CHARS)?;
        check_text("pod_name", self.pod_name.as_deref().unwrap_or_default(), POD_NAME_MAX_CHARS)?;
        check_text("pod_uid", self.pod_uid.as_deref().unwrap_or_default(), POD_UID_MAX_CHARS)
    }
}
