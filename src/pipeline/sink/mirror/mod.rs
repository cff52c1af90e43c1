//! A mirror: a range of an etcd that becomes a copy of the source's.
//!
//! Every transaction compares its dispatcher's fence and replaces it by one that says how far the range is. So a writer
//! that was replaced changes nothing, a lost answer is made up for, and a successor leaves out what is there already:
//! watchers of the mirror see the values of a key in their order, and none again after a later one.

mod check;
mod connection;
mod fence;
mod place;

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    pin::Pin,
    sync::Arc,
};

use capturedrain_core::model::CommitTs;
use etcd_client::TxnOp;

pub(super) use self::check::{check, tables};
pub(in crate::pipeline) use self::connection::Mirrors;
use self::{
    connection::{Connection, Held},
    fence::Fence,
    place::Mapping,
};
use crate::pipeline::{
    EtcdUrl, PipelineError, Row, RowOp, SourceUrl, dispatcher::Job, etcd::PageSize, source::Batch, table::KeyRange,
};

/// Most rows of a transaction: etcd takes 128 operations, and one is the fence's.
const TXN_MAX_ROWS: usize = 127;
/// Most bytes of a transaction of more than one row; etcd takes 1.5 MiB.
const TXN_MAX_BYTES: usize = 1 << 20;

/// Whether bytes that are a fence are the same one when it is written again. For fuzzing.
#[doc(hidden)]
pub fn fence_reads_back(bytes: &[u8]) -> bool {
    Fence::decode(bytes).is_none_or(|fence| Fence::decode(&fence.encode()) == Some(fence))
}

/// A write that is on; it gives the range back, of which more is there then.
type Write = Pin<Box<dyn Future<Output = Result<Held, PipelineError>> + Send>>;

/// A dispatcher's part of a mirror.
pub(in crate::pipeline) struct MirrorSink {
    connection: Arc<Connection>,
    mapping: Mapping,
    /// `None` while a write has it.
    held: Option<Held>,
    /// The fence as it was raised: earlier writers' rows by which it is ahead are left out.
    raised: Fence,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    taken_ts: CommitTs,
    safe_ts: CommitTs,
    writing: Option<(Write, CommitTs)>,
}

/// What waits to be written.
enum Waiting {
    /// Changes, in commit order; all up to this commit timestamp.
    Rows { rows: VecDeque<Row>, resolved_ts: CommitTs },
    /// All that a range shall have.
    Page { range: KeyRange, rows: Vec<Row>, resolved_ts: CommitTs },
}

fn size(row: &Row) -> usize {
    row.key.len() + bytes_of(&row.op)
}

fn bytes_of(op: &RowOp) -> usize {
    match op {
        RowOp::Put(value) => value.len(),
        RowOp::Delete => 0,
    }
}

impl MirrorSink {
    pub(super) async fn open(
        url: &EtcdUrl,
        source: &SourceUrl,
        job: &Job,
        mirrors: &Mirrors,
    ) -> Result<Self, PipelineError> {
        let connection = mirrors.connection(url);
        let held = connection.hold(job).await?;
        let from = match source {
            SourceUrl::Etcd(source) => source.prefix.clone(),
            SourceUrl::Synthetic(_) => Vec::new(),
        };
        let only_table = job.span.table.is_empty().then(|| job.span.table.clone());
        Ok(Self {
            connection,
            mapping: Mapping { from, to: url.prefix.clone(), only_table },
            raised: held.fence.clone(),
            held: Some(held),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            taken_ts: job.start_ts,
            safe_ts: job.start_ts,
            writing: None,
        })
    }

    pub(super) fn take(&mut self, batch: Batch) {
        let Batch { mut rows, covered, resolved_ts, .. } = batch;
        self.taken_ts = self.taken_ts.max(resolved_ts);
        if let Some(range) = covered {
            self.waiting_bytes += rows.iter().map(size).sum::<usize>();
            self.waiting.push_back(Waiting::Page { range, rows, resolved_ts });
            return;
        }
        rows.retain(|row| !self.raised.has(&row.key, row.commit_ts));
        self.waiting_bytes += rows.iter().map(size).sum::<usize>();
        match self.waiting.back_mut() {
            Some(Waiting::Rows { rows: before, resolved_ts: until }) => {
                before.extend(rows);
                *until = resolved_ts;
            }
            _ if rows.is_empty() => {}
            _ => self.waiting.push_back(Waiting::Rows { rows: rows.into(), resolved_ts }),
        }
    }

    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    pub(super) fn is_busy(&self) -> bool {
        self.writing.is_some() || !self.waiting.is_empty() || self.taken_ts > self.safe_ts
    }

    pub(super) async fn next_safe(&mut self) -> Result<CommitTs, PipelineError> {
        if self.writing.is_none() {
            self.writing = self.begin();
        }
        self.safe_ts = match &mut self.writing {
            Some((write, until_ts)) => {
                let (written, until_ts) = (write.await, *until_ts);
                self.writing = None;
                self.held = Some(written?);
                self.safe_ts.max(until_ts)
            }
            None => self.taken_ts,
        };
        Ok(self.safe_ts)
    }

