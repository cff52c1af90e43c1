//! How commands end: a code for programs, a sentence for people.

use std::{fmt, process::ExitCode};

use capturedrain_core::model::{Halt, NameError, Refusal};

use crate::{client::ClientError, node::NodeError, resource::ManifestError, store::StoreError, tls::TlsError};

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    /// For commands that wait: proven, or nothing to protect.
    Done = 0,
    Internal = 1,
    Usage = 2,
    NotFound = 3,
    Refused = 4,
    Unreachable = 5,
    Proceeded = 6,
    Stalled = 7,
    Withdrawn = 8,
    TargetGone = 9,
    Unauthorised = 10,
    DataProofFailed = 11,
    Environment = 12,
    Interrupted = 130,
    Terminated = 143,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        // The codes are written down above, all below 256.
        Self::from(exit as u8)
    }
}

/// Why a command did not work: one sentence, and its code.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) exit: Exit,
    pub(super) sentence: String,
}

impl Failure {
    pub(super) fn new(exit: Exit, sentence: impl fmt::Display) -> Self {
        Self { exit, sentence: sentence.to_string() }
    }

    pub(super) fn usage(sentence: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, sentence)
    }

    pub(super) fn environment(sentence: impl fmt::Display) -> Self {
        Self::new(Exit::Environment, sentence)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            error if error.is_unauthorised() => Exit::Unauthorised,
            // What is left of distrust: one speaks TLS, and the other does not.
            ClientError::Usage(_)
            | ClientError::Mixed(_)
            | ClientError::SpeaksTls(_)
            | ClientError::Distrust { .. }
            | ClientError::Unauthorised(_) => Exit::Usage,
            ClientError::Tls(_) => Exit::Environment,
            ClientError::Unreachable { .. } => Exit::Unreachable,
            ClientError::Refused(refusal) => of_refusal(refusal),
            ClientError::Invalid { reason, .. } => match reason.as_str() {
                "SOURCE_UNREACHABLE" | "SINK_UNREACHABLE" => Exit::Unreachable,
                "SOURCE_UNUSABLE" | "SINK_UNUSABLE" => Exit::Refused,
                "ENVIRONMENT" => Exit::Environment,
                _ => Exit::Usage,
            },
            ClientError::Protocol(_) => Exit::Internal,
        };
        if let ClientError::Unreachable { .. } = error {
            return Self::new(exit, format!("{error} (--server says where to ask)"));
        }
        Self::new(exit, error)
    }
}

fn of_refusal(refusal: &Refusal) -> Exit {
    match refusal {
        Refusal::NotCoordinator { .. } | Refusal::NotReady(_) => Exit::Unreachable,
        Refusal::UnknownCapture(_) | Refusal::UnknownChangefeed(_) => Exit::NotFound,
        Refusal::ChangefeedExists(_) | Refusal::OtherDrain { .. } | Refusal::NoPeers(_) | Refusal::Conflict(_) => {
            Exit::Refused
        }
        Refusal::Mismatch(_) => Exit::TargetGone,
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let exit = match &error {
            StoreError::Url(_) | StoreError::NoTls(_) => Exit::Usage,
            StoreError::Unreachable { .. } => Exit::Unreachable,
            StoreError::Rejected(_) => Exit::Internal,
            StoreError::Tls(_) | StoreError::InUse(_) | StoreError::Damaged { .. } | StoreError::Io { .. } => {
                Exit::Environment
            }
        };
        Self::new(exit, error)
    }
}

impl From<NodeError> for Failure {
    fn from(error: NodeError) -> Self {
        let exit = match &error {
            NodeError::Listen { .. }
            | NodeError::Serve { .. }
            | NodeError::Halt(Halt::Value(_))
            | NodeError::Tls(_) => Exit::Environment,
            NodeError::Halt(Halt::Protocol { .. }) => Exit::Refused,
            NodeError::Name(_) => Exit::Usage,
            NodeError::Task(_) => Exit::Internal,
        };
        Self::new(exit, error)
    }
}

impl From<ManifestError> for Failure {
    fn from(error: ManifestError) -> Self {
        Self::usage(error)
    }
}

impl From<TlsError> for Failure {
    fn from(error: TlsError) -> Self {
        Self::environment(error)
    }
}

impl From<NameError> for Failure {
    fn from(error: NameError) -> Self {
        Self::usage(error)
    }
}
