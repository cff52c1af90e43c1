//! The hook of a capture of `TiCDC`, by its open API: what is taken for a proof is said in the operator's backend.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use capturedrain_core::model::{Answer, CaptureId, DrainEpoch, DrainRequest, Refusal};
use tokio::time;

use super::{
    course::NoPeers,
    deadline::Deadline,
    outcome::{End, Outcome},
    run::{Clock, Config},
};
use crate::operator::{
    backend::{Backend as _, DEADLINE_MS, TiCdc},
    observe::Unseen,
    status::Outcome as Answered,
};

/// How long after one question the next one follows.
const INTERVAL: Duration = Duration::from_millis(500);
/// For how long nobody else has to be there, or the other side not to be trusted, before that is taken for a fact.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is told at most how many are left.
const TELL_EVERY_MS: u64 = 5_000;

/// A run of the hook of a capture of `TiCDC`.
#[derive(Debug)]
pub struct TiCdcRun {
    backend: TiCdc,
    config: Config,
    clock: Clock,
    course: Course,
    /// The capture that is asked for.
    asked: Option<CaptureId>,
}

/// What has been heard.
#[derive(Debug, Default)]
struct Course {
    give_up_ms: u64,
    name: Option<String>,
    hold: bool,
    silent: Option<String>,
    why: Option<String>,
    alone_since_ms: Option<u64>,
    distrusted_since_ms: Option<u64>,
}

impl Course {
    fn is_over(since_ms: &mut Option<u64>, now_ms: u64) -> bool {
        let since_ms = *since_ms.get_or_insert(now_ms);
        Duration::from_millis(now_ms.saturating_sub(since_ms)) >= PATIENCE
    }

    fn name(&self) -> &str {
        self.name.as_deref().unwrap_or("the capture")
    }

    /// The capture does not say who it is.
    fn unseen(&mut self, unseen: &Unseen, now_ms: u64) -> Option<End> {
        let why = unseen.to_string();
        match unseen {
            Unseen::Unauthorized(_) if Self::is_over(&mut self.distrusted_since_ms, now_ms) => {
                return Some(End::new(Outcome::Unauthorized, why));
            }
            Unseen::Unsupported(_) => return Some(End::new(Outcome::Unsupported, why)),
            _ => self.silent = Some(why),
        }
        self.late(now_ms)
    }

    /// What the cluster makes of the request.
    fn answered(&mut self, answer: Answered, now_ms: u64) -> Option<End> {
        self.why = None;
        match answer {
            Answered::Answered(Answer::Drained { .. }) => {
                let sentence = format!("{} is empty, proven: its pod may go", self.name());
                return Some(End::new(Outcome::Proven, sentence));
            }
            Answered::Unseen(unseen) => return self.unseen(&unseen, now_ms),
            Answered::Refused(Refusal::NoPeers(_)) => {
                self.silent = None;
                if Self::is_over(&mut self.alone_since_ms, now_ms) && !self.hold {
                    let sentence = format!("no other capture is there to take the work of {}", self.name());
                    return Some(End::new(Outcome::NoPeers, sentence));
                }
                return self.late(now_ms);
            }
            Answered::Refused(refusal) => self.why = Some(refusal.to_string()),
            Answered::Answered(_) | Answered::CancelUnsupported | Answered::Idle => {}
        }
        (self.silent, self.alone_since_ms, self.distrusted_since_ms) = (None, None, None);
        self.late(now_ms)
    }

    /// The end when time is up.
    fn late(&self, now_ms: u64) -> Option<End> {
        if now_ms < self.give_up_ms {
            return None;
        }
        let name = self.name();
        let (outcome, why) = match (&self.silent, &self.why) {
            (Some(why), _) => (Outcome::Unreachable, why.clone()),
            _ if self.alone_since_ms.is_some() => (Outcome::Stalled, format!("no other capture came to help {name}")),
            (None, Some(why)) => (Outcome::Deadline, format!("{name} is not drained ({why})")),
            (None, None) => (Outcome::Deadline, format!("{name} is not drained")),
        };
        Some(End::new(outcome, format!("time is up, and {why}: its pod goes with work left")))
    }
}

impl TiCdcRun {
    /// It begins now, or began when an earlier run of the same pod did. The backend's first server is the own capture.
    pub fn new(backend: TiCdc, config: Config) -> Self {
        let clock = Clock::start();
        let started_ms = clock.started_ms();
        let mut deadline = Deadline::new(started_ms, config.grace_period, config.margin);
        let own_ms = started_ms.saturating_add(DEADLINE_MS).min(deadline.at_ms());
        let memory = config.pod_uid.as_deref().and_then(memory);
        let give_up_ms = memory.map_or(own_ms, |memory| first(&memory, own_ms, started_ms));
        deadline.learn(Some(give_up_ms));
        let hold = config.no_peers == NoPeers::Hold;
        let course = Course { give_up_ms, hold, ..Course::default() };
        Self { backend, config, clock, course, asked: None }
    }

    /// Waits until the pod may go, or has to. `tell` is told now and then what is waited for.
    pub async fn wait(&mut self, tell: impl Fn(&str)) -> End {
        let mut told_ms = None;
        loop {
            if let Some(end) = self.step().await {
                return end;
            }
            let now_ms = self.clock.now_ms();
            if told_ms.is_none_or(|told_ms| now_ms >= told_ms + TELL_EVERY_MS) {
                told_ms = Some(now_ms);
                tell(&self.waits().await);
            }
            let left = Duration::from_millis(self.course.give_up_ms.saturating_sub(now_ms));
            time::sleep(INTERVAL.min(left)).await;
        }
    }

