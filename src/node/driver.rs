//! Runs the core: receive → decide → carry out, in that order, and nothing else.

use std::{collections::HashMap, sync::Arc, time::Duration};

use capturedrain_core::{
    log::{Level, Line},
    model::{
        Answer, ChangefeedEpoch, ChangefeedId, Halt, Instant, KeyName, Now, Position, Refusal, RequestId, Snapshot,
        ValueError, decode,
    },
    process::{Effect, Event, Lane, Process},
    store::{Key, LeaseId, Txn, TxnOutcome},
    work::WorkEvent,
};
use futures::StreamExt as _;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::AbortHandle,
    time,
};

use crate::{
    clock::wall,
    door::Call,
    metrics::Metrics,
    pipeline::Pipeline,
    store::{AnyStore, Store as _, StoreError},
    wire::Peers,
};

use super::trouble::Troubles;

/// How many events may wait for the core.
pub(super) const EVENTS_MAX: usize = 4096;
/// How much of what has come together the core takes at once: as much as keeps a step short. What follows from all of it
/// is decided once, so that a burst costs little more than one event.
const STEP_MAX_WEIGHT: usize = 1024;
/// The shortest time between two snapshots, so that a burst of events does not cost one each.
const SNAPSHOT_INTERVAL: Duration = Duration::from_millis(20);
/// How much longer that time is than a snapshot takes: in a cluster of ten thousand changefeeds it is no small thing.
const SNAPSHOT_REST: u32 = 10;
/// How long after a failed listing the next one is tried, and after a write of unknown outcome the listing: what could not
/// be written is decided again from it.
const RELOAD_BACKOFF: Duration = Duration::from_millis(500);
/// How long after a refused write the listing is made. The view was behind, and by then it has often caught up.
const REFUSED_BACKOFF: Duration = Duration::from_millis(50);
/// How long an ending capture waits for its work to stop and its lease to be given back.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(3);

/// What is said when a watch has broken.
const NOT_FOLLOWED: &str = "the store's changes cannot be followed, listing anew";

type Answered = oneshot::Sender<Result<Answer, Refusal>>;

/// What the process is told from inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// SIGTERM came: work on, never register again.
    Terminate,
    /// End: stop all work, and give the lease back.
    Leave,
}

/// The effects' side of a capture.
pub(super) struct Driver {
    pub(super) process: Process,
    pub(super) store: AnyStore,
    pub(super) peers: Peers,
    pub(super) pipeline: Pipeline,
    pub(super) lease_ttl: Duration,
    pub(super) calls: mpsc::Receiver<Call>,
    pub(super) work: mpsc::Receiver<WorkEvent>,
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) snapshots: watch::Sender<Arc<Snapshot>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) tasks: Tasks,
}

/// Work on the store that goes on while the core decides.
pub(super) struct Tasks {
    events: mpsc::Sender<Event>,
    inbox: mpsc::Receiver<Event>,
    started: time::Instant,
    asked: HashMap<RequestId, Answered>,
    next_request: u64,
    watcher: Option<AbortHandle>,
    revoking: Option<tokio::task::JoinHandle<()>>,
    troubles: Troubles,
}

impl Tasks {
    pub(super) fn new() -> Self {
        let (events, inbox) = mpsc::channel(EVENTS_MAX);
        Self {
            events,
            inbox,
            started: time::Instant::now(),
            asked: HashMap::new(),
            next_request: 0,
            watcher: None,
            revoking: None,
            troubles: Troubles::default(),
        }
    }

    fn register(&mut self, answer: Answered) -> RequestId {
        self.next_request += 1;
        let id = RequestId(self.next_request);
        self.asked.retain(|_, waiting| !waiting.is_closed());
        self.asked.insert(id, answer);
        id
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        if let Some(watcher) = &self.watcher {
            watcher.abort();
        }
    }
}

/// Stands still while the machine is suspended (`CLOCK_MONOTONIC`), and an etcd elsewhere does not: who wakes up may trust
/// its lease for too long. That is what fences are for.
fn monotonic(started: time::Instant) -> Instant {
    Instant(started.elapsed())
}

/// How much of a step a call takes.
fn weight(call: &Call) -> usize {
    match call {
        Call::Message(envelope) => envelope.weight(),
        Call::Request { .. } | Call::Prove { .. } => 1,
    }
}

impl Driver {
    /// Runs until it is told to leave, or the core finds that it cannot go on.
    pub(super) async fn run(mut self) -> Result<(), Halt> {
        self.step([Event::Wake])?;
        let mut next_snapshot = time::Instant::now() + SNAPSHOT_INTERVAL;
        let mut dirty = true;
        loop {
            if dirty && next_snapshot <= time::Instant::now() {
                let began = time::Instant::now();
                self.publish();
                next_snapshot = began + SNAPSHOT_INTERVAL.max(began.elapsed() * SNAPSHOT_REST);
                dirty = false;
            }
            let wake = self.process.wake_at().map(|at| self.tasks.started + at.0);
            let due = wake.into_iter().chain(dirty.then_some(next_snapshot)).min();
            let events = tokio::select! {
                Some(event) = self.tasks.inbox.recv() => vec![event],
                Some(event) = self.work.recv() => self.more_work(event),
                Some(call) = self.calls.recv() => self.more_calls(call),
                order = self.orders.recv() => match order {
                    Some(Order::Terminate) => vec![Event::Terminate],
                    Some(Order::Leave) | None => return self.leave().await,
                },
                () = time::sleep_until(due.unwrap_or_else(|| time::Instant::now() + Duration::from_secs(1))) => {
                    vec![Event::Wake]
                }
            };
            dirty = true;
            self.step(events)?;
        }
    }

