//! The hook of a capture's pod: it holds the pod until its capture is proven empty, and says how it ended.
//!
//! `course` decides, and is pure; `run` asks the own capture and the coordinator; `ticdc` does the same for a capture of
//! `TiCDC`. `install` puts the binary where a pod of somebody else can run it.

mod course;
mod deadline;
mod install;
mod outcome;
mod run;
mod ticdc;

pub use self::{
    course::NoPeers,
    install::{InstallError, install},
    outcome::{End, Outcome},
    run::{Config, Run},
    ticdc::TiCdcRun,
};
