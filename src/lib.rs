//! capturedrain takes a capture out of a change-data-capture cluster without hurting anyone.
//!
//! `ARCHITECTURE.md` is the map. Dependencies point one way: `capturedrain-core` decides; the modules here carry out.

pub mod door;
pub mod store;
pub mod telemetry;
pub mod wire;
