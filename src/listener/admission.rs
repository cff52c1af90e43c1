//! Who may make which call, and how long it may take: asked for each call, before any door sees it.
//!
//! What is not named here is for those with a role: a door that is new is closed to strangers.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Json,
    body::{Body, Bytes, HttpBody},
    extract::{Extension, Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use axum_server::tls::TlsInfo;
use futures::StreamExt as _;
use http_body::{Frame, SizeHint};
use percent_encoding::percent_decode_str;
use tokio::time;
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{
    Limits,
    seats::{Open, Seat},
};
use crate::{
    http::BODY_MAX_BYTES,
    tls::{Caller, REQUESTER_HEADER, Role},
    view::ErrorView,
    wire::refusal::DOMAIN,
};

/// How much of a body that is too long is read for politeness, and how long: a client that still sends would not see why
/// it is refused.
const LINGER_MAX_BYTES: usize = 16 << 20;
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

/// What is known at the entrance.
#[derive(Debug, Clone)]
pub(super) struct Porter {
    /// Whether callers are asked for a certificate.
    pub(super) mutual: bool,
    pub(super) limits: Limits,
}

/// For whom a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Audience {
    /// Probes.
    Everybody,
    /// Callers, and captures that ask for themselves or pass a call on.
    Callers,
    /// The protocol between captures, and what the hook of a capture's own pod asks.
    Captures,
}

impl Audience {
    fn of(path: &str) -> Self {
        match path {
            "/healthz" | "/readyz" => Self::Everybody,
            path if path.starts_with("/grpc.health.v1.Health/") => Self::Everybody,
            path if path.starts_with("/capturedrain.v1.CaptureService/") => Self::Captures,
            path if path.starts_with("/capturedrain.v1.HookService/") => Self::Captures,
            _ => Self::Callers,
        }
    }

    fn admits(self, caller: &Caller) -> Result<(), Refused> {
        match (self, caller) {
            (Self::Everybody, _)
            | (_, Caller::Anyone | Caller::Known { role: Some(Role::Capture), .. })
            | (Self::Callers, Caller::Known { role: Some(Role::Client), .. }) => Ok(()),
            (_, Caller::Stranger) => Err(Refused::Stranger),
            (_, Caller::Known { name, .. }) => Err(Refused::Role { name: name.clone(), asked: self }),
        }
    }
}

/// How a refusal is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Language {
    Grpc,
    Http,
    /// Tools of `TiCDC` take everything but 404 and 503 for a capture that is drained.
    DrainV1,
}

impl Language {
    fn of(path: &str) -> Self {
        match path {
            "/api/v1/captures/drain" => Self::DrainV1,
            path if path.starts_with("/capturedrain.v1.") || path.starts_with("/grpc.") => Self::Grpc,
            _ => Self::Http,
        }
    }
}

/// Why a call goes no further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error("this call is for those with a certificate: give --tls-cert and --tls-key")]
    Stranger,
    #[error(
        "{name} may not make this call: the certificate has to have the URI {uri}",
        uri = if *asked == Audience::Captures { Role::Capture.uri() } else { Role::Client.uri() }
    )]
    Role { name: Arc<str>, asked: Audience },
    #[error("the body is longer than {BODY_MAX_BYTES} bytes")]
    TooLong,
    #[error("the body did not come within {} s", .0.as_secs_f32())]
    SlowBody(Duration),
    #[error("the body did not come whole")]
    BrokenBody,
    #[error("the call took longer than {} s", .0.as_secs_f32())]
    SlowCall(Duration),
    #[error("this port speaks TLS: use https://")]
    SpeakTls,
}

