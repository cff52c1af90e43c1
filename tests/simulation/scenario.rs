//! One history: a cluster, some bad time, then a good one in which everything has to come to an end.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use capturedrain_core::{
    model::{
        CaptureId, ChangefeedConfig, ChangefeedId, DrainEpoch, DrainRequest, HookReport, Instant, KeyName, Liveness,
        OnDeadline, Request, UnixMillis,
    },
    mutant::Mutant,
    process::{Event, Process},
};
use rand_chacha::rand_core::Rng as _;

use crate::{
    faults::Faults,
    truth::{self, Violation, check, unfinished},
    world::World,
};

/// How long the bad time is.
const BAD: Duration = Duration::from_mins(1);
/// How long everything may take to come to an end afterwards.
const GOOD: Duration = Duration::from_mins(4);
/// How long pauses and leases of the bad time take to run out.
const SETTLING: Duration = Duration::from_secs(30);
/// More events than any history should need.
const EVENTS_MAX: u64 = 400_000;
/// Most captures that ever join.
const CAPTURES_MAX: usize = 7;
/// Changefeeds at the start.
const FEEDS: usize = 4;

/// What came of a history.
pub(crate) struct Outcome {
    pub(crate) violation: Option<Violation>,
    pub(crate) log: Vec<String>,
    pub(crate) events: u64,
    pub(crate) drains_ended: u64,
    /// How often each drain's end was counted.
    pub(crate) ends_counted: BTreeMap<DrainEpoch, u64>,
}

struct Scenario {
    world: World,
    /// No process dies, pauses or loses its lease: what goes wrong is the network and the store.
    calm: bool,
    /// What is dead at the end of the bad time stays dead, as long as somebody lives.
    few_come_back: bool,
    /// Messages arrive long after they mattered, and what goes wrong comes at the worst moment.
    spiteful: bool,
    /// When the good time began, and when somebody was last seen in office.
    good_since: Option<Instant>,
    coordinated_at: Instant,
    feeds: BTreeSet<ChangefeedId>,
    paused: BTreeSet<ChangefeedId>,
    terminated: BTreeSet<usize>,
    /// Started anew; its hook asks for the proof as soon as it is registered.
    reborn: Option<usize>,
    next_act: Instant,
    /// When somebody thinks better of a drain.
    hasty_cancel: Option<Instant>,
}

/// Runs one history.
pub(crate) fn run(seed: u64, mutant: Option<Mutant>) -> Outcome {
    let captures = 2 + (seed % 4) as usize;
    let spiteful = matches!(seed % 8, 3 | 4 | 6 | 7);
    let mut scenario = Scenario {
        world: World::new(seed, captures, mutant, spiteful),
        calm: seed % 4 == 1,
        few_come_back: seed % 3 == 1,
        spiteful,
        good_since: None,
        coordinated_at: Instant::default(),
        feeds: BTreeSet::new(),
        paused: BTreeSet::new(),
        terminated: BTreeSet::new(),
        reborn: None,
        next_act: Instant(Duration::from_millis(500)),
        hasty_cancel: None,
    };
    let violation = scenario.live(seed).err();
    let world = scenario.world;
    let drains_ended = world.store.list("drain/history/", "drain/history0").entries.len() as u64;
    let ends_counted = world.ends_counted;
    Outcome { violation, events: world.events, log: world.log, drains_ended, ends_counted }
}

impl Scenario {
    fn live(&mut self, seed: u64) -> Result<(), Violation> {
        for n in 0..FEEDS {
            self.feeds.insert(ChangefeedId::new(format!("f{n}")).unwrap());
        }
        let random = self.world.rng.next_u64();
        // Every fifth history is a good day from end to end.
        self.world.faults = if seed.is_multiple_of(5) { Faults::none() } else { Faults::some(random) };
        if self.spiteful {
            self.world.faults.late = 20;
            self.world.faults.fails = 300;
        }
        while self.world.now < Instant(BAD) {
            self.step()?;
            if self.world.now >= self.next_act {
                self.act();
                let wait = 100 + self.world.random(2500);
                self.next_act = self.world.now + Duration::from_millis(wait);
            }
        }
        self.make_good();
        let since_ts = self.world.source_ts();
        let limit = self.world.now + GOOD;
        let mut settled = None;
        while self.world.now < limit {
            self.step()?;
            if self.world.now >= self.next_act {
                self.next_act = self.world.now + Duration::from_millis(500);
                self.keep_alive();
                settled = unfinished(&self.world, &self.running_feeds(), since_ts);
                if settled.is_none() {
                    return Ok(());
                }
            }
        }
        settled.map_or(Ok(()), Err)
    }

