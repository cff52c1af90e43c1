//! The decisions of capturedrain: pure state machines without IO, clock or randomness.
//!
//! Start at [`process::Process`], a whole capture: events in, effects out.

mod agent;
mod coordinator;
mod event;
mod host;
pub mod log;
pub mod maintainer;
mod maintainers;
pub mod measure;
pub mod model;
pub mod mutant;
mod pages;
pub mod process;
pub mod store;
mod view;
pub mod work;
mod write;
