//! JSON lines in a folder: one file a dispatcher, which nobody else ever writes.
//!
//! `DIR/<table>/<span>-<changefeed epoch>.<counter>-<start_ts>.jsonl`. A writer that was replaced may go on writing its
//! own file: readers ignore its rows above the start of the later writer.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    mem,
    path::{Path, PathBuf},
    sync::Arc,
};

use capturedrain_core::{
    model::{ChangefeedEpoch, CommitTs, Span, SpanId, WriterEpoch},
    work::DispatcherKey,
};

use tokio::task::JoinHandle;

use super::{SinkRow, SpanLine};
use crate::pipeline::{PipelineError, folder, source::Batch, table::segment_of};

/// The name of a dispatcher's file.
pub fn file_name(span: SpanId, writer: WriterEpoch, start_ts: CommitTs) -> String {
    format!("{span}-{writer}-{start_ts}.jsonl")
}

/// Reads the name of a dispatcher's file back.
pub fn parse_file_name(name: &str) -> Option<(SpanId, WriterEpoch, CommitTs)> {
    let mut parts = name.strip_suffix(".jsonl")?.split('-');
    let (span, writer, start_ts) = (parts.next()?, parts.next()?, parts.next()?);
    let (changefeed, counter) = writer.split_once('.')?;
    let writer = WriterEpoch { changefeed: ChangefeedEpoch(changefeed.parse().ok()?), counter: counter.parse().ok()? };
    parts.next().is_none().then_some((span.parse().ok()?, writer, start_ts.parse().ok()?))
}

/// A dispatcher's file.
pub(in crate::pipeline) struct FileSink {
    path: PathBuf,
    file: Arc<File>,
    waiting: Vec<u8>,
    /// Up to here everything was taken.
    taken_ts: CommitTs,
    /// Up to here everything is safe.
    safe_ts: CommitTs,
    writing: Option<Writing>,
}

/// A write that is on: it goes on whoever waits for it.
struct Writing {
    task: JoinHandle<Result<(), PipelineError>>,
    until_ts: CommitTs,
}

/// An error of creation: for good only when it cannot pass by itself.
fn folder_error(path: &Path, error: &io::Error) -> PipelineError {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::PermissionDenied
        | Kind::NotADirectory
        | Kind::IsADirectory
        | Kind::AlreadyExists
        | Kind::ReadOnlyFilesystem
        | Kind::InvalidFilename
        | Kind::InvalidInput
        | Kind::Unsupported => PipelineError::SinkFolder { path: path.to_owned(), reason: error.to_string() },
        _ => write_error(path, error),
    }
}

fn write_error(path: &Path, error: &io::Error) -> PipelineError {
    PipelineError::SinkWrite { path: path.to_owned(), reason: error.to_string() }
}

/// Begins file work where it does not hold up others.
fn begin<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PipelineError> + Send + 'static,
) -> JoinHandle<Result<T, PipelineError>> {
    tokio::task::spawn_blocking(work)
}

/// Waits for file work.
async fn end<T>(path: &Path, work: &mut JoinHandle<Result<T, PipelineError>>) -> Result<T, PipelineError> {
    work.await
        .unwrap_or_else(|error| Err(PipelineError::SinkWrite { path: path.to_owned(), reason: error.to_string() }))
}

impl FileSink {
    pub(super) async fn open(
        sink: &Path,
        span: &Span,
        key: &DispatcherKey,
        start_ts: CommitTs,
    ) -> Result<Self, PipelineError> {
        let table = sink.join(folder(&span.table));
        let path = table.join(file_name(key.span, key.writer_epoch, start_ts));
        let (line, created, writer) = (SpanLine::of(span), path.clone(), key.writer_epoch);
        let opening = move || outranked(&table, writer).and_then(|()| create(&table, &created, &line));
        let file = end(&path, &mut begin(opening)).await?;
        let (taken_ts, safe_ts) = (start_ts, start_ts);
        Ok(Self { path, file: Arc::new(file), waiting: Vec::new(), taken_ts, safe_ts, writing: None })
    }

    pub(super) fn take(&mut self, batch: &Batch) -> Result<(), PipelineError> {
        for row in &batch.rows {
            serde_json::to_writer(&mut self.waiting, &SinkRow::of(row))
                .map_err(|error| PipelineError::SinkWrite { path: self.path.clone(), reason: error.to_string() })?;
            self.waiting.push(b'\n');
        }
        self.taken_ts = self.taken_ts.max(batch.resolved_ts);
        Ok(())
    }

    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_busy(&self) -> bool {
        self.writing.is_some() || !self.waiting.is_empty() || self.taken_ts > self.safe_ts
    }

    pub(super) async fn next_safe(&mut self) -> Result<CommitTs, PipelineError> {
        if self.writing.is_none() && !self.waiting.is_empty() {
            let (file, waiting, path) = (self.file.clone(), mem::take(&mut self.waiting), self.path.clone());
            let task = begin(move || {
                let written = (&*file).write_all(&waiting).and_then(|()| file.sync_data());
                written.map_err(|error| write_error(&path, &error))
            });
            self.writing = Some(Writing { task, until_ts: self.taken_ts });
        }
        self.safe_ts = match &mut self.writing {
            Some(writing) => {
                let written = end(&self.path, &mut writing.task).await;
                let until_ts = writing.until_ts;
                self.writing = None;
                written.map(|()| until_ts)?
            }
            None => self.taken_ts,
        };
        Ok(self.safe_ts)
    }
}

