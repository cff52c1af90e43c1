//! Conditions, kept as Kubernetes wants them: the time of a transition moves only when the status does.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The target was found.
pub const ACCEPTED: &str = "Accepted";
/// The target is proven empty.
pub const DRAINED: &str = "Drained";
/// It goes on.
pub const RECONCILING: &str = "Reconciling";
/// It does not go on by itself.
pub const STALLED: &str = "Stalled";
/// How it ended.
pub const SUCCEEDED: &str = "Succeeded";
/// It has ended.
pub const FINISHED: &str = "Finished";

/// The conditions of one generation at one moment.
#[derive(Debug)]
pub struct Conditions {
    all: Vec<Condition>,
    generation: Option<i64>,
    now: Timestamp,
}

impl Conditions {
    /// Of a generation, as they were before.
    pub fn new(before: &[Condition], generation: Option<i64>, now: Timestamp) -> Self {
        let mut all = before.to_vec();
        // Those that do not change speak of this generation, too.
        for condition in &mut all {
            condition.observed_generation = generation;
        }
        Self { all, generation, now }
    }

    /// Says how one is.
    pub fn set(&mut self, kind: &str, is: bool, reason: &str, message: impl Into<String>) {
        let status = if is { "True" } else { "False" };
        let known = self.all.iter().position(|condition| condition.type_ == kind);
        let since =
            known.filter(|at| self.all[*at].status == status).map(|at| self.all[at].last_transition_time.clone());
        let condition = Condition {
            last_transition_time: since.unwrap_or(Time(self.now)),
            message: message.into(),
            observed_generation: self.generation,
            reason: reason.to_owned(),
            status: status.to_owned(),
            type_: kind.to_owned(),
        };
        match known {
            Some(at) => self.all[at] = condition,
            None => self.all.push(condition),
        }
    }

    /// Says that one does not hold any more, if it was there before.
    pub fn lift(&mut self, kind: &str, reason: &str) {
        if self.all.iter().any(|condition| condition.type_ == kind) {
            self.set(kind, false, reason, "");
        }
    }

    /// All of them.
    pub fn into_inner(self) -> Vec<Condition> {
        self.all
    }
}

/// A condition by its name.
pub fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// Whether a condition is there and `True`.
pub fn is_true(conditions: &[Condition], kind: &str) -> bool {
    find(conditions, kind).is_some_and(|condition| condition.status == "True")
}
