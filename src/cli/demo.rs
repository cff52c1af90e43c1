//! `capturedrain demo`

use std::{
    fs::{self, File},
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    sync::Mutex,
};

use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    Common,
    exit::{Exit, Failure},
    say,
};
use crate::demo::{
    CAPTURES_MIN, CHANGEFEEDS_MAX, DemoConfig, DemoError, News, Outcome, RATE_MAX, TABLES_MAX, demo, report, screen,
};

/// Show what a capture's leaving costs: drained, by SIGTERM, by a kill
///
/// A whole cluster in this process replicates into files of a temporary folder, with nothing to install, for less than a
/// minute. One capture is emptied, while the coordinator is killed half-way; one gets SIGTERM with `--shutdown-timeout 0s`;
/// one is killed. Each comes back. At the end every row of the sinks is compared with the source.
#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// How many captures
    #[arg(long, env = "CAPTUREDRAIN_DEMO_CAPTURES", default_value_t = CAPTURES_MIN, value_parser = clap::value_parser!(u16).range(i64::from(CAPTURES_MIN)..=9))]
    captures: u16,
    /// How many changefeeds
    #[arg(long, env = "CAPTUREDRAIN_DEMO_CHANGEFEEDS", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=i64::from(CHANGEFEEDS_MAX)))]
    changefeeds: u16,
    /// Tables of all changefeeds together, at least one each
    #[arg(long, env = "CAPTUREDRAIN_DEMO_TABLES", default_value_t = 300, value_parser = clap::value_parser!(u16).range(1..=i64::from(TABLES_MAX)))]
    tables: u16,
    /// Rows a second and table, on average
    #[arg(long, env = "CAPTUREDRAIN_DEMO_RATE", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=i64::from(RATE_MAX)))]
    rate: u16,
    /// What the rows are made of: the same number, the same rows
    #[arg(long, env = "CAPTUREDRAIN_DEMO_SEED", default_value_t = 1)]
    seed: u64,
    /// Write the results, and the lag over time, into this file: a page for a browser that needs nothing else
    #[arg(long, env = "CAPTUREDRAIN_DEMO_REPORT", value_name = "FILE")]
    report: Option<PathBuf>,
    /// Keep the store and what was replicated in this folder, which must not exist
    #[arg(long, env = "CAPTUREDRAIN_DEMO_KEEP", value_name = "FOLDER")]
    keep: Option<PathBuf>,
}

impl From<DemoError> for Failure {
    fn from(error: DemoError) -> Self {
        match error {
            DemoError::Node(error) => error.into(),
            DemoError::Store(error) => error.into(),
            DemoError::Client(error) => error.into(),
            DemoError::Manifest(error) => error.into(),
            error @ (DemoError::Folder { .. } | DemoError::Thread(_)) => Self::environment(error),
            error @ (DemoError::TooSlow(_) | DemoError::Verify(_) | DemoError::Task(_)) => {
                Self::new(Exit::Internal, error)
            }
        }
    }
}

/// A file that is there whole or not at all. It is begun at once, so that a place which cannot be written is known early.
struct Page {
    path: PathBuf,
    begun: PathBuf,
    file: File,
}

impl Page {
    fn begin(path: &Path) -> Result<Self, Failure> {
        let refused = |reason: &dyn std::fmt::Display| {
            Failure::environment(format!("--report {} cannot be written: {reason}", path.display()))
        };
        let Some(name) = path.file_name().filter(|_| !path.is_dir()) else { return Err(refused(&"it is a folder")) };
        let begun = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
        let file = File::create(&begun).map_err(|error| refused(&error))?;
        Ok(Self { path: path.to_owned(), begun, file })
    }

    fn finish(mut self, text: &str) -> Result<(), Failure> {
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_all());
        written.and_then(|()| fs::rename(&self.begun, &self.path)).map_err(|error| {
            Failure::environment(format!("--report {} cannot be written: {error}", self.path.display()))
        })
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // It is gone when it was finished.
        let _ = fs::remove_file(&self.begun);
    }
}

/// Shows on standard error how the demo goes: a bar on a terminal, a line each quarter elsewhere.
struct Progress {
    bars: Option<(MultiProgress, ProgressBar)>,
    last: Mutex<(String, u64)>,
}

