//! Is the sink equal to the source? Reads the files of a `file://` sink as a consumer should, and compares.

mod probe;
mod reader;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::RangeInclusive,
    path::Path,
};

use capturedrain_core::model::CommitTs;
use serde::Serialize;

pub use self::probe::{Feed, Probe};
use self::reader::Effective;
use crate::pipeline::{
    EtcdUrl, PipelineError, Row, RowOp, SourceUrl, etcd_history, etcd_state, mirror_state, synthetic_rows,
    synthetic_table,
};

/// A comparison that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The sink cannot be read.
    #[error("{path} cannot be read: {reason}")]
    Sink {
        /// Which file.
        path: String,
        /// Why.
        reason: String,
    },
    /// The source cannot be read.
    #[error(transparent)]
    Source(#[from] PipelineError),
}

/// What the comparison found. Good when nothing is lost, doubled, out of order or foreign.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Proof {
    /// Rows of the sink that count.
    pub rows: u64,
    /// Rows, or final values, of the source that the sink does not have.
    pub lost: u64,
    /// Rows that the sink has more than once.
    pub doubled: u64,
    /// Rows that come after a later row of their key.
    pub out_of_order: u64,
    /// Rows, or final values, of the sink that the source never had.
    pub foreign: u64,
    /// The first thing that is wrong, for people.
    pub first: Option<String>,
}

impl Proof {
    /// Whether the sink is equal to the source.
    pub fn is_good(&self) -> bool {
        self.rows > 0 && self.lost + self.doubled + self.out_of_order + self.foreign == 0
    }

    /// Adds what another comparison found.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.rows += other.rows;
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.out_of_order += other.out_of_order;
        self.foreign += other.foreign;
        self.first = self.first.or(other.first);
        self
    }

    fn note(&mut self, what: &str, row: &Row) {
        if self.first.is_none() {
            self.first = Some(format!("{what}: {} at {}", String::from_utf8_lossy(&row.key), row.commit_ts));
        }
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, lost, doubled, out_of_order, foreign, first } = self;
        write!(f, "{rows} rows, {lost} lost, {doubled} doubled, {out_of_order} out of order, {foreign} foreign")?;
        match first {
            Some(first) => write!(f, " (first: {first})"),
            None => Ok(()),
        }
    }
}

/// What a row is compared by.
type Identity<'a> = (&'a [u8], CommitTs, &'a RowOp);

fn identity(row: &Row) -> Identity<'_> {
    (&row.key, row.commit_ts, &row.op)
}

/// Doubled rows, and rows out of order, of the sink alone.
fn check_order(effective: &Effective) -> Proof {
    let mut proof = Proof { rows: effective.rows.len() as u64, ..Proof::default() };
    let mut seen: BTreeSet<Identity<'_>> = BTreeSet::new();
    let mut last: BTreeMap<&[u8], CommitTs> = BTreeMap::new();
    for row in &effective.rows {
        if !seen.insert(identity(row)) {
            proof.doubled += 1;
            proof.note("doubled", row);
            continue;
        }
        let before = last.insert(&row.key, row.commit_ts);
        if before.is_some_and(|before| before >= row.commit_ts) {
            proof.out_of_order += 1;
            proof.note("out of order", row);
        }
    }
    proof
}

/// Compares rows one by one.
fn compare_rows(effective: &Effective, source: &[Row]) -> Proof {
    let mut proof = check_order(effective);
    let sink: BTreeMap<_, _> = effective.rows.iter().map(|row| (identity(row), row)).collect();
    let truth: BTreeMap<_, _> = source.iter().map(|row| (identity(row), row)).collect();
    for (_, row) in truth.iter().filter(|(id, _)| !sink.contains_key(*id)) {
        proof.lost += 1;
        proof.note("lost", row);
    }
    for (_, row) in sink.iter().filter(|(id, _)| !truth.contains_key(*id)) {
        proof.foreign += 1;
        proof.note("foreign", row);
    }
    proof
}

/// Compares what each key ends with: the sink began with a snapshot, so older rows of its keys are not there.
fn compare_ends(effective: &Effective, source: &[Row]) -> Proof {
    let mut proof = check_order(effective);
    let mut ends: BTreeMap<&[u8], &Row> = BTreeMap::new();
    for row in &effective.rows {
        ends.insert(&row.key, row);
    }
    ends.retain(|_, row| row.op != RowOp::Delete);
    for row in source {
        match ends.remove(row.key.as_slice()) {
            Some(end) if end.commit_ts == row.commit_ts && end.op == row.op => {}
            _ => {
                proof.lost += 1;
                proof.note("lost", row);
            }
        }
    }
    for row in ends.values() {
        proof.foreign += 1;
        proof.note("foreign", row);
    }
    proof
}

