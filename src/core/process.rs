//! A capture as one state machine: events in, effects out, no clock and no IO.
//!
//! The driver does: receive → [`Process::handle`] → carry out the effects in order, and nothing else.

mod snapshot;

use std::collections::{BTreeMap, VecDeque};

pub use crate::event::{Effect, Event, Lane};
use crate::{
    agent::{Agent, AgentOutput},
    coordinator::{Coordinator, Output as CoordinatorOutput, Promises},
    host::{Host, HostOutput},
    log::Line,
    maintainer::{Input, Maintainer, Output as MaintainerOutput},
    measure::Ends,
    model::{
        Answer, Body, ChangefeedEpoch, ChangefeedId, Command, DispatcherFate, Envelope, Heartbeat, Incarnation,
        Instant, KeyName, Now, Options, Refusal, Registration, Request, RequestId, Term, VALUE_VERSION, WorkCount,
    },
    mutant::{Mutant, Mutants},
    store::{Changes, Listing, TxnOutcome},
    view::View,
    work::{WorkEvent, WorkOrder},
};

/// A capture.
#[derive(Debug)]
pub struct Process {
    options: Options,
    mutants: Mutants,
    agent: Agent,
    view: Option<View>,
    host: Option<Host>,
    coordinator: Option<Coordinator>,
    /// What it promised in earlier times in office, for the writes whose outcomes are still to come.
    promised: BTreeMap<Term, Promises>,
    /// The highest coordinator that was heard, and its term.
    heard: Option<(Incarnation, Term)>,
    /// The latest heartbeat that was taken in this life.
    latest: Option<Box<Heartbeat>>,
    /// Whether the coordinator was last told that nothing is here.
    told_idle: bool,
    ends: Ends,
    next_flush: Instant,
    local: VecDeque<Envelope>,
    effects: Vec<Effect>,
    started: bool,
    now: Now,
}

impl Process {
    /// A capture that has not registered yet. `identity.node_epoch` does not matter.
    pub fn new(identity: Registration, options: Options) -> Self {
        Self::with_mutants(identity, options, Mutants::default())
    }

    /// A capture with one rule broken, for the simulation.
    pub fn with_mutants(identity: Registration, options: Options, mutants: Mutants) -> Self {
        Self {
            agent: Agent::new(identity, options.clone(), mutants),
            options,
            mutants,
            view: None,
            host: None,
            coordinator: None,
            promised: BTreeMap::new(),
            heard: None,
            latest: None,
            told_idle: false,
            ends: Ends::default(),
            next_flush: Instant::default(),
            local: VecDeque::new(),
            effects: Vec::new(),
            started: false,
            now: Now::default(),
        }
    }

    /// Takes an event, and says what shall be done, in order.
    pub fn handle(&mut self, event: Event, now: Now) -> Vec<Effect> {
        self.handle_all([event], now)
    }

    /// Takes events that came together, one after the other, and then says what shall be done, in order. What follows
    /// from all of them costs as much as what follows from one.
    pub fn handle_all(&mut self, events: impl IntoIterator<Item = Event>, now: Now) -> Vec<Effect> {
        self.now = now;
        if !self.started {
            self.started = true;
            self.effects.push(Effect::Load);
        }
        // A process that was paused may have lost its lease meanwhile: nothing is taken in a life that is over.
        let outputs = self.agent.advance_lease(now);
        self.carry_out_agent(outputs);
        for event in events {
            self.take(event);
        }
        self.settle();
        while let Some(envelope) = self.local.pop_front() {
            self.receive(envelope);
            if self.local.is_empty() {
                self.settle();
            }
        }
        std::mem::take(&mut self.effects)
    }

    /// When [`Event::Wake`] is due at the latest.
    pub fn wake_at(&self) -> Option<Instant> {
        let host = self.host.as_ref().and_then(|host| host.maintainers.wake_at());
        let flush = self.host.as_ref().filter(|host| host.has_news()).map(|_| self.next_flush);
        let coordinator = self.coordinator.as_ref().map(Coordinator::wake_at);
        [self.agent.wake_at(), host, flush, coordinator].into_iter().flatten().min()
    }

