//! A range of an etcd, by watch: its revision is the commit timestamp.
//!
//! An idle range makes no events, so progress is asked for: etcd then says up to which revision it has told everything.

use std::{mem, sync::Arc, time::Duration};

use capturedrain_core::model::{CommitTs, Span};
use etcd_client::{EventType, GetOptions, KeyValue, WatchOptions, WatchResponse, WatchStream};
use tokio::time::{self, Instant};

use super::{Batch, Row, RowOp};
use crate::clock::wall;
use crate::pipeline::{
    EtcdUrl, PipelineError,
    etcd::{Etcd, PageSize, RECONNECT_BACKOFF, Range, Role, revision_of, unsigned},
    table::{KeyRange, table_of},
};

/// How often progress is asked for.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// After which a question for progress is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// After which silence a watch counts as lost, although progress was asked for.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// How far a feed is.
enum Stage {
    /// It reads what is there, at one revision that outlives a lost connection; the next page begins here.
    Snapshot { revision: CommitTs, next: Vec<u8>, size: PageSize },
    /// It has to begin to watch.
    Closed,
    /// It watches.
    Watching(Box<Watching>),
}

/// A watch.
struct Watching {
    stream: WatchStream,
    /// Events up to here were brought before it began.
    base: CommitTs,
    partial: Partial,
    asked: Option<Asked>,
    next_ask: Instant,
    heard_at: Instant,
}

/// The rows of a revision of which a part is still to come: nobody shall take a part for the whole.
#[derive(Debug, Default)]
struct Partial(Vec<Row>);

impl Partial {
    /// Takes rows, of which the last are of `last`; gives those whose revisions are whole, and the last of these.
    fn join(&mut self, rows: Vec<Row>, last: CommitTs, more_follow: bool) -> (Vec<Row>, CommitTs) {
        let mut joined = mem::take(&mut self.0);
        joined.extend(rows);
        if !more_follow {
            return (joined, last);
        }
        let whole = joined.partition_point(|row| row.commit_ts < last);
        self.0 = joined.split_off(whole);
        (joined, last.saturating_sub(1))
    }
}

/// A question for progress that is not answered yet.
struct Asked {
    first_at: Instant,
    last_at: Instant,
    /// When it was asked first, in milliseconds since 1970. Asked again, this moment counts: the first answer may be on the
    /// way.
    moment_ms: u64,
}

/// The changes of a range.
pub(in crate::pipeline) struct EtcdFeed {
    url: Arc<EtcdUrl>,
    client: Option<Etcd>,
    /// Keys below the range that belong to other tables are left out when this is set.
    only_table: Option<Arc<str>>,
    start: Vec<u8>,
    end: Vec<u8>,
    /// Everything up to here has been brought; 0: nothing, and a snapshot comes first.
    cursor: CommitTs,
    stage: Stage,
    outage: bool,
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

    /// Begins to watch, or to read the snapshot; tries until the source answers.
    pub(in crate::pipeline) async fn open(&mut self) -> Result<(), PipelineError> {
        while self.client.is_none() || matches!(self.stage, Stage::Closed) {
            match self.try_open().await {
                Ok(()) => {
                    if self.outage {
                        tracing::info!(source = %self.url.url, "source answers again");
                    }
                    self.outage = false;
                }
                Err(error) => self.outage(error).await?,
            }
        }
        Ok(())
    }

    /// A source that went away is waited for; any other error is returned.
    async fn outage(&mut self, error: PipelineError) -> Result<(), PipelineError> {
        if !error.is_outage() {
            return Err(error);
        }
        if !self.outage {
            tracing::warn!(%error, "source is not reached, trying again");
        }
        self.outage = true;
        self.client = None;
        // Pages that were handed out are of one revision, and so have to be those that follow.
        if matches!(self.stage, Stage::Watching(_)) {
            self.stage = Stage::Closed;
        }
        time::sleep(RECONNECT_BACKOFF).await;
        Ok(())
    }

    async fn try_open(&mut self) -> Result<(), PipelineError> {
        let client = match self.client.take() {
            Some(client) => client,
            None => Etcd::connect(&self.url, Role::Source).await?,
        };
        if matches!(self.stage, Stage::Closed) {
            self.stage = self.begin(&client).await?;
        }
        self.client = Some(client);
        Ok(())
    }

