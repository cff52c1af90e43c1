//! The maintainer of one changefeed: which spans there are, and which capture works on each.
//!
//! It owns no state that cannot be rebuilt: spans come from the inventories of the captures, gaps start at the persisted
//! checkpoint. Nothing is placed before every registered capture has told what it has.

mod bootstrap;
mod placing;
mod position;
mod spans;
mod surplus;
mod tables;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use self::{
    bootstrap::Bootstrap,
    position::Persisted,
    spans::{Planned, Site, Slot, Spans, Stage, Then},
    surplus::Surplus,
    tables::{Doubtful, TableNews},
};
use crate::{
    measure::{Measurement, MoveOutcome},
    model::{
        CaptureId, ChangefeedConfig, ChangefeedEpoch, ChangefeedId, CommitTs, DispatcherFate, DispatcherNews,
        DrainState, Heartbeat, Incarnation, Instant, MaintainerPhase, MaintainerReport, NewDispatcher, Now, Options,
        Order, Position, Span, SpanId, Status, Unknown, VALUE_VERSION, WriterEpoch, parts,
    },
    mutant::{Mutant, Mutants},
    store::{Revision, Txn, TxnOutcome},
};

/// After so many failures of a dispatcher without progress the changefeed fails.
const FAILURES_MAX: u16 = 8;

/// After which an event is wanted when one was not enough for all that was to be done.
const MOMENT: Duration = Duration::from_nanos(1);

/// What happens to a maintainer.
#[derive(Debug)]
pub enum Input<'a> {
    /// The persisted position, and its key's modification revision.
    PositionRead(Option<(Position, Revision)>),
    /// The coordinator's heartbeat.
    Heard(&'a Heartbeat),
    /// A host of dispatchers says something.
    Status {
        /// In this life.
        from: Incarnation,
        /// What.
        status: Status,
    },
    /// The table trigger has news.
    Tables {
        /// Tables that got their first key, with their full range, and when.
        born: Vec<(Span, CommitTs)>,
        /// Tables that lost their last key, and when.
        ended: Vec<(Arc<str>, CommitTs)>,
        /// How far the trigger has seen.
        resolved_ts: CommitTs,
        /// When the source passed that, in milliseconds since 1970; 0: unknown.
        resolved_at_ms: u64,
    },
    /// The table trigger cannot go on.
    TriggerFailed(String),
    /// The one write under way has ended.
    Written(TxnOutcome),
    /// The time that [`Maintainer::wake_at`] named has come.
    Wake,
}

/// What a maintainer wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Read the persisted position.
    ReadPosition,
    /// Start the table trigger.
    StartTrigger {
        /// From this commit timestamp on.
        start_ts: CommitTs,
    },
    /// Tell a host of dispatchers.
    Order {
        /// Whom, in which life.
        to: Incarnation,
        /// What.
        order: Order,
    },
    /// Persist the position.
    Write(Txn),
    /// Add it up.
    Measured(Measurement),
}

/// Orders that wait to be sent together.
#[derive(Debug, Default)]
struct Orders {
    create: Vec<NewDispatcher>,
    stop: Vec<(SpanId, WriterEpoch)>,
}

