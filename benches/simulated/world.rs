//! Captures, store, network and data path in virtual time, all good and each as slow as it is told to be.
//!
//! What a process does costs no virtual time. What it costs of this machine's is measured for each call of it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use capturedrain_core::{
    model::{
        Answer, CaptureId, ChangefeedConfig, ChangefeedEpoch, ChangefeedId, CommitTs, Envelope, Incarnation, Instant,
        KeyName, Now, Options, Refusal, Request, RequestId, Snapshot, Span, UnixMillis, decode,
    },
    process::{Effect, Event, Process},
    store::{Model, Revision},
    work::{WorkEvent, WorkOrder},
};

use crate::{
    identity::identity,
    size::{Cost, cpu},
};

/// How much of what comes together a process takes at once, as its driver does.
const STEP_MAX_WEIGHT: usize = 1024;
/// Where every source is.
pub(crate) const RESOLVED_TS: CommitTs = 5;

/// How slow everything is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// From an order for a move, a stop or a start, to its acknowledgement, messages included.
    pub(crate) order: Duration,
    /// From a message to its answer.
    pub(crate) round_trip: Duration,
    /// From a write until all have heard of it.
    pub(crate) write: Duration,
}

impl Pace {
    /// With orders that take so long. Messages are part of that, so they take no time when it is 0.
    pub(crate) fn of_orders(order: Duration) -> Self {
        let round_trip = Duration::from_millis(1).min(order / 4);
        Self { order, round_trip, write: Duration::from_millis(5) }
    }

    /// What is left of an order for the data path, or for a read of the store, when its messages have taken their part.
    fn work(self) -> Duration {
        self.order.saturating_sub(self.round_trip)
    }
}

#[derive(Debug)]
enum Happening {
    Tell(Event),
    Work(WorkEvent),
    Wake,
    Commit(Effect),
    List,
    Read(Effect),
    Keep(Effect),
}

#[derive(Debug)]
struct Proc {
    id: CaptureId,
    process: Process,
    watched: Option<Revision>,
}

/// Everything.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) cost: Cost,
    pace: Pace,
    options: Options,
    agenda: BTreeMap<(Instant, u64), (usize, Happening)>,
    sequence: u64,
    procs: Vec<Proc>,
    store: Model,
    /// The tables of each changefeed, told by its trigger.
    tables: BTreeMap<ChangefeedId, Vec<Span>>,
    answers: BTreeMap<u64, Result<Answer, Refusal>>,
    asked: u64,
}

/// How much of a step an event takes that is taken together with others.
fn weight(event: &Event) -> Option<usize> {
    match event {
        Event::Message(envelope) => Some(envelope.weight()),
        Event::Work(_) => Some(1),
        _ => None,
    }
}

/// A table with a row range of its own.
pub(crate) fn table(n: usize) -> Span {
    let name = format!("t{n:07}");
    let (start, end) = (format!("/{name}/").into_bytes(), format!("/{name}0").into_bytes());
    Span { table: name.into(), start: start.into(), end: end.into() }
}

impl World {
    pub(crate) fn new(pace: Pace, options: Options) -> Self {
        Self {
            now: Instant::default(),
            cost: Cost::default(),
            pace,
            options,
            agenda: BTreeMap::new(),
            sequence: 0,
            procs: Vec::new(),
            store: Model::new(),
            tables: BTreeMap::new(),
            answers: BTreeMap::new(),
            asked: 0,
        }
    }

    /// A capture starts.
    pub(crate) fn join(&mut self) {
        let who = self.procs.len();
        let id = CaptureId::new(format!("c{who}")).unwrap();
        let identity = identity(&id);
        self.procs.push(Proc { id, process: Process::new(identity, self.options.clone()), watched: None });
        self.at(Duration::ZERO, who, Happening::Tell(Event::Wake));
    }

    fn at(&mut self, after: Duration, who: usize, happening: Happening) {
        self.sequence += 1;
        self.agenda.insert((self.now + after, self.sequence), (who, happening));
    }

