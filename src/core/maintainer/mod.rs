//! The maintainer of one changefeed: which spans there are, and which capture works on each.
//!
//! It owns no state that cannot be rebuilt: spans come from the inventories of the captures, gaps start at the persisted
//! checkpoint. Nothing is placed before every registered capture has told what it has.

mod bootstrap;
mod placing;
mod position;
mod spans;
mod tables;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use self::{
    bootstrap::Bootstrap,
    position::Persisted,
    spans::{Planned, Site, Spans, Stage, Then},
};
use crate::{
    measure::{Measurement, MoveOutcome},
    model::{
        ChangefeedConfig, ChangefeedEpoch, ChangefeedId, CommitTs, DispatcherFate, DispatcherNews, DrainState,
        Heartbeat, Incarnation, Instant, MaintainerPhase, MaintainerReport, NewDispatcher, Now, Options, Order,
        Position, Span, SpanId, Status, WriterEpoch,
    },
    mutant::{Mutant, Mutants},
    store::{Revision, Txn, TxnOutcome},
};

/// After so many failures of a dispatcher without progress the changefeed fails.
const FAILURES_MAX: u32 = 8;

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
    destinations: Vec<Incarnation>,
    share: u32,
    balance: bool,
    /// The beat of the heartbeat that was heard last.
    beat: u64,
    bootstrap: Bootstrap,
    running: bool,
    spans: Spans,
    /// When the moves that are on their way began, and whether an order for them was repeated.
    moves: BTreeMap<SpanId, (Instant, bool)>,
    /// Dispatchers that are not of the plan, and are being stopped.
    surplus: BTreeMap<(SpanId, WriterEpoch), (Incarnation, Instant)>,
    counter: u64,
    /// Whether the table trigger has told which tables are there.
    tables_listed: bool,
    /// Tables that it did not list then: up to where their spans had come, and when they have ended if no birth is told
    /// up to there.
    doubtful: BTreeMap<Arc<str>, (CommitTs, CommitTs)>,
    /// Tables that have ended, and when.
    ended: BTreeMap<Arc<str>, CommitTs>,
    resolved_ts: CommitTs,
    /// When the source passed which commit timestamp.
    samples: VecDeque<(CommitTs, u64)>,
    checkpoint_ts: CommitTs,
    checkpoint_at_ms: u64,
    persisted: Persisted,
    error: Option<String>,
    /// The last failure that was not the end, until everything works again.
    warning: Option<String>,
    /// The highest later placement that sinks know a writer of.
    outranked_by: Option<ChangefeedEpoch>,
    orders: BTreeMap<Incarnation, Orders>,
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
            surplus: BTreeMap::new(),
            counter: 0,
            tables_listed: false,
            doubtful: BTreeMap::new(),
            ended: BTreeMap::new(),
            samples: VecDeque::new(),
            checkpoint_at_ms: 0,
            persisted: Persisted::Reading { next: Instant::default() },
            error: None,
            warning: None,
            outranked_by: None,
            orders: BTreeMap::new(),
            outputs: Vec::new(),
            now: Instant::default(),
        }
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
        let surplus = self.surplus.values().map(|(_, due)| *due).min();
        let queue = self.spans.queue_at().filter(|at| *at > self.now);
        let bootstrap = self.bootstrap.wake_at();
        [self.spans.wake_at(), surplus, queue, bootstrap, self.persist_at()].into_iter().flatten().min()
    }

    /// What the coordinator is told.
    pub fn report(&self) -> MaintainerReport {
        MaintainerReport {
            changefeed: self.changefeed.clone(),
            epoch: self.epoch,
            phase: if self.running { MaintainerPhase::Running } else { MaintainerPhase::Bootstrapping },
            stamp: self.state.stamp,
            checkpoint_ts: self.checkpoint_ts,
            checkpoint_at_ms: self.checkpoint_at_ms,
            dispatchers: self.running.then(|| self.counts()),
            in_flight: u32::try_from(self.spans.moving()).unwrap_or(u32::MAX),
            share: self.share,
            error: self.error.clone(),
            warning: self.warning.clone(),
            outranked_by: self.outranked_by,
        }
    }

    fn counts(&self) -> BTreeMap<crate::model::CaptureId, u64> {
        let mut counts = self.spans.counts();
        for (host, _) in self.surplus.values() {
            *counts.entry(host.capture.clone()).or_default() += 1;
        }
        counts
    }

    fn hear(&mut self, heartbeat: &Heartbeat) {
        if (heartbeat.state.stamp, heartbeat.beat) < (self.state.stamp, self.beat) {
            return;
        }
        self.beat = heartbeat.beat;
        let news = heartbeat.state.stamp > self.state.stamp;
        self.destinations.clone_from(&heartbeat.destinations);
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
            Status::Inventory { answer, part, parts, dispatchers } => {
                self.bootstrap.take(from, answer, (part, parts), dispatchers);
                if self.running {
                    self.take_late_inventory(from);
                }
            }
            Status::Progress(news) if self.running => {
                for news in news {
                    self.take_news(from, news);
                }
            }
            Status::Progress(_) => {}
        }
    }

    /// What a host says of one dispatcher; news of any but the present one mean nothing.
    fn take_news(&mut self, from: &Incarnation, news: DispatcherNews) {
        let failed = matches!(news.what, DispatcherFate::Failed { .. });
        if failed {
            // Its host repeats this until a stop shows that it was heard.
            self.orders.entry(from.clone()).or_default().stop.push((news.span, news.writer_epoch));
        }
        if failed || matches!(news.what, DispatcherFate::Stopped { .. }) {
            self.surplus.remove(&(news.span, news.writer_epoch));
        }
        let present = self.spans.get(news.span).and_then(|planned| planned.stage.site());
        if present.is_none_or(|at| at.host != *from || at.writer_epoch != news.writer_epoch) {
            return;
        }
        let Some(mut planned) = self.spans.take(news.span) else { return };
        match news.what {
            DispatcherFate::Working { checkpoint_ts, split_at } => {
                if checkpoint_ts > planned.checkpoint_ts {
                    planned.failures = 0;
                }
                planned.checkpoint_ts = planned.checkpoint_ts.max(checkpoint_ts);
                self.take_working(planned, split_at);
            }
            DispatcherFate::Stopped { checkpoint_ts } => {
                planned.checkpoint_ts = planned.checkpoint_ts.max(checkpoint_ts.unwrap_or(0));
                self.take_stopped(planned);
            }
            DispatcherFate::Refused => {
                planned.attempt += 1;
                let attempt = planned.attempt;
                self.back_off(planned, attempt);
            }
            DispatcherFate::Failed { error, fatal, outranked_by } => {
                planned.failures += 1;
                let failures = planned.failures;
                self.outranked_by = self.outranked_by.max(outranked_by);
                if fatal || failures > FAILURES_MAX {
                    self.error = Some(error);
                } else {
                    self.warning = Some(error);
                }
                match &planned.stage {
                    Stage::Stopping { .. } => self.take_stopped(planned),
                    _ => self.back_off(planned, failures),
                }
            }
        }
    }

    fn take_working(&mut self, mut planned: Planned, split_at: Option<Arc<[u8]>>) {
        if let Stage::Creating { at } = planned.stage {
            planned.stage = Stage::Working { at };
            planned.moving = false;
            self.end_move(planned.span.id(), MoveOutcome::arrived);
            planned.due = None;
            planned.attempt = 0;
        }
        let split = split_at.filter(|at| *planned.span.start < **at && **at < *planned.span.end);
        let quiet = self.state.drain.is_none() && self.config.span_max_keys > 0;
        match (split, matches!(planned.stage, Stage::Working { .. })) {
            (Some(at), true) if quiet => self.stop(planned, Then::Split(at)),
            _ => self.spans.put(planned),
        }
    }

    /// It has stopped, and its checkpoint is known: on to what was decided.
    fn take_stopped(&mut self, mut planned: Planned) {
        let then = match &planned.stage {
            Stage::Stopping { then, .. } => then.clone(),
            _ => Then::Requeue,
        };
        planned.due = None;
        planned.stage = Stage::Queued { not_before: self.now };
        match then {
            // A table that was born anew meanwhile needs its span, which is in the plan already.
            Then::Drop if self.ended.contains_key(&planned.span.table) || self.mutants.has(Mutant::DropsReborn) => {}
            Then::Requeue | Then::Drop => self.spans.put(planned),
            Then::Split(at) => {
                let Span { table, start, end } = planned.span.clone();
                for span in [
                    Span { table: table.clone(), start, end: at.clone() },
                    Span { table: table.clone(), start: at, end },
                ] {
                    self.spans.put(Planned { span, attempt: 0, moving: false, ..planned.clone() });
                }
            }
        }
    }

    /// It runs nowhere, for a reason that may pass: it waits, longer each time.
    fn back_off(&mut self, mut planned: Planned, times: u32) {
        let doubled = self.options.heartbeat.saturating_mul(1 << times.saturating_sub(1).min(8));
        let wait = doubled.min(self.options.move_timeout);
        self.repeat_move(planned.span.id());
        planned.due = None;
        planned.stage = Stage::Queued { not_before: self.now + wait };
        self.spans.put(planned);
    }

    /// Orders a stop. From here the span only goes forward.
    fn stop(&mut self, mut planned: Planned, then: Then) {
        let Some(at) = planned.stage.site().cloned() else { return self.spans.put(planned) };
        planned.attempt = 0;
        planned.due = Some(self.now + self.options.move_timeout);
        self.orders.entry(at.host.clone()).or_default().stop.push((planned.span.id(), at.writer_epoch));
        planned.stage = Stage::Stopping { at, then };
        self.spans.put(planned);
    }

    fn next_writer(&mut self) -> WriterEpoch {
        self.counter += 1;
        WriterEpoch { changefeed: self.epoch, counter: self.counter }
    }

    fn advance(&mut self) {
        self.advance_bootstrap();
        if self.running {
            self.drop_ended_tables();
            self.repeat_orders();
            self.move_away();
            self.spread();
            self.place_queued();
            if self.spans.all_work() {
                self.warning = None;
            }
            self.raise_checkpoint();
        }
        self.persist();
    }

    fn send_orders(&mut self) {
        for (to, orders) in std::mem::take(&mut self.orders) {
            for stop in orders.stop.chunks(crate::model::MESSAGE_MAX_DISPATCHERS) {
                self.outputs.push(Output::Order { to: to.clone(), order: Order::Stop(stop.to_vec()) });
            }
            for create in orders.create.chunks(crate::model::MESSAGE_MAX_DISPATCHERS) {
                let order = Order::Create { config: self.config.clone(), dispatchers: create.to_vec() };
                self.outputs.push(Output::Order { to: to.clone(), order });
            }
        }
    }

    fn follow_membership(&mut self) {
        self.bootstrap.follow(&self.state, self.now);
        if !self.running {
            return;
        }
        let surplus = std::mem::take(&mut self.surplus);
        self.surplus = surplus.into_iter().filter(|(_, (host, _))| self.state.liveness(host).is_some()).collect();
        if self.mutants.has(Mutant::OrphansSpans) {
            return;
        }
        for capture in self.spans.hosts() {
            // All of a capture's spans are on one life of it: whatever a lost life had is queued before anything is placed
            // on the next one.
            let spans = self.spans.on(&capture);
            let first = spans.first().and_then(|id| self.spans.get(*id)).and_then(|planned| planned.stage.site());
            if first.is_none_or(|at| self.state.liveness(&at.host).is_some()) {
                continue;
            }
            for id in spans {
                if let Some(planned) = self.spans.take(id) {
                    self.repeat_move(id);
                    self.take_stopped(planned);
                }
            }
        }
    }

    fn site(&mut self, host: Incarnation) -> Site {
        Site { host, writer_epoch: self.next_writer() }
    }
}
