//! Changefeeds, by the HTTP API.

use capturedrain_core::model::ChangefeedId;
use reqwest::{Method, StatusCode};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::time::{self, Instant};

use super::{CONNECT_TIMEOUT, Client, ClientError, PATIENCE, RETRY};
use crate::{
    tls::distrust,
    view::{ChangefeedView, CreatedChangefeed, ErrorView, NewChangefeed},
    wire::{cause, refusal},
};

/// What a server says in the clear that speaks TLS.
const TLS_REQUIRED: &str = "TLS_REQUIRED";
const NOTHING: Option<&()> = None;

impl Client {
    async fn http<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, ClientError> {
        let until = Instant::now() + PATIENCE;
        let mut distrusted = 0;
        let mut reason = String::new();
        for server in self.servers.iter().cycle() {
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
                    reason = format!("{server}: {}", cause(&error));
                    if let Some(why) = distrust(&error) {
                        distrusted += 1;
                        let error = ClientError::Distrust { server: server.clone(), why };
                        if distrusted >= self.servers.len() {
                            return Err(error);
                        }
                        reason = error.to_string();
                    }
                }
                Ok(answer) if answer.status() == StatusCode::SERVICE_UNAVAILABLE => {
                    let error = answer.json::<ErrorView>().await;
                    reason = error.map_or_else(|error| cause(&error), |error| error.error_msg);
                }
                Ok(answer) if answer.status().is_success() => {
                    return answer.json().await.map_err(|error| ClientError::Protocol(cause(&error)));
                }
                Ok(answer) => return Err(refused(server, answer).await),
            }
            if Instant::now() + RETRY >= until {
                break;
            }
            time::sleep(RETRY).await;
        }
        Err(self.unreachable(reason))
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
        self.http(Method::POST, "changefeeds", Some(new)).await
    }

    /// All changefeeds.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn changefeeds(&self) -> Result<Vec<ChangefeedView>, ClientError> {
        self.http(Method::GET, "changefeeds", NOTHING).await
    }

    /// One changefeed.
    ///
    /// # Errors
    /// When there is none, or nobody answers.
    pub async fn changefeed(&self, id: &ChangefeedId) -> Result<ChangefeedView, ClientError> {
        self.http(Method::GET, &format!("changefeeds/{id}"), NOTHING).await
    }

    /// Stops a changefeed's work and keeps its position.
    ///
    /// # Errors
    /// When there is none, or nobody answers.
    pub async fn pause(&self, id: &ChangefeedId) -> Result<(), ClientError> {
        self.http::<_, Value>(Method::POST, &format!("changefeeds/{id}/pause"), NOTHING).await.map(drop)
    }

    /// Lets a paused or failed changefeed go on from its position.
    ///
    /// # Errors
    /// When there is none, or nobody answers.
    pub async fn resume(&self, id: &ChangefeedId) -> Result<(), ClientError> {
        self.http::<_, Value>(Method::POST, &format!("changefeeds/{id}/resume"), NOTHING).await.map(drop)
    }

    /// Removes a changefeed and its position.
    ///
    /// # Errors
    /// When there is none, or nobody answers.
    pub async fn delete(&self, id: &ChangefeedId) -> Result<(), ClientError> {
        self.http::<_, Value>(Method::DELETE, &format!("changefeeds/{id}"), NOTHING).await.map(drop)
    }
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
