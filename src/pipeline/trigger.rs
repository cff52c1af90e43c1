//! The table trigger: watches a changefeed's range for tables that appear or vanish.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use capturedrain_core::{
    model::{ChangefeedConfig, ChangefeedEpoch, ChangefeedId, CommitTs, Span},
    work::WorkEvent,
};
use etcd_client::GetOptions;
use tokio::{
    sync::{mpsc, oneshot},
    time,
};

use super::{
    EtcdUrl, PipelineError, SinkUrl, SourceUrl, SyntheticUrl,
    etcd::{Etcd, PageSize, Range, Role, revision_of},
    sink,
    source::{Batch, EtcdFeed, RowOp, synthetic_table},
    table::{after, table_of, whole, whole_of},
};
use crate::clock::wall;

/// How long after a source that did not answer it is asked again.
const RETRY: Duration = Duration::from_millis(500);
/// How often a stream whose tables never change says that they have not.
const SYNTHETIC_INTERVAL: Duration = Duration::from_millis(100);

/// What a trigger shall do.
pub(super) struct Job {
    pub(super) changefeed: ChangefeedId,
    pub(super) epoch: ChangefeedEpoch,
    pub(super) start_ts: CommitTs,
    pub(super) config: Arc<ChangefeedConfig>,
}

/// What a trigger has found.
#[derive(Debug, Default)]
struct News {
    born: Vec<(Span, CommitTs)>,
    ended: Vec<(Arc<str>, CommitTs)>,
    resolved_ts: CommitTs,
    resolved_at_ms: u64,
}

/// Runs a trigger until it is stopped or fails, and tells which.
pub(super) async fn run(job: Job, events: mpsc::Sender<WorkEvent>, stop: oneshot::Receiver<()>) {
    let (changefeed, epoch) = (job.changefeed.clone(), job.epoch);
    let event = tokio::select! {
        failed = watch(&job, &events) => match failed {
            Ok(()) => return,
            Err(error) => {
                tracing::warn!(%changefeed, %error, "table trigger failed");
                WorkEvent::TriggerFailed { changefeed, epoch, error: error.to_string() }
            }
        },
        _ = stop => WorkEvent::TriggerStopped { changefeed, epoch },
    };
    // The capture is gone when nobody receives.
    let _ = events.send(event).await;
}

async fn watch(job: &Job, events: &mpsc::Sender<WorkEvent>) -> Result<(), PipelineError> {
    match SourceUrl::parse(&job.config.source)? {
        SourceUrl::Etcd(url) => watch_etcd(job, &url, events).await,
        SourceUrl::Synthetic(url) => watch_synthetic(job, &url, events).await,
    }
}

/// Tells news; `false` when nobody listens any more.
async fn tell(job: &Job, news: News, events: &mpsc::Sender<WorkEvent>) -> bool {
    let event = WorkEvent::Tables {
        changefeed: job.changefeed.clone(),
        epoch: job.epoch,
        born: news.born,
        ended: news.ended,
        resolved_ts: news.resolved_ts,
        resolved_at_ms: news.resolved_at_ms,
    };
    events.send(event).await.is_ok()
}

async fn watch_synthetic(job: &Job, url: &SyntheticUrl, events: &mpsc::Sender<WorkEvent>) -> Result<(), PipelineError> {
    let mut born = (0..url.tables).map(|n| (synthetic_table(n), job.start_ts + 1)).collect();
    loop {
        let now = wall().0.saturating_sub(1).max(job.start_ts);
        let news = News { born: std::mem::take(&mut born), ended: Vec::new(), resolved_ts: now, resolved_at_ms: now };
        if !tell(job, news, events).await {
            return Ok(());
        }
        time::sleep(SYNTHETIC_INTERVAL).await;
    }
}

/// How many keys each table has.
#[derive(Debug)]
struct Tables {
    prefix: Vec<u8>,
    keys: BTreeMap<Arc<str>, u64>,
}

impl Tables {
    /// Counts a key that was there already; tells its table's range, when it is the first.
    fn add(&mut self, key: &[u8]) -> Option<Span> {
        let count = self.keys.entry(table_of(&self.prefix, key)).or_default();
        *count += 1;
        (*count == 1).then(|| whole(&self.prefix, key))
    }

    /// Drops a key; tells its table, when it was the last.
    fn remove(&mut self, key: &[u8]) -> Option<Arc<str>> {
        let table = table_of(&self.prefix, key);
        let count = self.keys.get_mut(&table)?;
        *count -= 1;
        if *count > 0 {
            return None;
        }
        self.keys.remove(&table);
        Some(table)
    }

    fn follow(&mut self, batch: &Batch) -> News {
        let mut news = News { resolved_ts: batch.resolved_ts, resolved_at_ms: batch.resolved_at_ms, ..News::default() };
        for row in &batch.rows {
            if row.op == RowOp::Delete {
                news.ended.extend(self.remove(&row.key).map(|table| (table, row.commit_ts)));
            } else if row.is_first {
                news.born.extend(self.add(&row.key).map(|span| (span, row.commit_ts)));
            }
        }
        news
    }
}

