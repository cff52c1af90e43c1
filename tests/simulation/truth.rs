//! What is really the case, seen from outside, and the invariants that it is held against.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use capturedrain_core::{
    model::{
        Answer, Body, Candidacy, CaptureId, ChangefeedEpoch, ChangefeedId, ChangefeedInfo, ChangefeedState, Command,
        CommitTs, DrainEnd, DrainEpoch, DrainRecord, DrainState, Envelope, Heartbeat, Incarnation, Instant, KeyName,
        LastEpoch, Liveness, LivenessMark, MaintainerReport, NodeEpoch, Order, Placement, Position, Refusal,
        Registration, Span, SpanId, Stamp, Term, WriterEpoch, decode,
    },
    process::Process,
    work::{DispatcherKey, WorkOrder},
};

use crate::{
    datapath::{DataPath, Dispatcher, TABLES, covers, halves, lifetimes},
    world::World,
};

/// A broken invariant, by the name that the design gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) invariant: &'static str,
    pub(crate) what: String,
}

fn broken(invariant: &'static str, what: impl Into<String>) -> Violation {
    Violation { invariant, what: what.into() }
}

/// The clocks of the simulation tick so often; a beat may be late by a little more.
const SLACK: Duration = Duration::from_millis(120);

/// What a writer wrote: from, to.
type Writers = BTreeMap<WriterEpoch, (CommitTs, CommitTs)>;

/// A capture's liveness as the store has it, and whether it acts as coordinator.
pub(crate) type Stored = (Liveness, bool);

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    sink: BTreeMap<(ChangefeedId, SpanId), Writers>,
    /// Every span that ever had a writer.
    spans: BTreeMap<SpanId, Span>,
    positions: BTreeMap<ChangefeedId, (u64, CommitTs)>,
    last_epoch: DrainEpoch,
    liveness: BTreeMap<(CaptureId, NodeEpoch), Liveness>,
    /// The highest drain state that reached each process.
    heard: BTreeMap<Incarnation, DrainState>,
    /// Maintainers that were ever started, where.
    started: BTreeMap<(ChangefeedId, ChangefeedEpoch), Incarnation>,
    /// Starts that had an effect.
    starts: BTreeSet<(ChangefeedId, ChangefeedEpoch)>,
    /// Maintainers that ended where they were placed: the last one of each changefeed.
    leaving: BTreeMap<ChangefeedId, ChangefeedEpoch>,
    /// Maintainers that ever began to plan.
    triggered: BTreeSet<(ChangefeedId, ChangefeedEpoch)>,
    /// Captures whose hook has the proof.
    proven: BTreeSet<CaptureId>,
    /// When each coordinator last told each capture.
    told: BTreeMap<(Incarnation, Incarnation), Instant>,
    /// Since when each coordinator has known of each capture.
    known: BTreeMap<(Incarnation, Incarnation), Instant>,
    triggers: BTreeMap<CaptureId, BTreeSet<(ChangefeedId, ChangefeedEpoch)>>,
    /// The highest coordinator, and the highest maintainer of each changefeed, that reached each life.
    terms: BTreeMap<Incarnation, Term>,
    maintainers: BTreeMap<(Incarnation, ChangefeedId), ChangefeedEpoch>,
    /// The highest coordinator that each life has answered.
    answered: BTreeMap<Incarnation, Term>,
    /// What each life last said that it has heard.
    echoes: BTreeMap<Incarnation, Stamp>,
    /// Where each maintainer last said that its dispatchers are.
    spread: BTreeMap<(ChangefeedId, ChangefeedEpoch), Option<BTreeMap<CaptureId, u64>>>,
    violations: Vec<Violation>,
    checked: Option<u64>,
    now: Instant,
}

impl Truth {
    pub(crate) fn died(&mut self, id: &CaptureId) {
        self.heard.retain(|who, _| who.capture != *id);
        self.triggers.remove(id);
        self.proven.remove(id);
    }

