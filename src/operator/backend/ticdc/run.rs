//! One drain of one capture, as this process remembers it: `TiCDC` keeps no record. Pure; who asks is in `round.rs`.

use std::time::Duration;

use capturedrain_core::model::{DrainRequest, OnDeadline};
use jiff::Timestamp;
use tokio::time::Instant;

use super::call::CallError;
use crate::{
    operator::observe::Unseen,
    view::{BlockerView, DrainEndView, DrainView, WorkView},
};

/// The deadline of a drain that has none of its own: below the 10 minutes after which tidb-operator lets a pod go.
pub const DEADLINE_MS: u64 = 540_000;
/// In how many rounds in a row a capture has to be missing before it counts as gone: an owner that has just been elected
/// may not know everybody.
const MISSING_ROUNDS: u32 = 2;

/// What one round came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Heard {
    /// So many dispatchers are left.
    Left(u64),
    /// 0 was answered; this capture was the owner before and after, the target was registered and not the owner, and every
    /// capture is of a release that drains.
    Zero {
        /// The owner's id.
        owner: String,
    },
    /// The target was the owner, and was asked to resign.
    Resigned,
    /// The target is the only capture.
    Alone,
    /// The target is not registered.
    Missing,
    /// The owner drains another.
    Busy(String),
    /// No answer to go by.
    Nothing(String),
}

/// What follows a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// Another one.
    GoOn,
    /// The run is over; this is how.
    End(Box<DrainEndView>),
}

/// A run.
#[derive(Debug, Clone)]
pub(super) struct Run {
    /// The moment of the first request, in Unix milliseconds: it goes on with the same number in another process.
    pub(super) epoch: u64,
    pub(super) target: String,
    requester: String,
    reason: String,
    deadline_ms: u64,
    on_deadline: OnDeadline,
    initial: Option<u64>,
    left: Option<u64>,
    /// The first of several answers of 0, and the owner who gave it.
    zero: Option<(String, Instant)>,
    /// When it was proven, in Unix milliseconds, and the owner by whose word.
    proof: Option<(u64, String)>,
    progress_at: u64,
    missing: u32,
    blocker: Option<BlockerView>,
    /// Why there was no answer to go by, the last time.
    why: Option<String>,
}

impl Run {
    pub(super) fn new(request: &DrainRequest, now: Timestamp) -> Self {
        let now = millis(now);
        let epoch = request.epoch.map_or(now, |epoch| epoch.0.min(now));
        Self {
            epoch,
            target: request.capture.to_string(),
            requester: request.requester.clone(),
            reason: request.reason.clone(),
            deadline_ms: request.deadline_ms.unwrap_or(DEADLINE_MS),
            on_deadline: request.on_deadline,
            initial: None,
            left: None,
            zero: None,
            proof: None,
            progress_at: epoch,
            missing: 0,
            blocker: None,
            why: None,
        }
    }

    /// Whether the target is proven empty, and was not heard to have anything since.
    pub(super) fn is_proven(&self) -> bool {
        self.proof.is_some()
    }

    /// How many are left, as far as that is known.
    pub(super) fn left(&self) -> Option<u64> {
        self.left
    }

    /// Takes in a round. `apart` is how far the two answers have to lie from each other that make a proof.
    pub(super) fn hear(&mut self, heard: Heard, at: Instant, apart: Duration, now: Timestamp) -> Next {
        self.missing = if heard == Heard::Missing { self.missing + 1 } else { 0 };
        self.blocker = None;
        let zero = self.zero.take();
        match heard {
            Heard::Zero { owner } => {
                // Another owner has yet to find out what there is.
                self.proof.take_if(|(_, by)| *by != owner);
                let first = zero.filter(|(other, _)| *other == owner).map(|(_, first)| first);
                let is_proof = first.is_some_and(|first| at.duration_since(first) >= apart);
                if is_proof {
                    self.proof.get_or_insert_with(|| (millis(now), owner.clone()));
                }
                self.zero = Some((owner, first.unwrap_or(at)));
                self.note(0, now);
            }
            Heard::Left(left) => {
                self.proof = None;
                self.note(left, now);
            }
            Heard::Missing if self.missing >= MISSING_ROUNDS => return Next::End(Box::new(self.end(now))),
            Heard::Missing => {}
            // A coordinator has work of its own.
            Heard::Resigned => self.proof = None,
            // Whatever the others had comes to it.
            Heard::Alone => {
                self.proof = None;
                self.block("NoDestination", None);
            }
            Heard::Busy(other) => {
                self.proof = None;
                self.block("Drain", Some(other));
            }
            // What was proven was so: somebody who does not answer cannot say otherwise.
            Heard::Nothing(why) => {
                if self.why.as_ref() != Some(&why) {
                    tracing::warn!(target = self.target, epoch = self.epoch, error = why, "no answer to go by");
                }
                self.why = Some(why);
                self.block("OwnerNotReady", None);
            }
        }
        Next::GoOn
    }

