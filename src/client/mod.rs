//! Speaks to a cluster: drains by gRPC, changefeeds by HTTP. Any capture's address will do; the coordinator is found.

mod convert;
mod hook;
mod http;
mod known;
mod watch;

use std::{future::Future, time::Duration};

use capturedrain_core::model::{Answer, CaptureId, DrainEpoch, DrainRequest, NodeEpoch, Refusal};
use tokio::time::{self, Instant};
use tonic::{Code, Response, Status, transport::Channel};

use self::known::Known;
use crate::{
    tls::{Current, Dialer, Distrust, Files, TlsError, distrust},
    view::{CaptureView, DrainEndView},
    wire::{cause, decode_answer, encode_drain, pb, refusal},
};

pub use self::{
    convert::ClusterView,
    hook::{HookStanding, Proof, RecordSeen},
    watch::SILENCE,
};

/// How long a call is tried again before the cluster counts as unreachable.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long one attempt may take when there is nobody else to ask.
const CALL_TIMEOUT: Duration = Duration::from_secs(8);
/// How long one attempt may take when there is: a server that stands still must not use up the patience.
const HEDGED_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long after an attempt that failed the next one follows.
const RETRY: Duration = Duration::from_millis(200);

type Drains = pb::drain_service_client::DrainServiceClient<Channel>;

/// A call that did not work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The address of a server makes no sense.
    #[error("\"{0}\" is not a server: use http://HOST:PORT, or https://HOST:PORT with TLS")]
    Usage(String),
    /// The addresses do not fit each other, or the TLS files.
    #[error("servers in the clear and over TLS cannot be mixed: make all https://{0}")]
    Mixed(&'static str),
    /// The own TLS files are no good.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A server and this client do not trust each other.
    #[error("{server} is not spoken to: {why}")]
    Distrust {
        /// `host:port`
        server: String,
        /// Why.
        why: Distrust,
    },
    /// The server speaks TLS, and this client does not.
    #[error("{0} speaks TLS: use https://{0}, with --tls-ca for its CA")]
    SpeaksTls(String),
    /// The caller is nobody, or may not do this.
    #[error("not authorised: {0}")]
    Unauthorised(String),
    /// No server answers, or none has a coordinator to ask.
    #[error("no answer from {servers}: {reason}; is a capture running there?")]
    Unreachable {
        /// Who was asked.
        servers: String,
        /// What the last one said.
        reason: String,
    },
    /// The cluster refuses.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// What is asked for makes no sense, or cannot be done where the server runs.
    #[error("{message}")]
    Invalid {
        /// A stable word; empty when the request itself makes no sense.
        reason: String,
        /// One sentence.
        message: String,
    },
    /// The answer makes no sense.
    #[error("the answer of the server cannot be understood: {0}")]
    Protocol(String),
}

impl ClientError {
    /// Whether caller and server do not trust each other, or the caller may not do this.
    pub fn is_unauthorised(&self) -> bool {
        match self {
            Self::Unauthorised(_) => true,
            Self::Distrust { why, .. } => *why != Distrust::NoTls,
            _ => false,
        }
    }
}

/// A way to a cluster.
#[derive(Debug, Clone)]
pub struct Client {
    servers: Known,
    dialer: Dialer,
}

/// What came of one attempt.
enum Attempt {
    /// Ask this one.
    Follow(String),
    /// Ask another, later.
    Later(String),
    /// This one is not to be spoken to; another might be.
    Distrusted(ClientError),
    /// There is no point in asking again.
    Never(ClientError),
}

impl Client {
    /// A client of the cluster that these captures are of, `http://HOST:PORT` or `HOST:PORT` each. Connects when it has to.
    ///
    /// # Errors
    /// When an address makes no sense.
    pub fn new(servers: &[String]) -> Result<Self, ClientError> {
        Self::with_credentials(servers, None)
    }

