//! Shapes that only the HTTP API has, most of them `TiCDC`'s: tools that were written for its API read them unchanged.

use std::collections::BTreeMap;

use capturedrain_core::model::{Liveness, Snapshot, UnixMillis};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{CaptureView, ChangefeedView, NewChangefeed};

/// A moment as `TiCDC` writes it, in UTC.
pub(super) fn ticdc_time(at: UnixMillis) -> String {
    let ms = i64::try_from(at.0).unwrap_or(i64::MAX);
    let at = Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX);
    at.strftime("%Y-%m-%d %H:%M:%S.%3f").to_string()
}

/// A list of version 2 of the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct List<T> {
    /// How many there are.
    pub total: u64,
    /// All of them.
    pub items: Vec<T>,
}

impl<T> From<Vec<T>> for List<T> {
    fn from(items: Vec<T>) -> Self {
        Self { total: items.len() as u64, items }
    }
}

/// A registered capture, with what `TiCDC` says of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterCapture {
    /// What is known of it here.
    #[serde(flatten)]
    pub capture: CaptureView,
    /// The same as `is_coordinator`.
    pub is_owner: bool,
    /// The name of the cluster.
    pub cluster_id: String,
}

impl ClusterCapture {
    /// All captures that a capture knows.
    pub fn all(snapshot: &Snapshot, cluster: &str) -> Vec<Self> {
        let captures = CaptureView::all(snapshot).into_iter();
        let item =
            |capture: CaptureView| Self { is_owner: capture.is_coordinator, cluster_id: cluster.to_owned(), capture };
        captures.map(item).collect()
    }
}

/// A registered capture, as version 1 of the API has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CaptureBrief {
    /// Its name.
    pub id: String,
    /// Whether it coordinates.
    pub is_owner: bool,
    /// `host:port`
    pub address: String,
    /// The name of the cluster.
    pub cluster_id: String,
}

impl From<ClusterCapture> for CaptureBrief {
    fn from(of: ClusterCapture) -> Self {
        Self { id: of.capture.id, is_owner: of.is_owner, address: of.capture.address, cluster_id: of.cluster_id }
    }
}

/// A capture about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServerStatus {
    /// The release that it runs.
    pub version: String,
    /// Always `unknown`: a release is told by its version.
    pub git_hash: String,
    /// Its name.
    pub id: String,
    /// The name of the cluster.
    pub cluster_id: String,
    /// Its process.
    pub pid: u32,
    /// Whether it coordinates.
    pub is_owner: bool,
    /// `TiCDC`'s number of its liveness: 0 `Alive`, 1 `Draining`, 2 `Stopping`; `null` while it is not registered.
    pub liveness: Option<u8>,
    /// The same in words.
    pub liveness_name: Option<String>,
    /// The present registration's number.
    pub node_epoch: Option<String>,
}

impl ServerStatus {
    /// What a capture knows of itself.
    pub fn of(snapshot: &Snapshot, capture: &str, cluster: &str) -> Self {
        let number = |liveness| match liveness {
            Liveness::Alive => 0,
            Liveness::Draining => 1,
            Liveness::Stopping => 2,
        };
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            git_hash: "unknown".to_owned(),
            id: capture.to_owned(),
            cluster_id: cluster.to_owned(),
            pid: std::process::id(),
            is_owner: snapshot.is_coordinator,
            liveness: snapshot.liveness.map(number),
            liveness_name: snapshot.liveness.map(|liveness| super::liveness_name(liveness).to_owned()),
            node_epoch: snapshot.me.as_ref().map(|me| me.node_epoch.to_string()),
        }
    }
}

/// Why a changefeed failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChangefeedError {
    /// Where; not kept, so it is empty.
    pub addr: String,
    /// `CDC:ErrChangefeedUnretryable`: what could be tried again was.
    pub code: String,
    /// One sentence.
    pub message: String,
}

impl ChangefeedError {
    pub(super) fn of(message: &str) -> Self {
        Self { addr: String::new(), code: "CDC:ErrChangefeedUnretryable".to_owned(), message: message.to_owned() }
    }
}

/// A capture that works on a changefeed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskStatus {
    /// Its name.
    pub capture_id: String,
    /// Always empty: spans have no table numbers.
    pub table_ids: Vec<i64>,
}

/// The body of a call that creates a changefeed: the wish, and what `TiCDC`'s tools send beside it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
pub struct ChangefeedBody {
    /// What is wished for.
    #[serde(flatten)]
    pub new: NewChangefeed,
    /// Has to be `default` or nothing.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Has to be 0 or left out: a changefeed runs until it is paused or deleted.
    #[serde(default)]
    pub target_ts: u64,
    /// Anything else has no effect, and is named among the warnings.
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

impl ChangefeedBody {
    /// One sentence for each field that has no effect and yet says something.
    pub fn warnings(&self) -> Vec<String> {
        let says_something = |value: &Value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Number(number) => number.as_f64() != Some(0.0),
            Value::String(text) => !text.is_empty(),
            Value::Array(items) => !items.is_empty(),
            Value::Object(fields) => !fields.is_empty(),
            Value::Bool(true) => true,
        };
        let idle = self.others.iter().filter(|(_, value)| says_something(value));
        idle.map(|(name, _)| format!("the field \"{name}\" has no effect here")).collect()
    }
}

/// A changefeed that was just created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewbornChangefeed {
    /// What it is.
    #[serde(flatten)]
    pub changefeed: ChangefeedView,
    /// What a person should know, one sentence each.
    pub warnings: Vec<String>,
}

/// The body of a call that lets a changefeed go on. Anything but these fields is passed over.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct ResumeBody {
    /// Has to be 0 or left out: a changefeed goes on from where it was.
    pub overwrite_checkpoint_ts: u64,
}

/// Done, and nothing more to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Empty {}

/// What a call that deletes came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Deleted {
    /// Whether there was something to delete.
    pub deleted: bool,
}

/// The answer to a drain of version 1 of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TableCount {
    /// Dispatchers on the capture. 0 on proof only: at least 1 while a drain, this or another, is on, or the number is
    /// not known.
    pub current_table_count: u64,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn moments_have_the_format_of_ticdc() {
        assert_eq!(ticdc_time(UnixMillis(1_700_000_000_007)), "2023-11-14 22:13:20.007");
    }

    #[test]
    fn what_ticdc_sends_creates_a_changefeed_and_what_has_no_effect_is_named() -> Result<(), serde_json::Error> {
        let body: ChangefeedBody = serde_json::from_value(json!({
            "namespace": "default", "changefeed_id": "f", "start_ts": 0, "target_ts": 0, "sink_uri": "blackhole://",
            "replica_config": {"memory_quota": 1}, "ca_path": "", "pd_addrs": null, "source": "synthetic://",
        }))?;
        assert_eq!((body.new.id.as_str(), body.new.sink.as_str()), ("f", "blackhole://"));
        assert_eq!(body.warnings(), ["the field \"replica_config\" has no effect here"]);
        let ours: ChangefeedBody = serde_json::from_value(json!({"id": "f", "source": "s", "sink": "t"}))?;
        assert_eq!((ours.new.id.as_str(), ours.new.sink.as_str(), ours.warnings().len()), ("f", "t", 0));
        Ok(())
    }
}
