//! What is worth telling people: a message and fields with the names that logs use everywhere.

use crate::model::{CaptureId, ChangefeedId, DrainEpoch, DrainRecord};

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
    /// One more field: its name and its value.
    pub detail: Option<(&'static str, String)>,
}

impl Line {
    fn new(level: Level, message: &'static str) -> Self {
        Self { level, message, target: None, epoch: None, capture: None, changefeed: None, detail: None }
    }

    pub(crate) fn info(message: &'static str) -> Self {
        Self::new(Level::Info, message)
    }

    pub(crate) fn warn(message: &'static str) -> Self {
        Self::new(Level::Warn, message)
    }

    /// About this drain.
    pub(crate) fn drain(mut self, record: &DrainRecord) -> Self {
        self.target = Some(record.target.clone());
        self.epoch = Some(record.epoch);
        self
    }

    /// About this capture.
    pub(crate) fn of(mut self, capture: &CaptureId) -> Self {
        self.capture = Some(capture.clone());
        self
    }

    /// About this changefeed.
    pub(crate) fn on(mut self, changefeed: &ChangefeedId) -> Self {
        self.changefeed = Some(changefeed.clone());
        self
    }

    pub(crate) fn with(mut self, field: &'static str, value: &str) -> Self {
        self.detail = Some((field, value.to_owned()));
        self
    }
}
