//! Where rows come from: a feed of batches, in commit order, with how far each one reaches.

mod etcd;
mod history;
mod synthetic;

use std::{pin::Pin, sync::Arc};

use capturedrain_core::model::{CommitTs, Span};

pub(super) use self::etcd::EtcdFeed;
use self::synthetic::SyntheticFeed;
pub use self::{
    history::{etcd_history, etcd_state, mirror_state},
    synthetic::{synthetic_rows, synthetic_table},
};
use super::{PipelineError, SourceUrl, table::KeyRange};

/// What happened to a key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RowOp {
    /// It has this value now.
    Put(Vec<u8>),
    /// It is gone.
    Delete,
}

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The commit timestamp.
    pub commit_ts: CommitTs,
    /// The whole key.
    pub key: Vec<u8>,
    /// What happened.
    pub op: RowOp,
    /// Whether the key was not there before. Not known to sinks.
    pub is_first: bool,
}

/// What a feed brings.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// In commit order, all rows of a commit timestamp or none; in key order when they are of a snapshot.
    pub(super) rows: Vec<Row>,
    /// Set when this is a page of a snapshot: which range it has all of.
    pub(super) covered: Option<KeyRange>,
    /// Everything up to here has been brought.
    pub(super) resolved_ts: CommitTs,
    /// A moment, in milliseconds since 1970, such that everything before it is at or below `resolved_ts`; 0: unknown.
    pub(super) resolved_at_ms: u64,
}

/// A search for a key in the middle of a range, when that is too large.
pub(super) type SplitPoint = Pin<Box<dyn Future<Output = Result<Option<Arc<[u8]>>, PipelineError>> + Send>>;

/// All changes of a range after a commit timestamp.
pub(super) enum Feed {
    Etcd(Box<EtcdFeed>),
    Synthetic(SyntheticFeed),
}

impl Feed {
    /// A feed of a span. Connects with the first call of [`Self::open`] or [`Self::next`].
    pub(super) fn of(source: &SourceUrl, span: &Span, start_ts: CommitTs) -> Self {
        match source {
            SourceUrl::Etcd(url) => Self::Etcd(Box::new(EtcdFeed::new(url, span, start_ts))),
            SourceUrl::Synthetic(url) => Self::Synthetic(SyntheticFeed::new(url, span, start_ts)),
        }
    }

    /// Returns when the source answers and can bring what is asked for.
    pub(super) async fn open(&mut self) -> Result<(), PipelineError> {
        match self {
            Self::Etcd(feed) => feed.open().await,
            Self::Synthetic(_) => Ok(()),
        }
    }

    /// The next batch. Can be dropped and called again without loss.
    pub(super) async fn next(&mut self) -> Result<Batch, PipelineError> {
        match self {
            Self::Etcd(feed) => feed.next().await,
            Self::Synthetic(feed) => Ok(feed.next().await),
        }
    }

    /// Begins to look for a key in the middle of the range, when that has more than `max` keys. `None`: not now.
    pub(super) fn split_point(&self, max: u64) -> Option<SplitPoint> {
        match self {
            Self::Etcd(feed) => feed.split_point(max),
            Self::Synthetic(_) => None,
        }
    }
}