    async fn begin(&self, client: &Etcd) -> Result<Stage, PipelineError> {
        // Linearizable, so no member that lags behind answers this.
        let present = client.read(&self.range(&self.start, 0), GetOptions::new().with_count_only()).await?;
        let revision = revision_of(&present);
        if revision < self.cursor {
            return Err(PipelineError::WentBack { url: self.url.url.clone(), revision, start_ts: self.cursor });
        }
        if self.cursor == 0 {
            return Ok(Stage::Snapshot { revision, next: self.start.clone(), size: PageSize::default() });
        }
        // From what is known already: a watch that begins in the future gets no notice of progress until that comes. In
        // parts, since a revision may be larger than any message.
        let from = i64::try_from(self.cursor).unwrap_or(i64::MAX);
        let options = WatchOptions::new().with_range(self.end.clone()).with_start_revision(from).with_fragment();
        let mut watch = client.watch.clone();
        let mut stream = client.call(watch.watch(self.start.clone(), Some(options))).await?;
        let created = client.call(stream.message()).await?;
        self.check(client, created.as_ref())?;
        let now = Instant::now();
        Ok(Stage::Watching(Box::new(Watching {
            stream,
            base: self.cursor,
            partial: Partial::default(),
            asked: None,
            next_ask: now,
            heard_at: now,
        })))
    }

    fn range<'a>(&'a self, start: &'a [u8], revision: CommitTs) -> Range<'a> {
        Range { start, end: &self.end, revision }
    }

    /// Says why a watch ended, if it did.
    fn check(&self, client: &Etcd, response: Option<&WatchResponse>) -> Result<(), PipelineError> {
        let Some(response) = response else { return Err(client.outage("the watch was closed")) };
        if response.compact_revision() > 0 {
            return Err(PipelineError::Compacted {
                url: self.url.url.clone(),
                compacted: unsigned(response.compact_revision()),
                start_ts: self.cursor,
            });
        }
        if response.canceled() { Err(client.outage(response.cancel_reason())) } else { Ok(()) }
    }

