//! The decisions of capturedrain: pure state machines without IO, clock or randomness.
//!
//! Start at [`process::Process`], a whole capture: events in, effects out.

pub mod log;
pub mod model;
pub mod process;
pub mod store;
pub mod work;
