//! What Kubernetes refused.

use std::{error, fmt};

/// A call of Kubernetes that did not work.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {what}")]
pub(super) struct Error {
    /// What was to be done.
    pub(super) verb: &'static str,
    /// To what.
    pub(super) what: String,
    /// Why not.
    pub(super) source: kube::Error,
}

impl Error {
    pub(super) fn new(verb: &'static str, what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |source| Self { verb, what, source }
    }

    /// A stable word for metrics and logs.
    pub(super) fn category(&self) -> &'static str {
        category(&self.source)
    }

    /// With its causes.
    pub(super) fn chain(&self) -> impl fmt::Display {
        let mut text = self.to_string();
        let mut next = error::Error::source(self);
        while let Some(cause) = next {
            text = format!("{text}: {cause}");
            next = cause.source();
        }
        text
    }
}

/// A stable word for an error of the Kubernetes API.
pub(super) fn category(error: &kube::Error) -> &'static str {
    match error {
        kube::Error::Api(status) => match status.code {
            401 => "unauthenticated",
            403 => "forbidden",
            404 => "not_found",
            409 => "conflict",
            422 => "invalid",
            429 => "throttled",
            500.. => "server",
            _ => "refused",
        },
        _ => "unreachable",
    }
}

/// Whether the object is not there.
pub(super) fn is_gone(error: &kube::Error) -> bool {
    category(error) == "not_found"
}
