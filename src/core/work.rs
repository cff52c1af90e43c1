//! What a capture's decisions ask of the data path, and what it tells them.

use std::sync::Arc;

use crate::model::{ChangefeedConfig, ChangefeedEpoch, ChangefeedId, CommitTs, Span, SpanId, WriterEpoch};

/// Names one dispatcher of this process for its whole life.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DispatcherKey {
    /// Whose.
    pub changefeed: ChangefeedId,
    /// Its span.
    pub span: SpanId,
    /// Its right to write.
    pub writer_epoch: WriterEpoch,
}

/// What the data path shall do. Each is answered by [`WorkEvent`]s; a repeated one does nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkOrder {
    /// Replicate a span from `start_ts` on (exclusive).
    StartDispatcher {
        /// Which.
        key: DispatcherKey,
        /// What it covers.
        span: Span,
        /// The commit timestamp after which it starts.
        start_ts: CommitTs,
        /// Source and sink.
        config: Arc<ChangefeedConfig>,
    },
    /// Flush and end a dispatcher; answered by `Stopped`.
    StopDispatcher(DispatcherKey),
    /// Watch the changefeed's range for tables, from `start_ts` on: first all tables that have keys at `start_ts`.
    StartTrigger {
        /// Whose.
        changefeed: ChangefeedId,
        /// The maintainer that it lives with.
        epoch: ChangefeedEpoch,
        /// The commit timestamp after which it starts.
        start_ts: CommitTs,
        /// Source and sink.
        config: Arc<ChangefeedConfig>,
    },
    /// End a table trigger; answered by `TriggerStopped`.
    StopTrigger {
        /// Whose.
        changefeed: ChangefeedId,
        /// The maintainer that it lives with.
        epoch: ChangefeedEpoch,
    },
    /// End everything at once, flushed or not: this registration is over. Answered by `AllStopped`.
    StopAll,
}

/// What the data path tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkEvent {
    /// A dispatcher works, and everything of its span up to here is in the sink, for good.
    Checkpoint {
        /// Which.
        key: DispatcherKey,
        /// The commit timestamp.
        checkpoint_ts: CommitTs,
        /// Where to split it, when it has more keys than `span_max_keys`.
        split_at: Option<Arc<[u8]>>,
    },
    /// A dispatcher has ended, all flushed.
    Stopped {
        /// Which.
        key: DispatcherKey,
        /// Its last checkpoint.
        checkpoint_ts: CommitTs,
    },
    /// A dispatcher cannot go on and has ended; what it wrote above its last checkpoint may be written again.
    Failed {
        /// Which.
        key: DispatcherKey,
        /// Its last checkpoint.
        checkpoint_ts: CommitTs,
        /// Why, in one sentence.
        error: String,
        /// Whether the changefeed has to fail; else the dispatcher may be created anew.
        fatal: bool,
        /// The sink knows a writer of this later placement: the store has gone back.
        outranked_by: Option<ChangefeedEpoch>,
    },
    /// A table trigger has news. `resolved_ts` covers it: no table changes at or below it are still to come.
    Tables {
        /// Whose.
        changefeed: ChangefeedId,
        /// The maintainer that it lives with.
        epoch: ChangefeedEpoch,
        /// Tables that got their first key, with their full range, and the commit timestamp of that key.
        born: Vec<(Span, CommitTs)>,
        /// Tables that lost their last key, and when.
        ended: Vec<(Arc<str>, CommitTs)>,
        /// How far the trigger has seen.
        resolved_ts: CommitTs,
        /// When the source passed `resolved_ts`, in milliseconds since 1970; 0: unknown.
        resolved_at_ms: u64,
    },
    /// A table trigger cannot go on: the changefeed has to fail.
    TriggerFailed {
        /// Whose.
        changefeed: ChangefeedId,
        /// The maintainer that it lived with.
        epoch: ChangefeedEpoch,
        /// Why, in one sentence.
        error: String,
    },
    /// A table trigger has ended.
    TriggerStopped {
        /// Whose.
        changefeed: ChangefeedId,
        /// The maintainer that it lived with.
        epoch: ChangefeedEpoch,
    },
    /// Everything has ended.
    AllStopped,
}
