//! What `kubectl capturedrain` is told, in three steps: gather (what Kubernetes and the captures say, the only one that
//! calls anybody) → findings (what that means, pure) → print, which is `cli`'s.
//!
//! [`scene`] → [`report`](mod@report) answers why a node does not empty; [`facts`](mod@facts) →
//! [`findings`](mod@findings) whether everything is there that a drain needs; [`selftest`](mod@selftest) the same of the
//! operator alone, from inside.

pub mod facts;
pub mod findings;
pub mod hook;
pub mod report;
pub mod scene;
pub mod selftest;
mod trouble;

pub use self::{
    facts::{Facts, Wanted, facts},
    findings::{Fault, Finding, Level, findings},
    report::{Report, report},
    scene::{Scene, scene},
    selftest::{SelfTest, selftest},
    trouble::Trouble,
};
