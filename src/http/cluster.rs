//! Who is there, who coordinates, and this capture itself: version 2 of the API, and the probes.

use axum::{Json, extract::State, http::StatusCode};
use capturedrain_core::model::{Request, Snapshot};

use super::{Hall, error::HttpError, openapi::Forwarded};
use crate::view::{ClusterCapture, Empty, ErrorView, List, ServerStatus};

/// List the captures
#[utoipa::path(
    get, path = "/api/v2/captures", tag = "captures", operation_id = "list_captures",
    responses((status = 200, description = "those that are registered", body = List<ClusterCapture>), Forwarded)
)]
pub(super) async fn captures(State(hall): State<Hall>) -> Json<List<ClusterCapture>> {
    Json(ClusterCapture::all(&hall.door.snapshots.borrow(), &hall.door.cluster).into())
}

/// Have the coordinator give up its office for a lease period
#[utoipa::path(
    post, path = "/api/v2/owner/resign", tag = "captures", operation_id = "resign_owner",
    responses((status = 200, description = "it has", body = Empty), Forwarded)
)]
pub(super) async fn resign(State(hall): State<Hall>) -> Result<Json<Empty>, HttpError> {
    hall.door.ask(Request::Resign).await?;
    Ok(Json(Empty {}))
}

/// Say whether somebody coordinates, and every registered capture has answered him
#[utoipa::path(
    get, path = "/api/v2/health", tag = "captures", operation_id = "cluster_health",
    responses(
        (status = 200, description = "so it is", body = Empty),
        (status = 500, description = "not every registered capture has answered yet", body = ErrorView),
        Forwarded,
    )
)]
pub(super) async fn health(State(hall): State<Hall>) -> Result<Json<Empty>, HttpError> {
    if is_healthy(&hall.door.snapshots.borrow()) { Ok(Json(Empty {})) } else { Err(HttpError::unhealthy()) }
}

/// Whether a coordinator has an answer of every registered capture.
pub(super) fn is_healthy(snapshot: &Snapshot) -> bool {
    snapshot.is_coordinator && snapshot.captures.values().all(|capture| capture.work.is_some())
}

/// Say what this capture is
#[utoipa::path(
    get, path = "/api/v2/status", tag = "captures", operation_id = "server_status",
    responses((status = 200, description = "this capture itself, whoever coordinates", body = ServerStatus))
)]
pub(super) async fn status(State(hall): State<Hall>) -> Json<ServerStatus> {
    Json(own_status(&hall))
}

pub(super) fn own_status(hall: &Hall) -> ServerStatus {
    ServerStatus::of(&hall.door.snapshots.borrow(), hall.door.capture.as_str(), &hall.door.cluster)
}

/// Say that this process answers
#[utoipa::path(
    get, path = "/healthz", tag = "probes", operation_id = "is_alive",
    responses((status = 200, description = "it does", body = String, content_type = "text/plain"))
)]
pub(super) async fn alive() -> &'static str {
    "ok\n"
}

/// Say whether this capture may be sent work: registered, up to date with the drain state, and not `Stopping`
#[utoipa::path(
    get, path = "/readyz", tag = "probes", operation_id = "is_ready",
    responses(
        (status = 200, description = "it may", body = String, content_type = "text/plain"),
        (status = 503, description = "it may not", body = String, content_type = "text/plain"),
    )
)]
pub(super) async fn ready(State(hall): State<Hall>) -> (StatusCode, &'static str) {
    if hall.door.snapshots.borrow().ready {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}