/// A maintainer.
#[derive(Debug)]
pub struct Maintainer {
    me: Incarnation,
    changefeed: ChangefeedId,
    epoch: ChangefeedEpoch,
    place_revision: Revision,
    config: Arc<ChangefeedConfig>,
    options: Options,
    mutants: Mutants,
    /// The latest drain state, and who may get work under it.
    state: DrainState,
    destinations: Vec<Arc<Incarnation>>,
    share: u32,
    balance: bool,
    /// The beat of the heartbeat that was heard last.
    beat: u64,
    bootstrap: Bootstrap,
    running: bool,
    spans: Spans,
    /// When the moves that are on their way began, and whether an order for them was repeated.
    moves: BTreeMap<SpanId, (Instant, bool)>,
    /// Where those are split that are being stopped for it.
    splits: BTreeMap<Slot, Arc<[u8]>>,
    surplus: Surplus,
    counter: u64,
    /// How many more spans the present event may take up.
    room: usize,
    /// Hosts may have been lost whose spans are not queued yet; until they are, nothing is placed.
    hosts_lost: bool,
    /// What the trigger told and is not planned yet.
    table_news: VecDeque<TableNews>,
    /// Tables of inventories that the table trigger has not listed yet.
    unlisted: BTreeSet<Arc<str>>,
    /// When those that it did not list have ended, if no birth is told up to there; known once its list is complete.
    listed_ts: Option<CommitTs>,
    doubtful: Doubtful,
    /// Tables that have ended and still have spans, and when they ended.
    ended: BTreeMap<Arc<str>, CommitTs>,
    /// Their spans, to be looked at.
    passing: VecDeque<Slot>,
    resolved_ts: CommitTs,
    /// When the source passed which commit timestamp.
    samples: VecDeque<(CommitTs, u64)>,
    checkpoint_ts: CommitTs,
    checkpoint_at_ms: u64,
    persisted: Persisted,
    /// The version in which the position is written.
    version: u32,
    /// What a newer build has added to the position.
    unknown: Unknown,
    error: Option<String>,
    /// The last failure that was not the end, until everything works again.
    warning: Option<String>,
    /// The highest later placement that sinks know a writer of.
    outranked_by: Option<ChangefeedEpoch>,
    orders: BTreeMap<Arc<Incarnation>, Orders>,
    outputs: Vec<Output>,
    now: Instant,
}

impl Maintainer {
    /// A maintainer that knows nothing yet.
    pub fn new(
        me: Incarnation,
        changefeed: ChangefeedId,
        epoch: ChangefeedEpoch,
        place_revision: Revision,
        config: Arc<ChangefeedConfig>,
        options: Options,
    ) -> Self {
        Self {
            me,
            changefeed,
            epoch,
            place_revision,
            checkpoint_ts: config.start_ts,
            resolved_ts: config.start_ts,
            config,
            options,
            mutants: Mutants::default(),
            state: DrainState::default(),
            destinations: Vec::new(),
            share: 0,
            balance: false,
            beat: 0,
            bootstrap: Bootstrap::default(),
            running: false,
            spans: Spans::default(),
            moves: BTreeMap::new(),
            splits: BTreeMap::new(),
            surplus: Surplus::default(),
            counter: 0,
            room: usize::MAX,
            hosts_lost: false,
            table_news: VecDeque::new(),
            unlisted: BTreeSet::new(),
            listed_ts: None,
            doubtful: Doubtful::default(),
            ended: BTreeMap::new(),
            passing: VecDeque::new(),
            samples: VecDeque::new(),
            checkpoint_at_ms: 0,
            persisted: Persisted::Reading { next: Instant::default() },
            version: VALUE_VERSION,
            unknown: Unknown::new(),
            error: None,
            warning: None,
            outranked_by: None,
            orders: BTreeMap::new(),
            outputs: Vec::new(),
            now: Instant::default(),
        }
    }

    /// Sets the version in which it writes, which holds for its life: when there is an older capture later, it comes to
    /// a cluster whose values it cannot read anyway.
    pub(crate) fn set_version(&mut self, version: u32) {
        self.version = version;
    }

    /// Breaks a rule, for the simulation.
    pub(crate) fn set_mutants(&mut self, mutants: Mutants) {
        self.mutants = mutants;
    }

    /// What it replicates.
    pub(crate) fn config(&self) -> &Arc<ChangefeedConfig> {
        &self.config
    }

    /// Begins.
    pub fn start(&mut self, now: Now) -> Vec<Output> {
        self.now = now.monotonic;
        vec![Output::ReadPosition]
    }

