//! Takes a capture out of a change-data-capture cluster without hurting anyone. `ARCHITECTURE.md` is the way in.

pub mod cli;
pub mod client;
pub mod clock;
pub mod demo;
pub mod door;
pub mod hook;
pub mod http;
pub mod listener;
pub mod metrics;
pub mod node;
pub mod operator;
pub mod pipeline;
pub mod plugin;
pub mod resource;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod verify;
pub mod view;
pub mod wire;
