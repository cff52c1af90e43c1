//! A range of an etcd, by watch: its revision is the commit timestamp.
//!
//! An idle range makes no events, so progress is asked for: etcd then says up to which revision it has told everything.

use std::{sync::Arc, time::Duration};

use capturedrain_core::model::{CommitTs, Span};
use etcd_client::{
    Client, ConnectOptions, Error, EventType, GetOptions, GetResponse, KeyValue, WatchOptions, WatchResponse,
    WatchStream,
};
use tokio::time::{self, Instant};

use super::{Batch, Row, RowOp};
use crate::clock::wall;
use crate::pipeline::{EtcdUrl, PipelineError, table_of};

/// How often progress is asked for.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// After which a question for progress is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long a call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long after a lost connection the next one is tried.
const RECONNECT_BACKOFF: Duration = Duration::from_millis(500);
/// After which silence a watch counts as lost, although progress was asked for.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// How often an idle connection is tried, so that a dead one is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// How many keys a page of a snapshot has.
const PAGE_KEYS: i64 = 1000;

/// How far a feed is.
enum Stage {
    /// It reads what is there, at one revision; the next page begins here.
    Snapshot { revision: CommitTs, next: Vec<u8> },
    /// It has to begin to watch.
    Closed,
    /// It watches.
    Watching { watch: Box<WatchStream>, asked_at: Option<(Instant, u64)>, next_ask: Instant, heard_at: Instant },
}

/// The changes of a range.
pub(in crate::pipeline) struct EtcdFeed {
    url: Arc<EtcdUrl>,
    client: Option<Client>,
    /// Keys below the range that belong to other tables are left out when this is set.
    only_table: Option<Arc<str>>,
    start: Vec<u8>,
    end: Vec<u8>,
    /// Everything up to here has been brought; 0: nothing, and a snapshot comes first.
    cursor: CommitTs,
    stage: Stage,
    outage: bool,
}

/// Connects, and makes sure that this etcd can be trusted.
pub(in crate::pipeline) async fn connect(url: &EtcdUrl) -> Result<Client, PipelineError> {
    let options = ConnectOptions::new()
        .with_connect_timeout(CALL_TIMEOUT)
        .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE)
        .with_keep_alive_while_idle(true);
    let mut client = Client::connect(&url.endpoints, Some(options)).await.map_err(|error| unreachable(url, &error))?;
    let status = call(url, client.status()).await?;
    if !is_trusted(status.version()) {
        let version = status.version().to_owned();
        return Err(PipelineError::Untrusted { url: url.url.clone(), version });
    }
    Ok(client)
}

