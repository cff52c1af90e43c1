//! What is persisted: the keys below a cluster's prefix, and their JSON values.
//!
//! | key | value |
//! |---|---|
//! | `capture/<id>` | [`Registration`] |
//! | `owner/<id>/<node epoch>` | [`Candidacy`]; the one created first is the coordinator's |
//! | `liveness/<id>` | [`LivenessMark`] |
//! | `drain/epoch` | [`LastEpoch`] |
//! | `drain/record` | [`DrainRecord`] |
//! | `drain/history/<epoch, 20 digits>` | [`DrainEnd`] |
//! | `changefeed/info/<id>`, `changefeed/place/<id>` | [`ChangefeedInfo`], [`Placement`] |
//! | `position/<id>` | [`Position`]; last in order, so that one watch has everything before it |

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    CaptureId, ChangefeedEpoch, ChangefeedId, CommitTs, DrainEpoch, HookReport, Incarnation, NodeEpoch, PROTOCOL,
    ProtocolRange, UnixMillis,
};
use crate::store::Key;

/// The newest version of values that this build reads. It writes the newest that all captures read.
pub const VALUE_VERSION: u32 = PROTOCOL.max;

/// How many of those who asked for a drain are remembered.
pub const REQUESTERS_MAX: usize = 32;

/// Fields of a newer build, carried along untouched.
pub type Unknown = BTreeMap<String, serde_json::Value>;

/// A persisted value that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// It was written by a newer build.
    #[error("the value of {key} has version {found}, this build reads up to {VALUE_VERSION}: upgrade capturedrain")]
    Newer {
        /// Which key.
        key: String,
        /// The version that it has.
        found: u32,
    },
    /// It is not what its key promises.
    #[error("the value of {key} cannot be read: {reason}")]
    Malformed {
        /// Which key.
        key: String,
        /// What the decoder says.
        reason: String,
    },
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// Reads a persisted value.
///
/// # Errors
/// When it was written by a newer build, or is not JSON of the right form.
pub fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, ValueError> {
    let malformed = |error: serde_json::Error| ValueError::Malformed { key: key.to_owned(), reason: error.to_string() };
    let Version { version } = serde_json::from_slice(value).map_err(malformed)?;
    if version > VALUE_VERSION {
        return Err(ValueError::Newer { key: key.to_owned(), found: version });
    }
    serde_json::from_slice(value).map_err(malformed)
}

/// Writes a value as it is persisted.
pub fn encode<T: Serialize>(value: &T) -> Arc<[u8]> {
    // These types have string keys and finite numbers only: serialising them has no way to fail.
    serde_json::to_vec(value).unwrap_or_default().into()
}

/// A key of the cluster, read back from its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyName {
    /// `capture/<id>`
    Capture(CaptureId),
    /// `owner/<id>/<node epoch>`
    Owner(Incarnation),
    /// `liveness/<id>`
    Liveness(CaptureId),
    /// `drain/epoch`
    DrainEpoch,
    /// `drain/record`
    DrainRecord,
    /// `drain/history/<epoch>`
    DrainHistory(DrainEpoch),
    /// `changefeed/info/<id>`
    ChangefeedInfo(ChangefeedId),
    /// `changefeed/place/<id>`
    ChangefeedPlace(ChangefeedId),
    /// `position/<id>`
    Position(ChangefeedId),
}

impl KeyName {
    /// The prefix of the registrations.
    pub const CAPTURES: &'static str = "capture/";
    /// The prefix of the candidacies.
    pub const OWNERS: &'static str = "owner/";
    /// The prefix of the liveness marks.
    pub const LIVENESS: &'static str = "liveness/";
    /// The first key that a capture's watch leaves out.
    pub const WATCH_END: &'static str = "position/";

    /// The name as the store has it.
    pub fn key(&self) -> Key {
        match self {
            Self::Capture(id) => format!("capture/{id}"),
            Self::Owner(who) => format!("owner/{}/{}", who.capture, who.node_epoch),
            Self::Liveness(id) => format!("liveness/{id}"),
            Self::DrainEpoch => "drain/epoch".to_owned(),
            Self::DrainRecord => "drain/record".to_owned(),
            Self::DrainHistory(epoch) => format!("drain/history/{:020}", epoch.0),
            Self::ChangefeedInfo(id) => format!("changefeed/info/{id}"),
            Self::ChangefeedPlace(id) => format!("changefeed/place/{id}"),
            Self::Position(id) => format!("position/{id}"),
        }
        .into()
    }

