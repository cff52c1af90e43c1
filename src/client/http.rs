//! Changefeeds, by the HTTP API.

use capturedrain_core::model::{ChangefeedId, Refusal};
use reqwest::{Method, StatusCode};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::time::{self, Instant};

use super::{CONNECT_TIMEOUT, Client, ClientError, PATIENCE, RETRY};
use crate::{
    tls::distrust,
    view::{ChangefeedView, CreatedChangefeed, Deleted, ErrorView, List, NewChangefeed},
    wire::{cause, refusal},
};

/// What a server says in the clear that speaks TLS.
const TLS_REQUIRED: &str = "TLS_REQUIRED";
const NOTHING: Option<&()> = None;

/// A call that was refused.
struct Refused {
    error: ClientError,
    /// Whether an attempt before may have taken effect: its answer was lost, or was that nobody knows.
    maybe_done: bool,
}

impl From<Refused> for ClientError {
    fn from(refused: Refused) -> Self {
        refused.error
    }
}

impl Client {
    async fn http<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, Refused> {
        Ok(self.exchange(method, path, body).await?.0)
    }

    /// Makes a call: what is answered, and whether an attempt before may have taken effect.
    async fn exchange<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<(T, bool), Refused> {
        let until = Instant::now() + PATIENCE;
        let mut distrusted = 0;
        let mut reason = String::new();
        let mut maybe_done = false;
        let servers = self.servers.all();
        for server in servers.iter().cycle() {
            let url = self.dialer.url(server, &format!("/api/v2/{path}"));
            let mut call = self.dialer.http().request(method.clone(), url);
            // What changes something may have to ask the source first.
            let reads = method == Method::GET;
            call = call.timeout(if reads { self.attempt_timeout() } else { PATIENCE + CONNECT_TIMEOUT });
            if let Some(body) = body {
                call = call.json(body);
            }
            match call.send().await {
                Err(error) => {
                    maybe_done |= !error.is_connect();
                    reason = format!("{server}: {}", cause(&error));
                    if let Some(why) = distrust(&error) {
                        distrusted += 1;
                        let error = ClientError::Distrust { server: server.clone(), why };
                        if distrusted >= servers.len() {
                            return Err(Refused { error, maybe_done });
                        }
                        reason = error.to_string();
                    }
                }
                Ok(answer) if answer.status() == StatusCode::SERVICE_UNAVAILABLE => {
                    maybe_done = true;
                    let error = answer.json::<ErrorView>().await;
                    reason = error.map_or_else(|error| cause(&error), |error| error.error_msg);
                }
                Ok(answer) if answer.status().is_success() => {
                    let error = |error| ClientError::Protocol(cause(&error));
                    let answered = answer.json().await.map_err(|why| Refused { error: error(why), maybe_done });
                    return Ok((answered?, maybe_done));
                }
                Ok(answer) => return Err(Refused { error: refused(server, answer).await, maybe_done }),
            }
            if Instant::now() + RETRY >= until {
                break;
            }
            time::sleep(RETRY).await;
        }
        Err(Refused { error: self.unreachable(reason), maybe_done })
    }

    /// Whether a server that does not understand this client speaks TLS.
    pub(super) async fn speaks_tls(&self, server: &str) -> bool {
        let asked = self.dialer.http().get(self.dialer.url(server, "/healthz")).timeout(CONNECT_TIMEOUT);
        let Ok(answer) = asked.send().await else { return false };
        answer.json::<ErrorView>().await.is_ok_and(|error| error.reason == TLS_REQUIRED)
    }

    /// Creates a changefeed.
    ///
    /// # Errors
    /// When it exists, cannot be run, or nobody answers.
    pub async fn create_changefeed(&self, new: &NewChangefeed) -> Result<CreatedChangefeed, ClientError> {
        let refused = match self.http(Method::POST, "changefeeds", Some(new)).await {
            Ok(created) => return Ok(created),
            Err(refused) => refused,
        };
        if let (true, ClientError::Refused(Refusal::ChangefeedExists(id))) = (refused.maybe_done, &refused.error) {
            let there = self.changefeed(id).await?;
            if is_wished(new, &there) {
                return Ok(CreatedChangefeed { id: there.id, start_ts: there.start_ts, warnings: Vec::new() });
            }
        }
        Err(refused.error)
    }

    /// All changefeeds.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn changefeeds(&self) -> Result<Vec<ChangefeedView>, ClientError> {
        Ok(self.http::<_, List<_>>(Method::GET, "changefeeds", NOTHING).await?.items)
    }

    /// One changefeed.
    ///
    /// # Errors
    /// When there is none, or nobody answers.
    pub async fn changefeed(&self, id: &ChangefeedId) -> Result<ChangefeedView, ClientError> {
        Ok(self.http(Method::GET, &format!("changefeeds/{id}"), NOTHING).await?)
    }

    /// Stops a changefeed's work and keeps its position.
    ///
    /// # Errors
    /// When there is none, or nobody answers.
    pub async fn pause(&self, id: &ChangefeedId) -> Result<(), ClientError> {
        self.http::<_, Value>(Method::POST, &format!("changefeeds/{id}/pause"), NOTHING).await?;
        Ok(())
    }

    /// Lets a paused or failed changefeed go on from its position.
    ///
    /// # Errors
    /// When there is none, or nobody answers.
    pub async fn resume(&self, id: &ChangefeedId) -> Result<(), ClientError> {
        self.http::<_, Value>(Method::POST, &format!("changefeeds/{id}/resume"), NOTHING).await?;
        Ok(())
    }

    /// Removes a changefeed and its position.
    ///
    /// # Errors
    /// When there is none, or nobody answers.
    pub async fn delete(&self, id: &ChangefeedId) -> Result<(), ClientError> {
        match self.exchange(Method::DELETE, &format!("changefeeds/{id}"), NOTHING).await {
            Ok((Deleted { deleted: false }, false)) => Err(Refusal::UnknownChangefeed(id.clone()).into()),
            Ok(_) => Ok(()),
            Err(refused) => Err(refused.error),
        }
    }
}

/// Whether a changefeed is the one that was wished for.
fn is_wished(new: &NewChangefeed, there: &ChangefeedView) -> bool {
    let same = (&there.source, &there.sink, there.span_max_keys) == (&new.source, &new.sink, new.span_max_keys);
    same && new.start_ts.is_none_or(|start_ts| start_ts == 0 || start_ts == there.start_ts)
}

async fn refused(server: &str, answer: reqwest::Response) -> ClientError {
    let status = answer.status();
    match answer.json::<ErrorView>().await {
        Ok(error) if error.reason == TLS_REQUIRED => ClientError::SpeaksTls(server.to_owned()),
        Ok(error) if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
            ClientError::Unauthorised(error.error_msg)
        }
        Ok(error) => match refusal::rebuild(&error.reason, |name| error.facts.get(name).cloned()) {
            Some(refusal) => refusal.into(),
            None => ClientError::Invalid { reason: error.reason, message: error.error_msg },
        },
        Err(_) => ClientError::Protocol(status.to_string()),
    }
}
