//! `/api/v2/changefeeds`, in the shapes and with the statuses of `TiCDC`.

#![allow(unused_qualifications, reason = "in what becomes of `params(…)`")]

use std::{collections::BTreeMap, sync::Arc};

use axum::{Json, extract::State};
use capturedrain_core::model::{ChangefeedConfig, ChangefeedId, ChangefeedState, ChangefeedStatus, Refusal, Request};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    Hall,
    error::HttpError,
    extract::{Body, Name, OptionalBody, Params},
    openapi::{Bodied, Forwarded, Malformed},
};
use crate::{
    clock::wall,
    view::{
        ChangefeedBody, ChangefeedView, Deleted, Empty, ErrorView, List, NAMESPACE, NewbornChangefeed, ResumeBody,
        state_name,
    },
};

/// States of a changefeed at `TiCDC` that none has here.
const OTHER_STATES: &[&str] = &["error", "finished", "pending", "removed", "warning"];

/// Which changefeeds are meant. Anything but these parameters is passed over.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Has to be `default` or nothing.
    namespace: Option<String>,
    /// The same by its newer name.
    keyspace: Option<String>,
}

impl Which {
    fn check(&self) -> Result<(), HttpError> {
        check_namespace(self.namespace.as_deref())?;
        check_namespace(self.keyspace.as_deref())
    }
}

fn check_namespace(namespace: Option<&str>) -> Result<(), HttpError> {
    match namespace.unwrap_or_default() {
        "" | NAMESPACE => Ok(()),
        other => Err(HttpError::BadRequest(format!("there is no namespace \"{other}\", only {NAMESPACE}"))),
    }
}

/// Create a changefeed
///
/// Takes the body of `TiCDC`. What is replicated is not the database that a cluster belongs to, as there, so `source`
/// has to say it: `etcd://HOST:PORT[,HOST:PORT…]/PREFIX` or `synthetic://`.
#[utoipa::path(
    post, path = "/api/v2/changefeeds", tag = "changefeeds", operation_id = "create_changefeed", params(Which), request_body = ChangefeedBody,
    responses(
        (status = 200, description = "created", body = NewbornChangefeed),
        (status = 400, description = "it exists, it cannot be run, or the body or the query makes no sense",
            body = ErrorView),
        Bodied, Forwarded,
    )
)]
pub(super) async fn create(
    State(hall): State<Hall>,
    Params(which): Params<Which>,
    Body(body): Body<ChangefeedBody>,
) -> Result<Json<NewbornChangefeed>, HttpError> {
    which.check()?;
    check_namespace(body.namespace.as_deref())?;
    let mut warnings = body.warnings();
    if body.target_ts != 0 {
        let why = "target_ts has to be 0 or left out: a changefeed runs until it is paused or deleted";
        return Err(HttpError::BadRequest(why.to_owned()));
    }
    let new = body.new;
    let id = if new.id.is_empty() { made_up_name()? } else { ChangefeedId::new(&new.id)? };
    if new.source.is_empty() {
        let why = "source is missing: say what to replicate, such as etcd://HOST:PORT/PREFIX";
        return Err(HttpError::BadRequest(why.to_owned()));
    }
    if new.sink.is_empty() {
        return Err(HttpError::BadRequest("sink_uri is missing: say where to, such as file:///FOLDER".to_owned()));
    }
    if hall.door.snapshots.borrow().changefeeds.contains_key(&id) {
        return Err(Refusal::ChangefeedExists(id).into());
    }
    let mut config = ChangefeedConfig {
        source: new.source.into(),
        sink: new.sink.into(),
        start_ts: 0,
        span_max_keys: new.span_max_keys,
    };
    // `TiCDC`'s tools send 0 for "as you see fit".
    let start_ts = new.start_ts.filter(|ts| *ts != 0);
    let probed = (hall.probe)(config.clone(), start_ts).await;
    let (start_ts, found) = probed.map_err(|(reason, why)| HttpError::CannotRun(reason, why))?;
    warnings.extend(found);
    config.start_ts = start_ts;
    let config = Arc::new(config);
    hall.door.ask(Request::CreateChangefeed { id: id.clone(), config: config.clone() }).await?;
    let newborn = || ChangefeedStatus {
        config,
        state: ChangefeedState::Running,
        warning: None,
        created_at_ms: wall(),
        maintainer: None,
        checkpoint_ts: None,
        checkpoint_at_ms: None,
        in_flight: capturedrain_core::model::WorkCount::default(),
        dispatchers: BTreeMap::new(),
    };
    // It is there, unless this capture has left office in the meantime.
    let there = hall.door.snapshots.borrow().changefeeds.get(&id).cloned();
    let status = there.unwrap_or_else(newborn);
    Ok(Json(NewbornChangefeed { changefeed: ChangefeedView::of(id.as_str(), &status, wall()), warnings }))
}

/// A name for a changefeed that was given none.
fn made_up_name() -> Result<ChangefeedId, HttpError> {
    let random = getrandom::u64().map_err(|error| HttpError::NoAnswer(format!("no randomness to name it: {error}")))?;
    Ok(ChangefeedId::new(format!("changefeed-{random:016x}"))?)
}

/// Which of them are listed. Anything but these parameters is passed over.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Only those of this state: `normal`, `stopped`, `failed`; `all` or nothing: all.
    state: Option<String>,
    /// Has to be `default` or nothing.
    namespace: Option<String>,
    /// The same by its newer name.
    keyspace: Option<String>,
}

