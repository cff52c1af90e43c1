//! Calls of the open API. A call has one of few outcomes, and only one of them is an answer.

use std::{error::Error, sync::Arc, time::Duration};

use reqwest::{Method, StatusCode, header};
use serde_json::json;

use super::wire::{self, Capture, Garbled, Status};
use crate::{
    operator::observe::Unseen,
    tls::{Dialer, Distrust, distrust},
};

/// How long one call may take, its body included.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest body that is read, in bytes.
const BODY_MAX_BYTES: usize = 1 << 20;
/// How many servers are tried for one question.
const ATTEMPTS_MAX: usize = 8;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum CallError {
    /// Nobody answers, or nobody who can at the moment: a restarting owner is one of these.
    #[error("{server}: {why}")]
    Away {
        /// `host:port`
        server: String,
        /// Why.
        why: String,
        /// Whether it said so itself.
        is_answer: bool,
    },
    /// The server and this process do not trust each other.
    #[error("{server}: {why}")]
    Unauthorized {
        /// `host:port`
        server: String,
        /// Why.
        why: String,
    },
    /// There is no such call.
    #[error("{server} does not know {path}")]
    Unknown {
        /// `host:port`
        server: String,
        /// Of the call.
        path: &'static str,
    },
    /// The owner understands, and will not; in its own words.
    #[error("{0}")]
    Denied(String),
    /// An answer of somebody else, or half an answer.
    #[error("{server}: {why}")]
    Garbled {
        /// `host:port`
        server: String,
        /// Why.
        why: Garbled,
    },
}

impl From<CallError> for Unseen {
    fn from(error: CallError) -> Self {
        let sentence = error.to_string();
        match error {
            CallError::Unauthorized { .. } => Self::Unauthorized(sentence),
            CallError::Unknown { .. } => Self::Unsupported(sentence),
            _ => Self::Unreachable(sentence),
        }
    }
}

/// A user and a password; neither is printed.
#[derive(Clone)]
pub(super) struct Login(Arc<(String, String)>);

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Login")
    }
}

/// Calls one cluster.
#[derive(Debug)]
pub(super) struct Caller {
    servers: Vec<String>,
    dialer: Dialer,
    login: Option<Login>,
}

/// What is asked of the owner.
struct Question {
    method: Method,
    path: &'static str,
    body: Option<String>,
}

impl Caller {
    pub(super) fn new(servers: Vec<String>, dialer: Dialer, login: Option<(String, String)>) -> Self {
        Self { servers, dialer, login: login.map(|login| Login(Arc::new(login))) }
    }

    /// Where questions go.
    pub(super) fn servers(&self) -> &[String] {
        &self.servers
    }

    /// All registered captures.
    pub(super) async fn captures(&self) -> Result<Vec<Capture>, CallError> {
        let question = Question { method: Method::GET, path: "/api/v1/captures", body: None };
        self.ask(&question, &[StatusCode::OK], wire::captures).await
    }

    /// Has the owner give up its office.
    pub(super) async fn resign(&self) -> Result<(), CallError> {
        let question = Question { method: Method::POST, path: "/api/v1/owner/resign", body: None };
        self.ask(&question, &[StatusCode::OK, StatusCode::ACCEPTED], |_| Ok(())).await
    }

    /// Asks for the drain, and for how many are left.
    pub(super) async fn drain(&self, capture: &str) -> Result<u64, CallError> {
        let body = json!({"capture_id": capture}).to_string();
        let question = Question { method: Method::PUT, path: "/api/v1/captures/drain", body: Some(body) };
        self.ask(&question, &[StatusCode::ACCEPTED], wire::count).await
    }

    /// What the process behind an address is. The address may be the cluster's word: the login is not for everybody, and
    /// `TiCDC` asks for none here.
    pub(super) async fn status(&self, server: &str) -> Result<Status, CallError> {
        let question = Question { method: Method::GET, path: "/status", body: None };
        self.exchange(server, &question, None, &[StatusCode::OK], wire::status).await
    }

