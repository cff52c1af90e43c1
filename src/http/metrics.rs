//! `GET /metrics`: what this very capture counts and measures, in the format that the scraper asks for.

use axum::{
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};

use super::Hall;
use crate::metrics::Format;

/// Say what this capture counts and measures
#[utoipa::path(
    get, path = "/metrics", tag = "probes", operation_id = "metrics",
    responses((status = 200, description = "as OpenMetrics when that is asked for, else as Prometheus text", body = String,
        content_type = "text/plain"))
)]
pub(super) async fn show(State(hall): State<Hall>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let format = Format::wanted(accept);
    ([(header::CONTENT_TYPE, format.content_type())], hall.door.metrics.page(format)).into_response()
}
