//! Looks whether a changefeed could run from here, before it is created.

use std::{sync::Arc, time::Duration};

use capturedrain_core::model::{ChangefeedConfig, CommitTs};
use etcd_client::GetOptions;

use super::{
    EtcdUrl, PipelineError, SinkUrl, SourceUrl, SyntheticUrl, check_config,
    etcd::{Etcd, Range, Role, revision_of},
    sink,
    table::after,
};
use crate::clock::wall;

/// How far back a synthetic stream may begin.
const SYNTHETIC_MAX: Duration = Duration::from_hours(24);

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The commit timestamp after which the changefeed starts.
    pub start_ts: CommitTs,
    /// What a person should know, one sentence each.
    pub warnings: Vec<String>,
}

/// Asks the source and tries the sink. Without a `start_ts`, an etcd source begins with a snapshot of what is there, a
/// synthetic one now.
///
/// # Errors
/// Why the changefeed could not run.
pub async fn probe(config: &ChangefeedConfig, start_ts: Option<CommitTs>) -> Result<Probe, PipelineError> {
    check_config(config)?;
    let source = SourceUrl::parse(&config.source)?;
    let found = match &source {
        SourceUrl::Etcd(url) => etcd(url, start_ts.unwrap_or(0)).await?,
        SourceUrl::Synthetic(url) => synthetic(url, start_ts)?,
    };
    sink::check(&SinkUrl::parse(&config.sink)?, &source, found.start_ts).await?;
    Ok(found)
}

fn synthetic(url: &SyntheticUrl, start_ts: Option<CommitTs>) -> Result<Probe, PipelineError> {
    let now = wall().0;
    let start_ts = start_ts.unwrap_or(now);
    let day = u64::try_from(SYNTHETIC_MAX.as_millis()).unwrap_or(u64::MAX);
    if start_ts > now || start_ts < now.saturating_sub(day) {
        return Err(PipelineError::TooOld { url: url.url.clone(), start_ts });
    }
    Ok(Probe { start_ts, warnings: Vec::new() })
}

async fn etcd(url: &EtcdUrl, start_ts: CommitTs) -> Result<Probe, PipelineError> {
    let etcd = Etcd::connect(&Arc::new(url.clone()), Role::Source).await?;
    let (end, count) = (after(&url.prefix), GetOptions::new().with_count_only());
    let range = |revision| Range { start: &url.prefix, end: &end, revision };
    // At a revision that is compacted, or still to come, this fails and says so.
    etcd.read(&range(start_ts), count.clone()).await?;
    let present = etcd.read(&range(0), count).await?;
    let mut warnings = Vec::new();
    if present.count() == 0 {
        let prefix = String::from_utf8_lossy(&url.prefix);
        warnings.push(format!(
            "there are no keys below {prefix} in {} at revision {}; tables will be replicated as they appear",
            url.endpoints.join(","),
            revision_of(&present)
        ));
    }
    Ok(Probe { start_ts, warnings })
}