fn etcd_url(source: &str) -> Result<EtcdUrl, PipelineError> {
    match SourceUrl::parse(source)? {
        SourceUrl::Etcd(url) => Ok(url),
        SourceUrl::Synthetic(url) => {
            Err(PipelineError::SourceUrl { url: url.url, reason: "it is not an etcd".to_owned() })
        }
    }
}

/// Compares a sink with a range of an etcd at a revision: with its history when the changefeed began after a revision of
/// its own, with the keys and values there when it began with a snapshot.
///
/// # Errors
/// When one of them cannot be read.
pub async fn against_etcd(folder: &Path, source: &str, revision: CommitTs) -> Result<Proof, VerifyError> {
    let url = etcd_url(source)?;
    let effective = reader::read(folder, revision)?;
    Ok(match effective.start_ts {
        0 => compare_ends(&effective, &etcd_state(&url, revision).await?),
        start_ts => compare_rows(&effective, &etcd_history(&url, start_ts, revision).await?),
    })
}

/// Compares a sink with the whole history of a range of an etcd, from after `start_ts`, at which the changefeed began, up
/// to a revision: also files of a sink that are missing altogether are noticed.
///
/// # Errors
/// When one of them cannot be read.
pub async fn against_history(
    folder: &Path,
    source: &str,
    start_ts: CommitTs,
    revision: CommitTs,
) -> Result<Proof, VerifyError> {
    let url = etcd_url(source)?;
    let effective = reader::read(folder, revision)?;
    Ok(compare_rows(&effective, &etcd_history(&url, start_ts, revision).await?))
}

/// Compares a mirror with the range of an etcd that it is a copy of, both as they are now: nobody should write meanwhile.
/// Rows are keys.
///
/// # Errors
/// When one of them cannot be read.
pub async fn against_mirror(source: &str, sink: &str) -> Result<Proof, VerifyError> {
    let (source, sink) = (etcd_url(source)?, etcd_url(sink)?);
    let below = |prefix: &[u8], rows: Vec<Row>| -> BTreeMap<Vec<u8>, Row> {
        rows.into_iter().map(|row| (row.key.strip_prefix(prefix).unwrap_or(&row.key).to_vec(), row)).collect()
    };
    let truth = below(&source.prefix, etcd_state(&source, 0).await?);
    Ok(compare_copies(&truth, &below(&sink.prefix, mirror_state(&sink).await?)))
}

/// Compares keys and values.
fn compare_copies(truth: &BTreeMap<Vec<u8>, Row>, copy: &BTreeMap<Vec<u8>, Row>) -> Proof {
    let mut proof = Proof { rows: copy.len() as u64, ..Proof::default() };
    for (key, row) in truth {
        if copy.get(key).is_none_or(|copied| copied.op != row.op) {
            proof.lost += 1;
            proof.note("lost", row);
        }
    }
    for (_, row) in copy.iter().filter(|(key, _)| !truth.contains_key(*key)) {
        proof.foreign += 1;
        proof.note("foreign", row);
    }
    proof
}

/// Every change of a range of an etcd after one revision and up to another, in order: keys with their new values, `None`
/// for a deletion.
///
/// # Errors
/// When it cannot be read.
pub async fn history(
    source: &str,
    start_ts: CommitTs,
    revision: CommitTs,
) -> Result<Vec<(Vec<u8>, Option<Vec<u8>>)>, VerifyError> {
    let rows = etcd_history(&etcd_url(source)?, start_ts, revision).await?;
    let value = |op| match op {
        RowOp::Put(value) => Some(value),
        RowOp::Delete => None,
    };
    Ok(rows.into_iter().map(|row| (row.key, value(row.op))).collect())
}

/// Compares a sink with a synthetic stream, from after `start_ts` up to `checkpoint_ts`.
///
/// # Errors
/// When the sink cannot be read.
pub fn against_synthetic(
    folder: &Path,
    source: &str,
    start_ts: CommitTs,
    checkpoint_ts: CommitTs,
) -> Result<Proof, VerifyError> {
    against_synthetic_by(folder, source, start_ts, checkpoint_ts, &[]).map(|(proof, _)| proof)
}

/// The same, and what is lost, doubled and foreign among the rows that were committed in each of these stretches. What is
/// out of order is only found where both rows are of one stretch.
///
/// # Errors
/// When the sink cannot be read.
pub fn against_synthetic_by(
    folder: &Path,
    source: &str,
    start_ts: CommitTs,
    checkpoint_ts: CommitTs,
    stretches: &[RangeInclusive<CommitTs>],
) -> Result<(Proof, Vec<Proof>), VerifyError> {
    let SourceUrl::Synthetic(url) = SourceUrl::parse(source)? else {
        let reason = "it is not a synthetic stream".to_owned();
        return Err(PipelineError::SourceUrl { url: source.to_owned(), reason }.into());
    };
    let effective = reader::read(folder, checkpoint_ts)?;
    let tables = (0..url.tables).map(synthetic_table);
    let source: Vec<_> = tables.flat_map(|table| synthetic_rows(&url, &table, start_ts, checkpoint_ts)).collect();
    let by_stretch = stretches.iter().map(|stretch| compare_stretch(&effective, &source, stretch));
    Ok((compare_rows(&effective, &source), by_stretch.collect()))
}