impl Refused {
    /// A stable word.
    fn reason(&self) -> &'static str {
        match self {
            Self::Stranger => "UNAUTHENTICATED",
            Self::Role { .. } => "PERMISSION_DENIED",
            Self::TooLong => "BODY_TOO_LONG",
            Self::SlowBody(_) | Self::SlowCall(_) => "TIMEOUT",
            Self::BrokenBody => "BROKEN_BODY",
            Self::SpeakTls => "TLS_REQUIRED",
        }
    }

    fn http(&self) -> (StatusCode, ErrorView) {
        let (status, code) = match self {
            Self::Stranger => (StatusCode::UNAUTHORIZED, "CDC:ErrUnauthorized"),
            Self::Role { .. } => (StatusCode::FORBIDDEN, "CDC:ErrUnauthorized"),
            Self::TooLong => (StatusCode::PAYLOAD_TOO_LARGE, "CDC:ErrAPIBodyTooLarge"),
            Self::SlowBody(_) => (StatusCode::REQUEST_TIMEOUT, "CDC:ErrAPIInvalidParam"),
            Self::BrokenBody | Self::SpeakTls => (StatusCode::BAD_REQUEST, "CDC:ErrAPIInvalidParam"),
            Self::SlowCall(_) => (StatusCode::SERVICE_UNAVAILABLE, "CDC:ErrOwnerNotReady"),
        };
        let view = ErrorView {
            error_msg: self.to_string(),
            error_code: code.to_owned(),
            reason: self.reason().to_owned(),
            facts: BTreeMap::default(),
        };
        (status, view)
    }

    fn grpc(&self) -> Status {
        let code = match self {
            Self::Stranger => tonic::Code::Unauthenticated,
            Self::Role { .. } => tonic::Code::PermissionDenied,
            Self::SlowBody(_) | Self::SlowCall(_) => tonic::Code::DeadlineExceeded,
            Self::TooLong | Self::BrokenBody | Self::SpeakTls => tonic::Code::InvalidArgument,
        };
        let details = ErrorDetails::with_error_info(self.reason(), DOMAIN, std::collections::HashMap::new());
        Status::with_error_details(code, self.to_string(), details)
    }

    fn answer(&self, language: Language) -> Response {
        let (status, view) = match (language, self) {
            (Language::Grpc, _) => return self.grpc().into_http(),
            (Language::DrainV1, Self::Stranger | Self::Role { .. } | Self::SlowBody(_)) => {
                (StatusCode::SERVICE_UNAVAILABLE, self.http().1)
            }
            _ => self.http(),
        };
        let mut response = (status, Json(view)).into_response();
        if matches!(self, Self::TooLong | Self::SlowBody(_)) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// What somebody is told, in the clear, who does not speak TLS where he has to.
pub(super) fn speak_tls() -> String {
    let (status, view) = Refused::SpeakTls.http();
    let body = serde_json::to_string(&view).unwrap_or_default();
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

/// Lets a call pass, or answers it here.
pub(super) async fn admit(
    State(porter): State<Porter>,
    Extension(seat): Extension<Arc<Seat>>,
    mut request: Request,
    next: Next,
) -> Response {
    let open = seat.open();
    let path = request.uri().path();
    let audience = Audience::of(path);
    let language = Language::of(path);
    // The only calls that are answered when the caller ends them.
    let is_endless = path.starts_with("/capturedrain.v1.CaptureService/");
    let tls = request.extensions().get::<Arc<TlsInfo>>().cloned();
    let caller = seat.caller(porter.mutual, tls.as_ref()).clone();
    if let Err(refused) = audience.admits(&caller) {
        tracing::debug!(?caller, path, reason = refused.reason(), "call is refused");
        return refused.answer(language);
    }
    if audience != Audience::Everybody {
        seat.welcome();
    }
    let caller = passed_on(caller, &request);
    audit(&caller, &request, language);
    request.extensions_mut().insert(caller);
    let limits = &porter.limits;
    let request = if language == Language::Grpc {
        request
    } else {
        match whole(request, limits.body).await {
            Ok(request) => request,
            Err(refused) => return refused.answer(language),
        }
    };
    let answering = next.run(request);
    let response = if is_endless {
        answering.await
    } else {
        match time::timeout(limits.call, answering).await {
            Ok(response) => response,
            Err(_) => return Refused::SlowCall(limits.call).answer(language),
        }
    };
    response.map(|body| Body::new(Counted { body, _open: open }))
}

/// The caller for whom a capture passes a call on.
fn passed_on(caller: Caller, request: &Request) -> Caller {
    let name = request.headers().get(REQUESTER_HEADER).and_then(|name| name.to_str().ok());
    match name {
        Some(name) => caller.on_behalf_of(&percent_decode_str(name).decode_utf8_lossy()),
        None => caller,
    }
}

/// Logs who changes something. Starts of drains are left to the coordinator: they are asked for again and again.
fn audit(caller: &Caller, request: &Request, language: Language) {
    let path = request.uri().path();
    let changes = if language == Language::Grpc {
        path.ends_with("/CancelDrain") || path.ends_with("/ReleaseCapture")
    } else {
        !request.method().is_safe() && !path.ends_with("/drain")
    };
    if let Some(requester) = caller.name().filter(|_| changes) {
        tracing::info!(requester, method = %request.method(), path, "call that changes something");
    }
}

/// The request with all of its body.
async fn whole(request: Request, timeout: Duration) -> Result<Request, Refused> {
    let (parts, body) = request.into_parts();
    if body.size_hint().lower() > BODY_MAX_BYTES as u64 {
        tokio::spawn(linger(body));
        return Err(Refused::TooLong);
    }
    let mut chunks = body.into_data_stream();
    let mut read = Vec::new();
    let reading = async {
        while let Some(chunk) = chunks.next().await {
            let chunk: Bytes = chunk.map_err(|_| Refused::BrokenBody)?;
            if read.len() + chunk.len() > BODY_MAX_BYTES {
                return Err(Refused::TooLong);
            }
            read.extend_from_slice(&chunk);
        }
        Ok(())
    };
    match time::timeout(timeout, reading).await {
        Ok(Ok(())) => Ok(Request::from_parts(parts, Body::from(read))),
        Ok(Err(Refused::TooLong)) => {
            tokio::spawn(linger(Body::from_stream(chunks)));
            Err(Refused::TooLong)
        }
        Ok(Err(refused)) => Err(refused),
        Err(_) => Err(Refused::SlowBody(timeout)),
    }
}

/// Reads on for a moment.
async fn linger(body: Body) {
    // Nothing is made of it, whatever comes.
    let _ = time::timeout(LINGER_TIMEOUT, async {
        let mut chunks = body.into_data_stream();
        let mut read = 0;
        while let Some(Ok(chunk)) = chunks.next().await {
            read += chunk.len();
            if read > LINGER_MAX_BYTES {
                return;
            }
        }
    })
    .await;
}

/// The body of an answer, which keeps its call open.
struct Counted {
    body: Body,
    _open: Open,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(role: Option<Role>) -> Caller {
        Caller::Known { name: "anna".into(), role }
    }

    #[test]
    fn each_path_has_its_audience_and_new_ones_are_closed_to_strangers() {
        let check = |path: &str, anyone, stranger, nothing, client, capture| {
            let may = |caller: &Caller| Audience::of(path).admits(caller).is_ok();
            let found = (
                may(&Caller::Anyone),
                may(&Caller::Stranger),
                may(&known(None)),
                may(&known(Some(Role::Client))),
                may(&known(Some(Role::Capture))),
            );
            assert_eq!(found, (anyone, stranger, nothing, client, capture), "{path}");
        };
        for open in ["/healthz", "/readyz", "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"] {
            check(open, true, true, true, true, true);
        }
        for closed in [
            "/",
            "/metrics",
            "/healthz/",
            "/api/v2/health",
            "/api/v2/captures",
            "/api/v1/captures/drain",
            "/capturedrain.v1.DrainService/ListCaptures",
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "/what/comes/next",
        ] {
            check(closed, true, false, false, true, true);
        }
        for inner in ["CaptureService/Deliver", "HookService/ProveDrained", "HookService/ReportHook"] {
            check(&format!("/capturedrain.v1.{inner}"), true, false, false, false, true);
        }
    }

    #[test]
    fn no_refusal_is_taken_for_a_drained_capture() {
        let role = Refused::Role { name: "anna".into(), asked: Audience::Callers };
        for refused in [Refused::Stranger, role, Refused::SlowBody(Duration::ZERO), Refused::SlowCall(Duration::ZERO)] {
            let answer = refused.answer(Language::of("/api/v1/captures/drain"));
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{refused:?}");
        }
        let answer = Refused::Stranger.answer(Language::of("/api/v2/captures/a/drain"));
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    }

    #[test]
    fn refusals_name_what_is_missing() {
        let client = known(Some(Role::Client));
        let refused = Audience::Captures.admits(&client);
        assert_eq!(refused, Err(Refused::Role { name: "anna".into(), asked: Audience::Captures }));
        let sentence = refused.map_err(|refused| refused.to_string());
        assert!(sentence.as_ref().is_err_and(|sentence| sentence.contains("capturedrain://capture")), "{sentence:?}");
    }
}