    fn note(&mut self, left: u64, now: Timestamp) {
        if self.left.is_some_and(|before| left < before) {
            self.progress_at = millis(now);
        }
        self.initial.get_or_insert(left);
        self.left = Some(left);
    }

    fn block(&mut self, kind: &str, name: Option<String>) {
        self.blocker = Some(BlockerView { kind: kind.to_owned(), name });
    }

    fn work(count: Option<u64>) -> Option<WorkView> {
        count.map(|dispatchers| WorkView { maintainers: 0, dispatchers })
    }

    /// As it is shown; once it is proven it is over, unless something comes back.
    pub(super) fn view(&self, now: Timestamp) -> DrainView {
        if self.is_proven() {
            return DrainView { drain_epoch: self.epoch, ..DrainView::default() };
        }
        let is_late = millis(now).saturating_sub(self.epoch) >= self.deadline_ms;
        let mut blocked_by: Vec<_> = self.blocker.clone().into_iter().collect();
        if is_late && self.on_deadline == OnDeadline::Hold {
            blocked_by.push(BlockerView { kind: "DeadlineHeld".to_owned(), name: None });
        }
        DrainView {
            is_draining: true,
            draining_capture_id: Some(self.target.clone()),
            drain_epoch: self.epoch,
            phase: Some("MovingDispatchers".to_owned()),
            liveness: Some("Draining".to_owned()),
            remaining_maintainer_count: None,
            remaining_dispatcher_count: self.left,
            initial: Self::work(self.initial),
            blocked_by,
            requesters: vec![self.requester.clone()],
            reason: Some(self.reason.clone()).filter(|reason| !reason.is_empty()),
            started_at: Some(moment(self.epoch)),
            last_progress_at: Some(moment(self.progress_at)),
            proceeds: is_late && self.on_deadline == OnDeadline::Proceed,
            ..DrainView::default()
        }
    }

    /// How it ended, or would end now.
    pub(super) fn end(&self, now: Timestamp) -> DrainEndView {
        let ended = self.proof.as_ref().map_or_else(|| millis(now), |(at, _)| *at);
        DrainEndView {
            drain_epoch: self.epoch,
            target: self.target.clone(),
            node_epoch: self.target.clone(),
            outcome: if self.is_proven() { "Drained" } else { "TargetGone" }.to_owned(),
            initial: Self::work(self.initial).unwrap_or_default(),
            requesters: vec![self.requester.clone()],
            reason: Some(self.reason.clone()).filter(|reason| !reason.is_empty()),
            started_at: moment(self.epoch),
            ended_at: moment(ended),
            duration_ms: ended.saturating_sub(self.epoch),
        }
    }
}

/// What a failed call is to a run: something that may pass, or an end that a person has to look after.
pub(super) fn passing(error: CallError) -> Result<Heard, Unseen> {
    match error {
        CallError::Unauthorized { .. } | CallError::Unknown { .. } => Err(error.into()),
        CallError::Away { .. } | CallError::Garbled { .. } | CallError::Denied(_) => {
            Ok(Heard::Nothing(error.to_string()))
        }
    }
}

fn millis(at: Timestamp) -> u64 {
    u64::try_from(at.as_millisecond()).unwrap_or(0)
}

