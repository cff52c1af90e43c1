//! `/api/v2/captures/{id}/drain`

use axum::{
    Json,
    extract::{Path, Query, State},
    http::StatusCode,
};
use capturedrain_core::model::{Answer, CaptureId, DrainEpoch, DrainRequest, Liveness, Request, check_requester};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Hall, error::HttpError};
use crate::{
    clock::wall,
    view::{DrainAccepted, DrainView},
};

/// Who asks, when the caller does not say.
const REQUESTER: &str = "http";

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct StartQuery {
    dry_run: bool,
    drain_epoch: Option<u64>,
    pod_uid: Option<String>,
    deadline_ms: Option<u64>,
    requester: Option<String>,
    reason: Option<String>,
}

pub(super) async fn start(
    State(hall): State<Hall>,
    Path(id): Path<String>,
    Query(query): Query<StartQuery>,
) -> Result<(StatusCode, Json<DrainAccepted>), HttpError> {
    let requester = query.requester.unwrap_or_else(|| REQUESTER.to_owned());
    let mut request = DrainRequest::new(CaptureId::new(&id)?, requester);
    request.dry_run = query.dry_run;
    request.epoch = query.drain_epoch.map(DrainEpoch);
    request.pod_uid = query.pod_uid.map(Into::into);
    request.deadline_ms = query.deadline_ms;
    request.reason = query.reason.unwrap_or_default();
    request.check()?;
    let answer = hall.door.ask(Request::Drain(request)).await?;
    let status = match answer {
        Answer::Draining { .. } => StatusCode::ACCEPTED,
        Answer::Drained { .. } | Answer::DryRun { .. } | Answer::Done => StatusCode::OK,
    };
    Ok((status, Json(DrainAccepted::of(&answer))))
}

pub(super) async fn show(State(hall): State<Hall>, Path(id): Path<String>) -> Result<Json<DrainView>, HttpError> {
    let capture = CaptureId::new(&id)?;
    let snapshot = hall.door.snapshots.borrow().clone();
    let Some(status) = snapshot.captures.get(&capture) else {
        return Err(capturedrain_core::model::Refusal::UnknownCapture(capture).into());
    };
    let view = DrainView::of(&snapshot, wall());
    let liveness = Some(crate::view::liveness_name(status.liveness).to_owned());
    // `Stopping` follows from a proof that nothing is left, and from nothing else.
    let left = (status.liveness == Liveness::Stopping).then_some(0);
    if view.draining_capture_id.as_deref() == Some(capture.as_str()) {
        return Ok(Json(view));
    }
    // Another's drain says nothing of this capture.
    let epoch = snapshot.last_epoch.0;
    Ok(Json(DrainView {
        drain_epoch: epoch,
        liveness,
        remaining_maintainer_count: left,
        remaining_dispatcher_count: left,
        ..DrainView::default()
    }))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct CancelQuery {
    drain_epoch: Option<u64>,
    requester: Option<String>,
}

pub(super) async fn cancel(
    State(hall): State<Hall>,
    Path(id): Path<String>,
    Query(query): Query<CancelQuery>,
) -> Result<Json<Value>, HttpError> {
    let requester = query.requester.unwrap_or_else(|| REQUESTER.to_owned());
    check_requester(&requester)?;
    let epoch = query.drain_epoch.map(DrainEpoch);
    hall.door.ask(Request::Cancel { capture: CaptureId::new(&id)?, epoch, requester }).await?;
    Ok(Json(json!({})))
}
