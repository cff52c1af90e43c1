//! Refusals as gRPC errors with `google.rpc.ErrorInfo`, and back.

use std::collections::HashMap;

use capturedrain_core::model::{CaptureId, ChangefeedId, DrainEpoch, Refusal};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// Whose reasons these are.
pub(crate) const DOMAIN: &str = "capturedrain.io";

/// The facts of a refusal, by name: what it takes to build it again.
pub(crate) fn facts(refusal: &Refusal) -> Vec<(&'static str, String)> {
    match refusal {
        Refusal::NotCoordinator { coordinator } => {
            coordinator.iter().map(|at| ("coordinator", at.to_string())).collect()
        }
        Refusal::NotReady(why) | Refusal::Mismatch(why) | Refusal::Conflict(why) => vec![("message", why.clone())],
        Refusal::UnknownCapture(id) | Refusal::NoPeers(id) => vec![("capture", id.to_string())],
        Refusal::UnknownChangefeed(id) | Refusal::ChangefeedExists(id) => vec![("changefeed", id.to_string())],
        Refusal::OtherDrain { target, epoch } => {
            vec![("target", target.to_string()), ("epoch", epoch.to_string())]
        }
    }
}

/// Builds a refusal from its reason and facts; `None` for those of a newer build.
pub(crate) fn rebuild(reason: &str, fact: impl Fn(&str) -> Option<String>) -> Option<Refusal> {
    let capture = |name: &str| CaptureId::new(fact(name)?).ok();
    let changefeed = || ChangefeedId::new(fact("changefeed")?).ok();
    let message = || fact("message").unwrap_or_default();
    Some(match reason {
        "NOT_COORDINATOR" => Refusal::NotCoordinator { coordinator: fact("coordinator").map(Into::into) },
        "NOT_READY" => Refusal::NotReady(message()),
        "UNKNOWN_CAPTURE" => Refusal::UnknownCapture(capture("capture")?),
        "UNKNOWN_CHANGEFEED" => Refusal::UnknownChangefeed(changefeed()?),
        "CHANGEFEED_EXISTS" => Refusal::ChangefeedExists(changefeed()?),
        "OTHER_DRAIN" => {
            Refusal::OtherDrain { target: capture("target")?, epoch: DrainEpoch(fact("epoch")?.parse().ok()?) }
        }
        "NO_PEERS" => Refusal::NoPeers(capture("capture")?),
        "MISMATCH" => Refusal::Mismatch(message()),
        "CONFLICT" => Refusal::Conflict(message()),
        _ => return None,
    })
}

/// A refusal as it is sent.
pub(crate) fn to_status(refusal: &Refusal) -> Status {
    let code = match refusal {
        Refusal::NotCoordinator { .. } | Refusal::NotReady(_) => Code::Unavailable,
        Refusal::UnknownCapture(_) | Refusal::UnknownChangefeed(_) => Code::NotFound,
        Refusal::ChangefeedExists(_) => Code::AlreadyExists,
        Refusal::OtherDrain { .. } => Code::Aborted,
        Refusal::NoPeers(_) | Refusal::Mismatch(_) | Refusal::Conflict(_) => Code::FailedPrecondition,
    };
    let facts: HashMap<_, _> = facts(refusal).into_iter().map(|(name, fact)| (name.to_owned(), fact)).collect();
    let details = ErrorDetails::with_error_info(refusal.reason(), DOMAIN, facts);
    Status::with_error_details(code, refusal.to_string(), details)
}

/// A refusal as it came; `None` when the error is another's.
pub(crate) fn from_status(status: &Status) -> Option<Refusal> {
    let info = status.get_details_error_info().filter(|info| info.domain == DOMAIN)?;
    rebuild(&info.reason, |name| info.metadata.get(name).cloned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    #[test]
    fn every_refusal_comes_back_as_it_was_sent() {
        let capture = CaptureId::new("b").unwrap();
        let changefeed = ChangefeedId::new("f").unwrap();
        for refusal in [
            Refusal::NotCoordinator { coordinator: Some("h:1".into()) },
            Refusal::NotCoordinator { coordinator: None },
            Refusal::NotReady("why".to_owned()),
            Refusal::UnknownCapture(capture.clone()),
            Refusal::UnknownChangefeed(changefeed.clone()),
            Refusal::ChangefeedExists(changefeed),
            Refusal::OtherDrain { target: capture.clone(), epoch: DrainEpoch(7) },
            Refusal::NoPeers(capture),
            Refusal::Mismatch("why".to_owned()),
            Refusal::Conflict("why".to_owned()),
        ] {
            assert_eq!(from_status(&to_status(&refusal)), Some(refusal));
        }
    }

    #[test]
    fn the_error_of_another_is_no_refusal() {
        assert_eq!(from_status(&Status::unavailable("connection refused")), None);
    }
}
