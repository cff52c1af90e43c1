//! What a call carries, decoded; what cannot be is refused in the shape of every other error.

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::{HeaderMap, header, request::Parts},
};
use serde::de::DeserializeOwned;

use super::error::HttpError;
use crate::wire::cause;

/// The one name in the path, as it was sent.
pub(super) struct Name(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, HttpError> {
        let Path(name) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|rejection| HttpError::BadRequest(rejection.body_text()))?;
        Ok(Self(name))
    }
}

/// The query.
pub(super) struct Params<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, HttpError> {
        let read = Query::<T>::try_from_uri(&parts.uri);
        let Query(query) = read.map_err(|rejection| {
            HttpError::BadRequest(format!("the query is not understood: {}", cause(&rejection)))
        })?;
        Ok(Self(query))
    }
}

/// A body in JSON.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = HttpError;

    async fn from_request(request: Request, state: &S) -> Result<Self, HttpError> {
        check_kind(request.headers())?;
        let bytes = Bytes::from_request(request, state).await?;
        read(&bytes).map(Self)
    }
}

/// A body in JSON, or none.
pub(super) struct OptionalBody<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalBody<T> {
    type Rejection = HttpError;

    async fn from_request(request: Request, state: &S) -> Result<Self, HttpError> {
        let headers = request.headers().clone();
        let bytes = Bytes::from_request(request, state).await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        check_kind(&headers)?;
        read(&bytes).map(Self)
    }
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, HttpError> {
    // Without this an array would be read as the fields in their order.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(HttpError::BadRequest("the body is not a JSON object".to_owned()));
    }
    let read = serde_json::from_slice(bytes);
    read.map_err(|error| HttpError::BadRequest(format!("the body is not the JSON that belongs here: {error}")))
}

/// Refuses a body that says that it is something else than JSON.
///
/// Two kinds count as JSON although they do not say so, because `TiCDC`'s tools and its manual send them: none at all,
/// and what `curl -d` puts there by itself.
fn check_kind(headers: &HeaderMap) -> Result<(), HttpError> {
    let Some(kind) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let kind = String::from_utf8_lossy(kind.as_bytes());
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let known = matches!(essence.as_str(), "" | "application/json" | "application/x-www-form-urlencoded");
    let suffixed = essence.starts_with("application/") && essence.ends_with("+json");
    if known || suffixed { Ok(()) } else { Err(HttpError::media_type(&kind)) }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn json_is_taken_by_any_of_its_names_and_nothing_else() {
        let check = |kind: &'static str, fits: bool| {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))]);
            assert_eq!(check_kind(&headers).is_ok(), fits, "{kind}");
        };
        assert_eq!(check_kind(&HeaderMap::new()), Ok(()));
        for fits in ["application/json", "Application/JSON; charset=utf-8", "application/merge-patch+json", ""] {
            check(fits, true);
        }
        check("application/x-www-form-urlencoded", true);
        for other in ["text/plain", "application/xml", "multipart/form-data; boundary=x", "image/svg+json"] {
            check(other, false);
        }
    }
}