    /// The same with credentials, `https://HOST:PORT` or `HOST:PORT` each. Without them `https://` goes, too: the
    /// system says then who is believed.
    ///
    /// # Errors
    /// When an address makes no sense or is `http://`, or the system believes nobody.
    pub fn with_credentials(servers: &[String], credentials: Option<Current>) -> Result<Self, ClientError> {
        let servers: Vec<_> = servers.iter().map(|server| address(server)).collect::<Result<_, _>>()?;
        if servers.is_empty() {
            return Err(ClientError::Usage(String::new()));
        }
        let secure = credentials.is_some() || servers.iter().any(|(scheme, _)| *scheme == Scheme::Https);
        if secure && servers.iter().any(|(scheme, _)| *scheme == Scheme::Http) {
            return Err(ClientError::Mixed(if credentials.is_some() { ", since there are TLS files" } else { "" }));
        }
        let dialer = match credentials {
            None if secure => Dialer::secure(Current::fixed(&Files::default())?),
            credentials => Dialer::with(credentials)?,
        };
        Ok(Self { servers: Known::new(servers.into_iter().map(|(_, addr)| addr).collect()), dialer })
    }

    /// The same for captures behind a name, such as that of their Service: those who are called by an address have to
    /// prove it.
    ///
    /// # Errors
    /// When an address makes no sense.
    pub fn behind_name(servers: &[String], credentials: Option<Current>, name: &str) -> Result<Self, ClientError> {
        let client = Self::with_credentials(servers, credentials)?;
        Ok(Self { dialer: client.dialer.behind(name), ..client })
    }

    /// The servers, `host:port` each, and how they are called: for those who speak something else with them.
    pub fn into_parts(self) -> (Vec<String>, Dialer) {
        (self.servers.given().to_vec(), self.dialer)
    }

    /// A capture's own way to its cluster, by a `host:port`.
    pub(crate) fn of_capture(addr: String, dialer: Dialer) -> Self {
        Self { servers: Known::new(vec![addr]), dialer }
    }

    fn unreachable(&self, reason: String) -> ClientError {
        let servers = self.servers.given().join(", ");
        let own = reason.strip_prefix(&servers).and_then(|rest| rest.strip_prefix(": ")).map(str::to_owned);
        ClientError::Unreachable { servers, reason: own.unwrap_or(reason) }
    }

    fn attempt_timeout(&self) -> Duration {
        if self.servers.all().len() > 1 { HEDGED_TIMEOUT } else { CALL_TIMEOUT }
    }

    async fn connect(&self, addr: &str) -> Result<Drains, Attempt> {
        Ok(drains(self.channel(addr).await?))
    }

    async fn channel(&self, addr: &str) -> Result<Channel, Attempt> {
        let failed = |error: tonic::transport::Error| match distrust(&error) {
            Some(why) => Attempt::Distrusted(ClientError::Distrust { server: addr.to_owned(), why }),
            None => Attempt::Later(format!("{addr}: {}", cause(&error))),
        };
        let endpoint = self.dialer.endpoint(addr).map_err(failed)?.http2_keep_alive_interval(CONNECT_TIMEOUT);
        endpoint.keep_alive_timeout(CONNECT_TIMEOUT).connect().await.map_err(failed)
    }

    /// What to make of an error of a call to a server.
    async fn judge(&self, addr: &str, status: &Status) -> Attempt {
        if let Some(why) = distrust(status) {
            return Attempt::Distrusted(ClientError::Distrust { server: addr.to_owned(), why });
        }
        // TLS looks like nonsense over HTTP/2; over HTTP/1 the server says it in so many words.
        let is_nonsense = !self.dialer.is_secure() && std::error::Error::source(status).is_some();
        if is_nonsense && self.speaks_tls(addr).await {
            return Attempt::Distrusted(ClientError::SpeaksTls(addr.to_owned()));
        }
        judge(status)
    }

    /// Makes a call of the coordinator, wherever it is.
    async fn call<T, F>(&self, make: impl Fn(Drains) -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.call_on(|channel| make(drains(channel))).await
    }

