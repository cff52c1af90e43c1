//! What `kubectl capturedrain` is told, in three steps: gather (what Kubernetes and the captures say, the only one that
//! calls anybody) → findings (what that means, pure) → print, which is `cli`'s.
//!
//! [`scene`] → [`report`](mod@report) answers why a node does not empty; [`facts`](mod@facts) →
//! [`findings`](mod@findings) whether everything is there that a drain needs.

pub mod facts;
pub mod findings;
pub mod hook;
pub mod report;
pub mod scene;
mod trouble;

pub use self::{
    facts::{Facts, Wanted, facts},
    findings::{Fault, Finding, Level, findings},
    report::{Report, report},
    scene::{Scene, scene},
    trouble::Trouble,
};
