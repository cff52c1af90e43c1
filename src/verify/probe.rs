//! How far the sinks are behind the sources, measured from outside: by the files, not by what the cluster says of itself.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use capturedrain_core::model::{CommitTs, Span, WriterEpoch};

use super::VerifyError;
use crate::pipeline::{SinkRow, SourceUrl, SyntheticUrl, folder, parse_file_name, synthetic_rows, synthetic_table};

/// How much of a file's end is read to find its last row.
const TAIL_BYTES: u64 = 512;
/// How long a row may be missing before it is looked for in another writer's file, in milliseconds.
const OTHER_FILE_AFTER_MS: u64 = 40;
/// How far ahead the next row is looked for, in milliseconds: rows come at least once a second.
const AHEAD_MS: u64 = 2_000;

/// A table: what of it is in the sink.
#[derive(Debug)]
struct Table {
    folder: PathBuf,
    url: SyntheticUrl,
    span: Span,
    /// The newest writer's file, and how large it was.
    file: Option<(WriterEpoch, PathBuf, u64)>,
    /// The commit timestamp of the first row that is not in the sink.
    missing_ts: CommitTs,
}

/// A changefeed from a synthetic source into files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feed {
    /// `synthetic://…`
    pub source: String,
    /// The folder of the sink.
    pub sink: PathBuf,
    /// Rows above this commit timestamp are replicated.
    pub start_ts: CommitTs,
}

/// The tables of all changefeeds.
#[derive(Debug)]
pub struct Probe {
    feeds: Vec<Vec<Table>>,
}

impl Probe {
    /// Looks at nothing yet.
    ///
    /// # Errors
    /// When the URL of a source is not one.
    pub fn new(feeds: &[Feed]) -> Result<Self, VerifyError> {
        let tables = |feed: &Feed| {
            let SourceUrl::Synthetic(url) = SourceUrl::parse(&feed.source)? else { return Ok(Vec::new()) };
            Ok((0..url.tables).map(|n| Table::new(&feed.sink, &url, n, feed.start_ts)).collect())
        };
        Ok(Self { feeds: feeds.iter().map(tables).collect::<Result<_, VerifyError>>()? })
    }

    /// For each changefeed the age, in milliseconds, of the oldest row that its source has and its sink has not; 0 when
    /// there is none.
    pub fn lags(&mut self, now_ms: u64) -> Vec<u64> {
        let of = |tables: &mut Vec<Table>| tables.iter_mut().map(|table| table.lag(now_ms)).max().unwrap_or(0);
        self.feeds.iter_mut().map(of).collect()
    }
}

impl Table {
    fn new(sink: &Path, url: &SyntheticUrl, n: u64, start_ts: CommitTs) -> Self {
        let span = synthetic_table(n);
        let folder = sink.join(folder(&span.table));
        let mut table = Self { folder, url: url.clone(), span, file: None, missing_ts: 0 };
        table.missing_ts = table.next_after(start_ts);
        table
    }

    fn next_after(&self, ts: CommitTs) -> CommitTs {
        let rows = synthetic_rows(&self.url, &self.span, ts, ts.saturating_add(AHEAD_MS));
        rows.first().map_or(CommitTs::MAX, |row| row.commit_ts)
    }

    fn lag(&mut self, now_ms: u64) -> u64 {
        if now_ms > self.missing_ts {
            self.look(now_ms - self.missing_ts >= OTHER_FILE_AFTER_MS);
        }
        now_ms.saturating_sub(self.missing_ts)
    }

    /// Looks for rows in the newest file, and for a newer file when `wide`. What cannot be read now is read the next time.
    fn look(&mut self, wide: bool) {
        let newest = self.file.as_ref().map(|(epoch, ..)| *epoch);
        let newer = if wide { self.newest_file().filter(|(epoch, _)| Some(*epoch) > newest) } else { None };
        // In this order: once there is a newer writer, the one before has written its last.
        self.read();
        if let Some((epoch, path)) = newer {
            self.file = Some((epoch, path, 0));
            self.read();
        }
    }

    fn read(&mut self) {
        let Some((_, path, size)) = &mut self.file else { return };
        let grown = fs::metadata(&*path).map_or(*size, |found| found.len());
        if grown > *size
            && let Some(last) = last_row(path)
        {
            *size = grown;
            // A new writer may begin with rows that the one before had written as well.
            if last >= self.missing_ts {
                self.missing_ts = self.next_after(last);
            }
        }
    }

    fn newest_file(&self) -> Option<(WriterEpoch, PathBuf)> {
        let entries = fs::read_dir(&self.folder).ok()?.filter_map(Result::ok);
        let writer = |name: &str| parse_file_name(name).map(|(_, epoch, _)| epoch);
        let files = entries.filter_map(|entry| Some((writer(&entry.file_name().to_string_lossy())?, entry.path())));
        files.max_by_key(|(epoch, _)| *epoch)
    }
}

/// The commit timestamp of the last whole row of a file.
fn last_row(path: &Path) -> Option<CommitTs> {
    let mut file = File::open(path).ok()?;
    let size = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(TAIL_BYTES))).ok()?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).ok()?;
    let whole = &tail[..tail.iter().rposition(|byte| *byte == b'\n')?];
    let line = whole.rsplit(|byte| *byte == b'\n').next()?;
    serde_json::from_slice::<SinkRow>(line).ok().map(|row| row.commit_ts)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use std::io::Write as _;

    use capturedrain_core::model::ChangefeedEpoch;

    use super::*;
    use crate::pipeline::file_name;

    #[test]
    fn a_row_that_is_missing_ages_until_some_writer_brings_it() {
        let sink = tempfile::tempdir().unwrap();
        let source = "synthetic://?tables=1&rate=10&keys=9&seed=1".to_owned();
        let start_ts = 1_000_000;
        let feed = Feed { source, sink: sink.path().to_owned(), start_ts };
        let mut probe = Probe::new(&[feed]).unwrap();
        let write = |counter, ts: CommitTs| {
            let folder = sink.path().join("t0");
            fs::create_dir_all(&folder).unwrap();
            let writer = WriterEpoch { changefeed: ChangefeedEpoch(1), counter };
            let path = folder.join(file_name(synthetic_table(0).id(), writer, start_ts));
            let mut file = File::options().create(true).append(true).open(path).unwrap();
            let cut = if counter == 1 { "{\"commit" } else { "" };
            write!(file, "{{\"commit_ts\":{ts},\"op\":\"delete\",\"key\":\"t0/1\"}}\n{cut}").unwrap();
        };
        // Rows come every 100 ms.
        assert_eq!(probe.lags(start_ts + 90), [0]);
        assert_eq!(probe.lags(start_ts + 150), [50]);
        write(1, start_ts + 100);
        assert_eq!(probe.lags(start_ts + 150), [0]);
        assert_eq!(probe.lags(start_ts + 500), [300]);
        write(2, start_ts + 100);
        assert_eq!(probe.lags(start_ts + 500), [300], "what was there before is no news");
        write(3, start_ts + 500);
        assert_eq!(probe.lags(start_ts + 500), [0]);
        write(3, start_ts + 600);
        write(4, start_ts);
        assert_eq!(probe.lags(start_ts + 690), [0], "the last row of one writer, seen when the next is there already");
    }
}