    /// Takes an input, and says what shall be done.
    pub fn handle(&mut self, input: Input<'_>, now: Now) -> Vec<Output> {
        self.now = now.monotonic;
        self.room = self.options.event_max_spans;
        match input {
            Input::PositionRead(position) => self.take_position(position),
            Input::Heard(heartbeat) => self.hear(heartbeat),
            Input::Status { from, status } => self.take_status(&from, status),
            Input::Tables { born, ended, resolved_ts, resolved_at_ms } => {
                self.take_tables(born, ended, resolved_ts, resolved_at_ms);
            }
            Input::TriggerFailed(error) => self.error = Some(error),
            Input::Written(outcome) => self.take_outcome(outcome),
            Input::Wake => {}
        }
        self.advance();
        self.send_orders();
        std::mem::take(&mut self.outputs)
    }

    /// When it wants to be woken.
    pub fn wake_at(&self) -> Option<Instant> {
        if self.room == 0 {
            return Some(self.now + MOMENT);
        }
        let orders = self.spans.wake_at().into_iter().chain(self.surplus.wake_at()).min().filter(|_| self.running);
        let queue = self.spans.queue_after(self.now);
        [orders, queue, self.bootstrap.wake_at(), self.persist_at()].into_iter().flatten().min()
    }

    /// How far it is.
    pub(crate) fn phase(&self) -> MaintainerPhase {
        if self.running { MaintainerPhase::Running } else { MaintainerPhase::Bootstrapping }
    }

    /// How many of its dispatchers are on the move.
    pub(crate) fn in_flight(&self) -> u32 {
        u32::try_from(self.spans.moving()).unwrap_or(u32::MAX)
    }

    /// Whether it is sure to have nothing on a capture.
    pub(crate) fn has_nothing_on(&self, capture: &CaptureId) -> bool {
        self.running && !self.spans.is_on(capture) && !self.surplus.is_on(capture)
    }

    /// What the coordinator is told.
    pub fn report(&self) -> MaintainerReport {
        MaintainerReport {
            changefeed: self.changefeed.clone(),
            epoch: self.epoch,
            phase: self.phase(),
            stamp: self.state.stamp,
            checkpoint_ts: self.checkpoint_ts,
            checkpoint_at_ms: self.checkpoint_at_ms,
            dispatchers: self.running.then(|| self.counts()),
            in_flight: self.in_flight(),
            share: self.share,
            error: self.error.clone(),
            warning: self.warning.clone(),
            outranked_by: self.outranked_by,
        }
    }

    fn counts(&self) -> BTreeMap<CaptureId, u64> {
        let mut counts = self.spans.counts();
        for (capture, count) in self.surplus.counts() {
            *counts.entry(capture.clone()).or_default() += count;
        }
        counts
    }

    fn hear(&mut self, heartbeat: &Heartbeat) {
        if (heartbeat.state.stamp, heartbeat.beat) < (self.state.stamp, self.beat) {
            return;
        }
        self.beat = heartbeat.beat;
        let news = heartbeat.state.stamp > self.state.stamp;
        if !self.destinations.iter().map(|host| &**host).eq(&heartbeat.destinations) {
            self.destinations = heartbeat.destinations.iter().cloned().map(Arc::new).collect();
        }
        self.share = heartbeat.shares.get(&self.changefeed).copied().unwrap_or(0);
        self.balance = heartbeat.balance;
        if news {
            self.state = heartbeat.state.clone();
            self.follow_membership();
        }
        self.bootstrap.excuse(&heartbeat.newcomers);
        if matches!(self.persisted, Persisted::Reading { .. }) {
            self.outputs.push(Output::ReadPosition);
        }
    }

    fn take_status(&mut self, from: &Incarnation, status: Status) {
        match status {
            Status::Inventory { after, dispatchers, more } => self.take_inventory(from, after, dispatchers, more),
            Status::Progress(news) => {
                for news in news {
                    self.take_news(from, news);
                }
            }
        }
    }