    fn step(&mut self) -> Result<(), Violation> {
        self.world.step();
        if self.world.events > EVENTS_MAX {
            return Err(Violation { invariant: "bounded_traffic", what: format!("{EVENTS_MAX} events and no end") });
        }
        if let Some(who) = self.reborn
            && self.world.member(who).is_some()
        {
            self.reborn = None;
            self.prove_by(who);
        }
        if std::mem::take(&mut self.world.end_in_doubt) && self.spiteful {
            self.cancel();
            if self.good_since.is_none() && self.world.chance(500) {
                // The cluster changes, so that the proof is not there any more when the cancel is judged.
                self.lose_lease();
            }
        }
        if self.hasty_cancel.is_some_and(|at| at <= self.world.now) {
            self.hasty_cancel = None;
            self.cancel();
        }
        if self.world.events.is_multiple_of(64) {
            self.coordinator_exists()?;
        }
        check(&mut self.world).map_or(Ok(()), Err)
    }

    /// Within two lease periods somebody is in office, once pauses and leases of the bad time have run out.
    fn coordinator_exists(&mut self) -> Result<(), Violation> {
        let now = self.world.now;
        let settled = self.good_since.is_some_and(|since| now > since + SETTLING);
        if !settled || truth::coordinator(&self.world).is_some() {
            self.coordinated_at = now;
        }
        if now.since(self.coordinated_at) > self.world.options.lease * 2 {
            let what = "nobody has been in office for two lease periods".to_owned();
            return Err(Violation { invariant: "coordinator_exists", what });
        }
        Ok(())
    }

    fn running_feeds(&self) -> BTreeSet<ChangefeedId> {
        let persisted = self.world.store.list("changefeed/info/", "changefeed/info0");
        let running = persisted.entries.iter().filter_map(|entry| {
            let info: capturedrain_core::model::ChangefeedInfo =
                capturedrain_core::model::decode(&entry.key, &entry.value).unwrap();
            (info.state == capturedrain_core::model::ChangefeedState::Running).then_some(info.id)
        });
        running.collect()
    }

    /// The faults are over, and what was down comes up.
    fn make_good(&mut self) {
        self.world.faults = Faults::none();
        self.world.note(|| "the bad time is over".to_owned());
        self.good_since = Some(self.world.now);
        if self.spiteful && self.world.chance(500) {
            self.leave_one();
        }
        self.keep_alive();
    }

    /// Only a capture that is not `Alive` is left, if there is one: it has to become so again.
    fn leave_one(&mut self) {
        let sealed = truth::registrations(&self.world)
            .into_iter()
            .find(|registration| truth::liveness(&self.world, registration) != Liveness::Alive);
        let found = sealed.and_then(|sealed| self.world.procs.iter().position(|proc| proc.id == sealed.id));
        let Some(left) = found.filter(|who| self.world.procs[*who].process.is_some() && !self.terminated.contains(who))
        else {
            return;
        };
        self.few_come_back = true;
        for who in (0..self.world.procs.len()).filter(|who| *who != left) {
            self.terminated.remove(&who);
            if self.world.procs[who].process.is_some() {
                self.world.crash(who);
            }
        }
    }

    /// The coordinator dies, and with it whatever it was about to do; what it has sent is on its way.
    fn behead(&mut self) {
        let office = truth::coordinator(&self.world);
        let found = office.and_then(|office| self.world.procs.iter().position(|proc| proc.id == office.capture));
        if let Some(who) = found.filter(|who| self.world.procs[*who].process.is_some()) {
            self.world.crash(who);
        }
    }

    /// A capture that is not `Alive` is started anew under its name, so fast that its mark is still there.
    fn rebirth(&mut self) {
        let sealed = truth::registrations(&self.world)
            .into_iter()
            .find(|registration| truth::liveness(&self.world, registration) != Liveness::Alive);
        let found = sealed.and_then(|sealed| self.world.procs.iter().position(|proc| proc.id == sealed.id));
        let Some(who) = found.filter(|who| self.world.procs[*who].process.is_some()) else { return };
        let key = KeyName::Capture(self.world.procs[who].id.clone()).key();
        let lease = self.world.store.get(&key).and_then(|entry| entry.lease);
        self.world.crash(who);
        self.terminated.remove(&who);
        if let Some(lease) = lease {
            self.world.store.revoke(lease);
        }
        self.world.start(who);
        self.reborn = Some(who);
    }

