//! What Kubernetes does not tell.

use super::Fault;

/// Why something is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// Nobody answers.
    #[error("{0}")]
    Unreachable(String),
    /// It may not be known, or the API server does not know who asks.
    #[error("{0}")]
    Unauthorised(String),
    /// What is asked for is not there.
    #[error("{0}")]
    NotFound(String),
}

impl Trouble {
    /// What kind of failure it is, where it is one.
    pub(super) fn fault(&self) -> Fault {
        match self {
            Self::Unreachable(_) => Fault::Unreachable,
            Self::Unauthorised(_) => Fault::Unauthorised,
            Self::NotFound(_) => Fault::NotFound,
        }
    }

    /// What came of trying to read something.
    pub(super) fn reading(what: &str) -> impl FnOnce(kube::Error) -> Self {
        let what = what.to_owned();
        move |error| match &error {
            kube::Error::Api(status) => {
                let sentence = format!("{what} cannot be read: {}", status.message);
                match status.code {
                    401 | 403 => Self::Unauthorised(sentence),
                    404 => Self::NotFound(sentence),
                    _ => Self::Unreachable(sentence),
                }
            }
            error => Self::Unreachable(format!("{what} cannot be read: {}", innermost(error))),
        }
    }
}

/// An error with the cause that says most: those above it only say that there is one.
pub(super) fn innermost(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(cause) = deepest.source() {
        deepest = cause;
    }
    deepest.to_string()
}