    /// The same of any service.
    async fn call_on<T, F>(&self, make: impl Fn(Channel) -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let until = Instant::now() + PATIENCE;
        let mut follow = None;
        let mut distrusted = 0;
        let mut reason = String::new();
        let servers = self.servers.all();
        for server in servers.iter().cycle() {
            let addr: String = follow.take().unwrap_or_else(|| server.clone());
            let attempt = match self.channel(&addr).await {
                Err(attempt) => attempt,
                Ok(channel) => match time::timeout(self.attempt_timeout(), make(channel)).await {
                    Ok(Ok(answer)) => return Ok(answer.into_inner()),
                    Ok(Err(status)) => self.judge(&addr, &status).await,
                    Err(_) => Attempt::Later(format!("{addr} took too long")),
                },
            };
            match attempt {
                Attempt::Follow(addr) => follow = Some(addr),
                Attempt::Later(why) => reason = why,
                Attempt::Distrusted(error) => {
                    distrusted += 1;
                    if distrusted >= servers.len() {
                        return Err(error);
                    }
                    reason = error.to_string();
                }
                Attempt::Never(error) => return Err(error),
            }
            if Instant::now() + RETRY >= until {
                break;
            }
            if follow.is_none() {
                time::sleep(RETRY).await;
            }
        }
        Err(self.unreachable(reason))
    }

    /// Has a capture emptied.
    ///
    /// # Errors
    /// Refusals of the cluster, and when nobody answers.
    pub async fn drain(&self, request: DrainRequest) -> Result<Answer, ClientError> {
        let sent = encode_drain(&request);
        let answer = self
            .call(|mut drains| {
                let sent = sent.clone();
                async move { drains.drain_capture(sent).await }
            })
            .await?;
        decode_answer(answer).map_err(|error| ClientError::Protocol(error.to_string()))
    }

    /// Calls a drain off. Without an epoch the drain of this capture that is on is meant: its epoch is looked up first, so
    /// that a call whose answer was lost can be repeated.
    ///
    /// # Errors
    /// Refusals of the cluster, and when nobody answers.
    pub async fn cancel(
        &self,
        capture: &CaptureId,
        epoch: Option<DrainEpoch>,
        requester: &str,
    ) -> Result<(), ClientError> {
        let epoch = match epoch {
            Some(epoch) => Some(epoch),
            None => self.epoch_of(capture).await?,
        };
        let call = pb::CancelDrainRequest {
            capture_id: capture.to_string(),
            drain_epoch: epoch.map(|epoch| epoch.0),
            requester: requester.to_owned(),
        };
        let made = |mut drains: Drains| {
            let call = call.clone();
            async move { drains.cancel_drain(call).await }
        };
        self.call(made).await.map(drop)
    }

    /// The epoch of the drain of a capture that is on.
    async fn epoch_of(&self, capture: &CaptureId) -> Result<Option<DrainEpoch>, ClientError> {
        let drain = self.status().await?.drain;
        let of_it = drain.is_draining && drain.draining_capture_id.as_deref() == Some(capture.as_str());
        Ok(of_it.then_some(DrainEpoch(drain.drain_epoch)))
    }

    /// Has a `Stopping` capture register anew.
    ///
    /// # Errors
    /// Refusals of the cluster, and when nobody answers.
    pub async fn release(&self, capture: &CaptureId, node_epoch: Option<NodeEpoch>) -> Result<(), ClientError> {
        let call = pb::ReleaseCaptureRequest {
            capture_id: capture.to_string(),
            node_epoch: node_epoch.map(|epoch| epoch.to_string()),
        };
        let made = |mut drains: Drains| {
            let call = call.clone();
            async move { drains.release_capture(call).await }
        };
        self.call(made).await.map(drop)
    }