    /// The coordinator loses its lease, and whoever follows it loses its registration while it takes office.
    fn usurp(&mut self) {
        let candidates = self.world.store.list("owner/", "owner0");
        let first = candidates.entries.iter().min_by_key(|entry| entry.create_revision);
        if let Some(lease) = first.and_then(|first| first.lease) {
            self.world.note(|| "the coordinator's lease ends early".to_owned());
            self.world.store.revoke(lease);
            self.world.usurping = true;
        }
    }

    /// What ended by itself or was told to end is started again, as a kubelet would.
    fn keep_alive(&mut self) {
        for who in 0..self.world.procs.len() {
            if self.terminated.remove(&who) && self.world.procs[who].process.is_some() {
                self.world.crash(who);
            }
            let needed = !self.few_come_back || self.world.procs.iter().all(|proc| proc.process.is_none());
            if self.world.procs[who].process.is_none() && needed {
                self.world.start(who);
            }
        }
        for feed in self.feeds.clone() {
            if !self.paused.contains(&feed) {
                // Those that failed on a bad day go on.
                self.ask(Request::ResumeChangefeed(feed.clone()));
            }
            self.ask(Request::CreateChangefeed { id: feed, config: Arc::new(config(self.spiteful)) });
        }
    }

    /// Asks the coordinator, if there is one that runs; a client finds it by the redirects.
    fn ask(&mut self, request: Request) {
        let found = self
            .world
            .procs
            .iter()
            .position(|proc| proc.process.as_ref().is_some_and(|process| process.snapshot().is_coordinator));
        let anybody = self.world.random(self.world.procs.len() as u64) as usize;
        self.world.ask(found.unwrap_or(anybody), request);
    }

    fn any_capture(&mut self) -> (usize, CaptureId) {
        let who = self.world.random(self.world.procs.len() as u64) as usize;
        (who, self.world.procs[who].id.clone())
    }

    fn act(&mut self) {
        if self.spiteful && !self.calm && self.world.chance(150) {
            return match self.world.random(3) {
                0 => self.usurp(),
                1 => self.behead(),
                _ => self.rebirth(),
            };
        }
        if self.spiteful && self.world.procs.len() < CAPTURES_MAX && self.world.chance(30) {
            return self.world.add(self.world.procs.len());
        }
        let most = if self.calm { 17 } else { 25 };
        match self.world.random(most) {
            0..=5 => {
                let request = self.any_drain();
                self.ask(Request::Drain(request));
                if self.spiteful && self.world.chance(300) {
                    let wait = Duration::from_millis(self.world.random(1500));
                    self.hasty_cancel = Some(self.world.now + wait);
                }
            }
            6 | 7 => self.cancel(),
            8 => {
                let (_, capture) = self.any_capture();
                self.ask(Request::Release { capture, node_epoch: None });
            }
            9..=11 => {
                let feeds: Vec<_> = self.feeds.iter().cloned().collect();
                let feed = feeds[self.world.random(feeds.len() as u64) as usize].clone();
                self.ask(Request::CreateChangefeed { id: feed, config: Arc::new(config(self.spiteful)) });
            }
            12 if self.world.chance(200) => self.ask(Request::Resign),
            12 => self.pause_or_resume(),
            13 | 14 => self.prove(),
            15 | 16 => self.cut_or_heal(),
            17..=19 => self.crash_or_start(),
            20 | 21 => self.pause_process(),
            22 => self.store_away(),
            23 => self.lose_lease(),
            _ => self.terminate(),
        }
    }

    /// A call to drain: by one of several callers, some of whom want captures avoided or have a deadline.
    fn any_drain(&mut self) -> DrainRequest {
        let on = truth::record(&self.world).map(|record| record.target).filter(|_| self.world.chance(300));
        let (_, anybody) = self.any_capture();
        let mut request = DrainRequest::new(on.unwrap_or(anybody), format!("caller {}", self.world.random(3)));
        if self.world.chance(200) {
            let (_, avoided) = self.any_capture();
            request.avoid = vec![avoided];
        }
        if self.world.chance(200) {
            request.deadline_ms = Some(self.world.random(20_000));
            request.on_deadline = if self.world.chance(500) { OnDeadline::Hold } else { OnDeadline::Proceed };
        }
        request
    }

    fn cancel(&mut self) {
        let target = truth::record(&self.world).map(|record| record.target);
        let (_, anybody) = self.any_capture();
        let capture = target.unwrap_or(anybody);
        self.ask(Request::Cancel { capture, epoch: None, requester: "seed".to_owned() });
    }

