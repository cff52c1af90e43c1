//! What `TiCDC` says, read to the letter: what is missing or of another type is an error and never a default, since a
//! count that cannot be read must not become 0.

use serde::{Deserialize, de::DeserializeOwned};

/// Most captures that are read of a list.
const CAPTURES_MAX: usize = 1024;
/// Longest sentence of a server that is passed on, in characters.
const SENTENCE_MAX_CHARS: usize = 300;
/// How a refusal begins that names the capture which is being drained already.
const OTHER_DRAIN: &str = "drain already in progress on capture ";

/// Why an answer cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Garbled {
    /// No JSON, or of another shape.
    #[error("the answer is not what TiCDC answers: {0}")]
    Shape(String),
    /// Somebody answered, so somebody is registered.
    #[error("the answer lists no capture")]
    Nobody,
    /// More than can be.
    #[error("the answer lists more than {CAPTURES_MAX} captures")]
    TooMany,
    /// Two of one name.
    #[error("the answer lists capture {0} twice")]
    Twice(String),
}

/// A registered capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Capture {
    /// New at each start of the process.
    pub(super) id: String,
    /// `host:port`
    pub(super) address: String,
    pub(super) is_owner: bool,
}

impl Capture {
    /// Its pod: tidb-operator makes the address `POD.PEER-SERVICE.NAMESPACE…:PORT`.
    pub(super) fn pod_name(&self) -> Option<&str> {
        let host = self.address.rsplit_once(':').map_or(self.address.as_str(), |(host, _)| host);
        if host.contains([':', '[']) || host.parse::<std::net::Ipv4Addr>().is_ok() {
            return None;
        }
        let mut labels = host.split('.');
        let name = labels.next().filter(|name| !name.is_empty())?;
        (labels.count() >= 2).then_some(name)
    }
}

/// A capture about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) id: String,
    pub(super) version: String,
    /// It is a capture of this project, whose 0 is a proof in every release.
    pub(super) is_own_kind: bool,
}

/// The list of version 1 is an array, that of version 2 an object, and some releases answer the one with the other.
#[derive(Deserialize)]
#[serde(untagged)]
enum List {
    Bare(Vec<Item>),
    Counted { items: Vec<Item> },
}

/// The owner has two names.
#[derive(Deserialize)]
struct Item {
    id: String,
    address: String,
    is_owner: Option<bool>,
    is_coordinator: Option<bool>,
}

#[derive(Deserialize)]
struct OwnStatus {
    id: String,
    version: String,
    liveness_name: Option<String>,
    node_epoch: Option<String>,
}

#[derive(Deserialize)]
struct Count {
    current_table_count: u64,
}