    /// Reads a name back; `None` for keys of a newer build.
    pub fn parse(key: &str) -> Option<Self> {
        let (kind, rest) = key.split_once('/')?;
        Some(match (kind, rest) {
            ("capture", id) => Self::Capture(id.parse().ok()?),
            ("owner", rest) => {
                let (id, node_epoch) = rest.split_once('/')?;
                Self::Owner(Incarnation { capture: id.parse().ok()?, node_epoch: node_epoch.parse().ok()? })
            }
            ("liveness", id) => Self::Liveness(id.parse().ok()?),
            ("drain", "epoch") => Self::DrainEpoch,
            ("drain", "record") => Self::DrainRecord,
            ("drain", rest) => Self::DrainHistory(DrainEpoch(rest.strip_prefix("history/")?.parse().ok()?)),
            ("changefeed", rest) => match rest.split_once('/')? {
                ("info", id) => Self::ChangefeedInfo(id.parse().ok()?),
                ("place", id) => Self::ChangefeedPlace(id.parse().ok()?),
                _ => return None,
            },
            ("position", id) => Self::Position(id.parse().ok()?),
            _ => return None,
        })
    }
}

/// A capture that is there. Created only if absent, on the same lease as its candidacy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Version of this value.
    pub version: u32,
    /// Its name.
    pub id: CaptureId,
    /// This registration's number.
    pub node_epoch: NodeEpoch,
    /// `host:port` at which other captures and clients reach it.
    pub advertise_addr: Arc<str>,
    /// Its Kubernetes pod, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_name: Option<Arc<str>>,
    /// That pod's UID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<Arc<str>>,
    /// Which protocol versions it speaks.
    pub protocol: ProtocolRange,
    /// The release that it runs.
    pub binary_version: Arc<str>,
    /// Free labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Fields of a newer build.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A capture's wish to be coordinator; it is the one whose key was created first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidacy {
    /// Version of this value.
    pub version: u32,
    /// Whether the winner has shown that it may act: it was registered, and `Alive`.
    pub acting: bool,
    /// Fields of a newer build.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// Whether a capture may get work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Liveness {
    /// It may.
    Alive,
    /// It is being emptied.
    Draining,
    /// It was proven empty and waits for its end.
    Stopping,
}

/// A liveness that is not `Alive`, valid for one registration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LivenessMark {
    /// Version of this value.
    pub version: u32,
    /// What it is.
    pub liveness: Liveness,
    /// For which registration; for any other it reads as `Alive`.
    pub node_epoch: NodeEpoch,
    /// The drain that set it.
    pub drain_epoch: DrainEpoch,
    /// Fields of a newer build.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// The last drain epoch that was given out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastEpoch {
    /// Version of this value.
    pub version: u32,
    /// The number.
    pub epoch: DrainEpoch,
    /// Fields of a newer build.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// What a drain does that meets its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum OnDeadline {
    /// It holds the pod and reports that it is stalled.
    #[default]
    Hold,
    /// It lets the pod go with work left.
    Proceed,
}

/// What a drain does when no other capture could take the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum NoPeersPolicy {
    /// It waits for one.
    #[default]
    Hold,
    /// It lets the pod go.
    Proceed,
}

/// How much work a capture has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WorkCount {
    /// Maintainers.
    pub maintainers: u64,
    /// Dispatchers, in any state.
    pub dispatchers: u64,
}

/// The drain that is on. At most one in a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainRecord {
    /// Version of this value.
    pub version: u32,
    /// Its number.
    pub epoch: DrainEpoch,
    /// Which capture is emptied.
    pub target: CaptureId,
    /// Which registration of it.
    pub node_epoch: NodeEpoch,
    /// The pod that is meant, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<Arc<str>>,
    /// Who asked for it, each once, in the order of asking: the first, and the latest of all others.
    pub requesters: Vec<String>,
    /// Why, in a person's words.
    #[serde(default)]
    pub reason: String,
    /// When it started.
    pub started_at_ms: UnixMillis,
    /// What was on the target then.
    pub initial: WorkCount,
    /// How long it may take, counted from `started_at_ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// What follows the deadline.
    #[serde(default)]
    pub on_deadline: OnDeadline,
    /// What follows when no other capture is there.
    #[serde(default)]
    pub no_peers_policy: NoPeersPolicy,
    /// When the target's pod is killed at the latest, once somebody has said so: its hook gives up shortly before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook_deadline_ms: Option<UnixMillis>,
    /// How that hook ended, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook_report: Option<Box<HookReport>>,
    /// Captures that should rather not get the work.
    #[serde(default)]
    pub avoid: Vec<CaptureId>,
    /// Fields of a newer build.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl DrainRecord {
    /// The target, in the life that the drain is for.
    pub fn incarnation(&self) -> Incarnation {
        Incarnation { capture: self.target.clone(), node_epoch: self.node_epoch }
    }

    /// Takes in somebody who asks for the same. The first who asked stays known; of the others the latest do.
    pub fn add_requester(&mut self, requester: &str) {
        if !self.requesters.iter().any(|known| known == requester) {
            self.requesters.push(requester.to_owned());
        }
        let surplus = self.requesters.len().saturating_sub(REQUESTERS_MAX);
        self.requesters.drain(1..=surplus);
    }

    /// Whether the deadline has passed.
    pub fn overdue(&self, wall: UnixMillis) -> bool {
        self.deadline_ms.is_some_and(|limit_ms| wall.0 >= self.started_at_ms.0.saturating_add(limit_ms))
    }
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DrainOutcome {
    /// The target was proven empty.
    Drained,
    /// It was called off.
    Cancelled,
    /// The target, in the life that was meant, is gone.
    TargetGone,
    /// No other capture was there, and the target went back to work.
    NoPeers,
}

