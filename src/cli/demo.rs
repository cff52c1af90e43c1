//! `capturedrain demo`

use std::path::PathBuf;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{
    exit::{Exit, Failure},
    print,
};
use crate::demo::{DemoConfig, DemoError, demo};

/// Show a drain: three captures in this process replicate, one is emptied, the coordinator is killed half-way
#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// How many changefeeds
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=200))]
    changefeeds: u16,
    /// Tables of each
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=200))]
    tables: u16,
    /// Rows a second and table
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rate: u16,
    /// Keep the store and what was replicated in this folder, which must not exist
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
}

impl From<DemoError> for Failure {
    fn from(error: DemoError) -> Self {
        match error {
            DemoError::Node(error) => error.into(),
            DemoError::Store(error) => error.into(),
            DemoError::Client(error) => error.into(),
            DemoError::Manifest(error) => error.into(),
            error @ DemoError::Folder { .. } => Self::environment(error),
            error @ (DemoError::TooSlow(_) | DemoError::Verify(_)) => Self::new(Exit::Internal, error),
        }
    }
}

pub(super) async fn run(args: DemoArgs) -> Result<Exit, Failure> {
    let config = DemoConfig { changefeeds: args.changefeeds, tables: args.tables, rate: args.rate, keep: args.keep };
    let signals = signal(SignalKind::interrupt()).and_then(|int| Ok((int, signal(SignalKind::terminate())?)));
    let (mut interrupt, mut terminate) =
        signals.map_err(|error| Failure::environment(format!("cannot listen for signals: {error}")))?;
    let proven = tokio::select! {
        proven = demo(config, &|line| drop(print(&format!("{line}\n")))) => proven?,
        _ = interrupt.recv() => return Ok(Exit::Interrupted),
        _ = terminate.recv() => return Ok(Exit::Terminated),
    };
    Ok(if proven { Exit::Done } else { Exit::DataProofFailed })
}