    fn take(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Wake => {}
            Event::LeaseGranted { lease, sent_at, nonce } => {
                let outputs = self.agent.lease_granted(lease, sent_at, nonce);
                self.carry_out_agent(outputs);
            }
            Event::LeaseNotGranted => self.agent.lease_not_granted(now),
            Event::LeaseKept { lease, sent_at } => self.agent.lease_kept(lease, sent_at),
            Event::LeaseLost(lease) => {
                let outputs = self.agent.lease_lost(lease);
                self.carry_out_agent(outputs);
            }
            Event::Loaded(listing) => self.load(&listing),
            Event::Changed(changes) => self.change(&changes),
            Event::Written { lane, outcome } => self.written(&lane, outcome),
            Event::PositionRead { changefeed, epoch, position } => {
                self.tell_maintainer(&changefeed, epoch, Input::PositionRead(position));
            }
            Event::Unreadable(error) => self.effects.push(Effect::Halt(error.into())),
            Event::Message(envelope) => self.receive(envelope),
            Event::Work(event) => self.work(event),
            Event::Request { id, request } => self.request(id, request),
            Event::Terminate => self.agent.terminate(),
            Event::Leave => {
                self.agent.terminate();
                let outputs = self.agent.leave();
                self.carry_out_agent(outputs);
            }
            Event::Prove(id) => self.prove(id),
        }
    }

    fn load(&mut self, listing: &Listing) {
        let view = match View::load(listing, self.mutants) {
            Ok(view) => view,
            Err(error) => return self.effects.push(Effect::Halt(error.into())),
        };
        // Listings and changes arrive in the order of the store, so only a store that was restored goes back.
        let went_back = self
            .view
            .as_ref()
            .is_some_and(|known| view.revision < known.revision || view.drain_epoch() < known.drain_epoch());
        self.view = Some(view);
        if went_back {
            self.effects.push(Effect::Log(Line::warn("the store went back, starting anew").of(self.agent.id())));
            self.heard = None;
            let outputs = self.agent.leave();
            self.carry_out_agent(outputs);
        }
        self.agent.reloaded();
        if let Some(coordinator) = &mut self.coordinator {
            coordinator.reloaded();
        }
        if let Some(host) = &mut self.host {
            host.doubt_all();
        }
    }

    fn change(&mut self, changes: &Changes) {
        let Some(view) = &mut self.view else { return };
        let keys = match view.apply(changes) {
            Ok(keys) => keys,
            Err(error) => return self.effects.push(Effect::Halt(error.into())),
        };
        if let Some(coordinator) = &mut self.coordinator {
            coordinator.keys_changed(&keys);
        }
        for key in &keys {
            if let (Some(host), KeyName::ChangefeedInfo(changefeed)) = (&mut self.host, key) {
                host.doubt(changefeed);
            }
        }
    }

    fn written(&mut self, lane: &Lane, outcome: TxnOutcome) {
        match lane {
            Lane::Agent => {
                let outputs = self.agent.written(outcome);
                self.carry_out_agent(outputs);
            }
            Lane::Coordinator(term) => {
                if let Some(coordinator) = self.coordinator.as_mut().filter(|c| c.term() == *term) {
                    coordinator.written(outcome);
                } else if let Some(promises) = self.promised.remove(term) {
                    self.carry_out_coordinator(promises.settle(outcome));
                }
            }
            Lane::Maintainer(changefeed, epoch) => {
                self.tell_maintainer(changefeed, *epoch, Input::Written(outcome));
            }
        }
    }

    fn request(&mut self, id: RequestId, request: Request) {
        if let Some(coordinator) = &mut self.coordinator {
            return coordinator.request(id, request);
        }
        let coordinator = self.view.as_ref().and_then(View::coordinator).map(|at| at.advertise_addr.clone());
        self.effects.push(Effect::Answer { id, answer: Err(Refusal::NotCoordinator { coordinator }) });
    }

    fn prove(&mut self, id: RequestId) {
        let proof = self.view.as_ref().filter(|view| self.agent.prove(view)).and_then(|view| {
            let mark = view.liveness.get(self.agent.id())?;
            Some(Answer::Drained { epoch: mark.value.drain_epoch })
        });
        let proof = proof.or_else(|| self.agent.renounce().then_some(Answer::Done));
        let answer = proof.ok_or_else(|| Refusal::NotReady("this capture is not proven empty".to_owned()));
        self.effects.push(Effect::Answer { id, answer });
    }

    /// Does what is due in every part.
    fn settle(&mut self) {
        let outputs = self.agent.advance(self.view.as_ref(), self.now);
        self.carry_out_agent(outputs);
        self.follow_membership();
        self.follow_office();
        self.measure_ends();
        if let (Some(coordinator), Some(view)) = (&mut self.coordinator, &self.view)
            && coordinator.is_due(self.now)
        {
            let outputs = coordinator.advance(view, self.now);
            self.carry_out_coordinator(outputs);
        }
        self.wake_maintainers();
        self.flush();
        self.report_urgent();
    }

    fn follow_membership(&mut self) {
        let me = self.agent.me();
        match (&self.host, me) {
            (None, Some(me)) => self.host = Some(Host::new(me, self.mutants)),
            (Some(_), None) => self.host = None,
            _ => {}
        }
        if let (Some(host), Some(view)) = (&mut self.host, &self.view) {
            host.forget_changefeeds(view.revision, |changefeed| view.infos.contains_key(changefeed));
        }
    }

    /// In office is who won the election and has shown that it may act.
    fn follow_office(&mut self) {
        let office = self.view.as_ref().zip(self.agent.me()).and_then(|(view, me)| {
            let (leader, term, acting) = view.leader()?;
            (*leader == me && acting && view.is_registered(&me)).then_some((me, term))
        });
        if self.coordinator.as_ref().map(Coordinator::term) == office.as_ref().map(|(_, term)| *term) {
            return;
        }
        if let Some(former) = self.coordinator.take() {
            let term = former.term();
            let (outputs, promises) = former.step_down();
            self.carry_out_coordinator(outputs);
            if !promises.is_empty() {
                self.promised.insert(term, promises);
            }
        }
        self.coordinator =
            office.map(|(me, term)| Coordinator::new(me, term, self.options.clone(), self.mutants, self.now));
    }

    fn measure_ends(&mut self) {
        let Some(view) = &self.view else { return };
        let me = self.agent.me();
        let office = self.coordinator.as_ref().zip(me.as_ref()).and_then(|(_, me)| view.in_office_since(me));
        let ended = self.ends.new_ones(view, me.as_ref(), office);
        self.effects.extend(ended.into_iter().map(Effect::Measured));
    }

    fn wake_maintainers(&mut self) {
        while let Some((changefeed, epoch)) = self.next_due() {
            self.tell_maintainer(&changefeed, epoch, Input::Wake);
        }
    }

    fn next_due(&self) -> Option<(ChangefeedId, ChangefeedEpoch)> {
        self.host.as_ref()?.maintainers.next_due(self.now.monotonic)
    }

    fn flush(&mut self) {
        let Some(host) = &mut self.host else { return };
        let due = self.now.monotonic >= self.next_flush;
        if !due && !host.hurries() {
            return;
        }
        let outputs = host.flush();
        self.next_flush = self.now.monotonic + self.options.heartbeat / 5;
        self.carry_out_host(outputs);
    }

    /// Takes a message, if it is meant for this life and has the authority that it needs.
    fn receive(&mut self, envelope: Envelope) {
        let Some(me) = self.agent.me() else { return };
        if envelope.to != me && !self.mutants.has(Mutant::IgnoresNodeEpoch) {
            return;
        }
        if !self.understands(&envelope.from) {
            return;
        }
        match envelope.body {
            Body::Command { term, command } => self.obey(envelope.from, term, command),
            Body::Report { term, report } => {
                let now = self.now;
                if let Some(coordinator) = self.coordinator.as_mut().filter(|c| c.term() == term) {
                    coordinator.report(&envelope.from, *report, now);
                }
            }
            Body::Order { changefeed, epoch, order } => {
                if let Some(host) = &mut self.host {
                    let outputs = host.order(&envelope.from, &changefeed, epoch, order);
                    self.carry_out_host(outputs);
                }
            }
            Body::Status { changefeed, epoch, status } => {
                self.tell_maintainer(&changefeed, epoch, Input::Status { from: envelope.from, status });
            }
        }
    }

    fn obey(&mut self, from: Incarnation, term: Term, command: Command) {
        let known = self.heard.as_ref().map(|(_, term)| *term).unwrap_or_default();
        if term < known && !self.mutants.has(Mutant::AcceptsLowerTerm) {
            return;
        }
        self.heard = Some((from, term));
        match command {
            Command::Heartbeat(heartbeat) => {
                let taken = self.host.as_mut().is_some_and(|host| host.hear(&heartbeat.state));
                if taken {
                    self.tell_all_maintainers(&heartbeat);
                    self.latest = Some(heartbeat);
                    self.report();
                    if let Some(host) = &mut self.host {
                        host.repeat_failures();
                    }
                }
            }
            Command::StartMaintainer { changefeed, epoch, place_revision, config } => {
                let admitted = self.host.as_mut().is_some_and(|host| host.admit_maintainer(&changefeed, epoch));
                if let (true, Some(me)) = (admitted, self.agent.me()) {
                    let options = self.options.clone();
                    let mut maintainer =
                        Box::new(Maintainer::new(me, changefeed.clone(), epoch, place_revision, config, options));
                    maintainer.set_mutants(self.mutants);
                    maintainer.set_version(self.view.as_ref().map_or(VALUE_VERSION, View::common_version));
                    let outputs = match &self.latest {
                        // It need not wait for the next heartbeat; its share is told by that.
                        Some(latest) => {
                            let first = Heartbeat { shares: BTreeMap::new(), ..(**latest).clone() };
                            maintainer.handle(Input::Heard(&first), self.now)
                        }
                        None => maintainer.start(self.now),
                    };
                    if let Some(host) = &mut self.host {
                        host.maintainers.install(changefeed.clone(), epoch, maintainer);
                    }
                    self.carry_out_maintainer(&changefeed, epoch, outputs);
                }
            }
            Command::StopMaintainer { changefeed, epoch } => {
                let outputs = self.host.as_mut().map(|host| host.stop_maintainer(&changefeed, epoch));
                self.carry_out_host(outputs.unwrap_or_default());
                self.report();
            }
            Command::StopDispatchers { changefeed, epoch } => {
                let outputs = self.host.as_mut().map(|host| host.stop_dispatchers(&changefeed, epoch));
                self.carry_out_host(outputs.unwrap_or_default());
            }
            Command::Release => {
                let outputs = self.view.as_ref().map(|view| self.agent.release(view));
                self.carry_out_agent(outputs.unwrap_or_default());
            }
        }
    }

    fn tell_all_maintainers(&mut self, heartbeat: &Heartbeat) {
        let running = self.host.as_ref().map(|host| host.maintainers.running()).unwrap_or_default();
        for (changefeed, epoch) in running {
            self.tell_maintainer(&changefeed, epoch, Input::Heard(heartbeat));
        }
    }

    fn tell_maintainer(&mut self, changefeed: &ChangefeedId, epoch: ChangefeedEpoch, input: Input<'_>) {
        let Some(host) = &mut self.host else { return };
        let outputs = host.tell_maintainer(changefeed, epoch, input, self.now);
        self.carry_out_maintainer(changefeed, epoch, outputs);
    }

    fn work(&mut self, event: WorkEvent) {
        match event {
            WorkEvent::Checkpoint { key, checkpoint_ts, split_at } => {
                if let Some(host) = &mut self.host {
                    host.checkpoint(&key, checkpoint_ts, split_at);
                }
            }
            WorkEvent::Stopped { key, checkpoint_ts } => {
                if let Some(host) = &mut self.host {
                    host.dispatcher_ended(&key, checkpoint_ts, None);
                }
            }
            WorkEvent::Failed { key, checkpoint_ts, error, fatal, outranked_by } => {
                let failed = DispatcherFate::Failed { error, fatal, outranked_by };
                if let Some(host) = &mut self.host {
                    host.dispatcher_ended(&key, checkpoint_ts, Some(failed));
                }
            }
            WorkEvent::Tables { changefeed, epoch, born, ended, resolved_ts, resolved_at_ms } => {
                let input = Input::Tables { born, ended, resolved_ts, resolved_at_ms };
                self.tell_maintainer(&changefeed, epoch, input);
            }
            WorkEvent::TriggerFailed { changefeed, epoch, error } => {
                self.tell_maintainer(&changefeed, epoch, Input::TriggerFailed(error));
            }
            WorkEvent::TriggerStopped { changefeed, epoch } => {
                if let Some(host) = &mut self.host {
                    host.trigger_stopped(&changefeed, epoch);
                }
            }
            WorkEvent::AllStopped => self.agent.all_stopped(self.now),
        }
    }

    /// Tells the coordinator what is here.
    fn report(&mut self) {
        let (Some(host), Some((to, term)), Some(from)) = (&mut self.host, self.heard.clone(), self.agent.me()) else {
            return;
        };
        let latest = self.latest.as_ref().filter(|latest| latest.state.stamp.term == term);
        let beat = latest.map_or(0, |latest| latest.beat);
        let body = Body::Report { term, report: Box::new(host.report(beat)) };
        self.send(Envelope { from, to, body });
    }

    /// Tells the coordinator at once what would make it act.
    fn report_urgent(&mut self) {
        let Some(host) = &mut self.host else { return };
        let idle = host.inventory() == WorkCount::default();
        let urgent = host.maintainers.take_urgent_news();
        if urgent || idle != self.told_idle {
            self.told_idle = idle;
            self.report();
        }
    }

    fn understands(&self, who: &Incarnation) -> bool {
        self.view.as_ref().is_none_or(|view| view.understands(who))
    }

    fn send(&mut self, envelope: Envelope) {
        if self.agent.me().as_ref() == Some(&envelope.to) {
            return self.local.push_back(envelope);
        }
        if !self.understands(&envelope.to) {
            return;
        }
        let address = self.view.as_ref().and_then(|view| view.captures.get(&envelope.to.capture));
        if let Some(to) = address.map(|kept| kept.value.advertise_addr.clone()) {
            self.effects.push(Effect::Send { to, envelope });
        }
    }

    fn carry_out_agent(&mut self, outputs: Vec<AgentOutput>) {
        for output in outputs {
            let effect = match output {
                AgentOutput::GrantLease => Effect::GrantLease,
                AgentOutput::KeepLease { lease, key } => Effect::KeepLease { lease, key },
                AgentOutput::RevokeLease(lease) => Effect::RevokeLease(lease),
                AgentOutput::Load => Effect::Load,
                AgentOutput::Halt(halt) => Effect::Halt(halt),
                AgentOutput::Write(txn) => Effect::Write { lane: Lane::Agent, txn },
                AgentOutput::Log(line) => Effect::Log(line),
                AgentOutput::Left => {
                    self.host = None;
                    self.latest = None;
                    self.local.clear();
                    self.told_idle = false;
                    self.follow_office();
                    self.effects
                        .push(Effect::Log(Line::warn("registration is over, all work ends").of(self.agent.id())));
                    Effect::Work(WorkOrder::StopAll)
                }
            };
            self.effects.push(effect);
        }
    }

    fn carry_out_coordinator(&mut self, outputs: Vec<CoordinatorOutput>) {
        for output in outputs {
            match output {
                CoordinatorOutput::Send { to, command } => {
                    let term = self.coordinator.as_ref().map(Coordinator::term);
                    if let (Some(from), Some(term)) = (self.agent.me(), term) {
                        self.send(Envelope { from, to, body: Body::Command { term, command } });
                    }
                }
                CoordinatorOutput::Write(txn) => {
                    if let Some(term) = self.coordinator.as_ref().map(Coordinator::term) {
                        self.effects.push(Effect::Write { lane: Lane::Coordinator(term), txn });
                    }
                }
                CoordinatorOutput::Load => self.effects.push(Effect::Load),
                CoordinatorOutput::Answer { id, answer } => self.effects.push(Effect::Answer { id, answer }),
                CoordinatorOutput::Log(line) => self.effects.push(Effect::Log(line)),
                CoordinatorOutput::Measured(measured) => self.effects.push(Effect::Measured(measured)),
                CoordinatorOutput::Resigned => self.agent.resign(self.now),
            }
        }
    }

    fn carry_out_host(&mut self, outputs: Vec<HostOutput>) {
        for output in outputs {
            match output {
                HostOutput::Work(order) => self.effects.push(Effect::Work(order)),
                HostOutput::Status { to, changefeed, epoch, status } => {
                    if let Some(from) = self.agent.me() {
                        self.send(Envelope { from, to, body: Body::Status { changefeed, epoch, status } });
                    }
                }
            }
        }
    }

    fn carry_out_maintainer(
        &mut self,
        changefeed: &ChangefeedId,
        epoch: ChangefeedEpoch,
        outputs: Vec<MaintainerOutput>,
    ) {
        let Some(from) = self.agent.me() else { return };
        for output in outputs {
            let changefeed = changefeed.clone();
            match output {
                MaintainerOutput::ReadPosition => self.effects.push(Effect::ReadPosition { changefeed, epoch }),
                MaintainerOutput::StartTrigger { start_ts } => {
                    let Some(config) = self
                        .host
                        .as_ref()
                        .and_then(|host| host.maintainers.get(&changefeed, epoch))
                        .map(|m| m.config().clone())
                    else {
                        continue;
                    };
                    let order = WorkOrder::StartTrigger { changefeed, epoch, start_ts, config };
                    self.effects.push(Effect::Work(order));
                }
                MaintainerOutput::Order { to, order } => {
                    let body = Body::Order { changefeed, epoch, order };
                    self.send(Envelope { from: from.clone(), to, body });
                }
                MaintainerOutput::Write(txn) => {
                    self.effects.push(Effect::Write { lane: Lane::Maintainer(changefeed, epoch), txn });
                }
                MaintainerOutput::Measured(measured) => self.effects.push(Effect::Measured(measured)),
            }
        }
    }

    /// The registered life, while its lease can be trusted.
    pub fn me(&self) -> Option<Incarnation> {
        self.agent.me()
    }
}
