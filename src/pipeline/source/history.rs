//! All of a range of an etcd at once, for comparing a sink with it.

use std::sync::Arc;

use capturedrain_core::model::CommitTs;
use etcd_client::GetOptions;

use super::{EtcdFeed, Row, RowOp};
use crate::pipeline::{
    EtcdUrl, PipelineError,
    etcd::{Etcd, PageSize, Range, Role, unsigned},
    table::after,
};

/// The keys and values of a range at a revision, each as the put that made it; 0: the present revision.
///
/// # Errors
/// When the source cannot be read at that revision.
pub async fn etcd_state(url: &EtcdUrl, revision: CommitTs) -> Result<Vec<Row>, PipelineError> {
    state(url, Role::Source, revision).await
}

/// The same of a mirror, at present.
///
/// # Errors
/// When it cannot be read.
pub async fn mirror_state(url: &EtcdUrl) -> Result<Vec<Row>, PipelineError> {
    state(url, Role::Sink, 0).await
}

async fn state(url: &EtcdUrl, role: Role, revision: CommitTs) -> Result<Vec<Row>, PipelineError> {
    let etcd = Etcd::connect(&Arc::new(url.clone()), role).await?;
    let (mut rows, mut size) = (Vec::new(), PageSize::default());
    let (mut start, end) = (url.prefix.clone(), after(&url.prefix));
    loop {
        let range = Range { start: &start, end: &end, revision };
        let page = etcd.page(&range, GetOptions::new(), &mut size).await?;
        rows.extend(page.answer.kvs().iter().map(|kv| Row {
            commit_ts: unsigned(kv.mod_revision()),
            key: kv.key().to_vec(),
            op: RowOp::Put(kv.value().to_vec()),
            is_first: false,
        }));
        match page.next {
            Some(next) => start = next,
            None => return Ok(rows),
        }
    }
}

/// All changes of a range after one revision and up to another.
///
/// # Errors
/// When the source is compacted past the first one, or does not answer.
pub async fn etcd_history(url: &EtcdUrl, start: CommitTs, until: CommitTs) -> Result<Vec<Row>, PipelineError> {
    Etcd::connect(&Arc::new(url.clone()), Role::Source).await?;
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
