//! A cluster's state in etcd, below `/capturedrain/<cluster>/`.
//!
//! Watches ask for no progress notices, so that versions whose notices overtake events, which a source refuses, lose
//! nothing here.

use std::{
    fmt,
    future::Future,
    sync::{Arc, Weak},
    time::Duration,
};

use arc_swap::ArcSwap;
use capturedrain_core::store::{Change, Changes, Compare, Entry, LeaseId, Listing, Op, Revision, Txn, TxnOutcome};
use etcd_client::{
    Client, CompareOp, ConnectOptions, Error, EventType, GetOptions, KeyValue, PutOptions, TxnOp, WatchOptions,
    WatchResponse, WatchStream,
};
use futures::{StreamExt as _, stream};
use tokio::time;

use super::{CALL_TIMEOUT, Store, StoreError, Watch, WatchError};
use crate::tls::{Current, Files, distrust};

/// How many keys one page of a listing has.
const PAGE_KEYS: i64 = 1000;
/// How often an idle connection is tried, so that a dead one is noticed. etcd takes more than one try in 5 s for an
/// attack, and closes the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(6);
/// How long such a try waits for its answer.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// What etcd's client says of a lease that is over.
const LEASE_NOT_FOUND: &str = "lease not found";

/// A cluster's part of an etcd.
#[derive(Clone)]
pub struct Etcd {
    /// Replaced when the credentials are.
    client: Arc<ArcSwap<Client>>,
    endpoints: Arc<str>,
    prefix: Arc<str>,
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd").field("endpoints", &self.endpoints).field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Etcd {
    /// Connects in the clear, and makes sure that somebody answers.
    ///
    /// # Errors
    /// When nobody does.
    pub async fn connect(endpoints: &[String], cluster: &str) -> Result<Self, StoreError> {
        Self::connect_with(endpoints, cluster, None).await
    }

    /// The same, over TLS when there are files that say how; new files are used once they are there.
    ///
    /// # Errors
    /// When nobody answers, or the files are no good.
    pub async fn connect_with(endpoints: &[String], cluster: &str, tls: Option<Files>) -> Result<Self, StoreError> {
        let credentials = tls.map(|files| Current::follow(files, Arc::new(|_| Ok(())))).transpose()?;
        let client = dial(endpoints, credentials.as_ref()).await?;
        let client = Arc::new(ArcSwap::from_pointee(client));
        if let Some(credentials) = credentials {
            tokio::spawn(renew(Arc::downgrade(&client), endpoints.to_vec(), credentials));
        }
        let prefix = format!("/capturedrain/{cluster}/").into();
        let store = Self { client, endpoints: endpoints.join(",").into(), prefix };
        store.get("").await?;
        Ok(store)
    }

    fn client(&self) -> Client {
        Client::clone(&self.client.load())
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn entry(&self, kv: &KeyValue) -> Option<Entry> {
        Some(Entry {
            key: kv.key_str().ok()?.strip_prefix(&*self.prefix)?.into(),
            value: kv.value().into(),
            create_revision: revision(kv.create_revision()),
            mod_revision: revision(kv.mod_revision()),
            lease: (kv.lease() != 0).then(|| LeaseId(kv.lease())),
        })
    }

    async fn call<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, StoreError> {
        match time::timeout(CALL_TIMEOUT, work).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(unreachable(&self.endpoints, &error)),
            Err(_) => Err(StoreError::Unreachable {
                endpoints: self.endpoints.to_string(),
                reason: format!("no answer within {} s", CALL_TIMEOUT.as_secs()),
            }),
        }
    }

    fn compare(&self, compare: &Compare) -> etcd_client::Compare {
        match compare {
            Compare::Created(key, at) => {
                etcd_client::Compare::create_revision(self.key(key), CompareOp::Equal, signed(*at))
            }
            Compare::Modified(key, at) => {
                etcd_client::Compare::mod_revision(self.key(key), CompareOp::Equal, signed(*at))
            }
            Compare::PrefixUnchanged(prefix, at) => {
                etcd_client::Compare::mod_revision(self.key(prefix), CompareOp::Less, signed(*at) + 1).with_prefix()
            }
        }
    }

    fn op(&self, op: &Op) -> TxnOp {
        match op {
            Op::Put { key, value, lease } => {
                let options = lease.map(|lease| PutOptions::new().with_lease(lease.0));
                TxnOp::put(self.key(key), value.to_vec(), options)
            }
            Op::Delete(key) => TxnOp::delete(self.key(key), None),
        }
    }

    fn changes(&self, response: &WatchResponse) -> Option<Changes> {
        let mut last = 0;
        let mut changes = Vec::new();
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            last = last.max(revision(kv.mod_revision()));
            match (event.event_type(), self.entry(kv)) {
                (EventType::Put, Some(entry)) => changes.push(Change::Put(entry)),
                (EventType::Delete, Some(entry)) => changes.push(Change::Deleted(entry.key)),
                (_, None) => {}
            }
        }
        (last > 0).then_some(Changes { revision: last, changes })
    }

    async fn next(&self, watch: &mut WatchStream) -> Result<Changes, WatchError> {
        loop {
            let message = watch.message().await.map_err(|error| unreachable(&self.endpoints, &error))?;
            let Some(response) = message else {
                return Err(self.broken("the watch was closed".to_owned()));
            };
            if response.canceled() {
                return Err(match revision(response.compact_revision()) {
                    0 => self.broken(response.cancel_reason().to_owned()),
                    compacted => WatchError::Compacted(compacted),
                });
            }
            // Neither the acknowledgement of the watch nor a sign of life brings changes.
            if let Some(changes) = self.changes(&response) {
                return Ok(changes);
            }
        }
    }

    fn broken(&self, reason: String) -> WatchError {
        WatchError::Broken(StoreError::Unreachable { endpoints: self.endpoints.to_string(), reason })
    }
}

