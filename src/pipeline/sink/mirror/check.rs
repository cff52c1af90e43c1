//! Whether a range can become a mirror, before a changefeed is created; and what is in one.

use std::{collections::BTreeSet, sync::Arc};

use capturedrain_core::model::CommitTs;
use etcd_client::{Compare, CompareOp, GetOptions, Txn, TxnOp};

use super::place::{FENCES, fences_of, prefix_of};
use crate::pipeline::{
    EtcdUrl, PipelineError, SourceUrl,
    etcd::{Etcd, PageSize, Range, Role},
    table::{after, segment},
};

/// Where clusters keep their state.
const STORES: &str = "/capturedrain/";

/// Whether the range can become a mirror of the source, by a changefeed that begins at `start_ts` (0: with a snapshot).
///
/// # Errors
/// Why not, and what to do.
pub(in crate::pipeline) async fn check(
    url: &EtcdUrl,
    source: &SourceUrl,
    start_ts: CommitTs,
) -> Result<(), PipelineError> {
    let etcd = Etcd::connect(&Arc::new(url.clone()), Role::Sink).await?;
    let prefix = &url.prefix;
    check_fences(&etcd, prefix).await?;
    let count = etcd.count(prefix, &after(prefix)).await?;
    if overlap(prefix, STORES.as_bytes()) {
        let stores = etcd.count(STORES.as_bytes(), &after(STORES.as_bytes())).await?;
        if stores > 0 || prefix.starts_with(STORES.as_bytes()) {
            return Err(unusable(
                url,
                format!("has keys below {STORES}, where clusters keep their state: choose another prefix"),
            ));
        }
    }
    let is_same = try_write(&etcd, source).await?;
    if let SourceUrl::Etcd(source) = source
        && is_same
        && overlap(prefix, &source.prefix)
    {
        return Err(unusable(url, format!("overlaps its source {}: choose another prefix", source.url)));
    }
    if count > 0 && start_ts == 0 {
        let below = String::from_utf8_lossy(prefix);
        return Err(unusable(
            url,
            format!(
                "has {count} keys below {below} already: delete them, choose another prefix or, when they are what the \
                 source had at a revision, give that as --start-ts"
            ),
        ));
    }
    Ok(())
}

fn unusable(url: &EtcdUrl, reason: String) -> PipelineError {
    PipelineError::SinkUnusable { url: url.url.clone(), reason }
}

/// Whether a key can begin with both.
fn overlap(one: &[u8], two: &[u8]) -> bool {
    one.starts_with(two) || two.starts_with(one)
}

/// Makes sure that nobody has fences in the range: not an earlier mirror, and not one whose range has a part of this.
async fn check_fences(etcd: &Etcd, prefix: &[u8]) -> Result<(), PipelineError> {
    let (mut start, end) = (FENCES.as_bytes().to_vec(), after(FENCES.as_bytes()));
    loop {
        let options = GetOptions::new().with_keys_only().with_limit(1);
        let answer = etcd.read(&Range { start: &start, end: &end, revision: 0 }, options).await?;
        let Some(kv) = answer.kvs().first() else { return Ok(()) };
        let Some(there) = prefix_of(kv.key()) else {
            start = [kv.key(), &[0]].concat();
            continue;
        };
        let fences = fences_of(&there);
        if overlap(&there, prefix) {
            let below = String::from_utf8_lossy(&there);
            return Err(unusable(
                &etcd.url,
                format!(
                    "overlaps the mirror below {below} of this etcd: choose another prefix or, when the changefeed of that \
                     mirror is deleted, delete its keys and those below {fences}"
                ),
            ));
        }
        start = after(fences.as_bytes());
    }
}

/// Tries to write, and looks whether that is seen in the source, which then is the same etcd.
async fn try_write(etcd: &Etcd, source: &SourceUrl) -> Result<bool, PipelineError> {
    let nonce = getrandom::u64().unwrap_or_default();
    let key = format!("{FENCES}probe-{nonce:016x}");
    let never = [etcd.url.prefix.as_slice(), b"probe"].concat();
    // Permissions are looked at for both branches, and the second is never taken.
    let txn = Txn::new()
        .when([Compare::create_revision(key.clone(), CompareOp::Equal, 0)])
        .and_then([TxnOp::put(key.clone(), "", None)])
        .or_else([TxnOp::put(never, "", None)]);
    etcd.call(etcd.kv.clone().txn(txn)).await?;
    let seen = seen_in(source, &key).await;
    etcd.call(etcd.kv.clone().delete(key, None)).await?;
    seen
}

async fn seen_in(source: &SourceUrl, key: &str) -> Result<bool, PipelineError> {
    let SourceUrl::Etcd(url) = source else { return Ok(false) };
    let source = Etcd::connect(&Arc::new(url.clone()), Role::Source).await?;
    Ok(source.count(key.as_bytes(), &[key.as_bytes(), &[0]].concat()).await? > 0)
}

/// The path segments of the tables that the mirror has keys of; empty for keys without one.
pub(in crate::pipeline) async fn tables(url: &EtcdUrl) -> Result<BTreeSet<Vec<u8>>, PipelineError> {
    let etcd = Etcd::connect(&Arc::new(url.clone()), Role::Sink).await?;
    let (mut start, end) = (url.prefix.clone(), after(&url.prefix));
    let (mut found, mut size) = (BTreeSet::new(), PageSize::bare());
    loop {
        let range = Range { start: &start, end: &end, revision: 0 };
        let page = etcd.page(&range, GetOptions::new().with_keys_only(), &mut size).await?;
        found.extend(page.answer.kvs().iter().map(|kv| segment(&url.prefix, kv.key()).to_vec()));
        let Some(next) = page.next else { return Ok(found) };
        // On behind the table that the page ends in.
        start = match page.answer.kvs().last().map(|kv| segment(&url.prefix, kv.key())) {
            Some(last) if !last.is_empty() => after(&[&url.prefix, last, b"/"].concat()),
            _ => next,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_overlap_when_one_begins_with_the_other() {
        for (one, two, expected) in [
            ("/a/", "/a/b/", true),
            ("/a", "/ab/", true),
            ("/a/", "/b/", false),
            ("/", "/x", true),
            ("/a/", "/a/", true),
        ] {
            assert_eq!(overlap(one.as_bytes(), two.as_bytes()), expected, "{one} and {two}");
            assert_eq!(overlap(two.as_bytes(), one.as_bytes()), expected, "{two} and {one}");
        }
    }
}