/// Whether a version has the fixes of etcd-io/etcd #15220 and #17557, without which progress notices overtake events.
fn is_trusted(version: &str) -> bool {
    let mut numbers = version.split(['.', '-']).map(|part| part.parse::<u64>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    let version = (next(), next(), next());
    match version {
        (3, 4, patch) => patch >= 31,
        (3, 5, patch) => patch >= 13,
        newer => newer >= (3, 6, 0),
    }
}

fn unreachable(url: &EtcdUrl, error: &Error) -> PipelineError {
    let reason = match error {
        Error::GRpcStatus(status) => status.message().to_owned(),
        other => other.to_string(),
    };
    PipelineError::Unreachable { url: url.url.clone(), reason }
}

async fn call<T>(url: &EtcdUrl, work: impl Future<Output = Result<T, Error>>) -> Result<T, PipelineError> {
    let Ok(answer) = time::timeout(CALL_TIMEOUT, work).await else {
        let reason = format!("no answer within {} s", CALL_TIMEOUT.as_secs());
        return Err(PipelineError::Unreachable { url: url.url.clone(), reason });
    };
    answer.map_err(|error| unreachable(url, &error))
}

/// Reads a range at a revision (0: the present one); says when that revision cannot be read any more, or not yet.
pub(in crate::pipeline) async fn read(
    url: &EtcdUrl,
    client: &mut Client,
    start: &[u8],
    options: GetOptions,
    revision: CommitTs,
) -> Result<GetResponse, PipelineError> {
    let at = i64::try_from(revision).unwrap_or(i64::MAX);
    let answer = call(url, client.get(start.to_vec(), Some(options.with_revision(at)))).await;
    match answer {
        Err(PipelineError::Unreachable { reason, .. }) if reason.contains("has been compacted") => {
            Err(PipelineError::Compacted { url: url.url.clone(), compacted: revision + 1, start_ts: revision })
        }
        Err(PipelineError::Unreachable { reason, .. }) if reason.contains("is a future revision") => {
            let present = call(url, client.get("a", Some(GetOptions::new().with_count_only()))).await?;
            let present = revision_of(&present);
            Err(PipelineError::WentBack { url: url.url.clone(), revision: present, start_ts: revision })
        }
        other => other,
    }
}

pub(in crate::pipeline) fn revision_of(response: &GetResponse) -> CommitTs {
    response.header().map_or(0, |header| unsigned(header.revision()))
}

fn unsigned(signed: i64) -> CommitTs {
    CommitTs::try_from(signed).unwrap_or(0)
}

impl EtcdFeed {
    pub(in crate::pipeline) fn new(url: &EtcdUrl, span: &Span, start_ts: CommitTs) -> Self {
        Self {
            url: Arc::new(url.clone()),
            client: None,
            only_table: span.table.is_empty().then(|| span.table.clone()),
            start: span.start.to_vec(),
            end: span.end.to_vec(),
            cursor: start_ts,
            stage: Stage::Closed,
            outage: false,
        }
    }

    /// All keys below the prefix, whatever their table.
    pub(in crate::pipeline) fn of_prefix(url: &EtcdUrl, end: Vec<u8>, start_ts: CommitTs) -> Self {
        let span = Span { table: "".into(), start: url.prefix.as_slice().into(), end: end.into() };
        Self { only_table: None, ..Self::new(url, &span, start_ts) }
    }

    fn client(&self) -> Result<Client, PipelineError> {
        let gone = || PipelineError::Unreachable { url: self.url.url.clone(), reason: "not connected".to_owned() };
        self.client.clone().ok_or_else(gone)
    }

    fn range(&self) -> GetOptions {
        GetOptions::new().with_range(self.end.clone())
    }

    /// Begins to watch, or to read the snapshot; tries until the source answers.
    pub(super) async fn open(&mut self) -> Result<(), PipelineError> {
        while matches!(self.stage, Stage::Closed) {
            match self.try_open().await {
                Ok(stage) => {
                    if self.outage {
                        tracing::info!(source = %self.url.url, "source answers again");
                    }
                    self.outage = false;
                    self.stage = stage;
                }
                Err(error) => self.outage(error).await?,
            }
        }
        Ok(())
    }

    /// A source that went away is waited for; any other error is returned.
    async fn outage(&mut self, error: PipelineError) -> Result<(), PipelineError> {
        if error.is_fatal() {
            return Err(error);
        }
        if !self.outage {
            tracing::warn!(%error, "source is not reached, trying again");
        }
        self.outage = true;
        self.client = None;
        self.stage = Stage::Closed;
        time::sleep(RECONNECT_BACKOFF).await;
        Ok(())
    }

    async fn try_open(&mut self) -> Result<Stage, PipelineError> {
        if self.client.is_none() {
            self.client = Some(connect(&self.url).await?);
        }
        let mut client = self.client()?;
        // Linearizable, so no member that lags behind answers this.
        let present = read(&self.url, &mut client, &self.start, self.range().with_count_only(), 0).await?;
        let revision = revision_of(&present);
        if revision < self.cursor {
            return Err(PipelineError::WentBack { url: self.url.url.clone(), revision, start_ts: self.cursor });
        }
        if self.cursor == 0 {
            return Ok(Stage::Snapshot { revision, next: self.start.clone() });
        }
        // From what is known already: a watch that begins in the future gets no notice of progress until that comes.
        let from = i64::try_from(self.cursor).unwrap_or(i64::MAX);
        let options = WatchOptions::new().with_range(self.end.clone()).with_start_revision(from);
        let mut watch = call(&self.url, client.watch(self.start.clone(), Some(options))).await?;
        let created = call(&self.url, watch.message()).await?;
        self.check(created.as_ref())?;
        let now = Instant::now();
        Ok(Stage::Watching { watch: Box::new(watch), asked_at: None, next_ask: now, heard_at: now })
    }

    /// Says why a watch ended, if it did.
    fn check(&self, response: Option<&WatchResponse>) -> Result<(), PipelineError> {
        let gone = |reason: &str| PipelineError::Unreachable { url: self.url.url.clone(), reason: reason.to_owned() };
        let Some(response) = response else { return Err(gone("the watch was closed")) };
        if response.compact_revision() > 0 {
            return Err(PipelineError::Compacted {
                url: self.url.url.clone(),
                compacted: unsigned(response.compact_revision()),
                start_ts: self.cursor,
            });
        }
        if response.canceled() { Err(gone(response.cancel_reason())) } else { Ok(()) }
    }

    pub(in crate::pipeline) async fn next(&mut self) -> Result<Batch, PipelineError> {
        loop {
            self.open().await?;
            let advanced = match &self.stage {
                Stage::Snapshot { revision, next } => {
                    let (revision, next) = (*revision, next.clone());
                    self.page(revision, next).await.map(Some)
                }
                Stage::Watching { .. } => self.watch_on().await,
                Stage::Closed => Ok(None),
            };
            match advanced {
                Ok(Some(batch)) => return Ok(batch),
                Ok(None) => {}
                Err(error) => self.outage(error).await?,
            }
        }
    }

    /// A page of the snapshot. Rows carry the revision at which their key was last written.
    async fn page(&mut self, revision: CommitTs, next: Vec<u8>) -> Result<Batch, PipelineError> {
        let mut client = self.client()?;
        let page = read(&self.url, &mut client, &next, self.range().with_limit(PAGE_KEYS), revision).await;
        let page = page.map_err(|error| match error {
            // Compacted while it was read: it begins anew, under a new writer.
            PipelineError::Compacted { url, .. } => {
                PipelineError::Unreachable { url, reason: "compacted while its snapshot was read".to_owned() }
            }
            other => other,
        })?;
        let rows = page.kvs().iter().filter_map(|kv| self.row(kv, EventType::Put)).collect();
        match page.kvs().last() {
            Some(last) if page.more() => {
                self.stage = Stage::Snapshot { revision, next: [last.key(), &[0]].concat() };
                Ok(Batch { rows, resolved_ts: 0, resolved_at_ms: 0 })
            }
            _ => {
                self.cursor = revision;
                self.stage = Stage::Closed;
                Ok(Batch { rows, resolved_ts: revision, resolved_at_ms: 0 })
            }
        }
    }

    /// The next message of the watch, if it brings something.
    async fn watch_on(&mut self) -> Result<Option<Batch>, PipelineError> {
        let Stage::Watching { watch, asked_at, next_ask, heard_at } = &mut self.stage else { return Ok(None) };
        let message = tokio::select! {
            message = watch.message() => message.map_err(|error| unreachable(&self.url, &error))?,
            () = time::sleep_until(*next_ask) => {
                *next_ask = Instant::now() + PROGRESS_INTERVAL;
                if heard_at.elapsed() > SILENCE_MAX {
                    let reason = format!("the watch was silent for {} s", SILENCE_MAX.as_secs());
                    return Err(PipelineError::Unreachable { url: self.url.url.clone(), reason });
                }
                if asked_at.is_none_or(|(at, _)| at.elapsed() > ASK_AGAIN) {
                    // Asked again, the first question's moment counts: its answer may be on the way.
                    let moment = asked_at.map_or_else(|| wall().0, |(_, moment)| moment);
                    watch.request_progress().await.map_err(|error| unreachable(&self.url, &error))?;
                    *asked_at = Some((Instant::now(), moment));
                }
                return Ok(None);
            }
        };
        *heard_at = Instant::now();
        let is_progress = message.as_ref().is_some_and(|m| m.events().is_empty() && !m.created() && !m.canceled());
        let asked = if is_progress { asked_at.take() } else { None };
        self.check(message.as_ref())?;
        let Some(message) = message else { return Ok(None) };
        if is_progress {
            let told = message.header().map_or(0, |header| unsigned(header.revision()));
            self.cursor = self.cursor.max(told);
            let resolved_at_ms = asked.map_or(0, |(_, at_ms)| at_ms);
            return Ok(Some(Batch { rows: Vec::new(), resolved_ts: self.cursor, resolved_at_ms }));
        }
        let known = self.cursor;
        let mut rows = Vec::with_capacity(message.events().len());
        for event in message.events() {
            if let Some(kv) = event.kv().filter(|kv| unsigned(kv.mod_revision()) > known) {
                self.cursor = self.cursor.max(unsigned(kv.mod_revision()));
                rows.extend(self.row(kv, event.event_type()));
            }
        }
        Ok(Some(Batch { rows, resolved_ts: self.cursor, resolved_at_ms: 0 }))
    }

    fn row(&self, kv: &KeyValue, kind: EventType) -> Option<Row> {
        if self.only_table.as_ref().is_some_and(|only| table_of(&self.url.prefix, kv.key()) != *only) {
            return None;
        }
        let op = match kind {
            EventType::Put => RowOp::Put(kv.value().to_vec()),
            EventType::Delete => RowOp::Delete,
        };
        let is_first = kind == EventType::Put && kv.create_revision() == kv.mod_revision();
        Some(Row { commit_ts: unsigned(kv.mod_revision()), key: kv.key().to_vec(), op, is_first })
    }

    /// A key in the middle, when there are more than `max`; `None` also when the source does not answer.
    pub(super) async fn split_point(&self, max: u64) -> Option<Arc<[u8]>> {
        let mut client = self.client.clone()?;
        let count = read(&self.url, &mut client, &self.start, self.range().with_count_only(), 0).await.ok()?.count();
        if unsigned(count) <= max {
            return None;
        }
        let half = self.range().with_keys_only().with_limit(count / 2 + 1);
        let keys = read(&self.url, &mut client, &self.start, half, 0).await.ok()?;
        keys.kvs().last().map(|kv| kv.key().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_whose_progress_overtakes_events_are_not_trusted() {
        for (version, trusted) in [
            ("3.4.23", false),
            ("3.4.31", true),
            ("3.5.12", false),
            ("3.5.13", true),
            ("3.6.0", true),
            ("3.6.7", true),
            ("4.0.0", true),
            ("3.3.99", false),
            ("3.6.0-rc.1", true),
            ("", false),
        ] {
            assert_eq!(is_trusted(version), trusted, "{version}");
        }
    }
}
