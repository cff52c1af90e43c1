//! `/api/v2/changefeeds`

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State, rejection::JsonRejection},
    http::StatusCode,
};
use capturedrain_core::model::{ChangefeedConfig, ChangefeedId, Refusal, Request};
use serde_json::{Value, json};

use super::{Hall, error::HttpError};
use crate::{
    clock::wall,
    view::{ChangefeedView, CreatedChangefeed, NewChangefeed},
};

pub(super) async fn create(
    State(hall): State<Hall>,
    new: Result<Json<NewChangefeed>, JsonRejection>,
) -> Result<(StatusCode, Json<CreatedChangefeed>), HttpError> {
    let Json(new) = new.map_err(|rejection| HttpError::BadRequest(rejection.body_text()))?;
    let id = ChangefeedId::new(&new.id)?;
    if hall.door.snapshots.borrow().changefeeds.contains_key(&id) {
        return Err(Refusal::ChangefeedExists(id).into());
    }
    let mut config = ChangefeedConfig {
        source: new.source.into(),
        sink: new.sink.into(),
        start_ts: 0,
        span_max_keys: new.span_max_keys,
        unknown: std::collections::BTreeMap::new(),
    };
    let probed = (hall.probe)(config.clone(), new.start_ts).await;
    let (start_ts, warnings) = probed.map_err(|(reason, why)| HttpError::CannotRun(reason, why))?;
    config.start_ts = start_ts;
    hall.door.ask(Request::CreateChangefeed { id: id.clone(), config: Arc::new(config) }).await?;
    Ok((StatusCode::CREATED, Json(CreatedChangefeed { id: id.to_string(), start_ts, warnings })))
}

pub(super) async fn list(State(hall): State<Hall>) -> Json<Vec<ChangefeedView>> {
    let snapshot = hall.door.snapshots.borrow().clone();
    let views = snapshot.changefeeds.iter().map(|(id, status)| ChangefeedView::of(id.as_str(), status, wall()));
    Json(views.collect())
}

pub(super) async fn get(State(hall): State<Hall>, Path(id): Path<String>) -> Result<Json<ChangefeedView>, HttpError> {
    let id = ChangefeedId::new(&id)?;
    let snapshot = hall.door.snapshots.borrow().clone();
    match snapshot.changefeeds.get(&id) {
        Some(status) => Ok(Json(ChangefeedView::of(id.as_str(), status, wall()))),
        None => Err(Refusal::UnknownChangefeed(id).into()),
    }
}

pub(super) async fn pause(State(hall): State<Hall>, Path(id): Path<String>) -> Result<Json<Value>, HttpError> {
    carry_out(&hall, Request::PauseChangefeed(ChangefeedId::new(&id)?)).await
}

pub(super) async fn resume(State(hall): State<Hall>, Path(id): Path<String>) -> Result<Json<Value>, HttpError> {
    carry_out(&hall, Request::ResumeChangefeed(ChangefeedId::new(&id)?)).await
}

pub(super) async fn delete(State(hall): State<Hall>, Path(id): Path<String>) -> Result<Json<Value>, HttpError> {
    carry_out(&hall, Request::DeleteChangefeed(ChangefeedId::new(&id)?)).await
}

async fn carry_out(hall: &Hall, request: Request) -> Result<Json<Value>, HttpError> {
    hall.door.ask(request).await?;
    Ok(Json(json!({})))
}