async fn watch_etcd(job: &Job, url: &EtcdUrl, events: &mpsc::Sender<WorkEvent>) -> Result<(), PipelineError> {
    let (mut tables, news, mut feed) = begin(job, url).await?;
    if !tell(job, news, events).await {
        return Ok(());
    }
    loop {
        // A resolved timestamp without news of tables is told with the next notice of progress, a few times a second.
        let batch = feed.next().await?;
        let news = tables.follow(&batch);
        let worth = news.resolved_at_ms > 0 || !news.born.is_empty() || !news.ended.is_empty();
        if worth && !tell(job, news, events).await {
            return Ok(());
        }
    }
}

/// The tables at `start_ts`, or the present ones when that is 0, and a feed that goes on from there; tried until source
/// and sink answer.
async fn begin(job: &Job, url: &EtcdUrl) -> Result<(Tables, News, EtcdFeed), PipelineError> {
    let mut told = false;
    loop {
        match try_begin(job, url).await {
            // Nothing was told of that revision, so that a later one is as good.
            Err(PipelineError::Compacted { .. }) if job.start_ts == 0 => {}
            Err(error) if error.is_outage() => {
                if !told {
                    tracing::warn!(changefeed = %job.changefeed, %error, "tables cannot be listed, trying again");
                }
                told = true;
            }
            begun => return begun,
        }
        time::sleep(RETRY).await;
    }
}

async fn try_begin(job: &Job, url: &EtcdUrl) -> Result<(Tables, News, EtcdFeed), PipelineError> {
    let (tables, mut news) = list(url, job.start_ts).await?;
    if job.start_ts == 0 {
        left_over(job, url, &tables, &mut news).await?;
    }
    let mut feed = EtcdFeed::of_prefix(url, after(&url.prefix), news.resolved_ts);
    feed.open().await?;
    Ok((tables, news, feed))
}

async fn list(url: &EtcdUrl, start_ts: CommitTs) -> Result<(Tables, News), PipelineError> {
    let etcd = Etcd::connect(&Arc::new(url.clone()), Role::Source).await?;
    let mut tables = Tables { prefix: url.prefix.clone(), keys: BTreeMap::new() };
    let mut news = News { resolved_at_ms: wall().0, resolved_ts: start_ts, ..News::default() };
    let (mut start, end, mut size) = (url.prefix.clone(), after(&url.prefix), PageSize::bare());
    loop {
        let range = Range { start: &start, end: &end, revision: news.resolved_ts };
        let page = etcd.page(&range, GetOptions::new().with_keys_only(), &mut size).await?;
        if news.resolved_ts == 0 {
            news.resolved_ts = revision_of(&page.answer);
        }
        for kv in page.answer.kvs() {
            news.born.extend(tables.add(kv.key()).map(|span| (span, start_ts + 1)));
        }
        match page.next {
            Some(next) => start = next,
            None => break,
        }
    }
    if start_ts > 0 {
        // The source was there long before now.
        news.resolved_at_ms = 0;
    }
    Ok((tables, news))
}

/// Tables that the sink has from a snapshot which nobody finished, and the source has no more: they are born and end at
/// once, so that what the sink has of them is replaced by nothing.
async fn left_over(job: &Job, url: &EtcdUrl, tables: &Tables, news: &mut News) -> Result<(), PipelineError> {
    let present: BTreeSet<_> = tables.keys.keys().cloned().collect();
    for segment in sink::tables(&SinkUrl::parse(&job.config.sink)?).await? {
        let span = whole_of(&url.prefix, &segment);
        if !present.contains(&span.table) {
            news.ended.push((span.table.clone(), news.resolved_ts));
            news.born.push((span, job.start_ts + 1));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::Row;

    #[test]
    fn a_table_is_born_with_its_first_key_and_ends_with_its_last() {
        let mut tables = Tables { prefix: b"/p/".to_vec(), keys: BTreeMap::new() };
        let row = |commit_ts, key: &str, put: bool, is_first| Row {
            commit_ts,
            key: key.as_bytes().to_vec(),
            op: if put { RowOp::Put(Vec::new()) } else { RowOp::Delete },
            is_first,
        };
        let rows = vec![
            row(5, "/p/a/1", true, true),
            row(6, "/p/a/1", true, false),
            row(7, "/p/a/2", true, true),
            row(8, "/p/a/1", false, false),
            row(9, "/p/a/2", false, false),
        ];
        let news = tables.follow(&Batch { rows, covered: None, resolved_ts: 9, resolved_at_ms: 0 });
        assert_eq!(news.born.iter().map(|(span, ts)| (&*span.table, *ts)).collect::<Vec<_>>(), [("a", 5)]);
        assert_eq!(news.ended, [("a".into(), 9)]);
        assert!(tables.keys.is_empty());
    }
}
