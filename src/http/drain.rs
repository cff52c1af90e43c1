//! `/api/v2/captures/{id}/drain`, and how earlier drains ended.

#![allow(unused_qualifications, reason = "in what becomes of `params(…)`")]

use axum::{Json, extract::State, http::StatusCode};
use capturedrain_core::model::{
    Answer, CaptureId, DrainEpoch, DrainRequest, Liveness, Refusal, Request, WorkCount, check_requester,
};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    Hall,
    error::HttpError,
    extract::{Name, Params},
    openapi::{Forwarded, Malformed},
};
use crate::{
    clock::wall,
    tls::Caller,
    view::{DrainAccepted, DrainEndView, DrainView, Empty, ErrorView, List, liveness_name},
};

/// Who asks, when the caller does not say.
const REQUESTER: &str = "http";

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct StartQuery {
    /// Only say what would move, and to whom.
    dry_run: bool,
    /// The drain that the caller believes to be on.
    drain_epoch: Option<u64>,
    /// The registration that the caller means.
    node_epoch: Option<String>,
    /// The pod that the caller means.
    pod_uid: Option<String>,
    /// How long it may take, in milliseconds; after that it is stalled.
    deadline_ms: Option<u64>,
    /// Who asks.
    requester: Option<String>,
    /// Why, for the history.
    reason: Option<String>,
}

impl StartQuery {
    fn request(self, id: &str, caller: &Caller) -> Result<DrainRequest, HttpError> {
        let requester = caller.requester(self.requester.as_deref().unwrap_or(REQUESTER));
        let mut request = DrainRequest::new(CaptureId::new(id)?, requester);
        let node_epoch = self.node_epoch.map(|epoch| epoch.parse()).transpose();
        request.node_epoch =
            node_epoch.map_err(|_| HttpError::BadRequest("node_epoch has to be 16 hexadecimal digits".to_owned()))?;
        request.dry_run = self.dry_run;
        request.epoch = self.drain_epoch.map(DrainEpoch);
        request.pod_uid = self.pod_uid.map(Into::into);
        request.deadline_ms = self.deadline_ms;
        request.reason = self.reason.unwrap_or_default();
        request.check()?;
        Ok(request)
    }
}

/// Empty a capture, or ask how far that is
///
/// The same call again answers the same drain with its current counts. 200 is the proof that nothing is left, and
/// nothing else is.
#[utoipa::path(
    put, path = "/api/v2/captures/{id}/drain", tag = "drains", operation_id = "drain_capture",
    params(("id" = String, Path, description = "the capture"), StartQuery),
    responses(
        (status = 200, description = "proven empty: the capture is `Stopping` and may go", body = DrainAccepted),
        (status = 202, description = "the drain is on, persisted; or what a dry run found", body = DrainAccepted),
        (status = 400, description = "there is no other live capture, or the name or the query makes no sense",
            body = ErrorView),
        (status = 404, description = "no such capture is registered", body = ErrorView),
        (status = 409, description = "another drain is on", body = ErrorView),
        (status = 412, description = "the drain, registration or pod is not the one that is meant", body = ErrorView),
        Forwarded,
    )
)]
pub(super) async fn start(
    State(hall): State<Hall>,
    Name(id): Name,
    caller: Caller,
    Params(query): Params<StartQuery>,
) -> Result<(StatusCode, Json<DrainAccepted>), HttpError> {
    let answer = hall.door.ask(Request::Drain(query.request(&id, &caller)?)).await?;
    let (status, current, epoch, destinations) = match answer {
        Answer::Draining { epoch, current } => (StatusCode::ACCEPTED, current, Some(epoch), Vec::new()),
        // 200 says that the capture may go, which a dry run does not.
        Answer::DryRun { current, destinations } => (StatusCode::ACCEPTED, Some(current), None, destinations),
        Answer::Drained { epoch } => (StatusCode::OK, Some(WorkCount::default()), Some(epoch), Vec::new()),
        Answer::Done => (StatusCode::ACCEPTED, None, None, Vec::new()),
    };
    let view = DrainAccepted {
        current_maintainer_count: current.map(|work| work.maintainers),
        current_dispatcher_count: current.map(|work| work.dispatchers),
        drain_epoch: epoch.map(|epoch| epoch.0),
        destinations: destinations.iter().map(ToString::to_string).collect(),
    };
    Ok((status, Json(view)))
}

