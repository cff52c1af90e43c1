//! Whether this replica is well, and what it tells Prometheus.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::{net::TcpListener, sync::watch};

use super::{
    cache::{self, Caches},
    metrics::Metrics,
};
use crate::metrics::Format;

/// What is shown.
#[derive(Clone)]
pub(super) struct Hall {
    caches: Caches,
    metrics: Arc<Metrics>,
    certificates: Option<watch::Receiver<Result<(), String>>>,
    stopped: watch::Receiver<bool>,
}

impl Hall {
    /// `certificates` is how the webhook's are, where there is one.
    pub(super) fn new(
        caches: Caches,
        metrics: Arc<Metrics>,
        certificates: Option<watch::Receiver<Result<(), String>>>,
        stopped: watch::Receiver<bool>,
    ) -> Self {
        Self { caches, metrics, certificates, stopped }
    }
}

/// Serves until it is aborted.
pub(super) async fn serve(listener: TcpListener, hall: Hall) {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(show))
        .with_state(hall);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "probes and metrics are not served any more");
    }
}

/// Ready once everything is watched, and the API server believes the webhook; whoever is not says what is missing.
async fn ready(State(hall): State<Hall>) -> (StatusCode, String) {
    if *hall.stopped.borrow() {
        return (StatusCode::SERVICE_UNAVAILABLE, "this replica is ending\n".to_owned());
    }
    let complaints = hall.caches.complaints();
    let mut said: Vec<_> = complaints.iter().map(|(what, why)| format!("{what} cannot be watched: {why}\n")).collect();
    let state = hall.certificates.as_ref().map_or(Ok(()), |state| state.borrow().clone());
    if let Err(why) = &state {
        said.push(format!("evictions cannot be answered: {why}\n"));
    }
    // Nodes are for preferences only.
    if state.is_ok() && hall.caches.is_ready() && complaints.keys().all(|what| *what == cache::NODES) {
        said.push("ok\n".to_owned());
        return (StatusCode::OK, said.concat());
    }
    if said.is_empty() {
        said.push("not everything was listed yet\n".to_owned());
    }
    (StatusCode::SERVICE_UNAVAILABLE, said.concat())
}

async fn show(State(hall): State<Hall>, headers: HeaderMap) -> impl IntoResponse {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let format = Format::wanted(accept);
    ([(header::CONTENT_TYPE, format.content_type())], hall.metrics.page(format))
}