    /// What is going on.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn status(&self) -> Result<ClusterView, ClientError> {
        let made = |mut drains: Drains| async move { drains.get_drain_status(pb::GetDrainStatusRequest {}).await };
        let answer = self.call(made).await?;
        self.read(answer.view.unwrap_or_default())
    }

    /// What a coordinator says; whom it names can be asked from now on.
    fn read(&self, view: pb::DrainView) -> Result<ClusterView, ClientError> {
        self.servers.learn(view.captures.iter().map(|capture| capture.advertise_addr.as_str()));
        ClusterView::read(view).map_err(ClientError::Protocol)
    }

    /// How earlier drains ended, oldest first.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn drains(&self) -> Result<Vec<DrainEndView>, ClientError> {
        let made = |mut drains: Drains| async move { drains.list_drains(pb::ListDrainsRequest {}).await };
        Ok(self.call(made).await?.drains.into_iter().map(convert::end).collect())
    }

    /// Who is there.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn captures(&self) -> Result<Vec<CaptureView>, ClientError> {
        let made = |mut drains: Drains| async move { drains.list_captures(pb::ListCapturesRequest {}).await };
        Ok(self.call(made).await?.captures.into_iter().map(convert::capture).collect())
    }
}

fn drains(channel: Channel) -> Drains {
    Drains::new(channel).max_decoding_message_size(64 << 20)
}

/// What to make of an error.
fn judge(status: &Status) -> Attempt {
    match refusal::from_status(status) {
        Some(Refusal::NotCoordinator { coordinator: Some(addr) }) => Attempt::Follow(addr.to_string()),
        Some(refusal @ (Refusal::NotCoordinator { .. } | Refusal::NotReady(_))) => Attempt::Later(refusal.to_string()),
        Some(refusal) => Attempt::Never(refusal.into()),
        None => match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
                Attempt::Later(status.message().to_owned())
            }
            Code::Unauthenticated | Code::PermissionDenied => {
                Attempt::Never(ClientError::Unauthorised(status.message().to_owned()))
            }
            Code::InvalidArgument => {
                let message = status.message().to_owned();
                Attempt::Never(ClientError::Invalid { reason: String::new(), message })
            }
            _ => Attempt::Never(ClientError::Protocol(status.message().to_owned())),
        },
    }
}

/// How a server's URL begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    /// Not at all: the TLS files decide.
    Unsaid,
    Http,
    Https,
}

/// Scheme and `host:port` of a server's URL.
fn address(server: &str) -> Result<(Scheme, String), ClientError> {
    let usage = || ClientError::Usage(server.to_owned());
    let said = server.contains("://");
    let full = if said { server.to_owned() } else { format!("http://{server}") };
    let url = url::Url::parse(&full).map_err(|_| usage())?;
    let scheme = match url.scheme() {
        "http" if said => Scheme::Http,
        "http" => Scheme::Unsaid,
        "https" => Scheme::Https,
        _ => return Err(usage()),
    };
    match (url.host_str(), url.port_or_known_default(), url.path()) {
        (Some(host), Some(port), "" | "/") => Ok((scheme, format!("{host}:{port}"))),
        _ => Err(usage()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_host_and_a_port() {
        for (good, scheme) in [
            ("http://h:1", Scheme::Http),
            ("h:1", Scheme::Unsaid),
            ("http://h:1/", Scheme::Http),
            ("https://h:1", Scheme::Https),
        ] {
            assert_eq!(address(good), Ok((scheme, "h:1".to_owned())), "{good}");
        }
        assert_eq!(address("[::1]:8300"), Ok((Scheme::Unsaid, "[::1]:8300".to_owned())));
        for bad in ["", "etcd://h:1", "http://h:1/path", "http://"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn all_servers_are_in_the_clear_or_all_over_tls() {
        let made = |servers: &[&str]| {
            let servers: Vec<_> = servers.iter().map(ToString::to_string).collect();
            Client::new(&servers).map(|client| client.dialer.url("h:1", "/x"))
        };
        assert_eq!(made(&["http://h:1", "h:2"]), Ok("http://h:1/x".to_owned()));
        assert_eq!(made(&["http://h:1", "https://h:2"]), Err(ClientError::Mixed("")));
    }
}