async fn dial(endpoints: &[String], credentials: Option<&Current>) -> Result<Client, StoreError> {
    let mut options = ConnectOptions::new()
        .with_connect_timeout(CALL_TIMEOUT)
        .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE_TIMEOUT)
        .with_keep_alive_while_idle(true)
        // A member that is cut off from the others says so, also to watches, which would be silent for ever.
        .with_require_leader(true);
    if let Some(credentials) = credentials {
        options = options.with_tls(credentials.get().for_etcd());
    }
    let client = Client::connect(endpoints, Some(options)).await;
    client.map_err(|error| unreachable(&endpoints.join(","), &error))
}

/// Dials anew with each new credentials. What is under way ends on the old connection.
async fn renew(client: Weak<ArcSwap<Client>>, endpoints: Vec<String>, mut credentials: Current) {
    loop {
        credentials.changed().await;
        let Some(client) = client.upgrade() else { return };
        match dial(&endpoints, Some(&credentials)).await {
            Ok(renewed) => client.store(Arc::new(renewed)),
            Err(error) => tracing::warn!(%error, "etcd is not dialled with new credentials, the old connection stays"),
        }
    }
}

fn revision(signed: i64) -> Revision {
    Revision::try_from(signed).unwrap_or(0)
}

fn signed(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn unreachable(endpoints: &str, error: &Error) -> StoreError {
    let reason = match error {
        Error::GRpcStatus(status) => {
            distrust(status).map_or_else(|| status.message().to_owned(), |why| why.to_string())
        }
        other => other.to_string(),
    };
    StoreError::Unreachable { endpoints: endpoints.to_owned(), reason }
}

impl Store for Etcd {
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let mut client = self.client();
        let seconds = i64::try_from(ttl.as_secs().max(1)).unwrap_or(i64::MAX);
        Ok(LeaseId(self.call(client.lease_grant(seconds, None)).await?.id()))
    }

    async fn keep(&self, lease: LeaseId) -> Result<bool, StoreError> {
        let mut client = self.client();
        match time::timeout(CALL_TIMEOUT, client.lease_keep_alive(lease.0)).await {
            Ok(Err(Error::LeaseKeepAliveError(reason))) if reason == LEASE_NOT_FOUND => Ok(false),
            Ok(answer) => self.call(async { answer }).await.map(|_| true),
            Err(_) => self.call(std::future::pending::<Result<bool, Error>>()).await,
        }
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let mut client = self.client();
        match self.call(client.lease_revoke(lease.0)).await {
            Err(StoreError::Unreachable { reason, .. }) if reason.contains(LEASE_NOT_FOUND) => Ok(()),
            other => other.map(drop),
        }
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        txn.check_size()?;
        let compares: Vec<_> = txn.compares.iter().map(|compare| self.compare(compare)).collect();
        let ops: Vec<_> = txn.ops.iter().map(|op| self.op(op)).collect();
        let mut client = self.client();
        match self.call(client.txn(etcd_client::Txn::new().when(compares).and_then(ops))).await {
            Ok(response) => {
                let at = response.header().map_or(0, |header| revision(header.revision()));
                Ok(if response.succeeded() { TxnOutcome::Committed(at) } else { TxnOutcome::Refused(at) })
            }
            // A put on a lease that is over fails the whole transaction.
            Err(StoreError::Unreachable { reason, .. }) if reason.contains(LEASE_NOT_FOUND) => {
                Ok(TxnOutcome::Refused(0))
            }
            Err(error) => {
                tracing::warn!(%error, "no answer to a transaction");
                Ok(TxnOutcome::Unknown)
            }
        }
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let mut client = self.client();
        let response = self.call(client.get(self.key(key), None)).await?;
        Ok(response.kvs().first().and_then(|kv| self.entry(kv)))
    }

    async fn list(&self, start: &str, end: &str) -> Result<Listing, StoreError> {
        let mut listing = Listing::default();
        let mut next = self.key(start).into_bytes();
        let end = self.key(end);
        loop {
            let mut client = self.client();
            let options = GetOptions::new().with_range(end.clone()).with_limit(PAGE_KEYS);
            let options = options.with_revision(signed(listing.revision));
            let response = self.call(client.get(next, Some(options))).await?;
            if listing.revision == 0 {
                listing.revision = response.header().map_or(0, |header| revision(header.revision()));
            }
            listing.entries.extend(response.kvs().iter().filter_map(|kv| self.entry(kv)));
            match response.kvs().last() {
                Some(last) if response.more() => next = [last.key(), &[0]].concat(),
                _ => return Ok(listing),
            }
        }
    }

    fn watch(&self, start: &str, end: &str, after: Revision) -> Watch {
        let (store, start, end) = (self.clone(), self.key(start), self.key(end));
        let opening = async move {
            let options = WatchOptions::new().with_range(end).with_start_revision(signed(after) + 1);
            let mut client = store.client();
            let opened = store.call(client.watch(start, Some(options))).await;
            stream::unfold(Some((store, opened)), |state| async move {
                let (store, opened) = state?;
                match opened {
                    Err(error) => Some((Err(WatchError::Broken(error)), None)),
                    Ok(mut watch) => match store.next(&mut watch).await {
                        Ok(changes) => Some((Ok(changes), Some((store, Ok(watch))))),
                        Err(error) => Some((Err(error), None)),
                    },
                }
            })
        };
        stream::once(opening).flatten().boxed()
    }
}
