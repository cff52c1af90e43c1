//! A run of a hook: ask, decide, ask again.

use std::time::Duration;

use capturedrain_core::model::{HookReport, UnixMillis};
use tokio::time::{self, Instant};

use super::{
    course::{Course, NoPeers, Step},
    deadline::Deadline,
    outcome::End,
};
use crate::{client::Client, clock::wall};

/// How long after one question the next one follows.
const INTERVAL: Duration = Duration::from_millis(300);
/// How long the coordinator may take at most to begin a drain before the own capture is asked again.
const ASK_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the coordinator may take at most to hear how it ended.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a hook is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its pod.
    pub pod_name: Option<String>,
    /// That pod's UID.
    pub pod_uid: Option<String>,
    /// How long the pod has to end.
    pub grace_period: Duration,
    /// How much of that is left to the server.
    pub margin: Duration,
    /// What follows when no other capture is there.
    pub no_peers: NoPeers,
}

/// The time of day, which does not jump while it is looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    started: Instant,
    started_ms: u64,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { started: Instant::now(), started_ms: wall().0 }
    }

    pub(super) fn started_ms(self) -> u64 {
        self.started_ms
    }

    pub(super) fn now_ms(self) -> u64 {
        let elapsed = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.started_ms.saturating_add(elapsed)
    }
}

/// A run of the hook of a capture of this project.
#[derive(Debug)]
pub struct Run {
    client: Client,
    config: Config,
    clock: Clock,
    course: Course,
}

impl Run {
    /// It begins now. The client's first server is the own capture.
    pub fn new(client: Client, config: Config) -> Self {
        let clock = Clock::start();
        let deadline = Deadline::new(clock.started_ms(), config.grace_period, config.margin);
        let course = Course::new(config.pod_name.clone(), config.pod_uid.clone(), config.no_peers, deadline);
        Self { client, config, clock, course }
    }

    /// Waits until the pod may go, or has to.
    pub async fn wait(&mut self) -> End {
        loop {
            if let Step::End(end) = self.step().await {
                return end;
            }
            time::sleep(INTERVAL.min(self.course.deadline.left(self.clock.now_ms()))).await;
        }
    }

    async fn step(&mut self) -> Step {
        let (started_ms, killed_ms) = (self.clock.started_ms(), self.course.deadline.killed_ms());
        let asking = self.client.prove(self.config.pod_uid.as_deref(), started_ms, Some(killed_ms));
        let answer = asking.await;
        let step = self.course.hear(answer, self.clock.now_ms());
        let Step::Ask(request) = step else { return step };
        let limit = ASK_TIMEOUT.min(self.course.deadline.left(self.clock.now_ms()));
        match time::timeout(limit, self.client.drain(*request)).await {
            Ok(answer) => self.course.answered(answer, self.clock.now_ms()),
            Err(_) => Step::Wait,
        }
    }

    /// Tells the coordinator how it ended; nobody else sees what a hook says. Whether it was heard.
    pub async fn report(&self, end: &End) -> bool {
        let Some(seen) = &self.course.seen else { return false };
        let report = HookReport {
            capture: seen.capture.clone(),
            node_epoch: seen.node_epoch,
            pod_name: self.config.pod_name.as_deref().map(Into::into),
            pod_uid: self.config.pod_uid.as_deref().map(Into::into),
            outcome: end.outcome.as_str().into(),
            sentence: end.sentence.clone(),
            started_at_ms: UnixMillis(self.clock.started_ms()),
            ended_at_ms: UnixMillis(self.clock.now_ms()),
            unknown: std::collections::BTreeMap::new(),
        };
        let limit = REPORT_TIMEOUT.min((self.config.margin / 2).max(Duration::from_secs(1)));
        matches!(time::timeout(limit, self.client.report_hook(&report)).await, Ok(Ok(())))
    }
}