    pub(crate) fn sends(&mut self, envelope: &Envelope) {
        if let Body::Command { command: Command::Heartbeat(beat), .. } = &envelope.body {
            self.told.insert((envelope.from.clone(), envelope.to.clone()), self.now);
            // A coordinator hears what it tells, and that does not pass the network.
            self.hears(&envelope.from, &beat.state);
            self.check_gate(envelope, beat);
        }
        if let Body::Order { order: Order::Create { .. }, .. } = &envelope.body {
            self.check_destination(envelope);
        }
        if let Body::Report { term, report } = &envelope.body {
            let highest = self.answered.entry(envelope.from.clone()).or_default();
            if *term < *highest {
                let what = format!("{} answers term {term} after {highest}", envelope.from);
                self.violations.push(broken("fenced_command", what));
            }
            *highest = (*highest).max(*term);
            let before = self.echoes.insert(envelope.from.clone(), report.echo).unwrap_or_default();
            if report.echo < before {
                let what = format!("{} goes back from {before:?} to {:?}", envelope.from, report.echo);
                self.violations.push(broken("fenced_command", what));
            }
            self.check_triggers(&envelope.from, &report.maintainers);
            for said in &report.maintainers {
                self.spread.insert((said.changefeed.clone(), said.epoch), said.dispatchers.clone());
            }
        }
    }

    /// `trigger_with_maintainer`: a table trigger that runs has its maintainer beside it.
    fn check_triggers(&mut self, who: &Incarnation, maintainers: &[MaintainerReport]) {
        for (changefeed, epoch) in self.triggers.get(&who.capture).into_iter().flatten() {
            if !maintainers.iter().any(|m| m.changefeed == *changefeed && m.epoch == *epoch) {
                let what = format!("{who} runs the table trigger of {changefeed} epoch {epoch} without its maintainer");
                self.violations.push(broken("trigger_with_maintainer", what));
            }
        }
    }

    /// `no_new_work_on_target`: who may get work has echoed the very state that says so.
    fn check_gate(&mut self, envelope: &Envelope, beat: &Heartbeat) {
        for who in beat.destinations.iter().filter(|who| **who != envelope.from) {
            let alive = beat.state.liveness(who) == Some(Liveness::Alive);
            if !alive || self.echoes.get(who).is_none_or(|echo| *echo < beat.state.stamp) {
                let what = format!("{who} may get work without having echoed {:?}", beat.state.stamp);
                self.violations.push(broken("no_new_work_on_target", what));
            }
        }
    }

    /// `no_new_work_on_target`: who has echoed a state orders nothing onto what that seals.
    fn check_destination(&mut self, envelope: &Envelope) {
        let heard = self.heard.get(&envelope.from);
        let echoed = heard.filter(|state| self.echoes.get(&envelope.from) == Some(&state.stamp));
        if echoed.is_some_and(|state| state.seals(&envelope.to)) {
            let what = format!("{} orders work onto {}", envelope.from, envelope.to);
            self.violations.push(broken("no_new_work_on_target", what));
        }
    }

    /// Whether a message has no authority over this life any more; if it has, it is remembered.
    pub(crate) fn is_stale(&mut self, me: &Incarnation, envelope: &Envelope) -> bool {
        if envelope.to != *me {
            return true;
        }
        match &envelope.body {
            Body::Command { term, .. } => {
                let highest = self.terms.entry(me.clone()).or_default();
                let stale = *term < *highest;
                *highest = (*highest).max(*term);
                stale
            }
            Body::Order { changefeed, epoch, .. } => {
                let highest = self.maintainers.entry((me.clone(), changefeed.clone())).or_default();
                let stale = *epoch < *highest;
                *highest = (*highest).max(*epoch);
                stale
            }
            Body::Report { .. } | Body::Status { .. } => false,
        }
    }

    /// A maintainer ended where it was placed.
    pub(crate) fn leaves(&mut self, changefeed: &ChangefeedId, epoch: ChangefeedEpoch) {
        self.leaving.insert(changefeed.clone(), epoch);
    }

    /// A message without authority had an effect.
    pub(crate) fn obeys(&mut self, id: &CaptureId, message: &str) {
        self.violations.push(broken("fenced_command", format!("{id} obeys {message}")));
    }