/// List the changefeeds
#[utoipa::path(
    get, path = "/api/v2/changefeeds", tag = "changefeeds", operation_id = "list_changefeeds", params(ListQuery),
    responses(
        (status = 200, description = "those that there are", body = List<ChangefeedView>),
        Malformed, Forwarded,
    )
)]
pub(super) async fn list(
    State(hall): State<Hall>,
    Params(query): Params<ListQuery>,
) -> Result<Json<List<ChangefeedView>>, HttpError> {
    Which { namespace: query.namespace, keyspace: query.keyspace }.check()?;
    let state = query.state.as_deref().filter(|state| !state.is_empty() && *state != "all");
    if let Some(state) = state.filter(|state| !["normal", "stopped", "failed"].contains(state))
        && !OTHER_STATES.contains(&state)
    {
        return Err(HttpError::BadRequest(format!("\"{state}\" is not a state: use normal, stopped, failed or all")));
    }
    let snapshot = hall.door.snapshots.borrow().clone();
    let feeds = snapshot.changefeeds.iter();
    let meant = feeds.filter(|(_, status)| state.is_none_or(|state| state == state_name(&status.state)));
    let views: Vec<_> = meant.map(|(id, status)| ChangefeedView::of(id.as_str(), status, wall())).collect();
    Ok(Json(views.into()))
}

/// Show a changefeed
#[utoipa::path(
    get, path = "/api/v2/changefeeds/{id}", tag = "changefeeds", operation_id = "get_changefeed",
    params(("id" = String, Path, description = "the changefeed"), Which),
    responses(
        (status = 200, description = "how it stands", body = ChangefeedView),
        (status = 400, description = "there is none of this name, or the query makes no sense", body = ErrorView),
        Forwarded,
    )
)]
pub(super) async fn get(
    State(hall): State<Hall>,
    Name(id): Name,
    Params(which): Params<Which>,
) -> Result<Json<ChangefeedView>, HttpError> {
    which.check()?;
    let id = ChangefeedId::new(&id)?;
    let snapshot = hall.door.snapshots.borrow().clone();
    match snapshot.changefeeds.get(&id) {
        Some(status) => Ok(Json(ChangefeedView::of(id.as_str(), status, wall()))),
        None => Err(Refusal::UnknownChangefeed(id).into()),
    }
}

/// Stop a changefeed's work and keep its position
#[utoipa::path(
    post, path = "/api/v2/changefeeds/{id}/pause", tag = "changefeeds", operation_id = "pause_changefeed",
    params(("id" = String, Path, description = "the changefeed"), Which),
    responses(
        (status = 200, description = "it is `stopped`", body = Empty),
        (status = 400, description = "there is none of this name, or the query makes no sense", body = ErrorView),
        Forwarded,
    )
)]
pub(super) async fn pause(
    State(hall): State<Hall>,
    Name(id): Name,
    Params(which): Params<Which>,
) -> Result<Json<Empty>, HttpError> {
    which.check()?;
    hall.door.ask(Request::PauseChangefeed(ChangefeedId::new(&id)?)).await?;
    Ok(Json(Empty {}))
}

/// Let a stopped or failed changefeed go on from its position
#[utoipa::path(
    post, path = "/api/v2/changefeeds/{id}/resume", tag = "changefeeds", operation_id = "resume_changefeed",
    params(("id" = String, Path, description = "the changefeed"), Which),
    request_body(content = Option<ResumeBody>, description = "may be left out"),
    responses(
        (status = 200, description = "it is `normal`", body = Empty),
        (status = 400, description = "there is none of this name, it cannot go on from elsewhere, or the body or the \
            query makes no sense", body = ErrorView),
        Bodied, Forwarded,
    )
)]
pub(super) async fn resume(
    State(hall): State<Hall>,
    Name(id): Name,
    Params(which): Params<Which>,
    OptionalBody(body): OptionalBody<ResumeBody>,
) -> Result<Json<Empty>, HttpError> {
    which.check()?;
    if body.overwrite_checkpoint_ts != 0 {
        let why = "overwrite_checkpoint_ts has to be 0 or left out: a changefeed goes on from where it was";
        return Err(HttpError::BadRequest(why.to_owned()));
    }
    hall.door.ask(Request::ResumeChangefeed(ChangefeedId::new(&id)?)).await?;
    Ok(Json(Empty {}))
}

/// Remove a changefeed and its position
///
/// What is in the sink stays. It is no error when there is none of this name.
#[utoipa::path(
    delete, path = "/api/v2/changefeeds/{id}", tag = "changefeeds", operation_id = "delete_changefeed",
    params(("id" = String, Path, description = "the changefeed"), Which),
    responses((status = 200, description = "there is none of this name any more", body = Deleted), Malformed, Forwarded)
)]
pub(super) async fn delete(
    State(hall): State<Hall>,
    Name(id): Name,
    Params(which): Params<Which>,
) -> Result<Json<Deleted>, HttpError> {
    which.check()?;
    match hall.door.ask(Request::DeleteChangefeed(ChangefeedId::new(&id)?)).await {
        Ok(_) => Ok(Json(Deleted { deleted: true })),
        Err(Refusal::UnknownChangefeed(_)) => Ok(Json(Deleted { deleted: false })),
        Err(refusal) => Err(refusal.into()),
    }
}
