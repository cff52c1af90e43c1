//! Reads the files of a sink as a consumer should: rows of writers that were replaced do not count above the start of
//! those who replaced them, and a last line without its end is no line.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use capturedrain_core::model::{CommitTs, SpanId, WriterEpoch};

use super::VerifyError;
use crate::pipeline::{Row, SinkRow, SpanLine, parse_file_name};

/// The rows that count, those of one writer in the order of its file, writers in the order of their epochs.
#[derive(Debug, Default)]
pub(super) struct Effective {
    pub(super) rows: Vec<Row>,
    /// After which commit timestamp the first writer began.
    pub(super) start_ts: CommitTs,
}

/// First key, and first key after it.
type Range = (Vec<u8>, Vec<u8>);

/// One writer's file.
struct Writer {
    path: PathBuf,
    start_ts: CommitTs,
    start: Vec<u8>,
    end: Vec<u8>,
}

fn error(path: &Path, reason: impl std::fmt::Display) -> VerifyError {
    VerifyError::Sink { path: path.display().to_string(), reason: reason.to_string() }
}

/// All rows up to a commit timestamp that count.
pub(super) fn read(folder: &Path, until: CommitTs) -> Result<Effective, VerifyError> {
    let mut effective = Effective { rows: Vec::new(), start_ts: CommitTs::MAX };
    for entry in fs::read_dir(folder).map_err(|reason| error(folder, reason))? {
        let table = entry.map_err(|reason| error(folder, reason))?.path();
        if table.is_dir() {
            read_table(&table, until, &mut effective)?;
        }
    }
    if effective.start_ts == CommitTs::MAX {
        effective.start_ts = 0;
    }
    Ok(effective)
}

fn read_table(table: &Path, until: CommitTs, effective: &mut Effective) -> Result<(), VerifyError> {
    let spans = ranges(table)?;
    let mut writers: BTreeMap<(WriterEpoch, SpanId), Writer> = BTreeMap::new();
    for entry in fs::read_dir(table).map_err(|reason| error(table, reason))? {
        let path = entry.map_err(|reason| error(table, reason))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let Some((span, epoch, start_ts)) = parse_file_name(&name) else { continue };
        let Some((start, end)) = spans.get(&span).cloned() else {
            return Err(error(&path, "spans.jsonl does not list its span"));
        };
        effective.start_ts = effective.start_ts.min(start_ts);
        writers.insert((epoch, span), Writer { path, start_ts, start, end });
    }
    for ((epoch, _), writer) in &writers {
        let next = WriterEpoch { counter: epoch.counter + 1, ..*epoch };
        // Whoever came later and covers a key has it from its own start on.
        let later: Vec<_> = writers.range((next, SpanId(0))..).map(|(_, later)| later).collect();
        for row in rows(&writer.path)? {
            let replaced =
                |later: &&Writer| later.start_ts < row.commit_ts && later.start <= row.key && row.key < later.end;
            if row.commit_ts <= until && !later.iter().any(replaced) {
                effective.rows.push(row);
            }
        }
    }
    Ok(())
}

/// The ranges of a table's spans.
fn ranges(table: &Path) -> Result<BTreeMap<SpanId, Range>, VerifyError> {
    let path = table.join("spans.jsonl");
    let text = fs::read_to_string(&path).map_err(|reason| error(&path, reason))?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<SpanLine>(line).ok());
    Ok(lines.filter_map(|line| Some((line.span.parse().ok()?, line.range()?))).collect())
}

fn rows(path: &Path) -> Result<Vec<Row>, VerifyError> {
    let bytes = fs::read(path).map_err(|reason| error(path, reason))?;
    let complete = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let lines = bytes[..complete].split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let row = |line| serde_json::from_slice::<SinkRow>(line).ok().and_then(|row| row.row());
    lines.map(|line| row(line).ok_or_else(|| error(path, "a line is not a row"))).collect()
}