    fn pause_or_resume(&mut self) {
        let feeds: Vec<_> = self.feeds.iter().cloned().collect();
        let feed = feeds[self.world.random(feeds.len() as u64) as usize].clone();
        if self.paused.remove(&feed) {
            self.ask(Request::ResumeChangefeed(feed));
        } else if self.world.chance(300) {
            self.ask(Request::DeleteChangefeed(feed));
        } else {
            self.paused.insert(feed.clone());
            self.ask(Request::PauseChangefeed(feed));
        }
    }

    fn crash_or_start(&mut self) {
        let (who, _) = self.any_capture();
        if self.world.procs[who].process.is_some() {
            self.world.crash(who);
        } else {
            self.world.start(who);
        }
    }

    fn pause_process(&mut self) {
        let (who, id) = self.any_capture();
        let pause = Duration::from_millis(self.world.random(15_000));
        let until = self.world.now + pause;
        let pause_ends = &mut self.world.procs[who].paused_until;
        *pause_ends = until.max(*pause_ends);
        self.world.note(|| format!("{id} is paused for {pause:?}"));
    }

    fn cut_or_heal(&mut self) {
        if !self.world.faults.cuts.is_empty() {
            self.world.faults.cuts.clear();
            return self.world.note(|| "the network is whole again".to_owned());
        }
        let ((_, from), (_, to)) = (self.any_capture(), self.any_capture());
        if from != to {
            self.world.note(|| format!("nothing gets from {from} to {to}"));
            self.world.faults.cuts.insert((from.clone(), to.clone()));
            if self.world.chance(500) {
                self.world.faults.cuts.insert((to, from));
            }
        }
    }

    fn store_away(&mut self) {
        let away = !self.world.faults.store_is_away;
        self.world.faults.store_is_away = away;
        self.world.note(|| format!("the store is away: {away}"));
    }

    fn lose_lease(&mut self) {
        let (_, id) = self.any_capture();
        let lease = self.world.store.get(&format!("capture/{id}")).and_then(|entry| entry.lease);
        if let Some(lease) = lease {
            self.world.note(|| format!("the lease of {id} ends early"));
            self.world.store.revoke(lease);
        }
    }

    fn terminate(&mut self) {
        let (who, _) = self.any_capture();
        if self.world.procs[who].process.is_some() {
            self.world.tell(who, Event::Terminate);
            self.terminated.insert(who);
        }
    }

    /// A hook asks for the proof; its pod ends some time later.
    fn prove(&mut self) {
        let stopping = truth::registrations(&self.world)
            .into_iter()
            .find(|registration| truth::liveness(&self.world, registration) == Liveness::Stopping);
        let (anybody, _) = self.any_capture();
        let found = stopping.and_then(|found| self.world.procs.iter().position(|proc| proc.id == found.id));
        self.prove_by(found.unwrap_or(anybody));
    }

    fn prove_by(&mut self, who: usize) {
        if self.world.procs[who].process.is_none() || self.world.procs[who].paused_until > self.world.now {
            return;
        }
        let id = 1_000_000 + self.world.events;
        self.world.tell(who, Event::Prove(capturedrain_core::model::RequestId(id)));
        let answer = self.world.answers.get(&id).cloned().unwrap_or_default();
        let me = self.world.procs[who].process.as_ref().and_then(Process::me);
        let outcome = if answer.contains("Drained") {
            if let Some(me) = &me {
                self.world.truth.proved(me);
            }
            "proven"
        } else if answer.contains("Done") {
            self.world.truth.renounced(&self.world.procs[who].id);
            "nothing_left"
        } else {
            return;
        };
        self.terminated.insert(who);
        let capture = self.world.procs[who].id.clone();
        let now = UnixMillis(u64::try_from(self.world.now.0.as_millis()).unwrap());
        self.ask(Request::ReportHook(HookReport {
            capture,
            node_epoch: me.map(|me| me.node_epoch),
            pod_name: None,
            pod_uid: None,
            outcome: outcome.into(),
            sentence: String::new(),
            started_at_ms: now,
            ended_at_ms: now,
            unknown: BTreeMap::new(),
        }));
    }
}

pub(crate) fn config(splits: bool) -> ChangefeedConfig {
    ChangefeedConfig {
        source: "synthetic://".into(),
        sink: "blackhole://".into(),
        start_ts: 0,
        span_max_keys: u64::from(splits),
        unknown: BTreeMap::new(),
    }
}