/// A drain that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainEnd {
    /// Version of this value.
    pub version: u32,
    /// How it ended.
    pub outcome: DrainOutcome,
    /// When.
    pub ended_at_ms: UnixMillis,
    /// The record as it stood.
    pub record: DrainRecord,
}

/// Whether a changefeed runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ChangefeedState {
    /// It does.
    Running,
    /// A person paused it.
    Paused,
    /// It cannot go on by itself.
    Failed {
        /// Why, in one sentence.
        error: String,
    },
}

/// What a changefeed replicates, and how.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChangefeedConfig {
    /// `etcd://H:P/PREFIX` or `synthetic://…`
    pub source: Arc<str>,
    /// `file://DIR` or `blackhole://`
    pub sink: Arc<str>,
    /// The commit timestamp after which it starts.
    pub start_ts: CommitTs,
    /// A span with more keys than this is split; 0: never.
    #[serde(default)]
    pub span_max_keys: u64,
    /// Fields of a newer build.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A changefeed: configuration and state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangefeedInfo {
    /// Version of this value.
    pub version: u32,
    /// Its name.
    pub id: ChangefeedId,
    /// What it replicates.
    pub config: Arc<ChangefeedConfig>,
    /// Whether it runs.
    #[serde(flatten)]
    pub state: ChangefeedState,
    /// When it was created.
    pub created_at_ms: UnixMillis,
    /// Fields of a newer build.
    #[serde(flatten, deserialize_with = "unknown_beside_state")]
    pub unknown: Unknown,
}

/// What is left beside a [`ChangefeedState`], whose fields serde leaves in the map.
fn unknown_beside_state<'de, D: serde::Deserializer<'de>>(fields: D) -> Result<Unknown, D::Error> {
    let mut unknown = Unknown::deserialize(fields)?;
    unknown.remove("state");
    unknown.remove("error");
    Ok(unknown)
}

