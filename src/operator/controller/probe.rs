//! Whether this replica is well, and what it tells Prometheus.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;

use super::{
    cache::{self, Caches},
    metrics::Metrics,
};
use crate::metrics::Format;

#[derive(Clone)]
struct Hall {
    caches: Caches,
    metrics: Arc<Metrics>,
}

/// Serves until it is aborted.
pub(super) async fn serve(listener: TcpListener, caches: Caches, metrics: Arc<Metrics>) {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(show))
        .with_state(Hall { caches, metrics });
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "probes and metrics are not served any more");
    }
}

/// Ready once everything is watched; whoever is not says what is missing.
async fn ready(State(hall): State<Hall>) -> (StatusCode, String) {
    let complaints = hall.caches.complaints();
    let mut said: Vec<_> = complaints.iter().map(|(what, why)| format!("{what} cannot be watched: {why}\n")).collect();
    // Nodes are for preferences only.
    if hall.caches.is_ready() && complaints.keys().all(|what| *what == cache::NODES) {
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
