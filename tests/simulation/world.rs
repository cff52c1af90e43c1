//! Captures, store, network and data path in virtual time, driven by a seed.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    time::Duration,
};

use capturedrain_core::{
    measure::Measurement,
    model::{
        Answer, Body, Candidacy, CaptureId, ChangefeedEpoch, ChangefeedId, Command, DispatcherFate, DrainEpoch,
        Envelope, Incarnation, Instant, KeyName, Liveness, Now, Options, Order, Refusal, Request, RequestId, Status,
        UnixMillis, decode,
    },
    mutant::{Mutant, Mutants},
    process::{Effect, Event, Lane, Process},
    store::{Key, LeaseId, Model, Op, Revision, Txn, TxnOutcome},
    work::{DispatcherKey, WorkEvent, WorkOrder},
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng as _, SeedableRng as _},
};

use crate::{
    datapath::{DataPath, TABLES, lifetimes, table},
    faults::Faults,
    identity::identity,
    truth::{self, Truth},
};

/// Time between two looks of a data path at its source, and of a watch at the store.
const TICK: Duration = Duration::from_millis(50);

/// What is to happen at a moment.
#[derive(Debug, Clone)]
pub(crate) enum Happening {
    /// A process gets an event, if it still is the one that was meant.
    Tell {
        who: usize,
        life: u32,
        event: Event,
    },
    /// A message arrives at an address.
    Arrive {
        envelope: Envelope,
    },
    /// A transaction reaches the store; its outcome goes back, unless nobody shall hear of it.
    Commit {
        who: usize,
        life: u32,
        /// As whom it was written.
        me: Option<Incarnation>,
        lane: Lane,
        txn: Txn,
        heard: bool,
    },
    /// A listing is asked for.
    List {
        who: usize,
        life: u32,
    },
    /// A lease is asked for, kept or given back.
    Grant {
        who: usize,
        life: u32,
        sent_at: Instant,
    },
    Keep {
        who: usize,
        life: u32,
        lease: LeaseId,
        key: Option<Key>,
        sent_at: Instant,
    },
    Revoke {
        lease: LeaseId,
    },
    ReadPosition {
        who: usize,
        life: u32,
        effect: Effect,
    },
    /// A pause may be over.
    Resume {
        who: usize,
        life: u32,
    },
    /// The clocks of data paths and watches tick.
    Tick,
}

/// A capture's process.
pub(crate) struct Proc {
    pub(crate) id: CaptureId,
    pub(crate) process: Option<Process>,
    /// Counts the processes of this name.
    pub(crate) life: u32,
    pub(crate) paused_until: Instant,
    /// What has arrived while it was paused.
    backlog: VecDeque<Event>,
    started_at: Instant,
    /// The revision that its watch has told, and when that arrives.
    watched: Option<Revision>,
    watch_arrives: Instant,
    wakes_at: Option<Instant>,
    pub(crate) data: DataPath,
}

/// Everything.
pub(crate) struct World {
    pub(crate) now: Instant,
    sequence: u64,
    agenda: BTreeMap<(Instant, u64), Happening>,
    pub(crate) rng: ChaCha8Rng,
    pub(crate) procs: Vec<Proc>,
    pub(crate) store: Model,
    pub(crate) faults: Faults,
    pub(crate) options: Options,
    pub(crate) mutant: Option<Mutant>,
    pub(crate) truth: Truth,
    pub(crate) log: Vec<String>,
    pub(crate) events: u64,
    /// Tables are born and end in the course of the history.
    pub(crate) tables_change: bool,
    /// Whoever takes office next loses its registration in that very moment.
    pub(crate) usurping: bool,
    /// Nobody knows whether a write that ends a drain took effect, or will.
    pub(crate) end_in_doubt: bool,
    /// How often each drain's end was counted.
    pub(crate) ends_counted: BTreeMap<DrainEpoch, u64>,
    /// All that was measured.
    pub(crate) measured: Vec<Measurement>,
    next_request: u64,
    pub(crate) answers: BTreeMap<u64, String>,
}

