//! An etcd, as sources and mirrors use it: connections whose every endpoint was looked at, and reads of any size.

use std::{error::Error as _, path::Path, sync::Arc, time::Duration};

use capturedrain_core::model::CommitTs;
use etcd_client::{
    Certificate, Client, ConnectOptions, Error, GetOptions, GetResponse, Identity, KvClient, TlsOptions, WatchClient,
};
use futures::future::join_all;
use tokio::time;
use tonic::Code;

use super::{EtcdUrl, PipelineError, TlsFiles};

/// How long a call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How often an idle connection is tried, so that a dead one is noticed. etcd closes one that is tried more often than
/// every 5 s.
const KEEP_ALIVE: Duration = Duration::from_secs(6);
/// How long an answer to that may take.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long after a lost connection the next one is tried.
pub(super) const RECONNECT_BACKOFF: Duration = Duration::from_millis(500);
/// Largest answer that is taken. Pages aim far below it.
const MESSAGE_MAX_BYTES: usize = 64 << 20;
/// How large a page of a range shall be.
const PAGE_BYTES: usize = 1 << 20;
/// How many keys the first page of a range has, whose sizes are not known yet.
const PAGE_FIRST_KEYS: usize = 128;
/// Most keys of a page. What a page becomes when all of its values are suddenly large is bounded by this.
const PAGE_MAX_KEYS: usize = 1000;
/// Most keys of a page without values.
const PAGE_MAX_BARE_KEYS: usize = 10_000;

/// What an etcd is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Role {
    /// It is watched.
    Source,
    /// It is written.
    Sink,
}

/// A connection.
#[derive(Clone)]
pub(super) struct Etcd {
    pub(super) url: Arc<EtcdUrl>,
    role: Role,
    pub(super) kv: KvClient,
    pub(super) watch: WatchClient,
}

/// How many keys the next page of a range has: as many as make `PAGE_BYTES`, by the sizes seen so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct PageSize {
    keys: usize,
    max: usize,
}

impl Default for PageSize {
    fn default() -> Self {
        Self { keys: PAGE_FIRST_KEYS, max: PAGE_MAX_KEYS }
    }
}

impl PageSize {
    /// For pages without values.
    pub(super) fn bare() -> Self {
        Self { keys: PAGE_MAX_BARE_KEYS, max: PAGE_MAX_BARE_KEYS }
    }

    /// A page of so many keys had so many bytes. It grows slowly, since the next values may be larger.
    fn learn(&mut self, keys: usize, bytes: usize) {
        let fitting = keys.saturating_mul(PAGE_BYTES) / bytes.max(1);
        self.keys = fitting.clamp(1, self.keys.saturating_mul(2)).min(self.max);
    }

    /// A page was larger than anything that is taken; `false` when it cannot become smaller.
    fn shrink(&mut self) -> bool {
        let can = self.keys > 1;
        self.keys = self.keys.div_ceil(8).max(1);
        can
    }
}

/// A range, and the revision that it is read at (0: the present one).
#[derive(Debug, Clone)]
pub(super) struct Range<'a> {
    pub(super) start: &'a [u8],
    pub(super) end: &'a [u8],
    pub(super) revision: CommitTs,
}

/// A part of a range.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) answer: GetResponse,
    /// Where the next one begins; `None` after the last one.
    pub(super) next: Option<Vec<u8>>,
}

pub(super) fn unsigned(signed: i64) -> CommitTs {
    CommitTs::try_from(signed).unwrap_or(0)
}

fn signed(unsigned: CommitTs) -> i64 {
    i64::try_from(unsigned).unwrap_or(i64::MAX)
}

pub(super) fn revision_of(response: &GetResponse) -> CommitTs {
    response.header().map_or(0, |header| unsigned(header.revision()))
}

impl Role {
    /// Whether a version does what is asked of it. Sources need the fixes of etcd-io/etcd #15220 and #17557, without which
    /// progress notices overtake events.
    fn trusts(self, version: &str) -> bool {
        let mut numbers = version.split(['.', '-']).map(|part| part.parse::<u64>().unwrap_or(0));
        let mut next = || numbers.next().unwrap_or(0);
        let version = (next(), next(), next());
        match (self, version) {
            (Self::Sink, version) => version >= (3, 4, 0),
            (Self::Source, (3, 4, patch)) => patch >= 31,
            (Self::Source, (3, 5, patch)) => patch >= 13,
            (Self::Source, newer) => newer >= (3, 6, 0),
        }
    }

    fn distrust(self, url: &EtcdUrl, endpoint: &str, version: &str) -> PipelineError {
        let (url, endpoint) = (url.url.clone(), endpoint.to_owned());
        match self {
            Self::Source => PipelineError::Untrusted { url, endpoint, version: version.to_owned() },
            Self::Sink => {
                PipelineError::SinkUnusable { url, reason: format!("has etcd {version} at {endpoint}, below 3.4") }
            }
        }
    }