    /// A maintainer is started once for each placement.
    pub(crate) fn starts(&mut self, changefeed: &ChangefeedId, epoch: ChangefeedEpoch) {
        if !self.starts.insert((changefeed.clone(), epoch)) {
            let what = format!("maintainer {changefeed} epoch {epoch} is started a second time");
            self.violations.push(broken("one_owner", what));
        }
    }

    /// Whoever has done all that is due waits for the next event, or for a later time.
    pub(crate) fn spins(&mut self, id: &CaptureId) {
        self.violations.push(broken("at_rest", format!("{id} wants to be woken at a time that has passed")));
    }

    /// A stop of an older writer ends a newer one.
    pub(crate) fn kills_newer(&mut self, id: &CaptureId, key: &DispatcherKey) {
        self.violations.push(broken("fenced_command", format!("an older stop ends {key:?} on {id}")));
    }

    pub(crate) fn writes_out_of_office(&mut self, me: Option<&Incarnation>, acting: Option<&Incarnation>) {
        let what = format!("a write of {me:?} takes effect, while {acting:?} is in office");
        self.violations.push(broken("fenced_command", what));
    }

    /// A message arrives; whether the receiver takes it is for the receiver to decide.
    pub(crate) fn arrives(&mut self, envelope: &Envelope) {
        if let Body::Command { command: Command::Heartbeat(beat), .. } = &envelope.body {
            self.hears(&envelope.to, &beat.state);
        }
    }

    fn hears(&mut self, who: &Incarnation, state: &DrainState) {
        let heard = self.heard.entry(who.clone()).or_default();
        if heard.stamp <= state.stamp {
            heard.clone_from(state);
        }
    }

    /// A hook got the proof.
    pub(crate) fn proved(&mut self, me: &Incarnation) {
        // Its registration may have been ended a moment ago: what counts is how it stood until then.
        let stood = self.liveness.get(&(me.capture.clone(), me.node_epoch));
        if stood != Some(&Liveness::Stopping) {
            let what = format!("the hook of {me} has the proof, and its liveness is {stood:?}");
            self.violations.push(broken("proof_of_completion", what));
        }
        self.proven.insert(me.capture.clone());
    }

    /// A hook heard that its capture is not registered and never will be.
    pub(crate) fn renounced(&mut self, id: &CaptureId) {
        self.proven.insert(id.clone());
    }

    pub(crate) fn ordered(&mut self, me: &Incarnation, stored: Stored, order: &WorkOrder) {
        let id = &me.capture;
        match order {
            WorkOrder::StartDispatcher { key, span, start_ts, .. } => {
                self.spans.entry(key.span).or_insert_with(|| span.clone());
                self.check_start(me, stored);
                let writers = self.sink.entry((key.changefeed.clone(), key.span)).or_default();
                if writers.insert(key.writer_epoch, (*start_ts, *start_ts)).is_some() {
                    let what = format!("writer {} of {} started twice", key.writer_epoch, key.changefeed);
                    self.violations.push(broken("one_owner", what));
                }
            }
            WorkOrder::StartTrigger { changefeed, epoch, .. } => {
                if !self.triggered.insert((changefeed.clone(), *epoch)) {
                    let what = format!("maintainer {changefeed} epoch {epoch} began to plan twice");
                    self.violations.push(broken("one_owner", what));
                }
                self.triggers.entry(id.clone()).or_default().insert((changefeed.clone(), *epoch));
            }
            WorkOrder::StopTrigger { changefeed, epoch } => {
                self.triggers.entry(id.clone()).or_default().remove(&(changefeed.clone(), *epoch));
            }
            WorkOrder::StopDispatcher(key) if !stored.1 => {
                self.check_stop(me, &key.changefeed, key.writer_epoch.changefeed);
            }
            WorkOrder::StopDispatcher(_) | WorkOrder::StopAll => {}
        }
    }

    /// All work of a capture was told to end: its registration is over.
    pub(crate) fn stops_all(&mut self, id: &CaptureId) {
        self.triggers.remove(id);
    }