impl Progress {
    fn new() -> Self {
        let bars = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{prefix:24} [{bar:36.cyan}] {pos}/{len}");
            let bar = ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            let all = MultiProgress::new();
            (all.clone(), all.add(bar))
        });
        Self { bars, last: Mutex::default() }
    }

    fn show(&self, news: News<'_>) {
        match (news, &self.bars) {
            // A terminal that is gone cannot be told.
            (News::Line(line), Some((all, _))) => drop(all.println(line)),
            (News::Line(line), None) => say(line),
            (News::Progress { what, done, total }, Some((_, bar))) => {
                bar.set_prefix(what.to_owned());
                bar.set_length(total);
                bar.set_position(done);
            }
            (News::Progress { what, done, total }, None) => self.quarter(what, done, total),
        }
    }

    fn quarter(&self, what: &str, done: u64, total: u64) {
        let Ok(mut last) = self.last.lock() else { return };
        let quarter = done * 4 / total.max(1);
        if last.0 != what {
            *last = (what.to_owned(), 0);
        }
        if quarter > last.1 {
            last.1 = quarter;
            say(&format!("         {what}: {done} of {total}"));
        }
    }

    fn finish(&self) {
        if let Some((_, bar)) = &self.bars {
            bar.finish_and_clear();
        }
    }
}

pub(super) async fn run(args: DemoArgs, common: &Common) -> Result<Exit, Failure> {
    let DemoArgs { captures, changefeeds, tables, rate, seed, report: page, keep } = args;
    if tables < changefeeds {
        let sentence = format!("--tables {tables} is less than --changefeeds {changefeeds}: each needs a table");
        return Err(Failure::usage(sentence));
    }
    let page = page.map(|path| Page::begin(&path)).transpose()?;
    let config = DemoConfig { captures, changefeeds, tables, rate, seed, keep };
    let signals = signal(SignalKind::interrupt()).and_then(|int| Ok((int, signal(SignalKind::terminate())?)));
    let (mut interrupt, mut terminate) =
        signals.map_err(|error| Failure::environment(format!("cannot listen for signals: {error}")))?;
    let mut ended = Exit::Interrupted;
    let interrupted = async {
        ended = tokio::select! {
            _ = interrupt.recv() => Exit::Interrupted,
            _ = terminate.recv() => Exit::Terminated,
        };
    };
    let progress = Progress::new();
    let outcome = Box::pin(demo(&config, &|news| progress.show(news), interrupted)).await;
    progress.finish();
    let Some(outcome) = outcome? else { return Ok(ended) };
    if let Some(page) = page {
        let path = page.path.clone();
        page.finish(&report(&outcome))?;
        say(&format!("the report is in {}", path.display()));
    }
    common.print(&outcome, screen)?;
    Ok(exit(&outcome))
}

/// Whether what was to be proven was proven.
fn exit(outcome: &Outcome) -> Exit {
    if outcome.proven { Exit::Done } else { Exit::DataProofFailed }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::Proof;

    #[test]
    fn a_failed_proof_is_told_by_the_exit_code() {
        let outcome = |proven| Outcome {
            captures: 3,
            changefeeds: 1,
            tables: 1,
            rows_per_second: 5,
            seed: 1,
            took_ms: 1,
            departures: Vec::new(),
            proof: Proof::default(),
            proven,
        };
        assert_eq!([exit(&outcome(true)), exit(&outcome(false))], [Exit::Done, Exit::DataProofFailed]);
    }

    #[test]
    fn a_page_is_there_whole_or_not_at_all() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("page.html");
        let begin = || Page::begin(&path).map_err(|failure| failure.sentence);
        drop(begin()?);
        assert_eq!(fs::read_dir(folder.path())?.count(), 0);
        begin()?.finish("whole").map_err(|failure| failure.sentence)?;
        assert_eq!((fs::read_to_string(&path)?, fs::read_dir(folder.path())?.count()), ("whole".to_owned(), 1));
        for path in [folder.path().to_owned(), folder.path().join("none/page.html")] {
            assert_eq!(Page::begin(&path).err().map(|failure| failure.exit), Some(Exit::Environment), "{path:?}");
        }
        Ok(())
    }
}
