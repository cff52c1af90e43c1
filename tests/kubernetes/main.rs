//! On a real API server: what it makes of the CRD, what the operator does, and that the servers of these tests go with them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

#[path = "../support/api_server.rs"]
#[allow(dead_code, reason = "other targets use more of it")]
mod api_server;
#[path = "../support/authority.rs"]
#[allow(dead_code, reason = "other targets use more of it")]
mod authority;
mod capture_chart;
mod certificates;
mod chart;
mod crd;
mod ends;
#[path = "../support/fake.rs"]
#[allow(dead_code, reason = "other targets use more of it")]
mod fake;
#[allow(dead_code, reason = "grows with the tests")]
mod gate;
mod harness;
mod helm;
mod hook;
mod observability;
mod operator;
mod plugin;
mod replicas;
mod selftest;
#[allow(dead_code, reason = "grows with the tests")]
mod shop;
mod ticdc;
mod trouble;
mod uninstall;
mod webhook;