    /// What else the data path has told by now.
    fn more_work(&mut self, first: WorkEvent) -> Vec<Event> {
        let rest = std::iter::from_fn(|| self.work.try_recv().ok()).take(STEP_MAX_WEIGHT);
        std::iter::once(first).chain(rest).map(Event::Work).collect()
    }

    /// What else has come through the doors by now.
    fn more_calls(&mut self, first: Call) -> Vec<Event> {
        let mut used = weight(&first);
        let mut events = vec![self.call(first)];
        while used < STEP_MAX_WEIGHT
            && let Ok(next) = self.calls.try_recv()
        {
            used += weight(&next);
            events.push(self.call(next));
        }
        events
    }

    fn call(&mut self, call: Call) -> Event {
        match call {
            Call::Request { request, answer } => Event::Request { id: self.tasks.register(answer), request },
            Call::Prove { answer } => Event::Prove(self.tasks.register(answer)),
            Call::Message(envelope) => Event::Message(envelope),
        }
    }

    fn step(&mut self, events: impl IntoIterator<Item = Event>) -> Result<(), Halt> {
        let now = Now { monotonic: monotonic(self.tasks.started), wall: wall() };
        for effect in self.process.handle_all(events, now) {
            self.carry_out(effect)?;
        }
        Ok(())
    }

    fn publish(&self) {
        let snapshot = self.process.snapshot();
        self.snapshots.send_if_modified(|known| {
            let changed = **known != snapshot;
            if changed {
                *known = Arc::new(snapshot);
            }
            changed
        });
    }

    fn carry_out(&mut self, effect: Effect) -> Result<(), Halt> {
        match effect {
            Effect::GrantLease => self.grant(),
            Effect::KeepLease { lease, key } => self.keep(lease, key),
            Effect::RevokeLease(lease) => self.revoke(lease),
            Effect::Load => self.load(),
            Effect::Write { lane, txn } => self.write(lane, txn),
            Effect::ReadPosition { changefeed, epoch } => self.read_position(changefeed, epoch),
            Effect::Send { to, envelope } => self.peers.send(&to, &envelope),
            Effect::Work(order) => self.pipeline.order(order),
            Effect::Answer { id, answer } => {
                if let Some(waiting) = self.tasks.asked.remove(&id) {
                    // Who asks next is to see what was done for this one.
                    self.publish();
                    // The caller may have gone meanwhile; then nobody misses the answer.
                    let _ = waiting.send(answer);
                }
            }
            Effect::Log(line) => log(&line),
            Effect::Measured(measured) => self.metrics.record(measured),
            Effect::Halt(halt) => return Err(halt),
        }
        Ok(())
    }

    /// Does a store call beside the core, and brings its outcome back as an event.
    fn spawn(&self, work: impl Future<Output = Option<Event>> + Send + 'static) {
        let events = self.tasks.events.clone();
        tokio::spawn(async move {
            if let Some(event) = work.await {
                // The core is gone when nobody receives: nothing is left to tell.
                let _ = events.send(event).await;
            }
        });
    }

    fn grant(&self) {
        let (store, ttl, sent_at) = (self.store.clone(), self.lease_ttl, monotonic(self.tasks.started));
        let troubles = self.tasks.troubles.clone();
        self.spawn(async move {
            let granted = store.grant(ttl).await;
            troubles.heed("no lease from the store", &granted);
            match (granted, getrandom::u64()) {
                (Ok(lease), Ok(nonce)) => Some(Event::LeaseGranted { lease, sent_at, nonce }),
                (Err(_), _) => Some(Event::LeaseNotGranted),
                (_, Err(error)) => {
                    tracing::warn!(%error, "no randomness from the system");
                    Some(Event::LeaseNotGranted)
                }
            }
        });
    }

    fn keep(&self, lease: LeaseId, key: Option<Key>) {
        let (store, sent_at) = (self.store.clone(), monotonic(self.tasks.started));
        let troubles = self.tasks.troubles.clone();
        self.spawn(async move {
            let kept = keep(&store, lease, key).await;
            troubles.heed("lease was not kept alive", &kept);
            kept.ok().map(|kept| if kept { Event::LeaseKept { lease, sent_at } } else { Event::LeaseLost(lease) })
        });
    }

    fn revoke(&mut self, lease: LeaseId) {
        let store = self.store.clone();
        self.tasks.revoking = Some(tokio::spawn(async move {
            if let Err(error) = store.revoke(lease).await {
                tracing::warn!(%error, "lease was not given back, it will run out");
            }
        }));
    }

