//! A call that only the coordinator can answer goes there.

use std::time::Duration;

use axum::{
    body::{self, Body},
    extract::{Request, State},
    http::{HeaderValue, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{BODY_MAX_BYTES, Hall, error::HttpError};
use crate::tls::{Caller, REQUESTER_HEADER, distrust};

/// Marks a call that was forwarded once: captures that disagree on who coordinates do not send it round in circles.
const FORWARDED: &str = "capturedrain-forwarded";
/// How long the coordinator may take.
const TIMEOUT: Duration = Duration::from_secs(20);

pub(super) async fn to_coordinator(State(hall): State<Hall>, request: Request, next: Next) -> Response {
    let (is_coordinator, coordinator) = {
        let snapshot = hall.door.snapshots.borrow();
        (snapshot.is_coordinator, snapshot.coordinator.clone())
    };
    if is_coordinator {
        return next.run(request).await;
    }
    let forwarded = request.headers().contains_key(FORWARDED);
    match coordinator.filter(|(id, _)| *id != hall.door.capture && !forwarded) {
        Some((_, addr)) => send(&hall, &addr, request).await.unwrap_or_else(HttpError::into_response),
        None => HttpError::no_coordinator().into_response(),
    }
}

async fn send(hall: &Hall, addr: &str, request: Request) -> Result<Response, HttpError> {
    let (parts, sent) = request.into_parts();
    let sent = body::to_bytes(sent, BODY_MAX_BYTES).await;
    let sent = sent.map_err(|_| HttpError::BadRequest(format!("the body is longer than {BODY_MAX_BYTES} bytes")))?;
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut call = hall.dialer.http().request(parts.method, hall.dialer.url(addr, path)).timeout(TIMEOUT).body(sent);
    // For the coordinator this capture is the caller, so it says for whom it calls.
    if let Some(name) = parts.extensions.get::<Caller>().and_then(Caller::name) {
        call = call.header(REQUESTER_HEADER, utf8_percent_encode(name, NON_ALPHANUMERIC).to_string());
    }
    if let Some(kind) = parts.headers.get(header::CONTENT_TYPE) {
        call = call.header(header::CONTENT_TYPE, kind);
    }
    let no_answer = |error: reqwest::Error| {
        let error = error.without_url();
        let why = distrust(&error).map_or_else(|| error.to_string(), |why| why.to_string());
        HttpError::NoAnswer(format!("the coordinator at {addr} does not answer: {why}"))
    };
    let answer = call.header(FORWARDED, HeaderValue::from_static("1")).send().await.map_err(no_answer)?;
    let (status, kind) = (answer.status(), answer.headers().get(header::CONTENT_TYPE).cloned());
    let mut response = Response::new(Body::from(answer.bytes().await.map_err(no_answer)?));
    *response.status_mut() = status;
    if let Some(kind) = kind {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    Ok(response)
}