    /// The next batch. Can be dropped and called again without loss.
    pub(in crate::pipeline) async fn next(&mut self) -> Result<Batch, PipelineError> {
        loop {
            self.open().await?;
            let advanced = match &self.stage {
                Stage::Snapshot { .. } => self.page().await,
                Stage::Watching(_) => self.watch_on().await,
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
    async fn page(&mut self) -> Result<Option<Batch>, PipelineError> {
        let (Some(client), Stage::Snapshot { revision, next, size }) = (&self.client, &self.stage) else {
            return Ok(None);
        };
        let (revision, mut size) = (*revision, *size);
        let page = match client.page(&self.range(next, revision), GetOptions::new(), &mut size).await {
            Err(PipelineError::Compacted { .. }) if *next == self.start => {
                // Nothing of it was handed out, so that a later revision is as good.
                self.stage = Stage::Closed;
                return Ok(None);
            }
            Err(PipelineError::Compacted { url, .. }) => return Err(PipelineError::SnapshotGone { url, revision }),
            page => page?,
        };
        let rows = page.answer.kvs().iter().filter_map(|kv| self.row(kv, EventType::Put)).collect();
        let covered = KeyRange { start: next.clone(), end: page.next.clone().unwrap_or_else(|| self.end.clone()) };
        let resolved_ts = if page.next.is_some() { 0 } else { revision };
        self.cursor = resolved_ts;
        self.stage = page.next.map_or(Stage::Closed, |next| Stage::Snapshot { revision, next, size });
        Ok(Some(Batch { rows, covered: Some(covered), resolved_ts, resolved_at_ms: 0 }))
    }

    /// The next message of the watch, if it brings something.
    async fn watch_on(&mut self) -> Result<Option<Batch>, PipelineError> {
        let (Some(client), Stage::Watching(watching)) = (&self.client, &mut self.stage) else { return Ok(None) };
        if watching.next_ask <= Instant::now() {
            watching.ask(client).await?;
        }
        let message = tokio::select! {
            biased;
            message = watching.stream.message() => message.map_err(|error| client.error(&error))?,
            () = time::sleep_until(watching.next_ask) => {
                let silent = watching.asked.as_ref().is_some_and(|asked| {
                    asked.first_at.max(watching.heard_at).elapsed() > SILENCE_MAX
                });
                let reason = format!("the watch was silent for {} s", SILENCE_MAX.as_secs());
                return if silent { Err(client.outage(&reason)) } else { Ok(None) };
            }
        };
        watching.heard_at = Instant::now();
        let is_progress = message.as_ref().is_some_and(|m| m.events().is_empty() && !m.created() && !m.canceled());
        let asked = if is_progress { watching.asked.take() } else { None };
        self.check(client, message.as_ref())?;
        let Some(message) = message else { return Ok(None) };
        let told = if is_progress { message.header().map_or(0, |header| unsigned(header.revision())) } else { 0 };
        let (rows, whole) = self.rows(&message);
        self.cursor = self.cursor.max(whole).max(told);
        let resolved_at_ms = asked.map_or(0, |asked| asked.moment_ms);
        Ok(Some(Batch { rows, covered: None, resolved_ts: self.cursor, resolved_at_ms }))
    }

    /// The rows of a message whose revisions are whole, and the last of these.
    fn rows(&mut self, message: &WatchResponse) -> (Vec<Row>, CommitTs) {
        let Stage::Watching(watching) = &self.stage else { return (Vec::new(), 0) };
        let base = watching.base;
        let events = message.events().iter().filter_map(|event| Some((event.kv()?, event.event_type())));
        let new: Vec<_> = events.filter(|(kv, _)| unsigned(kv.mod_revision()) > base).collect();
        let last = new.last().map_or(0, |(kv, _)| unsigned(kv.mod_revision()));
        let rows = new.into_iter().filter_map(|(kv, kind)| self.row(kv, kind)).collect();
        match &mut self.stage {
            Stage::Watching(watching) => watching.partial.join(rows, last, message.0.fragment),
            _ => (rows, last),
        }
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

    /// Looks for a key in the middle; `None` while the source is not reached.
    pub(super) fn split_point(&self, max: u64) -> Option<super::SplitPoint> {
        let (client, start, end) = (self.client.clone()?, self.start.clone(), self.end.clone());
        Some(Box::pin(async move { middle(&client, start, &end, max).await }))
    }
}

impl Watching {
    /// Asks for progress, unless it was asked for and the answer is awaited.
    async fn ask(&mut self, client: &Etcd) -> Result<(), PipelineError> {
        let now = Instant::now();
        self.next_ask = now + PROGRESS_INTERVAL;
        if self.asked.as_ref().is_some_and(|asked| asked.last_at.elapsed() <= ASK_AGAIN) {
            return Ok(());
        }
        let moment_ms = wall().0;
        client.call(self.stream.request_progress()).await?;
        let asked = self.asked.get_or_insert(Asked { first_at: now, last_at: now, moment_ms });
        asked.last_at = now;
        Ok(())
    }
}

/// A key in the middle of a range, when that has more than `max` keys.
async fn middle(client: &Etcd, mut start: Vec<u8>, end: &[u8], max: u64) -> Result<Option<Arc<[u8]>>, PipelineError> {
    let count = client.count(&start, end).await?;
    if count <= max {
        return Ok(None);
    }
    let mut before = count / 2;
    let mut size = PageSize::bare();
    loop {
        let range = Range { start: &start, end, revision: 0 };
        let page = client.page(&range, GetOptions::new().with_keys_only(), &mut size).await?;
        let keys = page.answer.kvs();
        if let Some(kv) = usize::try_from(before).ok().and_then(|before| keys.get(before)) {
            return Ok(Some(kv.key().into()));
        }
        before -= keys.len() as u64;
        // Keys may have gone meanwhile.
        let Some(next) = page.next else { return Ok(None) };
        start = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_that_comes_in_parts_is_passed_on_whole() {
        let row = |commit_ts, key: u8| Row { commit_ts, key: vec![key], op: RowOp::Delete, is_first: false };
        let mut partial = Partial::default();
        assert_eq!(partial.join(vec![row(1, 0), row(2, 1), row(2, 2)], 2, true), (vec![row(1, 0)], 1));
        assert_eq!(partial.join(vec![row(2, 3)], 2, true), (vec![], 1));
        // The end of one, another one that is whole, and the beginning of a third.
        let whole = vec![row(2, 1), row(2, 2), row(2, 3), row(2, 4), row(3, 5)];
        assert_eq!(partial.join(vec![row(2, 4), row(3, 5), row(4, 6)], 4, true), (whole, 3));
        assert_eq!(partial.join(vec![row(4, 7)], 4, false), (vec![row(4, 6), row(4, 7)], 4));
        assert_eq!(partial.join(vec![row(5, 8)], 5, false), (vec![row(5, 8)], 5));
    }

    #[test]
    fn a_part_without_rows_of_the_span_is_a_part_all_the_same() {
        let mut partial = Partial::default();
        assert_eq!(partial.join(vec![], 7, true), (vec![], 6));
    }
}