impl World {
    pub(crate) fn new(seed: u64, captures: usize, mutant: Option<Mutant>, tables_change: bool) -> Self {
        let options = Options {
            lease: Duration::from_secs(4),
            heartbeat: Duration::from_millis(500),
            balance_cooldown: Duration::from_secs(4),
            move_timeout: Duration::from_secs(2),
            move_timeout_max: Duration::from_secs(8),
            stopping_timeout: Duration::from_secs(40),
            history_max: 5,
            drain_maintainer_batch_size: 2,
            drain_dispatcher_batch_size: 3,
            // So few that work is left over, in every other history.
            event_max_spans: if seed.is_multiple_of(2) { 1 } else { 1024 },
        };
        let mut world = Self {
            now: Instant::default(),
            sequence: 0,
            agenda: BTreeMap::new(),
            rng: ChaCha8Rng::seed_from_u64(seed),
            procs: Vec::new(),
            store: Model::new(),
            faults: Faults::none(),
            options,
            mutant,
            truth: Truth::default(),
            log: Vec::new(),
            events: 0,
            tables_change,
            usurping: false,
            end_in_doubt: false,
            ends_counted: BTreeMap::new(),
            measured: Vec::new(),
            next_request: 0,
            answers: BTreeMap::new(),
        };
        for n in 0..captures {
            world.add(n);
        }
        world.at(TICK, Happening::Tick);
        world
    }

    /// A new capture joins.
    pub(crate) fn add(&mut self, n: usize) {
        let id = CaptureId::new(format!("c{n}")).unwrap();
        self.procs.push(Proc {
            id,
            process: None,
            life: 0,
            paused_until: Instant::default(),
            backlog: VecDeque::new(),
            started_at: self.now,
            watched: None,
            watch_arrives: Instant::default(),
            wakes_at: None,
            data: DataPath::new(self.tables_change),
        });
        self.start(n);
    }

    /// Starts a process that does not run.
    pub(crate) fn start(&mut self, who: usize) {
        let id = self.procs[who].id.clone();
        let identity = identity(&id);
        let mutants = self.mutant.map(Mutants::only).unwrap_or_default();
        let proc = &mut self.procs[who];
        proc.process = Some(Process::with_mutants(identity, self.options.clone(), mutants));
        proc.started_at = self.now;
        proc.watched = None;
        proc.wakes_at = None;
        self.note(|| format!("{id} starts"));
        self.tell(who, Event::Wake);
    }

