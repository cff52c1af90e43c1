//! What is worth telling people: a message and fields with the names that logs use everywhere.

use crate::model::{CaptureId, ChangefeedId, DrainEpoch};

/// How loud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Part of the story.
    Info,
    /// Somebody should look.
    Warn,
}

/// One line of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// How loud.
    pub level: Level,
    /// Lowercase, without data in it.
    pub message: &'static str,
    /// The drain's target.
    pub target: Option<CaptureId>,
    /// The drain epoch.
    pub epoch: Option<DrainEpoch>,
    /// A capture, when another than the target.
    pub capture: Option<CaptureId>,
    /// A changefeed.
    pub changefeed: Option<ChangefeedId>,
    /// Anything else, as `field=value`.
    pub detail: Option<String>,
}