    async fn step(&mut self) -> Option<End> {
        let id = match self.backend.own_id().await {
            Ok(id) => id,
            Err(unseen) => return self.course.unseen(&unseen, self.clock.now_ms()),
        };
        let Ok(capture) = CaptureId::new(&id) else {
            self.course.why = Some(format!("\"{id}\" is no name of a capture"));
            return self.course.late(self.clock.now_ms());
        };
        if let Some(former) = self.asked.replace(capture.clone()).filter(|former| *former != capture) {
            // The process was started anew, under another name.
            let _ = self.backend.cancel(&former, DrainEpoch(0)).await;
        }
        self.course.name = Some(id.clone());
        let name = self.config.pod_name.as_deref().unwrap_or(&id);
        let request = DrainRequest::new(capture, format!("prestop of {name}"));
        let answer = self.backend.start(&request).await;
        self.course.answered(answer, self.clock.now_ms())
    }

    /// What is waited for, for people.
    async fn waits(&self) -> String {
        let name = self.course.name();
        if let Some(why) = self.course.silent.as_ref().or(self.course.why.as_ref()) {
            return format!("waiting for the drain of {name}: {why}");
        }
        let left = self.backend.look().await.ok().and_then(|cluster| cluster.drain.remaining_dispatcher_count);
        match left {
            Some(left) => format!("waiting for the drain of {name}: {left} tables are left"),
            None => format!("waiting for the drain of {name}: how many tables are left is not known"),
        }
    }
}

/// Where a pod keeps when its hook gives up; `None` when its UID can be no name of a file.
fn memory(pod_uid: &str) -> Option<PathBuf> {
    let is_name = !pod_uid.is_empty() && pod_uid.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    is_name.then(|| std::env::temp_dir().join(format!("capturedrain-prestop-{pod_uid}")))
}

/// When the first run gives up: what stands in the file, unless that is over, or else this one. A folder that cannot be
/// written to remembers nothing.
fn first(file: &Path, own_ms: u64, now_ms: u64) -> u64 {
    let kept = fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<u64>().ok());
    if let Some(kept_ms) = kept.filter(|kept_ms| *kept_ms > now_ms) {
        return kept_ms.min(own_ms);
    }
    let written: io::Result<()> = fs::write(file, own_ms.to_string());
    if let Err(error) = written {
        tracing::debug!(%error, "the start of the hook is not remembered");
    }
    own_ms
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    fn course() -> Course {
        Course { give_up_ms: 540_000, ..Course::default() }
    }

    fn no_peers() -> Answered {
        Answered::Refused(Refusal::NoPeers("b".parse().unwrap()))
    }

    fn check(course: &mut Course, answer: Answered, now_ms: u64, outcome: Option<Outcome>) {
        let what = format!("{answer:?} at {now_ms}");
        assert_eq!(course.answered(answer, now_ms).map(|end| end.outcome), outcome, "{what}");
    }

    #[test]
    fn only_a_proof_ends_it_well_and_everything_else_lasts_until_time_is_up() {
        let epoch = DrainEpoch(1);
        check(&mut course(), Answered::Answered(Answer::Drained { epoch }), 0, Some(Outcome::Proven));
        let unknown = || Answered::Refused(Refusal::UnknownCapture("b".parse().unwrap()));
        let silent = || Answered::Unseen(Unseen::Unreachable("503".to_owned()));
        for (answer, outcome) in [
            (Answered::Answered(Answer::Draining { epoch, current: None }), Outcome::Deadline),
            (unknown(), Outcome::Deadline),
            (silent(), Outcome::Unreachable),
        ] {
            check(&mut course(), answer.clone(), 539_999, None);
            check(&mut course(), answer, 540_000, Some(outcome));
        }
    }

    #[test]
    fn what_will_not_pass_ends_it_soon() {
        let unsupported = Answered::Unseen(Unseen::Unsupported("too old".to_owned()));
        check(&mut course(), unsupported, 0, Some(Outcome::Unsupported));
        let mut distrusted = course();
        let unauthorized = || Answered::Unseen(Unseen::Unauthorized("no".to_owned()));
        check(&mut distrusted, unauthorized(), 0, None);
        check(&mut distrusted, unauthorized(), 10_000, Some(Outcome::Unauthorized));
        let mut alone = course();
        check(&mut alone, no_peers(), 0, None);
        check(&mut alone, no_peers(), 10_000, Some(Outcome::NoPeers));
        let mut held = Course { hold: true, ..course() };
        check(&mut held, no_peers(), 0, None);
        check(&mut held, no_peers(), 10_000, None);
        check(&mut held, no_peers(), 540_000, Some(Outcome::Stalled));
    }

    #[test]
    fn a_second_run_gives_up_with_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x");
        assert_eq!(first(&file, 540, 0), 540);
        assert_eq!(first(&file, 840, 300), 540);
        assert_eq!(first(&file, 1_080, 540), 1_080, "the pod was not being deleted then");
        assert_eq!(first(&folder.path().join("no/x"), 9, 0), 9);
        assert_eq!((memory("../x"), memory("")), (None, None));
    }
}