    /// Lets the next thing happen.
    pub(crate) fn step(&mut self) {
        let Some(((at, _), (who, happening))) = self.agenda.pop_first() else { return };
        self.now = at;
        match happening {
            Happening::Tell(Event::Message(envelope)) => {
                let events = self.together(who, Event::Message(envelope));
                self.tell(who, events);
            }
            Happening::Work(event) => {
                let events = self.together(who, Event::Work(event));
                self.tell(who, events);
            }
            Happening::Tell(event) => self.tell(who, vec![event]),
            Happening::Wake => {
                if self.procs[who].process.wake_at().is_some_and(|wake| wake <= at) {
                    self.tell(who, vec![Event::Wake]);
                }
            }
            Happening::Commit(Effect::Write { lane, txn }) => {
                let outcome = self.store.txn(&txn);
                self.at(self.pace.write / 2, who, Happening::Tell(Event::Written { lane, outcome }));
                self.watch();
            }
            Happening::List => {
                let listing = self.store.list("", KeyName::WATCH_END);
                self.procs[who].watched = Some(listing.revision);
                self.at(self.pace.round_trip / 2, who, Happening::Tell(Event::Loaded(listing)));
            }
            Happening::Read(Effect::ReadPosition { changefeed, epoch }) => {
                let key = KeyName::Position(changefeed.clone()).key();
                let entry = self.store.get(&key);
                let position = entry.map(|entry| (decode(&key, &entry.value).unwrap(), entry.mod_revision));
                self.tell(who, vec![Event::PositionRead { changefeed, epoch, position }]);
            }
            Happening::Keep(Effect::KeepLease { lease, .. }) => {
                assert!(self.store.keep(lease, at), "nothing takes so long that a lease runs out");
                self.tell(who, vec![Event::LeaseKept { lease, sent_at: at }]);
            }
            Happening::Keep(Effect::GrantLease) => {
                let lease = self.store.grant(self.options.lease, at);
                let nonce = 1 + who as u64;
                self.tell(who, vec![Event::LeaseGranted { lease, sent_at: at, nonce }]);
            }
            other => panic!("not expected: {other:?}"),
        }
    }

    /// What else comes to a process at this moment, as its driver takes it together.
    fn together(&mut self, who: usize, first: Event) -> Vec<Event> {
        let mut room = weight(&first).map_or(0, |weight| STEP_MAX_WEIGHT.saturating_sub(weight));
        let work = matches!(first, Event::Work(_));
        let mut events = vec![first];
        let at_once: Vec<_> = self.agenda.range((self.now, 0)..=(self.now, u64::MAX)).map(|(key, _)| *key).collect();
        for key in at_once {
            let same = match self.agenda.get(&key) {
                Some((of, Happening::Work(_))) => *of == who && work,
                Some((of, Happening::Tell(event @ Event::Message(_)))) => {
                    *of == who && !work && weight(event).is_some_and(|weight| weight <= room)
                }
                _ => false,
            };
            if !same || room == 0 {
                continue;
            }
            match self.agenda.remove(&key) {
                Some((_, Happening::Work(event))) => events.push(Event::Work(event)),
                Some((_, Happening::Tell(event))) => events.push(event),
                _ => {}
            }
            room = room.saturating_sub(events.last().and_then(weight).unwrap_or(1));
        }
        events
    }

    fn watch(&mut self) {
        for who in 0..self.procs.len() {
            let Some(seen) = self.procs[who].watched else { continue };
            let changes = self.store.changes_after(seen, "", KeyName::WATCH_END).unwrap();
            self.procs[who].watched = Some(changes.revision);
            if !changes.changes.is_empty() {
                self.at(self.pace.write / 2, who, Happening::Tell(Event::Changed(changes)));
            }
        }
    }

    /// Gives events to a process, and carries out what it wants.
    fn tell(&mut self, who: usize, events: Vec<Event>) {
        let wall = UnixMillis(u64::try_from(self.now.0.as_millis()).unwrap());
        let (clock, count) = (Now { monotonic: self.now, wall }, u32::try_from(events.len()).unwrap());
        let process = &mut self.procs[who].process;
        let began = cpu();
        let effects = process.handle_all(events, clock);
        let took = cpu().saturating_sub(began);
        self.cost.events += count;
        self.cost.spent += took;
        self.cost.longest = self.cost.longest.max(took);
        let wake_at = process.wake_at();
        for effect in effects {
            self.carry_out(who, effect);
        }
        if let Some(wake_at) = wake_at {
            self.at(wake_at.since(self.now), who, Happening::Wake);
        }
    }