#[derive(Deserialize)]
struct Complaint {
    error_msg: String,
    error_code: String,
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Garbled> {
    serde_json::from_slice(body).map_err(|error| Garbled::Shape(error.to_string()))
}

/// The captures of a cluster.
pub(super) fn captures(body: &[u8]) -> Result<Vec<Capture>, Garbled> {
    let (List::Bare(items) | List::Counted { items }) = read(body)?;
    if items.len() > CAPTURES_MAX {
        return Err(Garbled::TooMany);
    }
    let mut captures: Vec<Capture> = Vec::new();
    for item in items {
        let Some(is_owner) = item.is_owner.or(item.is_coordinator) else {
            return Err(Garbled::Shape(format!("it does not say whether {} is the owner", item.id)));
        };
        if item.id.is_empty() || item.address.is_empty() {
            return Err(Garbled::Shape("a capture has no name or no address".to_owned()));
        }
        if captures.iter().any(|other| other.id == item.id) {
            return Err(Garbled::Twice(item.id));
        }
        captures.push(Capture { id: item.id, address: item.address, is_owner });
    }
    if captures.is_empty() { Err(Garbled::Nobody) } else { Ok(captures) }
}

/// What a capture is.
pub(super) fn status(body: &[u8]) -> Result<Status, Garbled> {
    let OwnStatus { id, version, liveness_name, node_epoch } = read(body)?;
    let is_own_kind = liveness_name.is_some() && node_epoch.is_some();
    Ok(Status { id, version, is_own_kind })
}

/// How many dispatchers are left.
pub(super) fn count(body: &[u8]) -> Result<u64, Garbled> {
    read(body).map(|Count { current_table_count }| current_table_count)
}

/// What an error says, code first; `None` when it is none of `TiCDC`'s.
pub(super) fn complaint(body: &[u8]) -> Option<String> {
    let Complaint { error_msg, error_code } = serde_json::from_slice(body).ok()?;
    let sentence = format!("{error_code}: {error_msg}");
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    Some(sentence.chars().map(printable).take(SENTENCE_MAX_CHARS).collect())
}

/// The capture that a complaint says is being drained.
pub(super) fn other_drain(complaint: &str) -> Option<&str> {
    let (_, rest) = complaint.split_once(OTHER_DRAIN)?;
    rest.split_whitespace().next().map(|name| name.trim_end_matches(['.', ',', '"']))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    #[test]
    fn a_count_is_a_number_or_nothing() {
        assert_eq!(count(br#"{"current_table_count":0}"#), Ok(0));
        assert_eq!(count(b"{\n \"current_table_count\": 7, \"more\": []\n}"), Ok(7));
        for body in [
            "",
            "{}",
            "0",
            "null",
            "[]",
            "<html>",
            r#"{"current_table_count":"0"}"#,
            r#"{"current_table_count":null}"#,
            r#"{"current_table_count":-1}"#,
            r#"{"current_table_count":0.5}"#,
            r#"{"current_table_count":false}"#,
            r#"{"current_table_count":0"#,
            r#"{"currentTableCount":0}"#,
            r#"{"current_table_count":0} trailing"#,
            r#"[{"current_table_count":0}]"#,
            r#"{"error_msg":"x","error_code":"y"}"#,
            r#"{"current_table_count":0,"current_table_count":0}"#,
        ] {
            assert!(count(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn both_shapes_of_a_list_are_read_and_nothing_is_guessed() {
        let bare = br#"[{"id":"a","is_owner":true,"address":"h:1"},{"id":"b","is_owner":false,"address":"h:2"}]"#;
        let counted = br#"{"total":2,"items":[{"id":"a","is_coordinator":true,"address":"h:1"},
            {"id":"b","is_coordinator":false,"address":"h:2","cluster_id":"default"}]}"#;
        assert_eq!(captures(bare).unwrap(), captures(counted).unwrap());
        assert!(captures(bare).unwrap()[0].is_owner);
        for body in [
            "[]",
            r#"{"total":0,"items":[]}"#,
            r#"[{"id":"a","address":"h:1"}]"#,
            r#"[{"id":"a","is_owner":true}]"#,
            r#"[{"id":"","is_owner":true,"address":"h:1"}]"#,
            r#"[{"id":"a","is_owner":"true","address":"h:1"}]"#,
            r#"[{"id":"a","is_owner":true,"address":"h:1"},{"id":"a","is_owner":true,"address":"h:1"}]"#,
            "{}",
            "null",
        ] {
            assert!(captures(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn the_pod_is_the_first_label_of_a_name_and_never_of_an_address() {
        let check = |address: &str, pod: Option<&str>| {
            let capture = Capture { id: "a".to_owned(), address: address.to_owned(), is_owner: false };
            assert_eq!(capture.pod_name(), pod, "{address}");
        };
        check("db-ticdc-0.db-ticdc-peer.tidb.svc:8301", Some("db-ticdc-0"));
        check("db-ticdc-0.db-ticdc-peer.tidb.svc.cluster.local:8301", Some("db-ticdc-0"));
        check("cdc-x7k2.cdc-peer.tidb:8300", Some("cdc-x7k2"));
        for address in ["10.0.0.1:8300", "[fd00::1]:8300", "localhost:8300", "host.example:8300", "", ":8300", ".a.b:1"]
        {
            check(address, None);
        }
    }

    #[test]
    fn a_capture_of_this_project_is_told_by_what_only_it_says() {
        let ticdc = br#"{"version":"v7.5.0","git_hash":"x","id":"a","pid":1,"is_owner":false,"liveness":0}"#;
        let own = br#"{"version":"0.1.0","id":"a","liveness":0,"liveness_name":"Alive","node_epoch":"0a"}"#;
        assert!(!status(ticdc).unwrap().is_own_kind && status(own).unwrap().is_own_kind);
        assert!(status(br#"{"id":"a"}"#).is_err());
    }

    #[test]
    fn a_refusal_names_the_drain_that_is_on() {
        let body = br#"{"error_msg":"[CDC:ErrSchedulerRequestFailed]scheduler request failed, drain already in progress
on capture c7","error_code":"CDC:ErrSchedulerRequestFailed"}"#;
        assert_eq!(complaint(body), None, "a line break inside of a string is no JSON");
        let body = br#"{"error_msg":"failed, drain already in progress on capture c7","error_code":"CDC:ErrX"}"#;
        let sentence = complaint(body).unwrap();
        assert_eq!(other_drain(&sentence), Some("c7"));
        assert_eq!(other_drain("CDC:ErrX: only one capture alive"), None);
        assert_eq!(complaint(b"<html>"), None);
    }
}
