//! What an eviction of a pod is answered, decided from what was seen and nothing else:
//!
//! [`asked`] (the request) → [`facts`] (what is known) → [`decide`](mod@decide) (what to look at next, or the answer) →
//! [`answer`] (how the API server is told). A drain that is to begin is written down by [`make`](mod@make), and what a
//! budget forbids anyway is found by [`budget`]. All of it is pure; `controller/webhook` looks and acts.

pub mod answer;
pub mod asked;
pub mod budget;
pub mod decide;
pub mod facts;
pub mod make;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test")]
mod tests;

/// The name of the webhook within its configuration.
pub const WEBHOOK: &str = "evictions.capturedrain.io";
/// Where it is served.
pub const PATH: &str = "/evictions";
