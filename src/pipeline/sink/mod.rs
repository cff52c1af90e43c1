//! Where rows go.

mod file;
mod mirror;

use std::{collections::BTreeSet, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use capturedrain_core::model::{CommitTs, Span};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};

pub(super) use self::mirror::Mirrors;
use self::{file::FileSink, mirror::MirrorSink};
pub use self::{
    file::{file_name, parse_file_name},
    mirror::fence_reads_back,
};
use super::{PipelineError, Row, RowOp, SinkUrl, SourceUrl, dispatcher::Job, source::Batch};

/// How many bytes may wait in a sink before nothing more is read.
const WAITING_MAX_BYTES: usize = 1 << 20;

/// A row as the file sink writes it: one JSON object a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkRow {
    /// The commit timestamp.
    pub commit_ts: CommitTs,
    /// `put` or `delete`.
    pub op: String,
    /// The key, when it is UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The key, when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_base64: Option<String>,
    /// The value of a put, when it is UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// The value of a put, when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_base64: Option<String>,
}

/// The range of a span, as `spans.jsonl` lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpanLine {
    /// 16 hexadecimal digits.
    pub span: String,
    /// First key, base64.
    pub start_base64: String,
    /// First key after it, base64.
    pub end_base64: String,
}

/// UTF-8 as it is, other bytes in base64.
fn text_or_base64(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(BASE64_STANDARD.encode(bytes))),
    }
}

fn bytes(text: Option<&String>, base64: Option<&String>) -> Option<Vec<u8>> {
    match (text, base64) {
        (Some(text), _) => Some(text.clone().into_bytes()),
        (None, Some(base64)) => BASE64_STANDARD.decode(base64).ok(),
        (None, None) => None,
    }
}

impl SinkRow {
    fn of(row: &Row) -> Self {
        let (key, key_base64) = text_or_base64(&row.key);
        let (op, (value, value_base64)) = match &row.op {
            RowOp::Put(value) => ("put", text_or_base64(value)),
            RowOp::Delete => ("delete", (None, None)),
        };
        Self { commit_ts: row.commit_ts, op: op.to_owned(), key, key_base64, value, value_base64 }
    }

    /// The row; `None` when it is not one.
    pub fn row(&self) -> Option<Row> {
        let op = match self.op.as_str() {
            "put" => RowOp::Put(bytes(self.value.as_ref(), self.value_base64.as_ref())?),
            "delete" => RowOp::Delete,
            _ => return None,
        };
        let key = bytes(self.key.as_ref(), self.key_base64.as_ref())?;
        Some(Row { commit_ts: self.commit_ts, key, op, is_first: false })
    }
}

impl SpanLine {
    fn of(span: &Span) -> Self {
        Self {
            span: span.id().to_string(),
            start_base64: BASE64_STANDARD.encode(&span.start),
            end_base64: BASE64_STANDARD.encode(&span.end),
        }
    }

    /// The range, start to end; `None` when it is not one.
    pub fn range(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        Some((BASE64_STANDARD.decode(&self.start_base64).ok()?, BASE64_STANDARD.decode(&self.end_base64).ok()?))
    }
}

/// A dispatcher's way into the sink.
pub(super) enum Sink {
    File(FileSink),
    Mirror(Box<MirrorSink>),
    Blackhole(Blackhole),
}

/// Where rows vanish, at the speed of a sink that takes some time for a write.
#[derive(Debug)]
pub(super) struct Blackhole {
    latency: Duration,
    taken_ts: CommitTs,
    safe_ts: CommitTs,
    /// What is being written, and when it will have been.
    writing: Option<(CommitTs, Instant)>,
}

impl Blackhole {
    /// One write at a time, of all that has come until it begins.
    async fn next_safe(&mut self) -> CommitTs {
        let (ts, done_at) = *self.writing.get_or_insert_with(|| (self.taken_ts, Instant::now() + self.latency));
        if !self.latency.is_zero() {
            sleep_until(done_at).await;
        }
        (self.safe_ts, self.writing) = (ts, None);
        ts
    }
}

