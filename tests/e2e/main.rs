//! On real nodes: two kubelets, the project's own image, its own charts. `make e2e` runs it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

mod alone;
#[path = "../support/api_server.rs"]
#[allow(dead_code, reason = "other targets use more of it")]
mod api_server;
mod drain;
mod hook;
mod image;
mod nodes;
mod operator;
mod person;
#[path = "../support/proof.rs"]
#[allow(dead_code, reason = "other targets use more of it")]
mod proof;
mod rollout;
mod site;
mod traffic;
mod uninstall;
#[path = "../support/wait.rs"]
mod wait;
mod webhook;
