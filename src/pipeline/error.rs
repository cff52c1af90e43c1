//! What can go wrong between a source and a sink.

use std::path::PathBuf;

use capturedrain_core::model::{ChangefeedEpoch, CommitTs, WriterEpoch};

/// Why rows do not flow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PipelineError {
    /// The address of a source makes no sense.
    #[error("\"{url}\" is not a source: {reason}")]
    SourceUrl {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The address of a sink makes no sense.
    #[error("\"{url}\" is not a sink: {reason}")]
    SinkUrl {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The source does not answer.
    #[error("source {url} does not answer: {reason}")]
    Unreachable {
        /// Where it was looked for.
        url: String,
        /// What the client says.
        reason: String,
    },
    /// A file of a TLS connection cannot be used.
    #[error("TLS file {path} cannot be used: {reason}")]
    TlsFile {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The source would lose data silently.
    #[error(
        "source {url}: {endpoint} is etcd {version}, whose watch progress is not to be trusted (etcd-io/etcd #15220, \
         #17557): upgrade it to 3.4.31, 3.5.13, 3.6.0 or later"
    )]
    Untrusted {
        /// The source.
        url: String,
        /// Which of its members.
        endpoint: String,
        /// What it says it is.
        version: String,
    },
    /// What comes after the checkpoint is gone.
    #[error(
        "source {url} is compacted up to revision {compacted}, past {start_ts}: the changes between are gone; \
         delete the changefeed and create it anew, with an empty sink"
    )]
    Compacted {
        /// The source.
        url: String,
        /// Up to where.
        compacted: CommitTs,
        /// What was asked for.
        start_ts: CommitTs,
    },
    /// The source is behind what was replicated of it.
    #[error(
        "source {url} is at revision {revision}, behind {start_ts}: it was restored or replaced; \
         delete the changefeed and create it anew, with an empty sink"
    )]
    WentBack {
        /// The source.
        url: String,
        /// Where it is.
        revision: CommitTs,
        /// What was asked for.
        start_ts: CommitTs,
    },
    /// The revision that a snapshot is read at is gone; another one may begin, by a new writer.
    #[error("source {url} was compacted past revision {revision} while its snapshot was read; it begins anew")]
    SnapshotGone {
        /// The source.
        url: String,
        /// At which the snapshot was read.
        revision: CommitTs,
    },
    /// A row that is larger than anything that etcd is made for.
    #[error("{url} has a row above {limit_bytes} bytes, which is not replicated")]
    Oversized {
        /// The source or sink.
        url: String,
        /// The limit.
        limit_bytes: usize,
    },
    /// A synthetic stream of ages would be made.
    #[error("start_ts {start_ts} of {url} is not within the last day: it counts milliseconds since 1970")]
    TooOld {
        /// The source.
        url: String,
        /// What was asked for.
        start_ts: CommitTs,
    },
    /// The sink does not answer.
    #[error("sink {url} does not answer: {reason}")]
    SinkUnreachable {
        /// Where it was looked for.
        url: String,
        /// What the client says.
        reason: String,
    },
    /// The sink cannot be a mirror of this source until somebody changes something.
    #[error("sink {url} {reason}")]
    SinkUnusable {
        /// Which.
        url: String,
        /// Why, and what to do.
        reason: String,
    },
    /// Another writer has the range.
    #[error(
        "sink {url} refuses writer {writer}: {later} was there; when no other changefeed has this sink, delete the keys \
         below {fences} in it",
        later = by.map_or_else(|| "a later one".to_owned(), |by| format!("writer {by}"))
    )]
    Fenced {
        /// The sink.
        url: String,
        /// Who was refused.
        writer: WriterEpoch,
        /// Who was there, if that is known.
        by: Option<WriterEpoch>,
        /// Where the fences are.
        fences: String,
    },
    /// The sink's folder has files of a writer that should not be there yet.
    #[error(
        "sink folder {path} has files of writer {by}, and {writer} is to write now: the store was restored from a backup, \
         or another changefeed has this sink"
    )]
    Outranked {
        /// Which.
        path: PathBuf,
        /// Who is to write.
        writer: WriterEpoch,
        /// Who has written.
        by: WriterEpoch,
    },
    /// A sink's folder cannot be used at all.
    #[error("sink folder {path} cannot be used: {reason}; make it writable for capturedrain, or choose another")]
    SinkFolder {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A file of a sink cannot be written.
    #[error("sink file {path} cannot be written: {reason}; free space or repair the disk, then resume the changefeed")]
    SinkWrite {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl PipelineError {
    /// Whether trying again has no point.
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::SinkUnreachable { .. }
            | Self::TlsFile { .. }
            | Self::SnapshotGone { .. }
            | Self::Fenced { .. }
            | Self::Outranked { .. }
            | Self::SinkWrite { .. } => false,
            Self::SourceUrl { .. }
            | Self::SinkUrl { .. }
            | Self::Untrusted { .. }
            | Self::Compacted { .. }
            | Self::WentBack { .. }
            | Self::Oversized { .. }
            | Self::TooOld { .. }
            | Self::SinkUnusable { .. }
            | Self::SinkFolder { .. } => true,
        }
    }

    /// Whether it passes when the other side comes back, so that the same can be tried again.
    pub(super) fn is_outage(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::SinkUnreachable { .. } | Self::TlsFile { .. })
    }

    /// The later placement whose writer the sink knows, if that is what keeps this one from writing.
    pub(super) fn outranked_by(&self, writer: WriterEpoch) -> Option<ChangefeedEpoch> {
        match self {
            Self::Outranked { by, .. } | Self::Fenced { by: Some(by), .. } => {
                (by.changefeed > writer.changefeed).then_some(by.changefeed)
            }
            _ => None,
        }
    }

    /// A stable word for error details, metrics and logs.
    pub fn category(&self) -> &'static str {
        match self {
            Self::SourceUrl { .. } | Self::SinkUrl { .. } | Self::TooOld { .. } => "USAGE",
            Self::Unreachable { .. } => "SOURCE_UNREACHABLE",
            Self::Untrusted { .. }
            | Self::Compacted { .. }
            | Self::WentBack { .. }
            | Self::Oversized { .. }
            | Self::SnapshotGone { .. } => "SOURCE_UNUSABLE",
            Self::SinkUnreachable { .. } => "SINK_UNREACHABLE",
            Self::SinkUnusable { .. } | Self::Fenced { .. } | Self::Outranked { .. } => "SINK_UNUSABLE",
            Self::SinkFolder { .. } | Self::SinkWrite { .. } | Self::TlsFile { .. } => "ENVIRONMENT",
        }
    }
}