    /// What a host says of one dispatcher; news of any but the present one mean nothing.
    fn take_news(&mut self, from: &Incarnation, news: DispatcherNews) {
        let failed = matches!(news.what, DispatcherFate::Failed { .. });
        if failed {
            // Its host repeats this until a stop shows that it was heard.
            self.orders.entry(Arc::new(from.clone())).or_default().stop.push((news.span, news.writer_epoch));
        }
        let slot = self.spans.find(news.span);
        let present = slot.and_then(|slot| self.spans.get(slot)?.stage.site());
        let is_present = present.is_some_and(|at| *at.host == *from && at.writer_epoch == news.writer_epoch);
        let Some(slot) = slot.filter(|_| is_present) else {
            if failed || matches!(news.what, DispatcherFate::Stopped { .. }) {
                self.take_other_end(from, (news.span, news.writer_epoch));
            }
            return;
        };
        match news.what {
            DispatcherFate::Working { checkpoint_ts, split_at } => self.take_working(slot, checkpoint_ts, split_at),
            DispatcherFate::Stopped { checkpoint_ts } => self.take_stopped(slot, checkpoint_ts),
            DispatcherFate::Refused => {
                let attempt = self.spans.change(slot, |planned| {
                    planned.attempt = planned.attempt.saturating_add(1);
                    planned.attempt
                });
                self.back_off(slot, attempt.unwrap_or_default());
            }
            DispatcherFate::Failed { error, fatal, outranked_by } => {
                self.take_failed(slot, error, fatal, outranked_by);
            }
        }
    }

    fn take_failed(&mut self, slot: Slot, error: String, fatal: bool, outranked_by: Option<ChangefeedEpoch>) {
        let failed = self.spans.change(slot, |planned| {
            planned.failures = planned.failures.saturating_add(1);
            (planned.failures, matches!(planned.stage, Stage::Stopping(..)))
        });
        let Some((failures, stopping)) = failed else { return };
        self.outranked_by = self.outranked_by.max(outranked_by);
        if fatal || failures > FAILURES_MAX {
            self.error = Some(error);
        } else {
            self.warning = Some(error);
        }
        if stopping { self.take_stopped(slot, None) } else { self.back_off(slot, failures) }
    }

    /// A dispatcher that is not of the plan has ended.
    fn take_other_end(&mut self, from: &Incarnation, writer: (SpanId, WriterEpoch)) {
        self.surplus.remove(from, writer);
        if !self.running {
            self.bootstrap.note_end(writer);
        }
    }

    fn take_working(&mut self, slot: Slot, checkpoint_ts: CommitTs, split_at: Option<Arc<[u8]>>) {
        let mut arrived = None;
        let split = self.spans.change(slot, |planned| {
            if checkpoint_ts > planned.checkpoint_ts {
                planned.checkpoint_ts = checkpoint_ts;
                planned.failures = 0;
            }
            if let Stage::Creating(at) = &planned.stage {
                planned.stage = Stage::Working(at.clone());
                arrived = std::mem::take(&mut planned.moving).then(|| planned.span.id());
                planned.attempt = 0;
            }
            let inside = |at: &Arc<[u8]>| *planned.span.start < **at && **at < *planned.span.end;
            split_at.filter(inside).filter(|_| matches!(planned.stage, Stage::Working(_)))
        });
        if let Some(id) = arrived {
            self.end_move(id, MoveOutcome::arrived);
        }
        self.let_go(slot);
        let quiet = self.state.drain.is_none() && self.config.span_max_keys > 0;
        let works = || self.spans.get(slot).is_some_and(|planned| matches!(planned.stage, Stage::Working(_)));
        if let Some(at) = split.flatten().filter(|_| quiet && works()) {
            self.splits.insert(slot, at);
            self.stop(slot, Then::Split);
        }
    }

    /// It has stopped, and its checkpoint is known: on to what was decided.
    fn take_stopped(&mut self, slot: Slot, checkpoint_ts: Option<CommitTs>) {
        let not_before = self.now;
        let then = self.spans.change(slot, |planned| {
            planned.checkpoint_ts = planned.checkpoint_ts.max(checkpoint_ts.unwrap_or(0));
            match std::mem::replace(&mut planned.stage, Stage::Queued { not_before }) {
                Stage::Stopping(_, then) => then,
                _ => Then::Requeue,
            }
        });
        match then {
            // A table that was born anew meanwhile needs its span, which is in the plan already.
            Some(Then::Drop) if self.has_ended(slot) || self.mutants.has(Mutant::DropsReborn) => self.drop_span(slot),
            Some(Then::Requeue | Then::Drop) => self.let_go(slot),
            Some(Then::Split) => self.split(slot),
            None => {}
        }
    }