    /// The highest placement that ever wrote a changefeed's sink.
    pub(crate) fn highest_writer(&self, changefeed: &ChangefeedId) -> ChangefeedEpoch {
        let of = self.sink.iter().filter(|((id, _), _)| id == changefeed);
        of.filter_map(|(_, writers)| writers.keys().next_back())
            .map(|writer| writer.changefeed)
            .max()
            .unwrap_or_default()
    }

    /// A maintainer reads its position, which is the first thing that it does.
    pub(crate) fn reads_position(
        &mut self,
        me: &Incarnation,
        stored: Stored,
        changefeed: &ChangefeedId,
        epoch: ChangefeedEpoch,
    ) {
        match self.started.insert((changefeed.clone(), epoch), me.clone()) {
            None => self.check_start(me, stored),
            Some(before) if before != *me => {
                let what = format!("maintainer {changefeed} epoch {epoch} started twice");
                self.violations.push(broken("one_owner", what));
            }
            Some(_) => {}
        }
    }

    /// A capture takes office, so it is `Alive`. From now on it tells itself, which does not pass the network.
    pub(crate) fn takes_office(&mut self, me: &Incarnation) {
        self.heard.remove(me);
    }

    /// `sealed_target` and `proof_is_final`: no work starts on a capture that has heard that it may not.
    fn check_start(&mut self, me: &Incarnation, stored: Stored) {
        let id = &me.capture;
        let (stored, in_office) = stored;
        if stored == Liveness::Stopping {
            self.violations.push(broken("proof_of_completion", format!("work starts on {id}, which is stopping")));
        }
        if self.proven.contains(id) {
            self.violations.push(broken("proof_is_final", format!("work starts on {id} after its hook had the proof")));
        }
        // What a coordinator tells itself does not pass the network: it has heard that it is `Alive`.
        let Some(state) = self.heard.get(me).filter(|_| !in_office) else { return };
        if state.seals(me) {
            self.violations.push(broken("sealed_target", format!("work starts on {id}, which has heard of its drain")));
        }
    }

    /// `maintainer_first`: no dispatcher leaves a target by order of a maintainer that still is there.
    fn check_stop(&mut self, me: &Incarnation, changefeed: &ChangefeedId, epoch: ChangefeedEpoch) {
        let id = &me.capture;
        let is_target = |state: &DrainState| state.drain.as_ref().is_some_and(|drain| drain.target == *me);
        let sealed = self.heard.get(me).is_some_and(is_target);
        let here = self.triggers.get(id).is_some_and(|triggers| triggers.contains(&(changefeed.clone(), epoch)));
        if sealed && here {
            let what = format!("a dispatcher of {changefeed} leaves {id} before its maintainer");
            self.violations.push(broken("maintainer_first", what));
        }
    }

    pub(crate) fn worked(&mut self, id: &CaptureId, data: &DataPath, fenced: bool) {
        for (key, dispatcher) in &data.dispatchers {
            let writers = self.sink.entry((key.changefeed.clone(), key.span)).or_default();
            let later = writers.range(key.writer_epoch..).skip(1).map(|(_, (start, _))| *start).min();
            let written = writers.entry(key.writer_epoch).or_insert((dispatcher.start_ts, dispatcher.start_ts));
            let adds = written.1 < dispatcher.written_ts;
            written.1 = written.1.max(dispatcher.written_ts);
            // What a replaced writer adds, readers leave out: that is the fence.
            if adds && !fenced && later.is_some_and(|start| start < dispatcher.written_ts) {
                let what = format!("{id} writes as {} to {}, and was replaced", key.writer_epoch, key.changefeed);
                self.violations.push(broken("one_owner", what));
            }
        }
    }

    /// `answered_is_persisted`: a drain that somebody was told of stands in the store.
    pub(crate) fn answers(&mut self, answer: &Result<Answer, Refusal>, last: DrainEpoch) {
        if let Ok(Answer::Draining { epoch, .. }) = answer
            && *epoch > last
        {
            let what = format!("a caller was told of epoch {epoch}, the store knows of {last}");
            self.violations.push(broken("answered_is_persisted", what));
        }
    }

