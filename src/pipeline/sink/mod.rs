//! Where rows go.

mod file;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use capturedrain_core::{
    model::{CommitTs, Span},
    work::DispatcherKey,
};
use serde::{Deserialize, Serialize};

use self::file::{FileSink, check_folder};
pub use self::file::{file_name, parse_file_name};
use super::{PipelineError, Row, RowOp, SinkUrl};

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
    Blackhole { rows: u64 },
}

impl Sink {
    pub(super) async fn open(
        url: &SinkUrl,
        span: &Span,
        key: &DispatcherKey,
        start_ts: CommitTs,
    ) -> Result<Self, PipelineError> {
        match url {
            SinkUrl::File(folder) => Ok(Self::File(FileSink::open(folder, span, key, start_ts).await?)),
            SinkUrl::Blackhole => Ok(Self::Blackhole { rows: 0 }),
        }
    }

    /// Takes a row; it is safe with the next flush.
    pub(super) fn append(&mut self, row: &Row) -> Result<(), PipelineError> {
        match self {
            Self::File(file) => file.append(&SinkRow::of(row)),
            Self::Blackhole { rows } => {
                *rows += 1;
                Ok(())
            }
        }
    }

    /// How many bytes wait for the next flush.
    pub(super) fn waiting_bytes(&self) -> usize {
        match self {
            Self::File(file) => file.waiting_bytes(),
            Self::Blackhole { .. } => 0,
        }
    }

    /// Makes all rows that were taken safe.
    pub(super) async fn flush(&mut self) -> Result<(), PipelineError> {
        match self {
            Self::File(file) => file.flush().await,
            Self::Blackhole { .. } => Ok(()),
        }
    }
}

/// Whether a sink could be written to from here.
pub(super) async fn check(url: &SinkUrl) -> Result<(), PipelineError> {
    match url {
        SinkUrl::File(folder) => check_folder(folder).await,
        SinkUrl::Blackhole => Ok(()),
    }
}
