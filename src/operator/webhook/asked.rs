//! The request: who wants which pod gone.

use serde::Deserialize;

/// What an API server sends.
#[derive(Debug, Clone, Deserialize)]
pub struct Review {
    /// The request.
    pub request: Request,
}

/// An eviction that is asked for, as it comes.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// Names the answer.
    pub uid: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    user_info: User,
    #[serde(default)]
    dry_run: Option<bool>,
    #[serde(default)]
    object: Option<Eviction>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct User {
    #[serde(default)]
    username: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Eviction {
    #[serde(default)]
    delete_options: Option<DeleteOptions>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DeleteOptions {
    #[serde(default)]
    dry_run: Option<Vec<String>>,
    #[serde(default)]
    preconditions: Option<Preconditions>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Preconditions {
    #[serde(default)]
    uid: Option<String>,
}

/// An eviction that is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// Of the pod.
    pub namespace: String,
    /// The pod's.
    pub name: String,
    /// Who asks.
    pub user: String,
    /// Whether nothing is to happen: said to the API server, or as kubectl does to the eviction.
    pub is_dry_run: bool,
    /// The UID that the caller means, when it says so.
    pub uid: Option<String>,
    /// How much of the delete options the caller has given.
    pub given: Given,
}

/// What an added precondition has to fit into.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Given {
    /// No options at all.
    #[default]
    Nothing,
    /// Options without preconditions.
    Options,
    /// Preconditions, too.
    Preconditions,
}

impl From<Request> for Asked {
    fn from(request: Request) -> Self {
        let options = request.object.and_then(|eviction| eviction.delete_options);
        let given = match &options {
            None => Given::Nothing,
            Some(options) if options.preconditions.is_none() => Given::Options,
            Some(_) => Given::Preconditions,
        };
        let options = options.unwrap_or_default();
        let is_dry = options.dry_run.is_some_and(|all| all.iter().any(|part| part == "All"));
        Self {
            namespace: request.namespace.unwrap_or_default(),
            name: request.name,
            user: request.user_info.username.unwrap_or_default(),
            is_dry_run: is_dry || request.dry_run == Some(true),
            uid: options.preconditions.and_then(|preconditions| preconditions.uid),
            given,
        }
    }
}