    /// How far a span is in the sink without a gap, as a reader sees it: rows of an older writer above the start of a
    /// later one do not count.
    fn covered(&self, changefeed: &ChangefeedId, key: &[u8], lifetimes: &[(CommitTs, CommitTs)]) -> CommitTs {
        let mut writers: Vec<(WriterEpoch, CommitTs, CommitTs)> = Vec::new();
        for (id, _) in self.spans.iter().filter(|(_, span)| covers(span, key)) {
            let of = self.sink.get(&(changefeed.clone(), *id)).into_iter().flatten();
            writers.extend(of.map(|(epoch, (start, written))| (*epoch, *start, *written)));
        }
        writers.sort_unstable();
        let mut reached = 0;
        for (birth, end) in lifetimes {
            // Nothing happens between an end and the next birth.
            reached = reached.max(birth.saturating_sub(1));
            for (n, (_, start, written)) in writers.iter().enumerate() {
                let fence = writers[n + 1..].iter().map(|(_, start, _)| *start).min().unwrap_or(CommitTs::MAX);
                if *start <= reached {
                    reached = reached.max((*written).min(fence));
                }
            }
            if reached < *end {
                return reached;
            }
        }
        CommitTs::MAX
    }
}

fn read<T: serde::de::DeserializeOwned>(world: &World, name: &KeyName) -> Option<T> {
    let key = name.key();
    let entry = world.store.get(&key)?;
    Some(decode(&key, &entry.value).expect("a value of this build"))
}

pub(crate) fn registrations(world: &World) -> Vec<Registration> {
    let listing = world.store.list("capture/", "capture0");
    listing.entries.iter().map(|entry| decode(&entry.key, &entry.value).unwrap()).collect()
}

pub(crate) fn liveness(world: &World, registration: &Registration) -> Liveness {
    let mark: Option<LivenessMark> = read(world, &KeyName::Liveness(registration.id.clone()));
    mark.filter(|mark| mark.node_epoch == registration.node_epoch).map_or(Liveness::Alive, |mark| mark.liveness)
}

pub(crate) fn record(world: &World) -> Option<DrainRecord> {
    read(world, &KeyName::DrainRecord)
}

/// Whether a changefeed shall run.
pub(crate) fn runs(world: &World, changefeed: &ChangefeedId) -> bool {
    let info: Option<ChangefeedInfo> = read(world, &KeyName::ChangefeedInfo(changefeed.clone()));
    info.is_some_and(|info| info.state == ChangefeedState::Running)
}

/// The capture that acts as coordinator.
pub(crate) fn coordinator(world: &World) -> Option<Incarnation> {
    let listing = world.store.list("owner/", "owner0");
    let first = listing.entries.iter().min_by_key(|entry| entry.create_revision)?;
    let candidacy: Candidacy = decode(&first.key, &first.value).unwrap();
    match KeyName::parse(&first.key) {
        Some(KeyName::Owner(who)) if candidacy.acting => Some(who),
        _ => None,
    }
}

/// Holds the world against every invariant that can be read off it.
pub(crate) fn check(world: &mut World) -> Option<Violation> {
    world.truth.now = world.now;
    if let Some(violation) = world.truth.violations.first() {
        return Some(violation.clone());
    }
    if world.events.is_multiple_of(32)
        && let Some(violation) = batch_bound(world).or_else(|| told_in_time(world))
    {
        return Some(violation);
    }
    // The rest is read off the store, and changes with it only.
    if world.truth.checked == Some(world.store.revision()) {
        return None;
    }
    world.truth.checked = Some(world.store.revision());
    // What a coordinator tells itself does not pass the network, and is later than all that it had heard before.
    if let Some(office) = coordinator(world) {
        world.truth.heard.remove(&office);
    }
    single_target(world)
        .or_else(|| liveness_forward(world))
        .or_else(|| no_draining_coordinator(world))
        .or_else(|| no_draining_without_record(world))
        .or_else(|| proof_of_completion(world))
        .or_else(|| checkpoint_forward(world))
        .or_else(|| checkpoint_covers_plan(world))
}