/// Refuses to write below the files of a later placement: readers would leave out what is written.
fn outranked(table: &Path, writer: WriterEpoch) -> Result<(), PipelineError> {
    let Ok(files) = fs::read_dir(table) else { return Ok(()) };
    let there = files.filter_map(|file| parse_file_name(&file.ok()?.file_name().to_string_lossy()));
    match there.map(|(_, there, _)| there).filter(|there| there.changefeed > writer.changefeed).max() {
        Some(by) => Err(PipelineError::Outranked { path: table.to_owned(), writer, by }),
        None => Ok(()),
    }
}

/// Lists the span's range, then creates the file; both are safe before the first row.
fn create(table: &Path, path: &Path, line: &SpanLine) -> Result<File, PipelineError> {
    fs::create_dir_all(table).map_err(|error| folder_error(table, &error))?;
    let spans = table.join("spans.jsonl");
    let known = fs::read_to_string(&spans).unwrap_or_default();
    let text = serde_json::to_string(line).unwrap_or_default();
    if !known.lines().any(|known| known == text) {
        // One write, so that lines of several processes do not mix; the line before may have been cut short by a full disk.
        let text = if known.is_empty() || known.ends_with('\n') { text + "\n" } else { format!("\n{text}\n") };
        let mut file =
            OpenOptions::new().create(true).append(true).open(&spans).map_err(|error| folder_error(&spans, &error))?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|error| write_error(&spans, &error))?;
    }
    // Exclusively: a creation that comes a second time must not write into the first one's file.
    let file = File::create_new(path).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => write_error(path, &error),
        _ => folder_error(path, &error),
    })?;
    let folders = [Some(table), table.parent()].into_iter().flatten();
    for folder in folders {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| write_error(folder, &error))?;
    }
    Ok(file)
}

/// Whether a folder can be made and written.
pub(super) async fn check_folder(sink: &Path) -> Result<(), PipelineError> {
    let folder = sink.to_owned();
    let mut tried = begin(move || {
        let probe = folder.join(format!(".probe-{}", std::process::id()));
        let tried = fs::create_dir_all(&folder)
            .and_then(|()| File::create(&probe))
            .and_then(|mut file| file.write_all(b"probe").and_then(|()| file.sync_all()));
        let _ = fs::remove_file(&probe);
        tried.map_err(|error| folder_error(&folder, &error))
    });
    end(sink, &mut tried).await
}

/// The path segments whose tables have a folder.
pub(super) async fn tables(sink: &Path) -> Result<BTreeSet<Vec<u8>>, PipelineError> {
    let folder = sink.to_owned();
    let mut listing = begin(move || {
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            entries => entries.map_err(|error| folder_error(&folder, &error))?,
        };
        let names: io::Result<Vec<_>> = entries.map(|entry| entry.map(|entry| entry.file_name())).collect();
        let names = names.map_err(|error| folder_error(&folder, &error))?;
        Ok(names.iter().filter_map(|name| segment_of(name.to_str()?)).collect())
    });
    end(sink, &mut listing).await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    #[test]
    fn file_names_read_back() {
        let writer = WriterEpoch { changefeed: ChangefeedEpoch(12), counter: 3 };
        let name = file_name(SpanId(0xab), writer, 77);
        assert_eq!(name, "00000000000000ab-12.3-77.jsonl");
        assert_eq!(parse_file_name(&name), Some((SpanId(0xab), writer, 77)));
        assert_eq!(parse_file_name("spans.jsonl"), None);
    }

    #[test]
    fn only_errors_that_cannot_pass_by_themselves_are_for_good() {
        let fatal = |errno| folder_error(Path::new("/sink"), &io::Error::from_raw_os_error(errno)).is_fatal();
        // EACCES, EPERM, ENOTDIR, EISDIR, EROFS, ENAMETOOLONG
        for errno in [13, 1, 20, 21, 30, 36] {
            assert!(fatal(errno), "{}", io::Error::from_raw_os_error(errno));
        }
        // EMFILE, ENFILE, EIO, ENOSPC, EDQUOT, ENOMEM, ESTALE, EINTR
        for errno in [24, 23, 5, 28, 122, 12, 116, 4] {
            assert!(!fatal(errno), "{}", io::Error::from_raw_os_error(errno));
        }
    }

    #[test]
    fn a_writer_below_one_that_was_there_is_refused_and_told_by_whom() {
        let folder = tempfile::tempdir().unwrap();
        let writer = |changefeed, counter| WriterEpoch { changefeed: ChangefeedEpoch(changefeed), counter };
        fs::write(folder.path().join(file_name(SpanId(1), writer(12, 3), 77)), "").unwrap();
        assert_eq!(outranked(folder.path(), writer(12, 1)), Ok(()), "of the same maintainer");
        let error = outranked(folder.path(), writer(11, 9)).unwrap_err();
        assert_eq!((error.outranked_by(writer(11, 9)), error.is_fatal()), (Some(ChangefeedEpoch(12)), false));
    }
}