    fn write(&self, lane: Lane, txn: Txn) {
        let store = self.store.clone();
        self.spawn(async move {
            let outcome = match store.txn(txn).await {
                Ok(outcome) => outcome,
                Err(error) => {
                    tracing::warn!(%error, "the store refused a transaction");
                    TxnOutcome::Refused(0)
                }
            };
            // A store that refuses for ever, with a full disk for one, must not be asked without a pause.
            match outcome {
                TxnOutcome::Committed(_) => {}
                TxnOutcome::Refused(_) => time::sleep(REFUSED_BACKOFF).await,
                TxnOutcome::Unknown => time::sleep(RELOAD_BACKOFF).await,
            }
            Some(Event::Written { lane, outcome })
        });
    }

    fn read_position(&self, changefeed: ChangefeedId, epoch: ChangefeedEpoch) {
        let store = self.store.clone();
        self.spawn(async move {
            let key = KeyName::Position(changefeed.clone()).key();
            match read_position(&store, &key).await {
                Ok(position) => Some(Event::PositionRead { changefeed, epoch, position }),
                Err(ReadError::Value(error)) => Some(Event::Unreadable(error)),
                Err(error) => {
                    tracing::warn!(%error, %changefeed, "position cannot be read");
                    None
                }
            }
        });
    }

    /// Lists all watched keys and follows them from there; a watch that breaks starts over with a listing.
    fn load(&mut self) {
        if let Some(watcher) = self.tasks.watcher.take() {
            watcher.abort();
        }
        let (store, events) = (self.store.clone(), self.tasks.events.clone());
        let troubles = self.tasks.troubles.clone();
        let watcher = tokio::spawn(async move {
            loop {
                let listed = || troubles.heed(NOT_FOLLOWED, &Ok::<_, ReadError>(()));
                let followed = follow(&store, &events, listed).await;
                if followed.is_ok() {
                    return;
                }
                troubles.heed(NOT_FOLLOWED, &followed);
                time::sleep(RELOAD_BACKOFF).await;
            }
        });
        self.tasks.watcher = Some(watcher.abort_handle());
    }

    /// Ends: all work stops, and the lease is given back, so that others need not wait for it to run out.
    async fn leave(mut self) -> Result<(), Halt> {
        self.step([Event::Leave])?;
        let revoking = self.tasks.revoking.take();
        let ended = async {
            while let Some(event) = self.work.recv().await {
                if event == WorkEvent::AllStopped {
                    break;
                }
            }
            if let Some(revoking) = revoking {
                let _ = revoking.await;
            }
        };
        if time::timeout(LEAVE_TIMEOUT, ended).await.is_err() {
            tracing::warn!("work did not stop in time, the lease will run out");
        }
        Ok(())
    }
}

/// Why a position or the store's changes cannot be read.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Watch(#[from] crate::store::WatchError),
    #[error(transparent)]
    Value(#[from] ValueError),
    #[error("the watch ended")]
    Ended,
}

/// Keeps a lease alive; whether it, and the key that should go with it, are there.
async fn keep(store: &AnyStore, lease: LeaseId, key: Option<Key>) -> Result<bool, StoreError> {
    let kept = store.keep(lease).await?;
    let Some(key) = key.filter(|_| kept) else { return Ok(kept) };
    Ok(store.get(&key).await?.is_some_and(|entry| entry.lease == Some(lease)))
}

async fn read_position(store: &AnyStore, key: &str) -> Result<Option<(Position, u64)>, ReadError> {
    let Some(entry) = store.get(key).await? else { return Ok(None) };
    Ok(Some((decode(key, &entry.value)?, entry.mod_revision)))
}

async fn follow(store: &AnyStore, events: &mpsc::Sender<Event>, listed: impl FnOnce()) -> Result<(), ReadError> {
    let listing = store.list("", KeyName::WATCH_END).await?;
    listed();
    let revision = listing.revision;
    if events.send(Event::Loaded(listing)).await.is_err() {
        return Ok(());
    }
    let mut watch = std::pin::pin!(store.watch("", KeyName::WATCH_END, revision));
    while let Some(changes) = watch.next().await {
        if events.send(Event::Changed(changes?)).await.is_err() {
            return Ok(());
        }
    }
    Err(ReadError::Ended)
}

fn log(line: &Line) {
    let target = line.target.as_ref().map(tracing::field::display);
    let epoch = line.epoch.map(|epoch| epoch.0);
    let capture = line.capture.as_ref().map(tracing::field::display);
    let changefeed = line.changefeed.as_ref().map(tracing::field::display);
    let of = |field| line.detail.as_ref().filter(|(name, _)| *name == field).map(|(_, value)| value.as_str());
    let (phase, requester, error) = (of("phase"), of("requester"), of("error"));
    let (node_epoch, attempt) = (of("node_epoch"), of("attempt"));
    macro_rules! say {
        ($level:ident) => {
            tracing::$level!(
                target,
                epoch,
                capture,
                node_epoch,
                changefeed,
                phase,
                requester,
                attempt,
                error,
                "{}",
                line.message
            )
        };
    }
    match line.level {
        Level::Info => say!(info),
        Level::Warn => say!(warn),
    }
}
