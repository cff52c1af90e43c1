//! What a hook does next, decided from what its capture and the coordinator have said. Pure.

use std::time::Duration;

use capturedrain_core::model::{Answer, DrainRequest, Refusal, UnixMillis, WorkCount};

use super::{
    deadline::Deadline,
    outcome::{End, Outcome},
};
use crate::client::{ClientError, HookStanding, Proof, RecordSeen};

/// For how long nobody else has to be there, or the other side not to be trusted, before that is taken for a fact: longer
/// than a capture that was just registered is not heard, or than a certificate takes to be renewed on both sides.
const PATIENCE: Duration = Duration::from_secs(10);

/// What follows when no other capture is there to take the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPeers {
    /// The pod goes, with its work.
    Proceed,
    /// It is held until time is up.
    Hold,
}

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Ask the coordinator for the drain.
    Ask(Box<DrainRequest>),
    /// Ask again a little later.
    Wait,
    /// It is over.
    End(End),
}

/// A run of a hook.
#[derive(Debug, Clone)]
pub(super) struct Course {
    pod_name: Option<String>,
    pod_uid: Option<String>,
    no_peers: NoPeers,
    pub(super) deadline: Deadline,
    /// What its capture said last.
    pub(super) seen: Option<HookStanding>,
    /// Why it says nothing, for now.
    unreachable: Option<String>,
    /// Why the coordinator has not begun the drain.
    refused: Option<String>,
    /// The drain that was asked for, or found.
    attached: Option<u64>,
    alone_since_ms: Option<u64>,
    distrusted_since_ms: Option<u64>,
}

fn is_over(since_ms: &mut Option<u64>, now_ms: u64) -> bool {
    let since_ms = *since_ms.get_or_insert(now_ms);
    Duration::from_millis(now_ms.saturating_sub(since_ms)) >= PATIENCE
}

fn wait_or(end: Option<End>) -> Step {
    end.map_or(Step::Wait, Step::End)
}

impl Course {
    pub(super) fn new(
        pod_name: Option<String>,
        pod_uid: Option<String>,
        no_peers: NoPeers,
        deadline: Deadline,
    ) -> Self {
        Self {
            pod_name,
            pod_uid,
            no_peers,
            deadline,
            seen: None,
            unreachable: None,
            refused: None,
            attached: None,
            alone_since_ms: None,
            distrusted_since_ms: None,
        }
    }

    /// How this hook signs.
    fn requester(&self, seen: &HookStanding) -> String {
        format!("prestop of {}", self.pod_name.as_deref().unwrap_or(seen.capture.as_str()))
    }

    /// Takes in what the capture says, or why it says nothing.
    pub(super) fn hear(&mut self, answer: Result<HookStanding, ClientError>, now_ms: u64) -> Step {
        match answer {
            Ok(seen) => {
                (self.unreachable, self.distrusted_since_ms) = (None, None);
                let step = self.follow(&seen, now_ms);
                self.seen = Some(seen);
                step
            }
            Err(ClientError::Refused(Refusal::Mismatch(why))) => {
                let sentence = format!("the server that was named is of another pod: {why}");
                Step::End(End::new(Outcome::OtherPod, sentence))
            }
            Err(error) => {
                if let Some(end) = self.distrust(&error, now_ms) {
                    return Step::End(end);
                }
                self.unreachable = Some(error.to_string());
                wait_or(self.late(now_ms))
            }
        }
    }

    fn follow(&mut self, seen: &HookStanding, now_ms: u64) -> Step {
        let capture = &seen.capture;
        match seen.proof {
            Some(Proof::Drained) => {
                return Step::End(End::new(Outcome::Proven, format!("{capture} is empty, proven: its pod may go")));
            }
            Some(Proof::Unregistered) => {
                let sentence = format!("{capture} is not registered and has no work: its pod may go");
                return Step::End(End::new(Outcome::NothingLeft, sentence));
            }
            None => {}
        }
        self.deadline.learn(seen.killed_at_ms);
        let requester = self.requester(seen);
        if let Some((epoch, requesters)) = &seen.withdrawn
            && self.attached == Some(*epoch)
            && requesters.contains(&requester)
        {
            let sentence = format!("the drain of {capture} was called off, and its pod goes with work left");
            return Step::End(End::new(Outcome::Withdrawn, sentence));
        }
        let own = seen.record.as_ref().filter(|record| record.target == capture.as_str());
        let own = own.filter(|record| record.node_epoch == seen.node_epoch);
        if let Some(record) = own {
            self.attached = Some(record.epoch);
            self.deadline.learn(record.killed_at_ms);
            if record.proceeds_at_ms.is_some_and(|at_ms| now_ms >= at_ms) {
                let sentence = format!(
                    "the deadline of the drain of {capture} has passed and lets its pod go, {}",
                    left(seen.work)
                );
                return Step::End(End::new(Outcome::Deadline, sentence));
            }
        }
        if let Some(end) = self.late_with(seen, now_ms) {
            return Step::End(end);
        }
        let is_other = own.is_none() && seen.record.is_some();
        if seen.node_epoch.is_none() || seen.is_stopping || is_other {
            return Step::Wait;
        }
        match own {
            Some(record) if self.is_told(record, &requester) => Step::Wait,
            _ => Step::Ask(Box::new(self.request(seen, requester))),
        }
    }

