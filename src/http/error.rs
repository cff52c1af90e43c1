//! Errors as `TiCDC`'s API has them: `{"error_msg", "error_code"}`, with the facts beside.

use axum::{
    Json,
    extract::rejection::BytesRejection,
    http::{Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use capturedrain_core::model::{NameError, Refusal, TooLong};

use crate::{view::ErrorView, wire::refusal};

/// The code of what makes no sense.
const INVALID: &str = "CDC:ErrAPIInvalidParam";

/// A call that was not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HttpError {
    Refused(Refusal),
    BadRequest(String),
    /// A changefeed that could not be run: a stable word, and a sentence.
    CannotRun(&'static str, String),
    NoAnswer(String),
    /// Any other: its status, its code, and a sentence.
    Other(StatusCode, &'static str, String),
}

impl HttpError {
    pub(super) fn no_coordinator() -> Self {
        Self::Refused(Refusal::NotCoordinator { coordinator: None })
    }

    /// Somebody coordinates, and not everybody has answered.
    pub(super) fn unhealthy() -> Self {
        let why = "not every registered capture has answered the coordinator yet".to_owned();
        Self::Other(StatusCode::INTERNAL_SERVER_ERROR, "CDC:ErrClusterIsUnhealthy", why)
    }

    /// A body that is of another kind than JSON.
    pub(super) fn media_type(kind: &str) -> Self {
        let why = format!("a body of \"{kind}\" is not understood: send application/json");
        Self::Other(StatusCode::UNSUPPORTED_MEDIA_TYPE, "CDC:ErrAPIUnsupportedMediaType", why)
    }

    fn view(&self) -> (StatusCode, ErrorView) {
        let (status, code, message, refusal) = match self {
            Self::Refused(refusal) => (status(refusal), code(refusal), refusal.to_string(), Some(refusal)),
            Self::BadRequest(why) | Self::CannotRun(_, why) => (StatusCode::BAD_REQUEST, INVALID, why.clone(), None),
            Self::NoAnswer(why) => (StatusCode::SERVICE_UNAVAILABLE, "CDC:ErrOwnerNotReady", why.clone(), None),
            Self::Other(status, code, why) => (*status, *code, why.clone(), None),
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

/// A path that nobody serves.
pub(super) async fn unknown_path(uri: Uri) -> HttpError {
    let why = format!("there is no {}; see /api/openapi.json for what there is", uri.path());
    HttpError::Other(StatusCode::NOT_FOUND, "CDC:ErrAPINotFound", why)
}

/// A path that is served, though not so. The router says in `Allow` how.
pub(super) async fn wrong_method(method: Method, uri: Uri) -> HttpError {
    let why = format!("{method} is not a method of {}; its Allow header names those that are", uri.path());
    HttpError::Other(StatusCode::METHOD_NOT_ALLOWED, "CDC:ErrAPIMethodNotAllowed", why)
}

fn status(refusal: &Refusal) -> StatusCode {
    match refusal {
        Refusal::NotCoordinator { .. } | Refusal::NotReady(_) => StatusCode::SERVICE_UNAVAILABLE,
        Refusal::UnknownCapture(_) => StatusCode::NOT_FOUND,
        // An unknown changefeed as `TiCDC` has it, whose tools take a 404 for an API that is not there.
        Refusal::UnknownChangefeed(_) | Refusal::ChangefeedExists(_) | Refusal::NoPeers(_) => StatusCode::BAD_REQUEST,
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

impl From<BytesRejection> for HttpError {
    fn from(rejection: BytesRejection) -> Self {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            let why = format!("the body is longer than {} bytes", super::BODY_MAX_BYTES);
            return Self::Other(StatusCode::PAYLOAD_TOO_LARGE, "CDC:ErrAPIBodyTooLarge", why);
        }
        Self::BadRequest(format!("the body cannot be read: {}", rejection.body_text()))
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let (status, view) = self.view();
        (status, Json(view)).into_response()
    }
}