    fn outage(self, url: &EtcdUrl, reason: String) -> PipelineError {
        let url = url.url.clone();
        match self {
            Self::Source => PipelineError::Unreachable { url, reason },
            Self::Sink => PipelineError::SinkUnreachable { url, reason },
        }
    }
}

/// What an error says, with the cause that is deepest.
fn reason(error: &Error) -> String {
    let (said, mut cause) = match error {
        Error::GRpcStatus(status) => (status.message().to_owned(), status.source()),
        other => (other.to_string(), other.source()),
    };
    while let Some(deeper) = cause.and_then(std::error::Error::source) {
        cause = Some(deeper);
    }
    match cause.map(ToString::to_string) {
        Some(cause) if !said.contains(&cause) => format!("{said}: {cause}"),
        _ => said,
    }
}

async fn options(url: &EtcdUrl) -> Result<ConnectOptions, PipelineError> {
    let options = ConnectOptions::new()
        .with_connect_timeout(CALL_TIMEOUT)
        .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE_TIMEOUT)
        .with_keep_alive_while_idle(true)
        // A member that is cut off from the others ends its watches instead of falling silent.
        .with_require_leader(true);
    let Some(TlsFiles { ca, identity }) = &url.tls else { return Ok(options) };
    let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(pem(ca).await?));
    if let Some((cert, key)) = identity {
        tls = tls.identity(Identity::from_pem(pem(cert).await?, pem(key).await?));
    }
    Ok(options.with_tls(tls))
}

async fn pem(path: &Path) -> Result<Vec<u8>, PipelineError> {
    let unusable = |reason: String| PipelineError::TlsFile { path: path.to_owned(), reason };
    let owned = path.to_owned();
    let read = tokio::task::spawn_blocking(move || std::fs::read(owned)).await;
    let bytes = read.map_err(|error| unusable(error.to_string()))?.map_err(|error| unusable(error.to_string()))?;
    // What is wrong inside is not repeated: it may be a key.
    if bytes.windows(11).any(|part| part == b"-----BEGIN ") { Ok(bytes) } else { Err(unusable("it is not PEM".into())) }
}

impl Etcd {
    /// Connects to those endpoints that answer, and makes sure that each of them can be trusted.
    pub(super) async fn connect(url: &Arc<EtcdUrl>, role: Role) -> Result<Self, PipelineError> {
        let options = options(url).await?;
        let looked = url.endpoints.iter().map(|endpoint| look(url, role, endpoint, &options));
        let mut trusted = Vec::new();
        let mut failed = None;
        for looked in join_all(looked).await {
            match looked {
                Ok(endpoint) => trusted.push(endpoint),
                Err(error) if error.is_outage() => failed = Some(error),
                Err(error) => return Err(error),
            }
        }
        match failed {
            Some(error) if trusted.is_empty() => return Err(error),
            _ => {}
        }
        let client = Client::connect(&trusted, Some(options)).await;
        let client = client.map_err(|error| role.outage(url, reason(&error)))?;
        Ok(Self {
            url: url.clone(),
            role,
            kv: client.kv_client().max_decoding_message_size(MESSAGE_MAX_BYTES),
            watch: client.watch_client().max_decoding_message_size(MESSAGE_MAX_BYTES),
        })
    }

    /// Bounds a call in time, and says what its error means.
    pub(super) async fn call<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, PipelineError> {
        within(&self.url, self.role, work).await
    }

    /// What an error of a call or a stream means.
    pub(super) fn error(&self, error: &Error) -> PipelineError {
        error_of(&self.url, self.role, error)
    }

    /// An outage, in one's own words.
    pub(super) fn outage(&self, reason: &str) -> PipelineError {
        self.role.outage(&self.url, reason.to_owned())
    }

    /// Reads a key or a range at a revision; says when that revision cannot be read any more, or not yet.
    pub(super) async fn read(&self, range: &Range<'_>, options: GetOptions) -> Result<GetResponse, PipelineError> {
        let options = options.with_range(range.end).with_revision(signed(range.revision));
        match self.call(self.kv.clone().get(range.start, Some(options))).await {
            Err(error) if says(&error, "has been compacted") => {
                let (url, start_ts) = (self.url.url.clone(), range.revision);
                Err(PipelineError::Compacted { url, compacted: start_ts + 1, start_ts })
            }
            Err(error) if says(&error, "is a future revision") => {
                let count = GetOptions::new().with_count_only();
                let present = revision_of(&self.call(self.kv.clone().get("a", Some(count))).await?);
                let (url, start_ts) = (self.url.url.clone(), range.revision);
                Err(PipelineError::WentBack { url, revision: present, start_ts })
            }
            other => other,
        }
    }

