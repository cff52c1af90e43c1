//! The HTTP door, thin: decode → hand over → encode. A capture that does not coordinate forwards to the one that does.
//!
//! What is not said here to be otherwise has the paths, shapes and statuses of `TiCDC`'s open API, versions 1 and 2.

mod changefeed;
mod cluster;
mod drain;
mod error;
mod extract;
mod forward;
mod metrics;
mod openapi;
mod v1;

use std::sync::Arc;

use axum::{Router, extract::DefaultBodyLimit, middleware, routing::MethodRouter};
use capturedrain_core::model::{ChangefeedConfig, CommitTs};
use futures::future::BoxFuture;
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouterExt as _},
    routes,
};

pub use self::openapi::document;
use crate::{door::Door, tls::Dialer};

/// Longest body of a request, in bytes.
pub(crate) const BODY_MAX_BYTES: usize = 64 << 10;

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
    dialer: Dialer,
}

/// The HTTP API of a capture.
pub fn router(door: Door, probe: Probe, dialer: Dialer) -> Router {
    let hall = Hall { door, probe, dialer };
    let forwarded = middleware::from_fn_with_state(hall.clone(), forward::to_coordinator);
    let router: Router<Hall> = routes(|methods| methods.route_layer(forwarded.clone())).into();
    router
        .fallback(error::unknown_path)
        .method_not_allowed_fallback(error::wrong_method)
        .layer(DefaultBodyLimit::max(BODY_MAX_BYTES))
        .with_state(hall)
}

/// Every call there is, with its description. `forward` is put before those that only the coordinator can answer, behind
/// the choice of the method: what is no call at all is refused on the spot.
fn routes(forward: impl Fn(MethodRouter<Hall>) -> MethodRouter<Hall>) -> OpenApiRouter<Hall> {
    let v1_health = |methods| forward(methods).route_layer(middleware::map_response(v1::unhealthy_is_500));
    openapi::router()
        .routes(routes!(cluster::alive))
        .routes(routes!(cluster::ready))
        .routes(routes!(cluster::status))
        .routes(routes!(metrics::show))
        .routes(routes!(v1::status))
        .routes(routes!(v1::oldest_status))
        .merge(openapi::document_route())
        // What only the coordinator knows or does.
        .routes(routes!(cluster::captures).map(&forward))
        .routes(routes!(cluster::health).map(&forward))
        .routes(routes!(cluster::resign).map(&forward))
        .routes(routes!(drain::start, drain::show, drain::cancel).map(&forward))
        .routes(routes!(drain::history).map(&forward))
        .routes(routes!(changefeed::create, changefeed::list).map(&forward))
        .routes(routes!(changefeed::get, changefeed::delete).map(&forward))
        .routes(routes!(changefeed::pause).map(&forward))
        .routes(routes!(changefeed::resume).map(&forward))
        .routes(routes!(v1::captures).map(&forward))
        .routes(routes!(v1::drain).map(&forward))
        .routes(routes!(v1::resign).map(&forward))
        .routes(routes!(v1::health).map(v1_health))
}