fn moment(ms: u64) -> String {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX).to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

    use capturedrain_core::model::{CaptureId, DrainEpoch};

    use super::*;

    const APART: Duration = Duration::from_secs(1);

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn run() -> Run {
        Run::new(&DrainRequest::new(CaptureId::new("b").unwrap(), "me"), second(0))
    }

    fn zero(owner: &str) -> Heard {
        Heard::Zero { owner: owner.to_owned() }
    }

    /// Hears one after the other, each at a moment in milliseconds. Whether it is proven in the end.
    fn proves(rounds: &[(Heard, u64)]) -> bool {
        let (mut run, start) = (run(), Instant::now());
        for (heard, ms) in rounds {
            run.hear(heard.clone(), start + Duration::from_millis(*ms), APART, second(1));
        }
        run.is_proven()
    }

    #[test]
    fn a_proof_takes_two_zeros_of_one_owner_in_a_row_and_apart() {
        let nothing = || Heard::Nothing("503".to_owned());
        assert!(proves(&[(zero("a"), 0), (zero("a"), 1000)]));
        assert!(proves(&[(zero("a"), 0), (zero("a"), 500), (zero("a"), 1000)]));
        assert!(proves(&[(Heard::Left(7), 0), (zero("a"), 1000), (zero("a"), 2000)]));
        assert!(!proves(&[(zero("a"), 0)]), "0 is no proof by itself");
        assert!(!proves(&[(zero("a"), 0), (zero("a"), 999)]), "too close");
        assert!(!proves(&[(zero("a"), 0), (zero("c"), 1000)]), "another owner");
        assert!(!proves(&[(zero("a"), 0), (zero("c"), 1000), (zero("a"), 2000)]), "the owner changed twice");
        for between in [Heard::Left(1), nothing(), Heard::Resigned, Heard::Alone, Heard::Missing] {
            assert!(!proves(&[(zero("a"), 0), (between.clone(), 1000), (zero("a"), 2000)]), "{between:?}");
        }
        assert!(!proves(&[(zero("a"), 0), (Heard::Busy("c".to_owned()), 1000), (zero("a"), 2000)]));
        assert!(!proves(&[(nothing(), 0), (nothing(), 1000), (nothing(), 2000)]));
        assert!(!proves(&[(Heard::Alone, 0), (Heard::Alone, 1000)]));
    }

    #[test]
    fn what_comes_back_voids_the_proof_and_silence_does_not() {
        let proof = [(zero("a"), 0), (zero("a"), 1000)];
        let then = |heard: Heard| proves(&[&proof[..], &[(heard, 2000)]].concat());
        assert!(then(Heard::Nothing("503".to_owned())));
        assert!(then(Heard::Missing));
        assert!(!then(Heard::Left(1)), "a classic owner may put a table back");
        assert!(!then(Heard::Resigned));
        assert!(!then(Heard::Busy("c".to_owned())));
        assert!(!then(Heard::Alone), "what the others had comes to it");
        assert!(!then(zero("c")), "another owner may not know yet");
        let by_another = [(zero("c"), 2000), (zero("c"), 3000)];
        assert!(proves(&[&proof[..], &by_another[..]].concat()), "it says the same");
    }

    #[test]
    fn a_target_is_gone_once_it_is_missing_twice() {
        let (mut run, at) = (run(), Instant::now());
        assert_eq!(run.hear(Heard::Missing, at, APART, second(1)), Next::GoOn);
        run.hear(Heard::Left(3), at, APART, second(2));
        assert_eq!(run.hear(Heard::Missing, at, APART, second(3)), Next::GoOn);
        let Next::End(end) = run.hear(Heard::Missing, at, APART, second(4)) else { panic!("it goes on") };
        assert_eq!((end.outcome.as_str(), end.initial.dispatchers), ("TargetGone", 3));
    }

    #[test]
    fn the_deadline_counts_from_the_first_request_in_any_process() {
        let late = |run: &Run, at| {
            let view = run.view(second(at));
            (view.proceeds, view.blocked_by.iter().any(|by| by.kind == "DeadlineHeld"))
        };
        let mut request = DrainRequest::new(CaptureId::new("b").unwrap(), "me");
        let first = Run::new(&request, second(0));
        assert_eq!((late(&first, 539), late(&first, 540)), ((false, false), (false, true)));
        request.epoch = Some(DrainEpoch(first.epoch));
        let again = Run::new(&request, second(300));
        assert_eq!((again.epoch, late(&again, 540)), (first.epoch, (false, true)));
        (request.deadline_ms, request.on_deadline) = (Some(10_000), OnDeadline::Proceed);
        let other = Run::new(&request, second(0));
        assert_eq!((late(&other, 9), late(&other, 10)), ((false, false), (true, false)));
    }

    #[test]
    fn maintainers_are_never_known() {
        let (mut run, at) = (run(), Instant::now());
        assert_eq!(run.view(second(0)).remaining_dispatcher_count, None);
        run.hear(Heard::Left(5), at, APART, second(1));
        run.hear(Heard::Left(2), at, APART, second(2));
        let view = run.view(second(3));
        assert_eq!((view.remaining_maintainer_count, view.remaining_dispatcher_count), (None, Some(2)));
        assert_eq!(view.initial.unwrap().dispatchers, 5);
        assert_eq!(view.last_progress_at.as_deref(), Some(second(2).to_string().as_str()));
    }
}