    /// Reads the first part of a range, of a size that fits.
    pub(super) async fn page(
        &self,
        range: &Range<'_>,
        options: GetOptions,
        size: &mut PageSize,
    ) -> Result<Page, PipelineError> {
        loop {
            let limit = i64::try_from(size.keys).unwrap_or(i64::MAX);
            let answer = match self.read(range, options.clone().with_limit(limit)).await {
                Err(PipelineError::Oversized { .. }) if size.shrink() => continue,
                answer => answer?,
            };
            let bytes = answer.kvs().iter().map(|kv| kv.key().len() + kv.value().len()).sum();
            size.learn(answer.kvs().len(), bytes);
            let last = answer.kvs().last().filter(|_| answer.more());
            let next = last.map(|last| [last.key(), &[0]].concat());
            return Ok(Page { answer, next });
        }
    }

    /// How many keys a range has now.
    pub(super) async fn count(&self, start: &[u8], end: &[u8]) -> Result<u64, PipelineError> {
        let range = Range { start, end, revision: 0 };
        Ok(unsigned(self.read(&range, GetOptions::new().with_count_only()).await?.count()))
    }
}

/// Asks an endpoint for its version; gives its address for the client.
async fn look(url: &EtcdUrl, role: Role, endpoint: &str, options: &ConnectOptions) -> Result<String, PipelineError> {
    let address = if url.tls.is_some() { format!("https://{endpoint}") } else { format!("http://{endpoint}") };
    let status = async { Client::connect([&address], Some(options.clone())).await?.status().await };
    let status = Box::pin(within(url, role, status)).await?;
    if role.trusts(status.version()) { Ok(address) } else { Err(role.distrust(url, endpoint, status.version())) }
}

async fn within<T>(
    url: &EtcdUrl,
    role: Role,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, PipelineError> {
    match time::timeout(CALL_TIMEOUT, work).await {
        Ok(answer) => answer.map_err(|error| error_of(url, role, &error)),
        Err(_) => Err(role.outage(url, format!("no answer within {} s", CALL_TIMEOUT.as_secs()))),
    }
}

fn error_of(url: &EtcdUrl, role: Role, error: &Error) -> PipelineError {
    let reason = reason(error);
    if reason.contains("message length too large") {
        return PipelineError::Oversized { url: url.url.clone(), limit_bytes: MESSAGE_MAX_BYTES };
    }
    match error {
        Error::GRpcStatus(status) if role == Role::Sink && is_refusal(status.code()) => PipelineError::SinkUnusable {
            url: url.url.clone(),
            reason: format!("refuses a write: {reason}{}", hint(&reason)),
        },
        _ => role.outage(url, reason),
    }
}

/// Whether the same call would be answered the same way again.
fn is_refusal(code: Code) -> bool {
    matches!(code, Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented)
}

/// What to do about a refusal.
fn hint(reason: &str) -> &'static str {
    if reason.contains("request is too large") {
        "; it needs at least the --max-request-bytes of the source, and 1 MiB"
    } else if reason.contains("too many operations") {
        "; it needs a --max-txn-ops of 128"
    } else {
        ""
    }
}

/// Whether an outage is none, but an answer that says this.
pub(super) fn says(error: &PipelineError, what: &str) -> bool {
    match error {
        PipelineError::Unreachable { reason, .. } | PipelineError::SinkUnreachable { reason, .. } => {
            reason.contains(what)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_whose_progress_overtakes_events_are_no_sources() {
        for (version, source, sink) in [
            ("3.4.23", false, true),
            ("3.4.31", true, true),
            ("3.5.12", false, true),
            ("3.5.13", true, true),
            ("3.6.0", true, true),
            ("3.6.7", true, true),
            ("4.0.0", true, true),
            ("3.3.99", false, false),
            ("3.6.0-rc.1", true, true),
            ("", false, false),
        ] {
            assert_eq!((Role::Source.trusts(version), Role::Sink.trusts(version)), (source, sink), "{version}");
        }
    }

    #[test]
    fn pages_follow_the_size_of_what_they_hold() {
        let mut size = PageSize::default();
        size.learn(128, 128 * 100);
        assert_eq!(size.keys, 256, "it grows twofold at most");
        for _ in 0..10 {
            size.learn(size.keys, size.keys * 100);
        }
        assert_eq!(size.keys, PAGE_MAX_KEYS);
        size.learn(PAGE_MAX_KEYS, PAGE_MAX_KEYS << 20);
        assert_eq!(size.keys, 1);
        assert!(!size.shrink());
        let mut size = PageSize::default();
        assert!(size.shrink() && size.keys == 16);
    }
}
