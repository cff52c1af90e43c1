//! Version 1 of the API, as tools for `TiCDC` expect it: tidb-operator and `TiUP` drain a capture by it.
//!
//! Their loop is: while the capture is the owner, have it resign; then ask for the drain each second until the count is
//! 0. They take any answer for "0" that they cannot read and that is neither 404 nor 503: so what will pass by itself is
//! always 503 here, and 0 is a proof.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use capturedrain_core::model::{Answer, CaptureId, DrainRequest, Refusal, Request, Snapshot};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    Hall, cluster,
    error::HttpError,
    extract::Body,
    openapi::{Bodied, Forwarded},
};
use crate::{
    tls::Caller,
    view::{CaptureBrief, ClusterCapture, ErrorView, ServerStatus, TableCount},
};

/// Who asks.
const REQUESTER: &str = "http v1";

/// List the captures
#[utoipa::path(
    get, path = "/api/v1/captures", tag = "v1", operation_id = "captures_v1",
    responses((status = 200, description = "those that are registered", body = [CaptureBrief]), Forwarded)
)]
pub(super) async fn captures(State(hall): State<Hall>) -> Json<Vec<CaptureBrief>> {
    let captures = ClusterCapture::all(&hall.door.snapshots.borrow(), &hall.door.cluster);
    Json(captures.into_iter().map(CaptureBrief::from).collect())
}

/// Which capture to empty. Anything but this field is passed over.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct Target {
    /// Its name.
    capture_id: String,
}

/// Empty a capture, or ask how far that is
#[utoipa::path(
    put, path = "/api/v1/captures/drain", tag = "v1", operation_id = "drain_v1", request_body = Target,
    responses(
        (status = 202, description = "0: proven empty, it may go; more: ask again", body = TableCount),
        (status = 400, description = "no such capture is registered, it is the only one, or the body makes no sense",
            body = ErrorView),
        (status = 503, description = "nobody coordinates or can take the work at the moment; ask again",
            body = ErrorView),
        Bodied,
    )
)]
pub(super) async fn drain(
    State(hall): State<Hall>,
    caller: Caller,
    Body(target): Body<Target>,
) -> Result<(StatusCode, Json<TableCount>), HttpError> {
    let capture = CaptureId::new(&target.capture_id)?;
    let request = DrainRequest::new(capture.clone(), caller.requester(REQUESTER));
    let answer = hall.door.ask(Request::Drain(request)).await;
    let snapshot = hall.door.snapshots.borrow().clone();
    let current_table_count = count(answer, &capture, &snapshot)?;
    Ok((StatusCode::ACCEPTED, Json(TableCount { current_table_count })))
}

/// How many dispatchers are left: 0 on proof only.
fn count(answer: Result<Answer, Refusal>, capture: &CaptureId, snapshot: &Snapshot) -> Result<u64, HttpError> {
    match answer {
        Ok(Answer::Drained { .. }) => Ok(0),
        Ok(Answer::Draining { current, .. }) => Ok(current.map_or(1, |work| work.dispatchers).max(1)),
        Ok(Answer::DryRun { .. } | Answer::Done) => Ok(1),
        // Another's: there is no error for that in `TiCDC`, this one waits its turn.
        Err(Refusal::OtherDrain { .. }) => {
            let work = snapshot.captures.get(capture).and_then(|status| status.work);
            Ok(work.map_or(1, |work| work.dispatchers).max(1))
        }
        Err(refusal @ Refusal::UnknownCapture(_)) => {
            Err(HttpError::Other(StatusCode::BAD_REQUEST, "CDC:ErrCaptureNotExist", refusal.to_string()))
        }
        Err(refusal @ Refusal::NoPeers(_)) if snapshot.captures.len() <= 1 => {
            Err(HttpError::Other(StatusCode::BAD_REQUEST, "CDC:ErrSchedulerRequestFailed", refusal.to_string()))
        }
        // There are others, who drain or stop: not for ever.
        Err(refusal @ Refusal::NoPeers(_)) => {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            Err(HttpError::Other(status, "CDC:ErrDrainCaptureNoPeers", refusal.to_string()))
        }
        Err(refusal) => Err(refusal.into()),
    }
}

