//! A stream that is a pure function of time: the same in every process, so that anyone can tell what a sink has to have.

use std::{sync::Arc, time::Duration};

use capturedrain_core::model::{CommitTs, Span};
use tokio::time::{Instant, sleep_until};

use super::{Batch, Row, RowOp};
use crate::clock::wall;
use crate::pipeline::SyntheticUrl;

/// How often rows come.
const TICK: Duration = Duration::from_millis(50);
/// One of so many rows deletes its key.
const DELETE_EVERY: u64 = 16;
/// Most rows in a batch, so that catching up leaves room for others.
const BATCH_MAX_MS: u64 = 10_000;

/// The whole range of a table of the stream.
pub fn synthetic_table(n: u64) -> Span {
    let name = format!("t{n}");
    Span {
        start: format!("{name}/").into_bytes().into(),
        end: format!("{name}0").into_bytes().into(),
        table: name.into(),
    }
}

/// A well-mixed number: the finaliser of `SplitMix64`.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// All rows of a span with a commit timestamp above `after` and up to `until`, both in milliseconds since 1970.
pub fn synthetic_rows(url: &SyntheticUrl, span: &Span, after: CommitTs, until: CommitTs) -> Vec<Row> {
    let Some(table) = span.table.strip_prefix('t').and_then(|n| n.parse::<u64>().ok()) else { return Vec::new() };
    // Row i of a table is committed at i * 1000 / rate: a moment of its own, since the rate is at most one a millisecond.
    let later = table.wrapping_mul(url.stagger_ms) % 1000;
    let number = |ts: CommitTs| (u128::from(ts.saturating_sub(later)) * u128::from(url.rate)).div_ceil(1000);
    let (first, end) = (number(after + 1), number(until + 1));
    let rows = (first..end).map(|i| {
        let i = u64::try_from(i).unwrap_or(u64::MAX);
        let since = u64::try_from(u128::from(i) * 1000 / u128::from(url.rate)).unwrap_or(u64::MAX);
        let commit_ts = since.saturating_add(later);
        let dice = mix(url.seed ^ mix(table ^ mix(i)));
        let key = format!("t{table}/{:09}", dice % url.keys).into_bytes();
        let value = || {
            let mut value = format!("{dice:016x}").into_bytes();
            value.resize(url.value_bytes, b'.');
            value
        };
        let op = if mix(dice).is_multiple_of(DELETE_EVERY) { RowOp::Delete } else { RowOp::Put(value()) };
        Row { commit_ts, key, op, is_first: false }
    });
    let inside = |row: &Row| *row.key >= *span.start && *row.key < *span.end && row.commit_ts > after;
    rows.filter(inside).collect()
}

/// The rows of a span as time goes by.
pub(in crate::pipeline) struct SyntheticFeed {
    url: Arc<SyntheticUrl>,
    span: Span,
    cursor: CommitTs,
    due: Instant,
}

impl SyntheticFeed {
    pub(super) fn new(url: &SyntheticUrl, span: &Span, start_ts: CommitTs) -> Self {
        Self { url: Arc::new(url.clone()), span: span.clone(), cursor: start_ts, due: Instant::now() }
    }

    pub(super) async fn next(&mut self) -> Batch {
        sleep_until(self.due).await;
        let now = wall().0;
        // The present millisecond is not over yet.
        let until = now.saturating_sub(1).min(self.cursor.saturating_add(BATCH_MAX_MS)).max(self.cursor);
        let rows = synthetic_rows(&self.url, &self.span, self.cursor, until);
        self.cursor = until;
        self.due = if until + 1 < now { Instant::now() } else { Instant::now() + TICK };
        Batch { rows, covered: None, resolved_ts: until, resolved_at_ms: until }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic, reason = "a test")]

    use super::*;
    use crate::pipeline::SourceUrl;

    #[test]
    fn the_stream_is_the_same_however_it_is_cut() {
        let Ok(SourceUrl::Synthetic(url)) = SourceUrl::parse("synthetic://?rate=333&keys=10") else { panic!("url") };
        let span = synthetic_table(3);
        let whole = synthetic_rows(&url, &span, 1_000_000, 1_010_000);
        assert!((3320..=3340).contains(&whole.len()), "{}", whole.len());
        let mut cut = synthetic_rows(&url, &span, 1_000_000, 1_003_333);
        cut.extend(synthetic_rows(&url, &span, 1_003_333, 1_010_000));
        assert_eq!(whole, cut);
        assert!(whole.is_sorted_by(|a, b| a.commit_ts < b.commit_ts));
        assert!(whole.iter().any(|row| row.op == RowOp::Delete));
    }

    #[test]
    fn staggered_tables_take_turns() {
        let Ok(SourceUrl::Synthetic(url)) = SourceUrl::parse("synthetic://?rate=2&stagger_ms=40") else {
            panic!("url")
        };
        let rows = |table, after, until| -> Vec<CommitTs> {
            synthetic_rows(&url, &synthetic_table(table), after, until).iter().map(|row| row.commit_ts).collect()
        };
        assert_eq!(rows(0, 999, 2000), [1000, 1500, 2000]);
        assert_eq!(rows(3, 999, 2000), [1120, 1620]);
        assert_eq!([rows(3, 1000, 1120), rows(3, 1120, 1620)], [[1120], [1620]]);
        assert_eq!(rows(26, 999, 2000), [1040, 1540], "the turns begin again after a second");
    }
}
