//! A call that only the coordinator can answer goes there.

use std::time::Duration;

use axum::{
    body::{self, Body},
    extract::{Request, State},
    http::{HeaderValue, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};

use super::{BODY_MAX_BYTES, Hall, error::HttpError};

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
    let mut call = hall.client.request(parts.method, format!("http://{addr}{path}")).timeout(TIMEOUT).body(sent);
    if let Some(kind) = parts.headers.get(header::CONTENT_TYPE) {
        call = call.header(header::CONTENT_TYPE, kind);
    }
    let no_answer = |error: reqwest::Error| {
        HttpError::NoAnswer(format!("the coordinator at {addr} does not answer: {}", error.without_url()))
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