fn single_target(world: &mut World) -> Option<Violation> {
    let last = last_epoch(world);
    if last < world.truth.last_epoch {
        return Some(broken("single_target", format!("drain epoch goes back to {last}")));
    }
    world.truth.last_epoch = last;
    if world.truth.heard.values().any(|state: &DrainState| state.last_epoch > last) {
        return Some(broken("single_target", "a capture knows a higher epoch than the store"));
    }
    let record = record(world)?;
    let ended: Option<DrainEnd> = read(world, &KeyName::DrainHistory(record.epoch));
    let twice = ended.is_some() || record.epoch != last;
    twice.then(|| broken("single_target", format!("epoch {} is used twice", record.epoch)))
}

fn liveness_forward(world: &mut World) -> Option<Violation> {
    let known = world.truth.liveness.clone();
    for registration in registrations(world) {
        let now = liveness(world, &registration);
        let key = (registration.id.clone(), registration.node_epoch);
        let before = world.truth.liveness.insert(key, now).unwrap_or(Liveness::Alive);
        let forward = now >= before || now == Liveness::Alive;
        let skipped = before == Liveness::Alive && now == Liveness::Stopping;
        let ended = now == Liveness::Alive && before != Liveness::Alive;
        // By cancel; or by the exception, when nobody else was `Alive`.
        let alone = || {
            !registrations(world).iter().any(|other| {
                let key = (other.id.clone(), other.node_epoch);
                other.id != registration.id && known.get(&key) == Some(&Liveness::Alive)
            })
        };
        let excused = match before {
            Liveness::Stopping => alone(),
            _ => record(world).is_none_or(|r| r.target != registration.id),
        };
        if before == Liveness::Draining
            && now == Liveness::Stopping
            && let Some(what) = on_the_way(world, &registration.id)
        {
            return Some(broken("proof_of_completion", what));
        }
        if !forward || skipped || (ended && !excused) {
            return Some(broken("liveness_forward", format!("{} goes from {before:?} to {now:?}", registration.id)));
        }
    }
    None
}

/// A present maintainer that has something on a capture, or has never said where anything is. What the coordinator's own
/// maintainers say does not pass the network.
fn on_the_way(world: &World, target: &CaptureId) -> Option<String> {
    let office = coordinator(world);
    let placed = world.store.list("changefeed/place/", "changefeed/place0");
    placed.entries.iter().find_map(|entry| {
        let Some(KeyName::ChangefeedPlace(changefeed)) = KeyName::parse(&entry.key) else { return None };
        let place: Placement = decode(&entry.key, &entry.value).unwrap();
        if office.as_ref() == Some(&place.host) || !runs(world, &changefeed) {
            return None;
        }
        match world.truth.spread.get(&(changefeed.clone(), place.epoch)) {
            Some(Some(counts)) if !counts.contains_key(target) => None,
            said => Some(format!("the maintainer of {changefeed} said {said:?} when {target} was proven empty")),
        }
    })
}

fn no_draining_coordinator(world: &World) -> Option<Violation> {
    let who = coordinator(world)?;
    let registration = registrations(world).into_iter().find(|registration| registration.id == who.capture);
    let lives = registration.as_ref().is_some_and(|registration| registration.node_epoch == who.node_epoch);
    if !lives {
        return Some(broken("no_draining_coordinator", format!("{who} acts and is not registered")));
    }
    let now = registration.map(|registration| liveness(world, &registration));
    (now != Some(Liveness::Alive)).then(|| broken("no_draining_coordinator", format!("{who} acts and is {now:?}")))
}

fn no_draining_without_record(world: &World) -> Option<Violation> {
    let record = record(world);
    for registration in registrations(world) {
        let draining = liveness(world, &registration) == Liveness::Draining;
        let meant = record
            .as_ref()
            .is_some_and(|record| record.target == registration.id && record.node_epoch == registration.node_epoch);
        if draining != meant {
            let what = format!("{} is draining: {draining}, is the target: {meant}", registration.id);
            return Some(broken("no_draining_without_record", what));
        }
    }
    None
}

