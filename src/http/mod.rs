//! The HTTP door, thin: decode → hand over → encode. A capture that does not coordinate forwards to the one that does.

mod changefeed;
mod drain;
mod error;
mod forward;
mod metrics;

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
    middleware,
    routing::{get, post, put},
};
use capturedrain_core::model::{ChangefeedConfig, CommitTs, Request};
use futures::future::BoxFuture;
use serde_json::{Value, json};

use self::error::HttpError;
use crate::{
    door::Door,
    view::{CaptureView, DrainEndView},
};

/// Longest body of a request, in bytes.
const BODY_MAX_BYTES: usize = 64 << 10;

/// Why a changefeed could not be run: a stable word, and a sentence.
pub type ProbeError = (&'static str, String);

/// Looks whether a changefeed could be run from here: from which commit timestamp, and what a person should know.
pub type Probe = Arc<
    dyn Fn(ChangefeedConfig, Option<CommitTs>) -> BoxFuture<'static, Result<(CommitTs, Vec<String>), ProbeError>>
        + Send
        + Sync,
>;

/// What the handlers need.
#[derive(Clone)]
struct Hall {
    door: Door,
    probe: Probe,
    client: reqwest::Client,
}

/// The HTTP API of a capture.
pub fn router(door: Door, probe: Probe) -> Router {
    let hall = Hall { door, probe, client: reqwest::Client::new() };
    // What only the coordinator knows or does.
    let coordinator = Router::new()
        .route("/api/v2/captures", get(captures))
        .route("/api/v2/captures/{id}/drain", put(drain::start).get(drain::show).delete(drain::cancel))
        .route("/api/v2/drains", get(history))
        .route("/api/v2/owner/resign", post(resign))
        .route("/api/v2/changefeeds", post(changefeed::create).get(changefeed::list))
        .route("/api/v2/changefeeds/{id}", get(changefeed::get).delete(changefeed::delete))
        .route("/api/v2/changefeeds/{id}/pause", post(changefeed::pause))
        .route("/api/v2/changefeeds/{id}/resume", post(changefeed::resume))
        .layer(middleware::from_fn_with_state(hall.clone(), forward::to_coordinator));
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics::show))
        .route("/api/v2/health", get(health))
        .route("/api/v2/status", get(status))
        .merge(coordinator)
        .layer(DefaultBodyLimit::max(BODY_MAX_BYTES))
        .with_state(hall)
}

async fn ready(State(hall): State<Hall>) -> (StatusCode, &'static str) {
    if hall.door.snapshots.borrow().ready {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

/// As `TiCDC` has it: whether the cluster has somebody who decides.
async fn health(State(hall): State<Hall>) -> Result<Json<Value>, HttpError> {
    let coordinated = hall.door.snapshots.borrow().coordinator.is_some();
    if coordinated { Ok(Json(json!({}))) } else { Err(HttpError::no_coordinator()) }
}

async fn status(State(hall): State<Hall>) -> Json<Value> {
    let snapshot = hall.door.snapshots.borrow().clone();
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "id": hall.door.capture.as_str(),
        "pid": std::process::id(),
        "is_owner": snapshot.is_coordinator,
        "liveness": snapshot.liveness.map(crate::view::liveness_name),
        "node_epoch": snapshot.me.as_ref().map(|me| me.node_epoch.to_string()),
    }))
}

async fn captures(State(hall): State<Hall>) -> Json<Vec<CaptureView>> {
    Json(CaptureView::all(&hall.door.snapshots.borrow()))
}

async fn history(State(hall): State<Hall>) -> Json<Vec<DrainEndView>> {
    Json(hall.door.snapshots.borrow().history.iter().map(DrainEndView::of).collect())
}

async fn resign(State(hall): State<Hall>) -> Result<Json<Value>, HttpError> {
    hall.door.ask(Request::Resign).await?;
    Ok(Json(json!({})))
}