impl Sink {
    pub(super) async fn open(
        url: &SinkUrl,
        source: &SourceUrl,
        job: &Job,
        mirrors: &Mirrors,
    ) -> Result<Self, PipelineError> {
        match url {
            SinkUrl::File(folder) => Ok(Self::File(FileSink::open(folder, &job.span, &job.key, job.start_ts).await?)),
            SinkUrl::Mirror(url) => Ok(Self::Mirror(Box::new(MirrorSink::open(url, source, job, mirrors).await?))),
            SinkUrl::Blackhole(latency) => {
                let (taken_ts, safe_ts) = (job.start_ts, job.start_ts);
                Ok(Self::Blackhole(Blackhole { latency: *latency, taken_ts, safe_ts, writing: None }))
            }
        }
    }

    /// Takes rows; they are safe once [`Self::next_safe`] says so.
    pub(super) fn take(&mut self, batch: Batch) -> Result<(), PipelineError> {
        match self {
            Self::File(file) => file.take(&batch),
            Self::Mirror(mirror) => {
                mirror.take(batch);
                Ok(())
            }
            Self::Blackhole(hole) => {
                hole.taken_ts = batch.resolved_ts.max(hole.taken_ts);
                Ok(())
            }
        }
    }

    /// Whether more can be taken before something that waits is written.
    pub(super) fn has_room(&self) -> bool {
        let waiting_bytes = match self {
            Self::File(file) => file.waiting_bytes(),
            Self::Mirror(mirror) => mirror.waiting_bytes(),
            Self::Blackhole(_) => 0,
        };
        waiting_bytes < WAITING_MAX_BYTES
    }

    /// Whether something was taken of which [`Self::next_safe`] has not said that it is safe.
    pub(super) fn is_busy(&self) -> bool {
        match self {
            Self::File(file) => file.is_busy(),
            Self::Mirror(mirror) => mirror.is_busy(),
            Self::Blackhole(hole) => hole.taken_ts > hole.safe_ts,
        }
    }

    /// Writes what waits, or a part of it; the commit timestamp up to which everything is safe then. Can be dropped and
    /// called again without loss.
    pub(super) async fn next_safe(&mut self) -> Result<CommitTs, PipelineError> {
        match self {
            Self::File(file) => file.next_safe().await,
            Self::Mirror(mirror) => mirror.next_safe().await,
            Self::Blackhole(hole) => Ok(hole.next_safe().await),
        }
    }
}

/// Whether a sink could be written to from here, by a changefeed that begins at `start_ts` (0: with a snapshot).
pub(super) async fn check(url: &SinkUrl, source: &SourceUrl, start_ts: CommitTs) -> Result<(), PipelineError> {
    match url {
        SinkUrl::File(folder) => file::check_folder(folder).await,
        SinkUrl::Mirror(url) => mirror::check(url, source, start_ts).await,
        SinkUrl::Blackhole(_) => Ok(()),
    }
}

/// The path segments of the tables that a sink has something of.
pub(super) async fn tables(url: &SinkUrl) -> Result<BTreeSet<Vec<u8>>, PipelineError> {
    match url {
        SinkUrl::File(folder) => file::tables(folder).await,
        SinkUrl::Mirror(url) => mirror::tables(url).await,
        SinkUrl::Blackhole(_) => Ok(BTreeSet::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_blackhole_writes_what_it_had_when_the_write_began() {
        let latency = Duration::from_millis(30);
        let mut sink = Sink::Blackhole(Blackhole { latency, taken_ts: 5, safe_ts: 1, writing: None });
        let began = Instant::now();
        let given_up = tokio::time::timeout(Duration::from_millis(1), sink.next_safe()).await;
        assert!(given_up.is_err() && sink.is_busy());
        let Sink::Blackhole(hole) = &mut sink else { return };
        hole.taken_ts = 9;
        assert_eq!(hole.next_safe().await, 5);
        assert!(began.elapsed() >= latency && sink.is_busy());
        let Ok(safe_ts) = sink.next_safe().await else { return };
        assert!(safe_ts == 9 && began.elapsed() >= latency * 2 && !sink.is_busy());
    }
}