/// `Stopping` means that truly nothing is there.
fn proof_of_completion(world: &World) -> Option<Violation> {
    for registration in registrations(world) {
        if liveness(world, &registration) != Liveness::Stopping {
            continue;
        }
        let proc = world.procs.iter().find(|proc| proc.id == registration.id)?;
        let here = proc.process.as_ref().and_then(|process| process.snapshot().me);
        let same = here.is_some_and(|me| me.node_epoch == registration.node_epoch);
        let work = proc.data.dispatchers.len() + proc.data.triggers().count();
        if same && work > 0 {
            return Some(broken("proof_of_completion", format!("{} is stopping with {work} at work", proc.id)));
        }
    }
    None
}

fn positions(world: &World) -> Vec<(ChangefeedId, u64, Position)> {
    let listing = world.store.list("position/", "position0");
    let read = |entry: &capturedrain_core::store::Entry| match KeyName::parse(&entry.key) {
        Some(KeyName::Position(id)) => Some((id, entry.create_revision, decode(&entry.key, &entry.value).unwrap())),
        _ => None,
    };
    listing.entries.iter().filter_map(read).collect()
}

fn checkpoint_forward(world: &mut World) -> Option<Violation> {
    for (id, created, position) in positions(world) {
        let before = world.truth.positions.insert(id.clone(), (created, position.checkpoint_ts));
        if let Some((same, before)) = before
            && same == created
            && before > position.checkpoint_ts
        {
            let what = format!("{id} goes back from {before} to {}", position.checkpoint_ts);
            return Some(broken("checkpoint_forward", what));
        }
    }
    None
}

fn lifetimes_in(world: &World, n: usize) -> &'static [(CommitTs, CommitTs)] {
    if world.tables_change { lifetimes(n) } else { &[(0, CommitTs::MAX)] }
}

fn checkpoint_covers_plan(world: &World) -> Option<Violation> {
    for (id, _, position) in positions(world) {
        for (n, key) in (0..TABLES).flat_map(|n| halves(n).map(|key| (n, key))) {
            let covered = world.truth.covered(&id, &key, lifetimes_in(world, n));
            if covered < position.checkpoint_ts {
                let what = format!(
                    "{id} table {n}: the sink has up to {covered}, the checkpoint is {}",
                    position.checkpoint_ts
                );
                return Some(broken("checkpoint_covers_plan", what));
            }
        }
    }
    None
}

/// Every capture that a coordinator knows has been sent the drain state within a heartbeat period.
fn told_in_time(world: &mut World) -> Option<Violation> {
    let limit = world.options.heartbeat + SLACK;
    for proc in world.procs.iter().filter(|proc| proc.paused_until + SLACK < world.now) {
        let Some(snapshot) = proc.process.as_ref().map(Process::snapshot) else { continue };
        let Some(me) = snapshot.me.clone().filter(|_| snapshot.is_coordinator) else { continue };
        for (id, status) in snapshot.captures.iter().filter(|(id, _)| **id != me.capture) {
            let who = Incarnation { capture: id.clone(), node_epoch: status.registration.node_epoch };
            let pair = (me.clone(), who);
            let known = *world.truth.known.entry(pair.clone()).or_insert(world.now);
            let told = world.truth.told.get(&pair).copied().unwrap_or_default().max(known).max(proc.paused_until);
            if world.now.since(told) > limit {
                let what = format!("{} was not told by {me} for {:?}", pair.1, world.now.since(told));
                return Some(broken("told_in_time", what));
            }
        }
    }
    None
}

/// Where a changefeed's maintainer is placed.
pub(crate) fn place(world: &World, changefeed: &ChangefeedId) -> Option<Placement> {
    read(world, &KeyName::ChangefeedPlace(changefeed.clone()))
}

/// Maintainers that have left and have not arrived. Those whose capture is gone are not on the move, but lost.
fn maintainers_under_way(world: &mut World) -> u64 {
    let registered = registrations(world);
    let lives = |host: &Incarnation| registered.iter().any(|r| r.id == host.capture && r.node_epoch == host.node_epoch);
    let mut leaving = std::mem::take(&mut world.truth.leaving);
    leaving.retain(|changefeed, from| {
        place(world, changefeed).is_some_and(|place| {
            let started = world.truth.started.contains_key(&(changefeed.clone(), place.epoch));
            runs(world, changefeed) && lives(&place.host) && (place.epoch == *from || !started)
        })
    });
    world.truth.leaving = leaving;
    world.truth.leaving.len() as u64
}