    fn split(&mut self, slot: Slot) {
        let Some((at, whole)) = self.splits.remove(&slot).zip(self.spans.remove(slot)) else { return };
        let Span { table, start, end } = whole.span.clone();
        for (start, end) in [(start, at.clone()), (at, end)] {
            let span = Span { table: table.clone(), start, end };
            let half = self.spans.insert(Planned { span, attempt: 0, moving: false, ..whole.clone() });
            self.let_go(half);
        }
    }

    /// It runs nowhere, for a reason that may pass: it waits, longer each time.
    fn back_off(&mut self, slot: Slot, times: u16) {
        let doubled = self.options.heartbeat.saturating_mul(1 << times.saturating_sub(1).min(8));
        let not_before = self.now + doubled.min(self.options.move_timeout);
        self.repeat_move(slot);
        self.spans.change(slot, |planned| planned.stage = Stage::Queued { not_before });
        self.let_go(slot);
    }

    /// Orders a stop. From here the span only goes forward.
    fn stop(&mut self, slot: Slot, then: Then) {
        let due = self.now + self.options.move_timeout;
        let stopped = self.spans.change(slot, |planned| {
            let at = planned.stage.site()?.clone();
            planned.attempt = 0;
            planned.stage = Stage::Stopping(at.clone(), then);
            Some((planned.span.id(), at))
        });
        if let Some((id, at)) = stopped.flatten() {
            self.spans.repeat_at(slot, due);
            self.orders.entry(at.host).or_default().stop.push((id, at.writer_epoch));
        }
    }

    fn next_writer(&mut self) -> WriterEpoch {
        self.counter += 1;
        WriterEpoch { changefeed: self.epoch, counter: self.counter }
    }

    fn advance(&mut self) {
        self.advance_bootstrap();
        self.queue_lost();
        if self.running {
            self.plan_tables();
            self.repeat_orders();
            // What was lost is queued whole before anything is placed.
            if !self.hosts_lost {
                self.move_away();
                self.spread();
                self.place_queued();
                if self.spans.all_work() {
                    self.warning = None;
                }
            }
            self.raise_checkpoint();
        }
        self.persist();
    }

    fn send_orders(&mut self) {
        for (to, orders) in std::mem::take(&mut self.orders) {
            for stop in parts(orders.stop, |_| 0) {
                self.outputs.push(Output::Order { to: (*to).clone(), order: Order::Stop(stop) });
            }
            for dispatchers in parts(orders.create, |new| new.span.bytes()) {
                let order = Order::Create { config: self.config.clone(), dispatchers };
                self.outputs.push(Output::Order { to: (*to).clone(), order });
            }
        }
    }

    fn follow_membership(&mut self) {
        self.bootstrap.follow(&self.state, self.now);
        self.surplus.retain_hosts(|host| self.state.liveness(host).is_some());
        self.hosts_lost = !self.mutants.has(Mutant::OrphansSpans);
    }

    /// What was on hosts that are gone is queued, as much as one event may.
    fn queue_lost(&mut self) {
        while self.hosts_lost && self.room > 0 {
            let lost = self.spans.hosts().find(|host| self.state.liveness(host).is_none());
            let Some(host) = lost.cloned() else {
                self.hosts_lost = false;
                return;
            };
            for slot in self.spans.on(&host, self.room) {
                self.room -= 1;
                self.repeat_move(slot);
                self.take_stopped(slot, None);
            }
        }
    }

    fn site(&mut self, host: Arc<Incarnation>) -> Site {
        Site { host, writer_epoch: self.next_writer() }
    }
}