    /// Whether the drain that is on knows of this hook, and of the end of its pod.
    fn is_told(&self, record: &RecordSeen, requester: &str) -> bool {
        record.requesters.iter().any(|known| known == requester)
            && record.killed_at_ms.is_some_and(|killed_ms| killed_ms <= self.deadline.killed_ms())
    }

    fn request(&self, seen: &HookStanding, requester: String) -> DrainRequest {
        let mut request = DrainRequest::new(seen.capture.clone(), requester);
        request.node_epoch = seen.node_epoch;
        request.pod_uid = self.pod_uid.as_deref().map(Into::into);
        "the pod is being deleted".clone_into(&mut request.reason);
        request.hook_deadline_ms = Some(UnixMillis(self.deadline.killed_ms()));
        request
    }

    /// Takes in what the coordinator said to the request.
    pub(super) fn answered(&mut self, answer: Result<Answer, ClientError>, now_ms: u64) -> Step {
        self.refused = answer.as_ref().err().map(ToString::to_string);
        match answer {
            Ok(Answer::Draining { epoch, .. } | Answer::Drained { epoch }) => {
                (self.attached, self.alone_since_ms) = (Some(epoch.0), None);
                Step::Wait
            }
            Err(ClientError::Refused(Refusal::NoPeers(capture))) => {
                let work = self.seen.as_ref().and_then(|seen| seen.work);
                if work == Some(WorkCount::default()) {
                    let sentence = format!("{capture} has no work, and no other capture is there: its pod may go");
                    return Step::End(End::new(Outcome::NothingLeft, sentence));
                }
                if is_over(&mut self.alone_since_ms, now_ms) && self.no_peers == NoPeers::Proceed {
                    let sentence = format!(
                        "no other capture is there to take the work of {capture}: its pod goes, {}",
                        left(work)
                    );
                    return Step::End(End::new(Outcome::NoPeers, sentence));
                }
                Step::Wait
            }
            Err(ClientError::Refused(Refusal::OtherDrain { .. })) => {
                self.alone_since_ms = None;
                Step::Wait
            }
            Err(error) => wait_or(self.distrust(&error, now_ms)),
            Ok(Answer::DryRun { .. } | Answer::Done) => Step::Wait,
        }
    }

    fn distrust(&mut self, error: &ClientError, now_ms: u64) -> Option<End> {
        if !error.is_unauthorised() {
            return None;
        }
        let over = is_over(&mut self.distrusted_since_ms, now_ms);
        over.then(|| End::new(Outcome::Unauthorized, error.to_string()))
    }

    /// The end when time is up.
    pub(super) fn late(&self, now_ms: u64) -> Option<End> {
        if now_ms < self.deadline.at_ms() {
            return None;
        }
        match (&self.unreachable, &self.seen) {
            (Some(why), _) => Some(End::new(Outcome::Unreachable, format!("time is up, and {why}"))),
            (None, Some(seen)) => self.late_with(seen, now_ms),
            (None, None) => Some(End::new(Outcome::Unreachable, "time is up, and nobody has answered")),
        }
    }

    fn late_with(&self, seen: &HookStanding, now_ms: u64) -> Option<End> {
        if now_ms < self.deadline.at_ms() {
            return None;
        }
        let (capture, left) = (&seen.capture, left(seen.work));
        if self.alone_since_ms.is_some() {
            let sentence = format!("time is up, and no other capture came to take the work of {capture}: {left}");
            return Some(End::new(Outcome::Stalled, sentence));
        }
        let why = match &seen.record {
            Some(record) if record.target == capture.as_str() => format!("the drain of {capture} is not done"),
            Some(record) => format!("{} is still being drained, so that {capture} was not", record.target),
            None => match &self.refused {
                Some(why) => format!("the drain of {capture} has not begun ({why})"),
                None => format!("the drain of {capture} has not begun"),
            },
        };
        Some(End::new(Outcome::Deadline, format!("time is up, and {why}: {left}")))
    }
}

/// What goes with the pod.
fn left(work: Option<WorkCount>) -> String {
    match work {
        Some(work) => format!("with {} maintainers and {} dispatchers on it", work.maintainers, work.dispatchers),
        None => "and what is on it is not known".to_owned(),
    }
}

#[cfg(test)]
mod tests;
