//! All of a range of an etcd at once, for comparing a sink with it.

use capturedrain_core::model::CommitTs;
use etcd_client::GetOptions;

use super::{EtcdFeed, Row, RowOp, connect, read};
use crate::pipeline::{EtcdUrl, PipelineError, table::after};

/// How many keys a page has.
const PAGE_KEYS: i64 = 1000;

/// The keys and values of a range at a revision, each as the put that made it.
///
/// # Errors
/// When the source cannot be read at that revision.
pub async fn etcd_state(url: &EtcdUrl, revision: CommitTs) -> Result<Vec<Row>, PipelineError> {
    let mut client = connect(url).await?;
    let mut rows = Vec::new();
    let mut next = url.prefix.clone();
    loop {
        let options = GetOptions::new().with_range(after(&url.prefix)).with_limit(PAGE_KEYS);
        let page = read(url, &mut client, &next, options, revision).await?;
        rows.extend(page.kvs().iter().map(|kv| Row {
            commit_ts: CommitTs::try_from(kv.mod_revision()).unwrap_or(0),
            key: kv.key().to_vec(),
            op: RowOp::Put(kv.value().to_vec()),
            is_first: false,
        }));
        match page.kvs().last() {
            Some(last) if page.more() => next = [last.key(), &[0]].concat(),
            _ => return Ok(rows),
        }
    }
}

/// All changes of a range after one revision and up to another.
///
/// # Errors
/// When the source is compacted past the first one, or does not answer.
pub async fn etcd_history(url: &EtcdUrl, start: CommitTs, until: CommitTs) -> Result<Vec<Row>, PipelineError> {
    connect(url).await?;
    let mut feed = EtcdFeed::of_prefix(url, after(&url.prefix), start);
    let mut rows = Vec::new();
    loop {
        let batch = feed.next().await?;
        rows.extend(batch.rows.into_iter().filter(|row| row.commit_ts <= until));
        if batch.resolved_ts >= until {
            return Ok(rows);
        }
    }
}