/// Say how far the drain of a capture is
///
/// Also when there is none: `is_draining` is false then.
#[utoipa::path(
    get, path = "/api/v2/captures/{id}/drain", tag = "drains", operation_id = "get_drain",
    params(("id" = String, Path, description = "the capture")),
    responses(
        (status = 200, description = "how it stands", body = DrainView),
        (status = 404, description = "no such capture is registered", body = ErrorView),
        Malformed, Forwarded,
    )
)]
pub(super) async fn show(State(hall): State<Hall>, Name(id): Name) -> Result<Json<DrainView>, HttpError> {
    let capture = CaptureId::new(&id)?;
    let snapshot = hall.door.snapshots.borrow().clone();
    let Some(status) = snapshot.captures.get(&capture) else {
        return Err(Refusal::UnknownCapture(capture).into());
    };
    let view = DrainView::of(&snapshot, wall());
    if view.draining_capture_id.as_deref() == Some(capture.as_str()) {
        return Ok(Json(view));
    }
    // Another's drain says nothing of this capture; `Stopping` follows from a proof that nothing is left, and from
    // nothing else.
    let stopping = status.liveness == Liveness::Stopping;
    let left = stopping.then_some(0);
    let of_this_life = |record: &capturedrain_core::model::DrainRecord| {
        record.target == capture && record.node_epoch == status.registration.node_epoch
    };
    let proof = snapshot.history.iter().rev().map(|end| &end.record).find(|record| stopping && of_this_life(record));
    Ok(Json(DrainView {
        drain_epoch: proof.map_or(snapshot.last_epoch, |record| record.epoch).0,
        liveness: Some(liveness_name(status.liveness).to_owned()),
        remaining_maintainer_count: left,
        remaining_dispatcher_count: left,
        ..DrainView::default()
    }))
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct CancelQuery {
    /// The drain that the caller means.
    drain_epoch: Option<u64>,
    /// Who asks.
    requester: Option<String>,
}

/// Call the drain of a capture off
///
/// The capture works again; what has moved stays where it is.
#[utoipa::path(
    delete, path = "/api/v2/captures/{id}/drain", tag = "drains", operation_id = "cancel_drain",
    params(("id" = String, Path, description = "the capture"), CancelQuery),
    responses(
        (status = 200, description = "called off", body = Empty),
        (status = 404, description = "no such capture is registered", body = ErrorView),
        (status = 409, description = "no drain of it is on, or it has ended already", body = ErrorView),
        (status = 412, description = "the drain is not the one that is meant", body = ErrorView),
        Malformed, Forwarded,
    )
)]
pub(super) async fn cancel(
    State(hall): State<Hall>,
    Name(id): Name,
    caller: Caller,
    Params(query): Params<CancelQuery>,
) -> Result<Json<Empty>, HttpError> {
    let requester = caller.requester(query.requester.as_deref().unwrap_or(REQUESTER));
    check_requester(&requester)?;
    let epoch = query.drain_epoch.map(DrainEpoch);
    hall.door.ask(Request::Cancel { capture: CaptureId::new(&id)?, epoch, requester }).await?;
    Ok(Json(Empty {}))
}

/// Say how earlier drains ended, oldest first
#[utoipa::path(
    get, path = "/api/v2/drains", tag = "drains", operation_id = "list_drains",
    responses((status = 200, description = "those that are kept", body = List<DrainEndView>), Forwarded)
)]
pub(super) async fn history(State(hall): State<Hall>) -> Json<List<DrainEndView>> {
    let ends: Vec<_> = hall.door.snapshots.borrow().history.iter().map(DrainEndView::of).collect();
    Json(ends.into())
}