/// Have the coordinator give up its office for a lease period
#[utoipa::path(
    post, path = "/api/v1/owner/resign", tag = "v1", operation_id = "resign_v1",
    responses((status = 202, description = "it has"), Forwarded)
)]
pub(super) async fn resign(State(hall): State<Hall>) -> Result<StatusCode, HttpError> {
    hall.door.ask(Request::Resign).await?;
    Ok(StatusCode::ACCEPTED)
}

/// Say whether somebody coordinates, and every registered capture has answered him
#[utoipa::path(
    get, path = "/api/v1/health", tag = "v1", operation_id = "health_v1",
    responses(
        (status = 200, description = "so it is"),
        (status = 500, description = "nobody coordinates, or not every registered capture has answered yet",
            body = ErrorView),
    )
)]
pub(super) async fn health(State(hall): State<Hall>) -> Result<StatusCode, HttpError> {
    if cluster::is_healthy(&hall.door.snapshots.borrow()) { Ok(StatusCode::OK) } else { Err(HttpError::unhealthy()) }
}

/// tidb-operator takes every status but 500 for healthy.
pub(super) async fn unhealthy_is_500(mut response: Response) -> Response {
    if response.status() == StatusCode::SERVICE_UNAVAILABLE {
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    }
    response.into_response()
}

/// Say what this capture is
#[utoipa::path(
    get, path = "/api/v1/status", tag = "v1", operation_id = "status_v1",
    responses((status = 200, description = "this capture itself, whoever coordinates", body = ServerStatus))
)]
pub(super) async fn status(State(hall): State<Hall>) -> Json<ServerStatus> {
    Json(cluster::own_status(&hall))
}

/// Say what this capture is
#[utoipa::path(
    get, path = "/status", tag = "v1", operation_id = "status_v0",
    responses((status = 200, description = "this capture itself, whoever coordinates", body = ServerStatus))
)]
pub(super) async fn oldest_status(State(hall): State<Hall>) -> Json<ServerStatus> {
    Json(cluster::own_status(&hall))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use capturedrain_core::model::{DrainEpoch, WorkCount};

    use super::*;

    #[test]
    fn nothing_but_a_proof_is_0() {
        let capture = CaptureId::new("b").unwrap();
        let epoch = DrainEpoch(1);
        let check = |answer: Result<Answer, Refusal>, expected: u64| {
            assert_eq!(count(answer.clone(), &capture, &Snapshot::default()), Ok(expected), "{answer:?}");
        };
        let work = |dispatchers| Some(WorkCount { maintainers: 2, dispatchers });
        check(Ok(Answer::Drained { epoch }), 0);
        check(Ok(Answer::Draining { epoch, current: None }), 1);
        check(Ok(Answer::Draining { epoch, current: work(0) }), 1);
        check(Ok(Answer::Draining { epoch, current: work(7) }), 7);
        check(Ok(Answer::Done), 1);
        check(Err(Refusal::OtherDrain { target: capture.clone(), epoch }), 1);
    }

    #[test]
    fn what_passes_by_itself_is_503() {
        let capture = CaptureId::new("b").unwrap();
        let check = |refusal: Refusal, expected: u16| {
            let refused = count(Err(refusal), &capture, &Snapshot::default()).unwrap_err();
            assert_eq!(refused.into_response().status().as_u16(), expected);
        };
        check(Refusal::NotCoordinator { coordinator: None }, 503);
        check(Refusal::NotReady(String::new()), 503);
        check(Refusal::UnknownCapture(capture.clone()), 400);
        check(Refusal::NoPeers(capture.clone()), 400);
    }
}