    /// Ends a process at once: all that it knew is gone, and so is its data path.
    pub(crate) fn crash(&mut self, who: usize) {
        let proc = &mut self.procs[who];
        proc.life += 1;
        proc.process = None;
        proc.data = DataPath::new(self.tables_change);
        proc.paused_until = self.now;
        proc.backlog.clear();
        let id = proc.id.clone();
        self.truth.died(&id);
        self.note(|| format!("{id} dies"));
    }

    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        let mut text = String::new();
        let _ = write!(text, "{:>9.3}s  {}", self.now.0.as_secs_f64(), line());
        self.log.push(text);
        if self.log.len() > 200_000 {
            self.log.drain(..100_000);
        }
    }

    pub(crate) fn random(&mut self, below: u64) -> u64 {
        self.rng.next_u64() % below.max(1)
    }

    /// With so many in a thousand.
    pub(crate) fn chance(&mut self, permille: u64) -> bool {
        permille > 0 && self.random(1000) < permille
    }

    pub(crate) fn at(&mut self, after: Duration, happening: Happening) {
        self.sequence += 1;
        self.agenda.insert((self.now + after, self.sequence), happening);
    }

    fn delay(&mut self) -> Duration {
        let most = self.faults.delay_ms;
        Duration::from_micros(500 + self.random(most * 1000))
    }

    /// Lets the next thing happen. Which process it concerned.
    pub(crate) fn step(&mut self) -> Option<usize> {
        let ((at, _), happening) = self.agenda.pop_first()?;
        self.now = at;
        self.events += 1;
        self.store.expire(at);
        self.happen(happening)
    }

    fn happen(&mut self, happening: Happening) -> Option<usize> {
        match happening {
            Happening::Tell { who, life, event } => {
                if self.procs[who].life == life {
                    self.tell(who, event);
                    return Some(who);
                }
            }
            Happening::Arrive { envelope } => {
                let who = self.procs.iter().position(|proc| proc.id == envelope.to.capture)?;
                self.tell(who, Event::Message(envelope));
                return Some(who);
            }
            Happening::Commit { who, life, me, lane, txn, heard } => {
                let (acting, before) = (truth::coordinator(self), self.store.revision());
                let decided = matches!(lane, Lane::Coordinator(_));
                let takes_office = takes_office(&txn);
                self.commit(who, life, lane, &txn, heard);
                if let Some(me) = me.as_ref().filter(|_| takes_office && self.store.revision() > before) {
                    self.truth.takes_office(me);
                }
                if decided && acting != me && self.store.revision() > before {
                    self.truth.writes_out_of_office(me.as_ref(), acting.as_ref());
                }
            }
            Happening::List { who, life } if self.faults.store_is_away => {
                self.at(Duration::from_secs(1), Happening::List { who, life });
            }
            Happening::List { who, life } => self.list(who, life),
            Happening::Grant { who, life, sent_at } => {
                let lease = self.store.grant(self.options.lease, self.now);
                let nonce = self.rng.next_u64();
                self.back(who, life, Event::LeaseGranted { lease, sent_at, nonce });
            }
            Happening::Keep { who, life, lease, key, sent_at } => {
                let there = |key: &Key| self.store.get(key).is_some_and(|entry| entry.lease == Some(lease));
                let kept = key.as_ref().is_none_or(there) && self.store.keep(lease, self.now);
                let event = if kept { Event::LeaseKept { lease, sent_at } } else { Event::LeaseLost(lease) };
                self.back(who, life, event);
            }
            Happening::Revoke { lease } => self.store.revoke(lease),
            Happening::ReadPosition { who, life, effect } => self.read_position(who, life, &effect),
            Happening::Resume { who, life } => self.resume(who, life),
            Happening::Tick => self.tick(),
        }
        None
    }

    /// Brings an answer of the store back.
    fn back(&mut self, who: usize, life: u32, event: Event) {
        let delay = self.delay();
        self.at(delay, Happening::Tell { who, life, event });
    }

    fn commit(&mut self, who: usize, life: u32, lane: Lane, txn: &Txn, heard: bool) {
        let before = self.store.revision();
        let outcome = self.store.txn(txn);
        if self.store.revision() > before {
            let keys: Vec<_> = txn.ops.iter().map(|op| op.key().to_string()).collect();
            let id = self.procs[who].id.clone();
            self.note(|| format!("store: {} by {id} {lane:?}: {}", before + 1, keys.join(", ")));
        }
        if heard {
            self.back(who, life, Event::Written { lane, outcome });
        }
    }

    fn list(&mut self, who: usize, life: u32) {
        if self.procs[who].life != life {
            return;
        }
        let listing = self.store.list("", KeyName::WATCH_END);
        let arrives = self.now + self.delay();
        let proc = &mut self.procs[who];
        proc.watched = Some(listing.revision);
        proc.watch_arrives = proc.watch_arrives.max(arrives);
        let after = proc.watch_arrives.since(self.now);
        self.at(after, Happening::Tell { who, life, event: Event::Loaded(listing) });
    }

    fn read_position(&mut self, who: usize, life: u32, effect: &Effect) {
        let Effect::ReadPosition { changefeed, epoch } = effect else { return };
        let key = KeyName::Position(changefeed.clone()).key();
        let position = self.store.get(&key).map(|entry| (decode(&key, &entry.value).unwrap(), entry.mod_revision));
        let event = Event::PositionRead { changefeed: changefeed.clone(), epoch: *epoch, position };
        self.back(who, life, event);
    }

    fn tick(&mut self) {
        self.at(TICK, Happening::Tick);
        for who in 0..self.procs.len() {
            self.watch(who);
            if self.procs[who].process.is_none() || self.procs[who].paused_until > self.now {
                continue;
            }
            let now_ts = self.source_ts();
            let events = self.procs[who].data.tick(now_ts, &mut self.rng, self.faults.fails);
            let life = self.procs[who].life;
            let id = self.procs[who].id.clone();
            let fenced = self.mutant != Some(Mutant::SinkUnfenced);
            self.truth.worked(&id, &self.procs[who].data, fenced);
            for event in events {
                self.at(Duration::from_micros(10), Happening::Tell { who, life, event: Event::Work(event) });
            }
            if self.procs[who].wakes_at.is_some_and(|at| at <= self.now) {
                self.procs[who].wakes_at = None;
                self.tell(who, Event::Wake);
            }
        }
    }

    /// The source's clock: a commit timestamp a millisecond, never 0.
    pub(crate) fn source_ts(&self) -> u64 {
        1 + u64::try_from(self.now.0.as_millis()).unwrap()
    }

    fn watch(&mut self, who: usize) {
        let Some(seen) = self.procs[who].watched else { return };
        if self.procs[who].process.is_none() || self.faults.store_is_away || self.store.revision() == seen {
            return;
        }
        let life = self.procs[who].life;
        if self.store.revision() < seen {
            // A restored store: the watch cannot go on.
            return self.list(who, life);
        }
        if self.chance(self.faults.watch_breaks) {
            return self.list(who, life);
        }
        match self.store.changes_after(seen, "", KeyName::WATCH_END) {
            Ok(changes) => {
                let arrives = self.now + self.delay();
                let proc = &mut self.procs[who];
                proc.watched = Some(changes.revision);
                proc.watch_arrives = proc.watch_arrives.max(arrives);
                let after = proc.watch_arrives.since(self.now);
                self.at(after, Happening::Tell { who, life, event: Event::Changed(changes) });
            }
            Err(_) => self.list(who, life),
        }
    }

    /// Gives an event to a process, and carries out what it wants.
    pub(crate) fn tell(&mut self, who: usize, event: Event) {
        let now = self.now;
        let proc = &mut self.procs[who];
        if proc.process.is_none() {
            return;
        }
        if proc.paused_until > now || !proc.backlog.is_empty() {
            // What waits is taken in the order of its arrival: a connection keeps that.
            let first = proc.backlog.is_empty();
            proc.backlog.push_back(event);
            let (life, until) = (proc.life, proc.paused_until);
            if first {
                self.at(until.since(now), Happening::Resume { who, life });
            }
            return;
        }
        self.tell_now(who, event);
    }

    /// A process that was paused takes what has waited for it.
    fn resume(&mut self, who: usize, life: u32) {
        let proc = &mut self.procs[who];
        if proc.life != life {
            return;
        }
        if proc.paused_until > self.now {
            let until = proc.paused_until;
            return self.at(until.since(self.now), Happening::Resume { who, life });
        }
        while let Some(event) = self.procs[who].backlog.pop_front() {
            self.tell_now(who, event);
        }
    }

    fn tell_now(&mut self, who: usize, event: Event) {
        let now = self.now;
        let proc = &mut self.procs[who];
        let id = proc.id.clone();
        if let Event::Message(envelope) = &event {
            self.truth.arrives(envelope);
        }
        let proc = &self.procs[who];
        if let Event::Message(envelope) = &event
            && let Some(me) = proc.process.as_ref().and_then(Process::me)
            && self.truth.is_stale(&me, envelope)
        {
            // What was due anyway is done before, so that all that follows is the message's doing.
            let envelope = envelope.clone();
            self.tell_now(who, Event::Wake);
            return self.tell_stale(who, envelope);
        }
        let quiet = matches!(event, Event::Wake | Event::Work(_) | Event::LeaseKept { .. } | Event::Changed(_));
        if !quiet {
            let text = crate::readable::event(&event);
            self.note(|| format!("{id} <- {text}"));
        }
        let started = match &event {
            Event::Message(Envelope {
                body: Body::Command { command: Command::StartMaintainer { changefeed, epoch, .. }, .. },
                ..
            }) => Some((changefeed.clone(), *epoch)),
            _ => None,
        };
        let stopped = match &event {
            Event::Message(Envelope { body: Body::Order { changefeed, order: Order::Stop(stopped), .. }, .. }) => {
                stopped.iter().map(|(span, writer)| (changefeed.clone(), *span, *writer)).collect()
            }
            _ => Vec::new(),
        };
        let proc = &mut self.procs[who];
        let Some(process) = &mut proc.process else { return };
        let clock = Now { monotonic: Instant(now.since(proc.started_at)), wall: UnixMillis(now.0.as_millis() as u64) };
        let effects = process.handle(event, clock);
        let wake_at = process.wake_at();
        proc.wakes_at = wake_at.map(|at| proc.started_at + at.0);
        if wake_at.is_some_and(|at| at <= clock.monotonic) {
            self.truth.spins(&id);
        }
        for effect in effects {
            if let Effect::Work(WorkOrder::StopDispatcher(key)) = &effect
                && stopped
                    .iter()
                    .any(|(of, span, writer)| (of, span) == (&key.changefeed, &key.span) && *writer < key.writer_epoch)
            {
                self.truth.kills_newer(&id, key);
            }
            if let (Effect::ReadPosition { changefeed, epoch }, Some((of, at))) = (&effect, &started)
                && (changefeed, epoch) == (of, at)
            {
                self.truth.starts(changefeed, *epoch);
            }
            self.carry_out(who, effect);
        }
    }

    /// `fenced_command`: a message of a lower generation, or for another life, does nothing.
    fn tell_stale(&mut self, who: usize, envelope: Envelope) {
        let now = self.now;
        let proc = &mut self.procs[who];
        let Some(process) = &mut proc.process else { return };
        let clock = Now { monotonic: Instant(now.since(proc.started_at)), wall: UnixMillis(now.0.as_millis() as u64) };
        let text = crate::readable::event(&Event::Message(envelope.clone()));
        let effects = process.handle(Event::Message(envelope), clock);
        let id = proc.id.clone();
        self.note(|| format!("{id} <- stale {text}"));
        for effect in effects {
            if matches!(effect, Effect::Work(_) | Effect::ReadPosition { .. }) {
                self.truth.obeys(&id, &text);
            }
            self.carry_out(who, effect);
        }
    }

    fn carry_out(&mut self, who: usize, effect: Effect) {
        // It goes nowhere, so it takes no time; and histories are the same whatever is measured in them.
        if let Effect::Measured(measured) = effect {
            return self.take(measured);
        }
        let life = self.procs[who].life;
        let sent_at = Instant(self.now.since(self.procs[who].started_at));
        let delay = self.delay();
        let away = self.faults.store_is_away;
        match effect {
            Effect::GrantLease if away => self.at(delay, Happening::Tell { who, life, event: Event::LeaseNotGranted }),
            Effect::GrantLease => self.at(delay, Happening::Grant { who, life, sent_at }),
            Effect::KeepLease { lease, key } => {
                if !away && !self.chance(self.faults.keep_lost) {
                    self.at(delay, Happening::Keep { who, life, lease, key, sent_at });
                }
            }
            Effect::RevokeLease(lease) => {
                if !away {
                    self.at(delay, Happening::Revoke { lease });
                }
            }
            Effect::Load => self.at(delay, Happening::List { who, life }),
            Effect::Write { lane, txn } => self.write(who, lane, txn, delay),
            Effect::ReadPosition { ref changefeed, epoch } => {
                if let Some((me, stored)) = self.member(who) {
                    let office = self.in_office(who, &me);
                    self.truth.reads_position(&me, (stored, office), changefeed, epoch);
                }
                self.at(delay, Happening::ReadPosition { who, life, effect });
            }
            Effect::Send { envelope, .. } => self.send(envelope),
            Effect::Work(order) => {
                if let WorkOrder::StopTrigger { changefeed, epoch } = &order {
                    self.leaves(changefeed, *epoch);
                }
                let id = self.procs[who].id.clone();
                if order == WorkOrder::StopAll {
                    self.truth.stops_all(&id);
                }
                self.note(|| format!("{id} -> {}", crate::readable::work(&order)));
                if self.outranked(who, &order) {
                    return;
                }
                let now_ts = self.source_ts();
                // What is paused, removed or ended leaves everywhere, without a maintainer that goes first.
                let ended = |key: &DispatcherKey| {
                    let of = (0..TABLES).find(|n| table(*n).id() == key.span);
                    self.tables_change && of.is_some_and(|n| lifetimes(n).iter().any(|(_, end)| *end <= now_ts))
                };
                let withdrawn = matches!(&order, WorkOrder::StopDispatcher(key)
                    if ended(key) || !truth::runs(self, &key.changefeed));
                if let Some((me, stored)) = self.member(who).filter(|_| !withdrawn) {
                    let office = self.in_office(who, &me);
                    self.truth.ordered(&me, (stored, office), &order);
                }
                self.procs[who].data.order(order, now_ts);
            }
            Effect::Answer { id, answer } => self.answered(id, &answer),
            Effect::Measured(_) => {}
            Effect::Log(said) => {
                let id = self.procs[who].id.clone();
                self.note(|| format!("{id} log: {} {:?} {:?}", said.message, said.target, said.detail));
            }
            Effect::Halt(error) => panic!("halt: {error}"),
        }
    }

    /// The sink does not take a writer below one that was there: it fails at once.
    fn outranked(&mut self, who: usize, order: &WorkOrder) -> bool {
        let WorkOrder::StartDispatcher { key, start_ts, .. } = order else { return false };
        let highest = self.truth.highest_writer(&key.changefeed);
        if highest <= key.writer_epoch.changefeed {
            return false;
        }
        let (key, checkpoint_ts) = (key.clone(), *start_ts);
        let (error, outranked_by) = ("a later writer was there".into(), Some(highest));
        let event = Event::Work(WorkEvent::Failed { key, checkpoint_ts, error, fatal: false, outranked_by });
        let life = self.procs[who].life;
        self.at(TICK, Happening::Tell { who, life, event });
        true
    }

    /// A maintainer ends where it is placed: it is on the move.
    fn leaves(&mut self, changefeed: &ChangefeedId, epoch: ChangefeedEpoch) {
        if truth::place(self, changefeed).is_some_and(|place| place.epoch == epoch) && truth::runs(self, changefeed) {
            self.truth.leaves(changefeed, epoch);
        }
    }

    fn take(&mut self, measured: Measurement) {
        if let Measurement::DrainEnded { epoch, .. } = measured {
            *self.ends_counted.entry(epoch).or_default() += 1;
        }
        self.measured.push(measured);
    }

    fn answered(&mut self, id: RequestId, answer: &Result<Answer, Refusal>) {
        let last = truth::last_epoch(self);
        self.truth.answers(answer, last);
        let text = format!("{answer:?}");
        self.note(|| format!("answer {}: {text}", id.0));
        self.answers.insert(id.0, text);
    }

    /// Whether a process is coordinator, by the store or as far as it knows itself.
    fn in_office(&self, who: usize, me: &Incarnation) -> bool {
        let believes = || self.procs[who].process.as_ref().is_some_and(|process| process.snapshot().is_coordinator);
        truth::coordinator(self).as_ref() == Some(me) || believes()
    }

    /// The life that a process is registered in, and its liveness as the store has it.
    pub(crate) fn member(&self, who: usize) -> Option<(Incarnation, Liveness)> {
        let me = self.procs[who].process.as_ref().and_then(Process::me)?;
        let registered = truth::registrations(self).into_iter().find(|r| r.node_epoch == me.node_epoch);
        let stored = registered.map_or(Liveness::Alive, |registration| truth::liveness(self, &registration));
        Some((me, stored))
    }

    fn write(&mut self, who: usize, lane: Lane, txn: Txn, delay: Duration) {
        let life = self.procs[who].life;
        let me = self.procs[who].process.as_ref().and_then(Process::me);
        if self.usurping && lane == Lane::Agent && takes_office(&txn) {
            self.usurping = false;
            let key = KeyName::Capture(self.procs[who].id.clone()).key();
            self.note(|| format!("{key} is deleted while its capture takes office"));
            self.store.txn(&Txn { compares: Vec::new(), ops: vec![Op::Delete(key)] });
        }
        let ends_drain = txn.ops.iter().any(|op| op.key().starts_with("drain/history/"));
        let spite = ends_drain && self.faults.late > 0 && self.chance(400);
        if spite || self.faults.store_is_away || self.chance(self.faults.write_unknown) {
            self.end_in_doubt |= ends_drain;
            // Nobody hears what became of it: it may be lost, may have taken effect, or may do so much later.
            let event = Event::Written { lane: lane.clone(), outcome: TxnOutcome::Unknown };
            self.at(delay * 2, Happening::Tell { who, life, event });
            let later = Duration::from_millis(self.random(6000));
            match self.random(3) {
                0 => {}
                1 => self.at(delay, Happening::Commit { who, life, me, lane, txn, heard: false }),
                _ => self.at(delay * 3 + later, Happening::Commit { who, life, me, lane, txn, heard: false }),
            }
            return;
        }
        self.at(delay, Happening::Commit { who, life, me, lane, txn, heard: true });
    }

    fn send(&mut self, envelope: Envelope) {
        self.truth.sends(&envelope);
        if self.faults.cut(&envelope.from.capture, &envelope.to.capture) || self.chance(self.faults.loss) {
            return;
        }
        if self.faults.late > 0 && tells_failure(&envelope) && self.chance(700) {
            // Nobody asked for it, so nobody misses it.
            return;
        }
        if self.chance(self.faults.doubled) {
            let later = Duration::from_millis(self.random(5000));
            self.at(later, Happening::Arrive { envelope: envelope.clone() });
        }
        let starts = matches!(
            &envelope.body,
            Body::Command { command: Command::StartMaintainer { .. }, .. }
                | Body::Order { order: Order::Create { .. }, .. }
        );
        if starts && self.faults.late > 0 && self.chance(500) {
            // A second copy that arrives when what it starts may have come and gone.
            let later = Duration::from_millis(self.random(40_000));
            self.at(later, Happening::Arrive { envelope: envelope.clone() });
        }
        // Beats and reports are many, and repeated anyway: what acts is worth more trouble.
        let many = matches!(
            &envelope.body,
            Body::Command { command: Command::Heartbeat(_), .. } | Body::Report { .. } | Body::Status { .. }
        );
        let late = if many { self.faults.late } else { self.faults.late * 15 };
        if late > 0 && self.chance(late) {
            // Long after it mattered: leases have run out, and somebody else is in office.
            let least = if self.chance(500) { 200 } else { 4000 };
            let later = Duration::from_millis(least + self.random(least * 5));
            self.at(later, Happening::Arrive { envelope: envelope.clone() });
            // Either that is a second copy, or the first was on its way all that time.
            if self.chance(500) {
                return;
            }
        }
        let delay = self.delay();
        self.at(delay, Happening::Arrive { envelope });
    }

    /// Asks a capture, as a client would. The number under which the answer will be found.
    pub(crate) fn ask(&mut self, who: usize, request: Request) -> u64 {
        self.next_request += 1;
        let id = self.next_request;
        self.tell(who, Event::Request { id: RequestId(id), request });
        id
    }
}

/// Whether a message tells that a dispatcher has failed.
fn tells_failure(envelope: &Envelope) -> bool {
    let Body::Status { status: Status::Progress(news), .. } = &envelope.body else { return false };
    news.iter().any(|news| matches!(news.what, DispatcherFate::Failed { .. }))
}

/// Whether a transaction makes its writer the acting coordinator.
fn takes_office(txn: &Txn) -> bool {
    txn.ops.iter().any(|op| match op {
        Op::Put { key, value, .. } if key.starts_with(KeyName::OWNERS) => {
            decode::<Candidacy>(key, value).is_ok_and(|candidacy| candidacy.acting)
        }
        _ => false,
    })
}
