//! Where a cluster's state is persisted: etcd, or one file.
//!
//! Both behave as [`capturedrain_core::store::Model`] does; one conformance suite holds them to it.

mod embedded;
mod etcd;
mod file;

use std::{path::PathBuf, time::Duration};

use capturedrain_core::store::{Changes, Entry, LeaseId, Listing, Revision, TooLarge, Txn, TxnOutcome};
use futures::stream::BoxStream;

use crate::tls::{Files, TlsError};

pub use self::{embedded::Embedded, etcd::Etcd};

/// The longest that a call waits for its answer.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// A store that cannot be used, or a call that did not work.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The address of the store makes no sense.
    #[error("\"{0}\" is not a store: use etcd://HOST:PORT[,HOST:PORT…] or embedded:PATH")]
    Url(String),
    /// TLS is asked for where there is none.
    #[error("\"{0}\" is a file: --etcd-ca, --etcd-cert and --etcd-key are for etcd://")]
    NoTls(String),
    /// The files that say who this process is to etcd are no good.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// etcd does not answer.
    #[error("etcd at {endpoints} does not answer: {reason}")]
    Unreachable {
        /// Where it was looked for.
        endpoints: String,
        /// What the client says.
        reason: String,
    },
    /// The store refuses the call itself; it was not carried out.
    #[error("the store refuses the call: {0}")]
    Rejected(String),
    /// Another process has the file.
    #[error("embedded store {0} is in use by another process; end that, or use another file")]
    InUse(PathBuf),
    /// The file is not, or no longer, a store.
    #[error("embedded store {path} is damaged: {reason}; move it away, or restore a copy of it")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file cannot be read or written.
    #[error("embedded store {path} cannot be used: {reason}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl From<TooLarge> for StoreError {
    fn from(error: TooLarge) -> Self {
        Self::Rejected(error.to_string())
    }
}

impl StoreError {
    /// A stable word for metrics and logs.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Url(_) | Self::NoTls(_) => "usage",
            Self::Tls(_) => "tls",
            Self::Unreachable { .. } => "unreachable",
            Self::Rejected(_) => "rejected",
            Self::InUse(_) => "in_use",
            Self::Damaged { .. } => "damaged",
            Self::Io { .. } => "io",
        }
    }
}

/// A watch that has come to an end.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The changes that it should tell next are gone: list, and watch from there.
    #[error("the changes after revision {0} are compacted")]
    Compacted(Revision),
    /// The store went away.
    #[error(transparent)]
    Broken(#[from] StoreError),
}

/// The changes of a range of keys, for as long as it lasts; the last item is the error that ended it.
pub type Watch = BoxStream<'static, Result<Changes, WatchError>>;

/// What a store offers. Keys are without the cluster's prefix; ranges are from `start` to before `end`.
pub trait Store: Clone + Send + Sync + 'static {
    /// Gives out a lease.
    fn grant(&self, ttl: Duration) -> impl Future<Output = Result<LeaseId, StoreError>> + Send;

    /// Keeps a lease alive for its full time from now on. `false`: there is no such lease.
    fn keep(&self, lease: LeaseId) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Ends a lease, and with it its keys.
    fn revoke(&self, lease: LeaseId) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Carries out a transaction. When no answer comes its outcome is `Unknown`; an error means that it was certainly
    /// not carried out.
    fn txn(&self, txn: Txn) -> impl Future<Output = Result<TxnOutcome, StoreError>> + Send;

    /// Reads a key.
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<Entry>, StoreError>> + Send;

    /// Reads a range at one revision.
    fn list(&self, start: &str, end: &str) -> impl Future<Output = Result<Listing, StoreError>> + Send;

    /// Tells all changes of a range after a revision. No revision is told in two parts.
    fn watch(&self, start: &str, end: &str, after: Revision) -> Watch;
}

/// A store of either kind.
#[derive(Debug, Clone)]
pub enum AnyStore {
    /// For real clusters.
    Etcd(Box<Etcd>),
    /// For one machine.
    Embedded(Embedded),
}

impl AnyStore {
    /// Opens a store by its address: `etcd://HOST:PORT[,HOST:PORT…]` or `embedded:PATH`.
    ///
    /// # Errors
    /// When the address makes no sense, or nobody answers there, or the file cannot be used.
    pub async fn open(url: &str, cluster: &str) -> Result<Self, StoreError> {
        Self::open_with(url, cluster, None).await
    }

    /// The same, with TLS to etcd when there are files that say how.
    ///
    /// # Errors
    /// The same, and when the files are no good.
    pub async fn open_with(url: &str, cluster: &str, tls: Option<Files>) -> Result<Self, StoreError> {
        if url.starts_with("embedded:") && tls.is_some() {
            return Err(StoreError::NoTls(url.to_owned()));
        }
        if let Some(path) = url.strip_prefix("embedded:").filter(|path| !path.is_empty()) {
            return Ok(Self::Embedded(Embedded::open(path).await?));
        }
        match url.strip_prefix("etcd://").map(|rest| rest.trim_end_matches('/')) {
            Some(hosts) if !hosts.is_empty() && !hosts.contains('/') => {
                let scheme = if tls.is_some() { "https" } else { "http" };
                let endpoints: Vec<_> = hosts.split(',').map(|host| format!("{scheme}://{host}")).collect();
                Ok(Self::Etcd(Box::new(Etcd::connect_with(&endpoints, cluster, tls).await?)))
            }
            _ => Err(StoreError::Url(url.to_owned())),
        }
    }
}

/// Passes a call on to the store that there is.
macro_rules! either {
    ($self:ident, $store:ident => $call:expr) => {
        match $self {
            Self::Etcd($store) => $call,
            Self::Embedded($store) => $call,
        }
    };
}

impl Store for AnyStore {
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        either!(self, store => store.grant(ttl).await)
    }

    async fn keep(&self, lease: LeaseId) -> Result<bool, StoreError> {
        either!(self, store => store.keep(lease).await)
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        either!(self, store => store.revoke(lease).await)
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        either!(self, store => store.txn(txn).await)
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        either!(self, store => store.get(key).await)
    }

    async fn list(&self, start: &str, end: &str) -> Result<Listing, StoreError> {
        either!(self, store => store.list(start, end).await)
    }

    fn watch(&self, start: &str, end: &str, after: Revision) -> Watch {
        either!(self, store => store.watch(start, end, after))
    }
}