    /// Begins to write what waits first; `None` when nothing does.
    fn begin(&mut self) -> Option<(Write, CommitTs)> {
        let (connection, held) = (self.connection.clone(), self.held.take()?);
        match self.waiting.pop_front() {
            Some(Waiting::Page { range, rows, resolved_ts }) => {
                self.waiting_bytes -= rows.iter().map(size).sum::<usize>();
                let mapping = self.mapping.clone();
                let write = async move { replace(&connection, held, &mapping, &range, rows, resolved_ts).await };
                Some((Box::pin(write), resolved_ts))
            }
            Some(Waiting::Rows { mut rows, resolved_ts }) => {
                let (latest, bytes) = cut(&mut rows);
                self.waiting_bytes -= bytes;
                // Without a part of the next commit timestamp.
                let until_ts = rows.front().map_or(resolved_ts, |next| next.commit_ts.saturating_sub(1));
                if !rows.is_empty() {
                    self.waiting.push_front(Waiting::Rows { rows, resolved_ts });
                }
                let ops = latest.into_iter().map(|(key, op)| op_of(self.mapping.there(&key), op)).collect();
                Some((Box::pin(async move { connection.commit(held, ops, until_ts).await }), until_ts))
            }
            None => {
                self.held = Some(held);
                None
            }
        }
    }
}

fn op_of(key: Vec<u8>, op: RowOp) -> TxnOp {
    match op {
        // Without a lease: the source's is not known here.
        RowOp::Put(value) => TxnOp::put(key, value, None),
        RowOp::Delete => TxnOp::delete(key, None),
    }
}

/// Takes the first rows, as many as a transaction takes: what each key ends with, and how many bytes were taken. etcd
/// takes a key once a transaction, so that its last row stands for those before it.
fn cut(rows: &mut VecDeque<Row>) -> (BTreeMap<Vec<u8>, RowOp>, usize) {
    let (mut latest, mut bytes) = (BTreeMap::new(), 0);
    while let Some(row) = rows.pop_front() {
        let is_full =
            bytes + size(&row) > TXN_MAX_BYTES || latest.len() == TXN_MAX_ROWS && !latest.contains_key(&row.key);
        if is_full && !latest.is_empty() {
            rows.push_front(row);
            break;
        }
        bytes += size(&row);
        latest.insert(row.key, row.op);
    }
    (latest, bytes)
}

/// Makes a range have just these rows, those of a snapshot. What is right already is left alone.
async fn replace(
    connection: &Connection,
    held: Held,
    mapping: &Mapping,
    range: &KeyRange,
    rows: Vec<Row>,
    resolved_ts: CommitTs,
) -> Result<Held, PipelineError> {
    let mut wanted: BTreeMap<_, _> = rows.into_iter().map(|row| (mapping.there(&row.key), row.op)).collect();
    let KeyRange { mut start, end } = mapping.range_there(range);
    let mut changes = Changes { connection, held, ops: Vec::new(), bytes: 0 };
    let mut size = PageSize::default();
    loop {
        let page = connection.page(&start, &end, &mut size).await?;
        for kv in page.answer.kvs().iter().filter(|kv| mapping.owns(kv.key())) {
            match wanted.remove(kv.key()) {
                Some(RowOp::Put(value)) if value == kv.value() => {}
                wrong => changes = changes.push(kv.key().to_vec(), wrong.unwrap_or(RowOp::Delete)).await?,
            }
        }
        match page.next {
            Some(next) => start = next,
            None => break,
        }
    }
    for (key, op) in wanted {
        changes = changes.push(key, op).await?;
    }
    changes.end(resolved_ts).await
}

/// Changes that are written in transactions as large as they may be.
struct Changes<'a> {
    connection: &'a Connection,
    held: Held,
    ops: Vec<TxnOp>,
    bytes: usize,
}

impl Changes<'_> {
    async fn push(mut self, key: Vec<u8>, op: RowOp) -> Result<Self, PipelineError> {
        let bytes = key.len() + bytes_of(&op);
        if self.ops.len() == TXN_MAX_ROWS || !self.ops.is_empty() && self.bytes + bytes > TXN_MAX_BYTES {
            // The range is not complete before its last page.
            self.held = self.connection.commit(self.held, mem::take(&mut self.ops), 0).await?;
            self.bytes = 0;
        }
        self.ops.push(op_of(key, op));
        self.bytes += bytes;
        Ok(self)
    }

    async fn end(self, resolved_ts: CommitTs) -> Result<Held, PipelineError> {
        if self.ops.is_empty() {
            return Ok(self.held);
        }
        self.connection.commit(self.held, self.ops, resolved_ts).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(commit_ts: CommitTs, key: usize, bytes: usize) -> Row {
        Row { commit_ts, key: key.to_string().into_bytes(), op: RowOp::Put(vec![0; bytes]), is_first: false }
    }

    #[test]
    fn a_transaction_has_each_key_once_as_of_its_last_row() {
        let mut rows: VecDeque<_> = (0..1000).map(|n| row(n, usize::try_from(n).unwrap_or(0) % 10, 1)).collect();
        rows.push_back(Row { commit_ts: 1000, key: b"3".to_vec(), op: RowOp::Delete, is_first: false });
        let (latest, _) = cut(&mut rows);
        assert_eq!((latest.len(), latest.get(b"3".as_slice())), (10, Some(&RowOp::Delete)));
        assert!(rows.is_empty());
    }

    #[test]
    fn a_transaction_is_as_large_as_etcd_takes() {
        let mut rows: VecDeque<_> = (0..300).map(|n| row(1, n, 1)).collect();
        assert_eq!((cut(&mut rows).0.len(), cut(&mut rows).0.len(), cut(&mut rows).0.len()), (127, 127, 46));
        let mut rows: VecDeque<_> = (0..30).map(|n| row(1, n, 100_000)).collect();
        let (latest, bytes) = cut(&mut rows);
        assert!(latest.len() == 10 && bytes <= TXN_MAX_BYTES, "{}", latest.len());
        let mut rows = VecDeque::from([row(1, 1, 2 * TXN_MAX_BYTES), row(2, 2, 1)]);
        assert_eq!((cut(&mut rows).0.len(), rows.len()), (1, 1), "a row that is too large goes alone");
    }
}
