//! The calls of one round, and the task that makes a round each second for as long as a run is on.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use jiff::Timestamp;
use tokio::time::{self, Instant};

use super::{
    call::{CallError, Caller},
    run::{Heard, Next, Run, passing},
    version,
    wire::{self, Capture, Status},
};
use crate::{operator::observe::Unseen, view::DrainEndView};

/// How long a round may take.
const ROUND_TIMEOUT: Duration = Duration::from_secs(30);
/// How many drains that have ended are remembered.
const ENDS_MAX: usize = 16;

/// A way to a cluster, shared by all that goes on there.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) caller: Caller,
    pub(super) interval: Duration,
    /// What each registered capture is; as its id is new at each start, that does not change.
    statuses: Mutex<BTreeMap<String, Status>>,
    state: Mutex<State>,
}

/// What is remembered of drains.
#[derive(Debug, Default)]
pub(super) struct State {
    /// One at a time.
    pub(super) run: Option<Run>,
    /// Those that have ended, oldest first.
    pub(super) ends: Vec<DrainEndView>,
}

impl Inner {
    pub(super) fn new(caller: Caller, interval: Duration) -> Self {
        Self { caller, interval, statuses: Mutex::default(), state: Mutex::default() }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn statuses(&self) -> MutexGuard<'_, BTreeMap<String, Status>> {
        self.statuses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a capture.
    pub(super) fn version(&self, id: &str) -> Option<String> {
        self.statuses().get(id).map(|status| status.version.clone())
    }

    /// All registered captures, after each that is new has been asked what it is. One that does not say is not waited
    /// for: it may be about to go.
    pub(super) async fn captures(&self) -> Result<Vec<Capture>, CallError> {
        let captures = self.caller.captures().await?;
        self.statuses().retain(|id, _| captures.iter().any(|capture| capture.id == *id));
        let is_new = |capture: &&Capture| !self.statuses().contains_key(&capture.id);
        let new: Vec<_> = captures.iter().filter(is_new).collect();
        if new.is_empty() {
            return Ok(captures);
        }
        // First those whom the caller was told of, since their addresses are known to be meant.
        let told = join_all(self.caller.servers().iter().map(|server| self.caller.status(server))).await;
        let mut found: BTreeMap<_, _> = told.into_iter().flatten().map(|status| (status.id.clone(), status)).collect();
        let rest = new.iter().filter(|capture| !found.contains_key(&capture.id));
        let asked = join_all(rest.map(|capture| self.caller.status(&capture.address))).await;
        found.extend(asked.into_iter().flatten().map(|status| (status.id.clone(), status)));
        found.retain(|id, _| captures.iter().any(|capture| capture.id == *id));
        self.statuses().extend(found);
        Ok(captures)
    }

    /// Whether every capture drains. `Ok(Some(_))`: one has not said what it is.
    fn all_drain(&self, captures: &[Capture]) -> Result<Option<String>, Unseen> {
        let statuses = self.statuses();
        let mut silent = None;
        for Capture { id, address, .. } in captures {
            let Some(status) = statuses.get(id) else {
                silent = Some(format!("capture {id} at {address} does not say which release it runs"));
                continue;
            };
            if status.is_own_kind {
                continue;
            }
            if let Err(why) = version::drains(&status.version) {
                let version = &status.version;
                return Err(Unseen::Unsupported(format!("capture {id} at {address} runs TiCDC {version}, {why}")));
            }
        }
        Ok(silent)
    }

    /// Asks once. An error is an end: nothing that passes by itself.
    pub(super) async fn round(&self, target: &str) -> Result<Heard, Unseen> {
        let late = |_| Ok(Heard::Nothing(format!("no answer in {} s", ROUND_TIMEOUT.as_secs())));
        time::timeout(ROUND_TIMEOUT, self.ask(target)).await.unwrap_or_else(late)
    }

    async fn ask(&self, target: &str) -> Result<Heard, Unseen> {
        let before = match self.look(target).await? {
            Look::Owner(owner) => owner,
            Look::Done(heard) => return Ok(heard),
        };
        let left = match self.caller.drain(target).await {
            Ok(left) => left,
            Err(CallError::Denied(why)) => {
                let other = wire::other_drain(&why).filter(|other| *other != target).map(str::to_owned);
                return Ok(other.map_or(Heard::Nothing(why), Heard::Busy));
            }
            Err(error) => return passing(error),
        };
        if left > 0 {
            return Ok(Heard::Left(left));
        }
        match self.look(target).await? {
            Look::Owner(owner) if owner == before => Ok(Heard::Zero { owner }),
            Look::Owner(_) => Ok(Heard::Nothing("the owner changed while it was asked".to_owned())),
            Look::Done(heard) => Ok(heard),
        }
    }

    /// Whether the target can be drained at this moment, and by whom.
    async fn look(&self, target: &str) -> Result<Look, Unseen> {
        let captures = match self.captures().await {
            Ok(captures) => captures,
            Err(error) => return passing(error).map(Look::Done),
        };
        if !captures.iter().any(|capture| capture.id == target) {
            return Ok(Look::Done(Heard::Missing));
        }
        if let Some(silent) = self.all_drain(&captures)? {
            return Ok(Look::Done(Heard::Nothing(silent)));
        }
        if captures.len() == 1 {
            return Ok(Look::Done(Heard::Alone));
        }
        let mut owners = captures.iter().filter(|capture| capture.is_owner);
        match (owners.next(), owners.next()) {
            (Some(owner), None) if owner.id == target => match self.caller.resign().await {
                Ok(()) => Ok(Look::Done(Heard::Resigned)),
                Err(error) => passing(error).map(Look::Done),
            },
            (Some(owner), None) => Ok(Look::Owner(owner.id.clone())),
            (None, _) => Ok(Look::Done(Heard::Nothing("no capture is the owner".to_owned()))),
            (Some(_), Some(_)) => Ok(Look::Done(Heard::Nothing("two captures are the owner".to_owned()))),
        }
    }

    /// Takes in what a round of a run came to. Whether that run goes on.
    pub(super) fn hear(&self, epoch: u64, heard: Result<Heard, Unseen>) -> bool {
        let mut state = self.state();
        let Some(run) = state.run.as_mut().filter(|run| run.epoch == epoch) else { return false };
        let heard = match heard {
            Ok(heard) => heard,
            Err(unseen) => {
                tracing::warn!(target = run.target, epoch, error = %unseen, "the drain is not asked for any more");
                state.run = None;
                return false;
            }
        };
        match run.hear(heard, Instant::now(), self.interval, Timestamp::now()) {
            Next::GoOn => true,
            Next::End(end) => {
                state.run = None;
                state.remember(*end);
                false
            }
        }
    }

    /// Goes on asking, for as long as the run is on and somebody has this way to the cluster.
    pub(super) fn keep_asking(self: &Arc<Self>, run: &Run) {
        let (way, interval) = (Arc::downgrade(self), self.interval);
        let (epoch, target) = (run.epoch, run.target.clone());
        tokio::spawn(async move {
            loop {
                time::sleep(interval).await;
                let Some(inner) = way.upgrade() else { return };
                if !inner.state().is_on(epoch) {
                    return;
                }
                let heard = inner.round(&target).await;
                if !inner.hear(epoch, heard) {
                    return;
                }
            }
        });
    }
}

/// What a look at the captures came to.
enum Look {
    /// It can be drained by this owner.
    Owner(String),
    /// It cannot be, at this moment.
    Done(Heard),
}

impl State {
    fn is_on(&self, epoch: u64) -> bool {
        self.run.as_ref().is_some_and(|run| run.epoch == epoch)
    }

    fn remember(&mut self, end: DrainEndView) {
        self.ends.retain(|other| other.drain_epoch != end.drain_epoch);
        self.ends.push(end);
        let surplus = self.ends.len().saturating_sub(ENDS_MAX);
        self.ends.drain(..surplus);
    }
}