fn batch_bound(world: &mut World) -> Option<Violation> {
    let under_way = maintainers_under_way(world);
    if under_way > world.options.drain_maintainer_batch_size as u64 {
        return Some(broken("batch_bound", format!("{under_way} maintainers have left and not arrived")));
    }
    for proc in &world.procs {
        let Some(drain) = proc.process.as_ref().and_then(|process| process.snapshot().drain) else { continue };
        let (maintainers, dispatchers) =
            (world.options.drain_maintainer_batch_size as u64, world.options.drain_dispatcher_batch_size as u64);
        if drain.in_flight.maintainers > maintainers || drain.in_flight.dispatchers > dispatchers {
            return Some(broken("batch_bound", format!("{:?} on the move", drain.in_flight)));
        }
    }
    None
}

/// A capture that does not know how the others stand.
fn not_told(world: &World) -> Option<String> {
    let registered = registrations(world);
    let truly = |r: &Registration| (r.id.clone(), (r.node_epoch, liveness(world, r)));
    let truly: BTreeMap<_, _> = registered.iter().map(truly).collect();
    let here = world.procs.iter().filter_map(|proc| proc.process.as_ref().and_then(Process::me));
    // What a coordinator tells itself does not pass the network.
    let office = coordinator(world);
    here.filter(|me| truly.contains_key(&me.capture) && office.as_ref() != Some(me)).find_map(|me| {
        let state = world.truth.heard.get(&me)?;
        (state.captures != truly).then(|| format!("{me} believes {:?}, it is {truly:?}", state.captures))
    })
}

/// The last drain epoch that the store has given out.
pub(crate) fn last_epoch(world: &World) -> DrainEpoch {
    let last: Option<LastEpoch> = read(world, &KeyName::DrainEpoch);
    last.map(|last| last.epoch).unwrap_or_default()
}

/// What must come about in the end, with all faults over: `None` when it has.
pub(crate) fn unfinished(world: &World, running: &BTreeSet<ChangefeedId>, since_ts: CommitTs) -> Option<Violation> {
    if let Some(record) = record(world) {
        return Some(broken("progress", format!("the drain {} of {} does not end", record.epoch, record.target)));
    }
    if coordinator(world).is_none() {
        return Some(broken("coordinator_exists", "nobody is coordinator"));
    }
    if let Some(what) = not_told(world) {
        return Some(broken("told_in_time", what));
    }
    for id in running {
        for (n, key) in (0..TABLES).flat_map(|n| halves(n).map(|key| (n, key))) {
            let here = |(of, dispatcher): &(&DispatcherKey, &Dispatcher)| {
                of.changefeed == *id && covers(&dispatcher.span, &key)
            };
            let live: Vec<_> = world.procs.iter().flat_map(|proc| proc.data.dispatchers.iter().filter(here)).collect();
            if lifetimes_in(world, n).last().is_some_and(|(_, end)| *end < since_ts) {
                if live.is_empty() {
                    continue;
                }
                return Some(broken("progress", format!("table {n} of {id} has ended, and is still worked on")));
            }
            if live.is_empty() {
                return Some(broken("no_orphan", format!("nobody works on table {n} of {id}")));
            }
            if live.len() > 1 {
                return Some(broken("one_owner", format!("{} work on table {n} of {id}", live.len())));
            }
        }
        let hosts: Vec<_> =
            world.procs.iter().filter(|proc| proc.data.triggers().any(|(feed, _)| feed == id)).collect();
        if hosts.len() != 1 {
            return Some(broken("trigger_with_maintainer", format!("{} table triggers of {id}", hosts.len())));
        }
        let reached = world.truth.positions.get(id).map_or(0, |(_, ts)| *ts);
        if reached < since_ts {
            return Some(broken("progress", format!("the checkpoint of {id} stays at {reached}, before {since_ts}")));
        }
    }
    None
}