    /// Asks one server after the other until one has something to say; each passes on what only the owner knows. Whoever
    /// says of a drain that it cannot tell is not passed over: two answers of which one is 0 are no 0.
    async fn ask<T>(
        &self,
        question: &Question,
        good: &[StatusCode],
        read: impl Fn(&[u8]) -> Result<T, Garbled>,
    ) -> Result<T, CallError> {
        let mut last = None;
        for server in self.servers.iter().take(ATTEMPTS_MAX) {
            match self.exchange(server, question, self.login.as_ref(), good, &read).await {
                Err(error @ CallError::Away { is_answer, .. }) if !is_answer || question.method == Method::GET => {
                    last = Some(error);
                }
                done => return done,
            }
        }
        Err(last.unwrap_or_else(|| CallError::Away {
            server: "no server".to_owned(),
            why: "there is nobody to ask".to_owned(),
            is_answer: false,
        }))
    }

    /// One call of one server.
    async fn exchange<T>(
        &self,
        server: &str,
        question: &Question,
        login: Option<&Login>,
        good: &[StatusCode],
        read: impl Fn(&[u8]) -> Result<T, Garbled>,
    ) -> Result<T, CallError> {
        let away = |why: String, is_answer| CallError::Away { server: server.to_owned(), why, is_answer };
        let mut call = self.dialer.http().request(question.method.clone(), self.dialer.url(server, question.path));
        call = call.timeout(CALL_TIMEOUT);
        if let Some(Login(login)) = login {
            call = call.basic_auth(&login.0, Some(&login.1));
        }
        if let Some(body) = &question.body {
            call = call.header(header::CONTENT_TYPE, "application/json").body(body.clone());
        }
        let answer = call.send().await.map_err(|error| match distrust(&error) {
            Some(why @ Distrust::Refused(_)) => {
                CallError::Unauthorized { server: server.to_owned(), why: why.to_string() }
            }
            Some(why) => away(why.to_string(), false),
            // One that was asked and then fell silent may have said anything.
            None => away(cause(&error), !error.is_connect()),
        })?;
        let status = answer.status();
        let body = body(answer).await.map_err(|why| away(why, true))?;
        if good.contains(&status) {
            return read(&body).map_err(|why| CallError::Garbled { server: server.to_owned(), why });
        }
        Err(refused(server, question.path, status, &body))
    }
}

/// The whole body, or why there is none.
async fn body(mut answer: reqwest::Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    let cut_off = |error: reqwest::Error| format!("the answer is cut off: {}", cause(&error));
    while let Some(part) = answer.chunk().await.map_err(cut_off)? {
        if body.len() + part.len() > BODY_MAX_BYTES {
            return Err(format!("the answer is longer than {BODY_MAX_BYTES} bytes"));
        }
        body.extend_from_slice(&part);
    }
    Ok(body)
}

/// What an answer means that is none.
fn refused(server: &str, path: &'static str, status: StatusCode, body: &[u8]) -> CallError {
    let server = server.to_owned();
    let complaint = wire::complaint(body);
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let why = complaint.unwrap_or_else(|| format!("it answers {status}"));
            CallError::Unauthorized { server, why }
        }
        // With a complaint it is the owner's word about a capture, without one there is no such path.
        StatusCode::NOT_FOUND if complaint.is_none() => CallError::Unknown { server, path },
        StatusCode::SERVICE_UNAVAILABLE => {
            let why = complaint.unwrap_or_else(|| "it is not ready".to_owned());
            CallError::Away { server, why, is_answer: true }
        }
        _ => match complaint {
            Some(sentence) => CallError::Denied(sentence),
            None => CallError::Away { server, why: format!("it answers {status}"), is_answer: true },
        },
    }
}

/// The innermost cause, which names no URL.
fn cause(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
