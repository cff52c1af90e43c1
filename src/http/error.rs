//! Errors as `TiCDC`'s API has them: `{"error_msg", "error_code"}`, with the facts beside.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use capturedrain_core::model::{NameError, Refusal, TooLong};

use crate::{view::ErrorView, wire::refusal};

/// A call that was not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HttpError {
    Refused(Refusal),
    BadRequest(String),
    /// A changefeed that could not be run: a stable word, and a sentence.
    CannotRun(&'static str, String),
    NoAnswer(String),
}

impl HttpError {
    pub(super) fn no_coordinator() -> Self {
        Self::Refused(Refusal::NotCoordinator { coordinator: None })
    }

    fn view(&self) -> (StatusCode, ErrorView) {
        let (status, code, message, refusal) = match self {
            Self::Refused(refusal) => (status(refusal), code(refusal), refusal.to_string(), Some(refusal)),
            Self::BadRequest(why) | Self::CannotRun(_, why) => {
                (StatusCode::BAD_REQUEST, "CDC:ErrAPIInvalidParam", why.clone(), None)
            }
            Self::NoAnswer(why) => (StatusCode::SERVICE_UNAVAILABLE, "CDC:ErrOwnerNotReady", why.clone(), None),
        };
        let facts = refusal.map(refusal::facts).unwrap_or_default();
        let view = ErrorView {
            error_msg: message,
            error_code: code.to_owned(),
            reason: match self {
                Self::CannotRun(reason, _) => (*reason).to_owned(),
                _ => refusal.map(Refusal::reason).unwrap_or_default().to_owned(),
            },
            facts: facts.into_iter().map(|(name, fact)| (name.to_owned(), fact)).collect(),
        };
        (status, view)
    }
}

fn status(refusal: &Refusal) -> StatusCode {
    match refusal {
        Refusal::NotCoordinator { .. } | Refusal::NotReady(_) => StatusCode::SERVICE_UNAVAILABLE,
        Refusal::UnknownCapture(_) | Refusal::UnknownChangefeed(_) => StatusCode::NOT_FOUND,
        Refusal::ChangefeedExists(_) | Refusal::NoPeers(_) => StatusCode::BAD_REQUEST,
        Refusal::OtherDrain { .. } | Refusal::Conflict(_) => StatusCode::CONFLICT,
        Refusal::Mismatch(_) => StatusCode::PRECONDITION_FAILED,
    }
}

fn code(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::NotCoordinator { .. } => "CDC:ErrNotOwner",
        Refusal::NotReady(_) => "CDC:ErrOwnerNotReady",
        Refusal::UnknownCapture(_) => "CDC:ErrCaptureNotExist",
        Refusal::UnknownChangefeed(_) => "CDC:ErrChangeFeedNotExists",
        Refusal::ChangefeedExists(_) => "CDC:ErrChangeFeedAlreadyExists",
        Refusal::OtherDrain { .. } => "CDC:ErrDrainCaptureInProgress",
        Refusal::NoPeers(_) => "CDC:ErrDrainCaptureNoPeers",
        Refusal::Mismatch(_) => "CDC:ErrDrainCaptureMismatch",
        Refusal::Conflict(_) => "CDC:ErrDrainCaptureConflict",
    }
}

impl From<Refusal> for HttpError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<NameError> for HttpError {
    fn from(error: NameError) -> Self {
        Self::BadRequest(error.to_string())
    }
}

impl From<TooLong> for HttpError {
    fn from(error: TooLong) -> Self {
        Self::BadRequest(error.to_string())
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let (status, view) = self.view();
        (status, Json(view)).into_response()
    }
}