    fn carry_out(&mut self, who: usize, effect: Effect) {
        let Pace { round_trip, write, .. } = self.pace;
        match effect {
            Effect::GrantLease | Effect::KeepLease { .. } => self.at(round_trip, who, Happening::Keep(effect)),
            Effect::Load => self.at(round_trip / 2, who, Happening::List),
            Effect::Write { .. } => self.at(write / 2, who, Happening::Commit(effect)),
            Effect::ReadPosition { .. } => self.at(self.pace.work(), who, Happening::Read(effect)),
            Effect::Send { to, envelope } => {
                let whom = self.procs.iter().position(|proc| proc.id.as_str() == &*to).unwrap();
                self.at(round_trip / 2, whom, Happening::Tell(Event::Message(envelope)));
            }
            Effect::Work(order) => self.work(who, order),
            Effect::Answer { id, answer } => drop(self.answers.insert(id.0, answer)),
            Effect::Log(_) | Effect::Measured(_) => {}
            Effect::RevokeLease(_) | Effect::Halt(_) => panic!("{effect:?}"),
        }
    }

    fn work(&mut self, who: usize, order: WorkOrder) {
        let work = self.pace.work();
        let (after, event) = match order {
            WorkOrder::StartDispatcher { key, start_ts, .. } => {
                (work, WorkEvent::Checkpoint { key, checkpoint_ts: start_ts.max(RESOLVED_TS), split_at: None })
            }
            WorkOrder::StopDispatcher(key) => (work, WorkEvent::Stopped { key, checkpoint_ts: RESOLVED_TS }),
            WorkOrder::StopTrigger { changefeed, epoch } => (work, WorkEvent::TriggerStopped { changefeed, epoch }),
            WorkOrder::StartTrigger { changefeed, epoch, .. } => {
                let tables = self.tables.get(&changefeed).cloned().unwrap_or_default();
                let born = tables.into_iter().map(|table| (table, 1)).collect();
                let (resolved_ts, resolved_at_ms, ended) = (RESOLVED_TS, 5, Vec::new());
                (Duration::ZERO, WorkEvent::Tables { changefeed, epoch, born, ended, resolved_ts, resolved_at_ms })
            }
            WorkOrder::StopAll => (Duration::ZERO, WorkEvent::AllStopped),
        };
        self.at(after, who, Happening::Work(event));
    }

    /// Runs until something holds.
    pub(crate) fn run_until(&mut self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let limit = self.now + Duration::from_hours(24);
        while !holds(self) {
            assert!(self.now < limit && !self.agenda.is_empty(), "no end of waiting for {what}");
            self.step();
        }
    }

    pub(crate) fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        self.run_until("the time to pass", |world| world.now >= until);
    }

    /// Asks the first capture, which coordinates.
    pub(crate) fn ask(&mut self, request: Request) -> u64 {
        self.asked += 1;
        let id = RequestId(self.asked);
        self.tell(0, vec![Event::Request { id, request }]);
        self.asked
    }

    pub(crate) fn answer(&self, asked: u64) -> Option<&Result<Answer, Refusal>> {
        self.answers.get(&asked)
    }

    /// What the coordinator shows.
    pub(crate) fn snapshot(&self) -> Snapshot {
        self.procs[0].process.snapshot()
    }

    pub(crate) fn capture(&self, who: usize) -> &CaptureId {
        &self.procs[who].id
    }

    pub(crate) fn life(&self, who: usize) -> Option<Incarnation> {
        self.procs[who].process.me()
    }

    /// How many drains have ended, as the store has it.
    pub(crate) fn drains_ended(&self) -> usize {
        self.store.list("drain/history/", "drain/history0").entries.len()
    }

    /// Creates a changefeed with these tables.
    pub(crate) fn create(&mut self, id: &ChangefeedId, tables: Vec<Span>) {
        self.tables.insert(id.clone(), tables);
        let asked = self.ask(Request::CreateChangefeed { id: id.clone(), config: config() });
        self.run_until("a changefeed to be created", |world| world.answer(asked).is_some());
        assert_eq!(self.answer(asked), Some(&Ok(Answer::Done)));
    }

    /// A message arrives that no process has sent.
    pub(crate) fn deliver(&mut self, who: usize, envelope: Envelope) {
        self.tell(who, vec![Event::Message(envelope)]);
    }
}

pub(crate) fn config() -> Arc<ChangefeedConfig> {
    let unknown = BTreeMap::new();
    Arc::new(ChangefeedConfig { source: "s".into(), sink: "t".into(), start_ts: 0, span_max_keys: 0, unknown })
}

/// The placement of a maintainer that is no more.
pub(crate) const FORMER: ChangefeedEpoch = ChangefeedEpoch(1);
