//! The description of this API, which is made of the handlers themselves and so cannot leave one out.

use std::sync::LazyLock;

use axum::{http::header, response::IntoResponse};
use utoipa::{
    IntoResponses, OpenApi,
    openapi::{OpenApi as Document, RefOr, Response, content::ContentBuilder, response::ResponseBuilder},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::view::ErrorView;

/// What is the same for all calls.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "capturedrain",
        description = "Any capture answers; what only the coordinator knows or does is forwarded to it. Version 1, and \
                       what version 2 has of captures, changefeeds and the owner, is what tools for TiCDC expect. \
                       Numbers that are not known are null, never 0. Where captures ask for certificates, every call but \
                       the probes may also be answered by 401 or 403."
    ),
    components(schemas(ErrorView)),
    tags(
        (name = "drains", description = "empty a capture, and follow that"),
        (name = "captures", description = "who is there"),
        (name = "changefeeds", description = "what is replicated"),
        (name = "v1", description = "as tools for TiCDC's first API expect it"),
        (name = "probes", description = "for Kubernetes and monitoring"),
    )
)]
struct Common;

/// A router that begins with what is the same for all calls.
pub(super) fn router<S: Clone + Send + Sync + 'static>() -> OpenApiRouter<S> {
    OpenApiRouter::with_openapi(Common::openapi())
}

/// The document, in JSON.
static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
    let document: Document = super::routes(|methods| methods).into_openapi();
    document.to_pretty_json().map(|json| json + "\n").unwrap_or_default()
});

/// The description of the HTTP API: an `OpenAPI` 3.1 document in JSON.
pub fn document() -> &'static str {
    &DOCUMENT
}

/// This description
#[utoipa::path(
    get, path = "/api/openapi.json", tag = "probes", operation_id = "openapi",
    responses((status = 200, description = "an OpenAPI 3.1 document", body = serde_json::Value))
)]
async fn serve() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], document())
}

pub(super) fn document_route<S: Clone + Send + Sync + 'static>() -> OpenApiRouter<S> {
    OpenApiRouter::default().routes(routes!(serve))
}

/// Errors that several calls have in common: their statuses, and when they are the answer.
macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident { $($status:literal: $why:literal),+ $(,)? })+) => {$(
        $(#[$doc])*
        pub(super) struct $name;

        impl IntoResponses for $name {
            fn responses() -> std::collections::BTreeMap<String, RefOr<Response>> {
                [$(($status.to_owned(), error($why).into())),+].into()
            }
        }
    )+};
}

errors! {
    /// Of a call that the coordinator answers.
    Forwarded {
        "503": "nobody coordinates at the moment, the coordinator does not answer or does not know enough yet, or it \
                cannot tell whether its write took effect; ask again"
    }
    /// Of a call with a name or a query.
    Malformed { "400": "the name or the query makes no sense" }
    /// Of a call with a body.
    Bodied { "413": "the body is too long", "415": "the body is of another kind than JSON" }
}

/// An error, with when it is the answer.
fn error(why: &str) -> Response {
    let schema = utoipa::openapi::Ref::from_schema_name("ErrorView");
    let content = ContentBuilder::new().schema(Some(schema)).build();
    ResponseBuilder::new().description(why).content("application/json", content).build()
}
