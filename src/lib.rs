//! capturedrain takes a capture out of a change-data-capture cluster without hurting anyone.
//!
//! `ARCHITECTURE.md` is the map. Dependencies point one way: `capturedrain-core` decides; the modules here carry out.

pub mod cli;
pub mod client;
pub mod demo;
pub mod door;
pub mod http;
pub mod node;
pub mod pipeline;
pub mod resource;
pub mod store;
pub mod telemetry;
pub mod verify;
pub mod wire;