/// Which capture has a changefeed's maintainer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Version of this value.
    pub version: u32,
    /// Where.
    #[serde(flatten)]
    pub host: Incarnation,
    /// The number of this placement.
    pub epoch: ChangefeedEpoch,
    /// Fields of a newer build.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// How far a changefeed has come: every event at or below is in the sink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Version of this value.
    pub version: u32,
    /// The commit timestamp.
    pub checkpoint_ts: CommitTs,
    /// Fields of a newer build.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// What can be set of a cluster's behaviour. Every capture of a cluster should have the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Time to live of a capture's lease.
    pub lease: Duration,
    /// Interval of the coordinator's heartbeats, and of the captures' reports.
    pub heartbeat: Duration,
    /// How long balance rests after a drain.
    pub balance_cooldown: Duration,
    /// First time-out of a move; it doubles with each retry.
    pub move_timeout: Duration,
    /// Longest time-out of a move.
    pub move_timeout_max: Duration,
    /// After which a `Stopping` capture that lives on registers anew.
    pub stopping_timeout: Duration,
    /// How many ended drains are kept.
    pub history_max: usize,
    /// How many maintainers may be on the move at once.
    pub drain_maintainer_batch_size: usize,
    /// How many dispatchers may be on the move at once, in the whole cluster; 0: the larger of 10 and 1 % of those that
    /// the drain began with.
    pub drain_dispatcher_batch_size: usize,
    /// How many spans a maintainer takes up in one event beyond those that the event names, at least 1. What is left goes
    /// on with the next event, at once: so none takes long, whatever is lost or told together.
    pub event_max_spans: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(10),
            heartbeat: Duration::from_secs(1),
            balance_cooldown: Duration::from_secs(30),
            move_timeout: Duration::from_secs(30),
            move_timeout_max: Duration::from_mins(5),
            stopping_timeout: Duration::from_mins(10),
            history_max: 100,
            drain_maintainer_batch_size: 10,
            drain_dispatcher_batch_size: 0,
            event_max_spans: 1024,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn key_names_read_back() {
        let id: CaptureId = "a".parse().unwrap();
        let feed: ChangefeedId = "f".parse().unwrap();
        for name in [
            KeyName::Capture(id.clone()),
            KeyName::Owner(Incarnation { capture: id.clone(), node_epoch: NodeEpoch(7) }),
            KeyName::Liveness(id),
            KeyName::DrainEpoch,
            KeyName::DrainRecord,
            KeyName::DrainHistory(DrainEpoch(3)),
            KeyName::ChangefeedInfo(feed.clone()),
            KeyName::ChangefeedPlace(feed.clone()),
            KeyName::Position(feed),
        ] {
            assert_eq!(KeyName::parse(&name.key()), Some(name.clone()));
            assert_eq!(&*name.key() < KeyName::WATCH_END, !matches!(name, KeyName::Position(_)), "{name:?}");
        }
    }

    #[test]
    fn those_who_ask_are_remembered_up_to_a_limit() {
        let json = br#"{"version":1,"epoch":1,"target":"b","node_epoch":"01","requesters":["first"],"started_at_ms":0,
            "initial":{"maintainers":0,"dispatchers":0}}"#;
        let mut record: DrainRecord = decode("drain/record", json).unwrap();
        for n in 0..2 * REQUESTERS_MAX {
            record.add_requester(&format!("r{n}"));
            record.add_requester("first");
        }
        assert_eq!(record.requesters.len(), REQUESTERS_MAX);
        assert_eq!((&*record.requesters[0], &*record.requesters[1]), ("first", "r33"));
        assert_eq!(record.requesters.last().map(String::as_str), Some("r63"));
    }

    #[test]
    fn a_value_of_a_newer_version_is_refused_by_name() {
        let error = decode::<LastEpoch>("drain/epoch", br#"{"version":2,"epoch":1}"#).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the value of drain/epoch has version 2, this build reads up to 1: upgrade capturedrain"
        );
    }

    #[test]
    fn fields_of_a_newer_build_are_kept() {
        fn check<T: Serialize + DeserializeOwned>(json: &serde_json::Value) {
            let value: T = decode("key", json.to_string().as_bytes()).unwrap();
            let written: serde_json::Value = serde_json::from_slice(&encode(&value)).unwrap();
            assert_eq!(written, *json);
            // Each name once: a second one would win over the first when it is read.
            assert_eq!(encode(&value).len(), json.to_string().len(), "{json}");
        }
        let config = json!({"source": "s", "sink": "t", "start_ts": 1, "span_max_keys": 0, "colour": {"inner": [1]}});
        let info = json!({"version": 1, "id": "f", "config": config, "created_at_ms": 1, "colour": "red"});
        let with = |state: serde_json::Value| {
            let mut info = info.clone();
            info.as_object_mut().unwrap().extend(state.as_object().unwrap().clone());
            info
        };
        check::<ChangefeedInfo>(&with(json!({"state": "running"})));
        check::<ChangefeedInfo>(&with(json!({"state": "failed", "error": "why"})));
        check::<Placement>(
            &json!({"version": 1, "capture": "a", "node_epoch": "0000000000000001", "epoch": 1, "colour": "red"}),
        );
        check::<Position>(&json!({"version": 1, "checkpoint_ts": 1, "colour": "red"}));
        check::<LastEpoch>(&json!({"version": 1, "epoch": 1, "colour": "red"}));
        check::<LivenessMark>(
            &json!({"version": 1, "liveness": "Draining", "node_epoch": "0000000000000001", "drain_epoch": 1, "colour": "red"}),
        );
    }

    #[test]
    fn a_changefeed_that_runs_again_has_no_error_left() {
        let failed = json!({"version": 1, "id": "f", "config": {"source": "s", "sink": "t", "start_ts": 1},
                            "state": "failed", "error": "why", "created_at_ms": 1});
        let mut info: ChangefeedInfo = decode("key", failed.to_string().as_bytes()).unwrap();
        info.state = ChangefeedState::Running;
        assert!(!String::from_utf8(encode(&info).to_vec()).unwrap().contains("error"));
    }
}