/// Compares the rows of one stretch of commit timestamps.
fn compare_stretch(effective: &Effective, source: &[Row], stretch: &RangeInclusive<CommitTs>) -> Proof {
    let of = |rows: &[Row]| rows.iter().filter(|row| stretch.contains(&row.commit_ts)).cloned().collect::<Vec<_>>();
    compare_rows(&Effective { rows: of(&effective.rows), start_ts: effective.start_ts }, &of(source))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(key: &str, commit_ts: CommitTs, value: Option<&str>) -> Row {
        let op = value.map_or(RowOp::Delete, |value| RowOp::Put(value.as_bytes().to_vec()));
        Row { commit_ts, key: key.as_bytes().to_vec(), op, is_first: false }
    }

    fn check(sink: Vec<Row>, source: &[Row], expected: (u64, u64, u64, u64)) {
        let proof = compare_rows(&Effective { rows: sink, start_ts: 1 }, source);
        assert_eq!((proof.lost, proof.doubled, proof.out_of_order, proof.foreign), expected, "{proof}");
        assert_eq!(proof.is_good(), expected == (0, 0, 0, 0));
    }

    #[test]
    fn each_kind_of_damage_is_found() {
        let (a, b, c) = (row("k", 1, Some("a")), row("k", 2, Some("b")), row("k", 3, None));
        let source = [a.clone(), b.clone(), c.clone()];
        check(vec![a.clone(), b.clone(), c.clone()], &source, (0, 0, 0, 0));
        check(vec![a.clone(), c.clone()], &source, (1, 0, 0, 0));
        check(vec![a.clone(), b.clone(), b.clone(), c.clone()], &source, (0, 1, 0, 0));
        check(vec![b.clone(), a.clone(), c.clone()], &source, (0, 0, 1, 0));
        check(vec![a.clone(), row("k", 2, Some("x")), c.clone()], &source, (1, 0, 0, 1));
        check(vec![a, b, c, row("l", 3, None)], &source, (0, 0, 0, 1));
    }

    #[test]
    fn damage_belongs_to_the_stretch_in_which_its_row_was_committed() {
        let (a, b, c) = (row("k", 1, Some("a")), row("k", 2, Some("b")), row("k", 3, None));
        let sink = Effective { rows: vec![a.clone(), a.clone(), c.clone()], start_ts: 1 };
        let source = [a, b, c];
        let of = |stretch| {
            let proof = compare_stretch(&sink, &source, &stretch);
            (proof.rows, proof.lost, proof.doubled)
        };
        assert_eq!([of(1..=1), of(2..=2), of(3..=9)], [(2, 0, 1), (0, 1, 0), (1, 0, 0)]);
    }

    #[test]
    fn a_mirror_is_held_key_by_key() {
        let rows = |rows: &[(&str, &str)]| -> BTreeMap<_, _> {
            rows.iter().map(|(key, value)| (key.as_bytes().to_vec(), row(key, 1, Some(value)))).collect()
        };
        let truth = rows(&[("a", "1"), ("b", "2")]);
        let check = |copy: &[(&str, &str)]| {
            let proof = compare_copies(&truth, &rows(copy));
            (proof.lost, proof.foreign, proof.is_good())
        };
        assert_eq!(check(&[("a", "1"), ("b", "2")]), (0, 0, true));
        assert_eq!(check(&[("a", "1"), ("b", "x")]), (1, 0, false));
        assert_eq!(check(&[("a", "1"), ("b", "2"), ("c", "3")]), (0, 1, false));
        assert_eq!(check(&[]), (2, 0, false));
    }

    #[test]
    fn an_empty_sink_proves_nothing() {
        assert!(!Proof::default().is_good());
    }

    #[test]
    fn after_a_snapshot_the_ends_count() {
        let source = [row("k", 5, Some("v")), row("l", 6, Some("w"))];
        let ends = |rows| compare_ends(&Effective { rows, start_ts: 0 }, &source);
        assert!(
            ends(vec![row("m", 1, Some("x")), row("k", 5, Some("v")), row("m", 4, None), row("l", 6, Some("w"))])
                .is_good()
        );
        assert_eq!(ends(vec![row("k", 4, Some("v")), row("l", 6, Some("w"))]).lost, 1);
        assert_eq!(ends(vec![row("k", 5, Some("v")), row("l", 6, Some("w")), row("m", 1, Some("x"))]).foreign, 1);
    }
}
