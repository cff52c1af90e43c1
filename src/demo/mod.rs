//! A whole cluster in one process, for a minute: real replication, while one capture after another leaves and comes back:
//! drained, by SIGTERM, by a kill. At the end the sinks are compared with the sources.

mod chart;
mod cluster;
mod lag;
mod leave;
mod outcome;
mod report;
mod screen;
mod story;

use std::{path::PathBuf, time::Duration};

use tokio::time;

use self::{cluster::Cluster, story::Stage};
pub use self::{
    outcome::{Departure, Loss, Mark, Outcome, Way},
    report::report,
    screen::screen,
};
pub use crate::verify::Proof;
use crate::{client::ClientError, node::NodeError, resource::ManifestError, store::StoreError, verify::VerifyError};

/// Fewest captures: one is drained, the coordinator is killed, and one has to be left.
pub const CAPTURES_MIN: u16 = 3;
/// Most tables: each has an open file, and a process usually may have 1,024.
pub const TABLES_MAX: u16 = 600;
/// Most changefeeds: with more, one file takes their positions too slowly.
pub const CHANGEFEEDS_MAX: u16 = 50;
/// Most rows a second and table.
pub const RATE_MAX: u16 = 1_000;

/// How long anything in it may take.
const PATIENCE: Duration = Duration::from_mins(1);
/// How often a folder is tried to be removed, as what was being written may still arrive.
const REMOVALS: u32 = 50;
/// How long after each.
const REMOVAL_PAUSE: Duration = Duration::from_millis(20);

/// What is shown.
#[derive(Debug, Clone)]
pub struct DemoConfig {
    /// How many captures.
    pub captures: u16,
    /// How many changefeeds.
    pub changefeeds: u16,
    /// Their tables together, at least one each.
    pub tables: u16,
    /// Rows a second and table, on average.
    pub rate: u16,
    /// What the rows are made of.
    pub seed: u64,
    /// A folder that is kept; it must not exist.
    pub keep: Option<PathBuf>,
}

/// What is told while it goes on.
#[derive(Debug, Clone, Copy)]
pub enum News<'a> {
    /// A line of the story, with the time since the beginning.
    Line(&'a str),
    /// How far something is.
    Progress {
        /// What.
        what: &'a str,
        /// So many of it are done.
        done: u64,
        /// Of so many.
        total: u64,
    },
}

/// Why there was nothing to see.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Its folder cannot be made.
    #[error("folder {path} cannot be made: {reason}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: std::io::Error,
    },
    /// A capture did not start.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The store did not open.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cluster did not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Its own manifest is wrong.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The sink cannot be read.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The lag cannot be watched.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// A task of it panicked.
    #[error("a task of the demo ended unexpectedly: {0}")]
    Task(#[from] tokio::task::JoinError),
    /// Something took too long.
    #[error("waited {seconds} s for {0}", seconds = PATIENCE.as_secs())]
    TooSlow(&'static str),
}

/// A folder that goes at the end, unless it is kept.
struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    fn make(keep: Option<PathBuf>) -> Result<Self, DemoError> {
        let kept = keep.is_some();
        let path =
            keep.unwrap_or_else(|| std::env::temp_dir().join(format!("capturedrain-demo-{}", std::process::id())));
        std::fs::create_dir(&path).map_err(|reason| DemoError::Folder { path: path.clone(), reason })?;
        let path = path.canonicalize().map_err(|reason| DemoError::Folder { path: path.clone(), reason })?;
        Ok(Self { path, keep: kept })
    }

    async fn end(self) {
        for _ in 0..REMOVALS {
            // What cannot be removed from a folder for temporary files is left to the system.
            if self.keep || std::fs::remove_dir_all(&self.path).is_ok() {
                return;
            }
            time::sleep(REMOVAL_PAUSE).await;
        }
    }
}

/// Shows captures leave. Returns what it came to; `None` when it was interrupted.
///
/// # Errors
/// When there was nothing to see.
pub async fn demo(
    config: &DemoConfig,
    tell: &(dyn Fn(News<'_>) + Sync),
    interrupted: impl Future<Output = ()>,
) -> Result<Option<Outcome>, DemoError> {
    let stage = Stage::new(tell);
    let folder = Folder::make(config.keep.clone())?;
    let started = Cluster::start(&folder.path, config).await;
    let outcome = match started {
        Ok(mut cluster) => {
            let outcome = tokio::select! {
                outcome = Box::pin(story::tour(&mut cluster, config, &folder.path, &stage)) => outcome.map(Some),
                () = interrupted => Ok(None),
            };
            cluster.end().await;
            outcome
        }
        Err(error) => Err(error),
    };
    if folder.keep {
        stage.tell(&format!("kept: {}", folder.path.display()));
    }
    folder.end().await;
    outcome
}
