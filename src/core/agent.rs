//! A capture's place in the cluster: its lease, its registration, its candidacy, and what it does when it has lost them.

use std::time::Duration;

use crate::{
    log::Line,
    model::{
        Candidacy, CaptureId, DrainEnd, DrainOutcome, Halt, Incarnation, Instant, KeyName, Liveness, NodeEpoch, Now,
        Options, Registration,
    },
    mutant::{Mutant, Mutants},
    store::{Compare, Key, LeaseId, Revision, Txn, TxnOutcome},
    view::View,
    write::{Draft, WriteLane},
};

/// Where the registration stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Membership {
    /// A lease shall be asked for.
    Outside { not_before: Instant },
    /// A lease was asked for.
    AwaitingLease { not_after: Instant },
    /// A lease is there; the registration is being written, or waits until the former one of this name is gone.
    Joining { lease: Lease, node_epoch: NodeEpoch, told: bool },
    /// Registered.
    Member { lease: Lease, node_epoch: NodeEpoch },
    /// The registration is over; the data path is ending all work.
    Leaving,
    /// Over for good: the process was told to end, and has lost its registration.
    Ended,
}

/// A lease, and how long it can be trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Lease {
    id: LeaseId,
    trusted_until: Instant,
    next_keep: Instant,
}

/// What the agent wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AgentOutput {
    GrantLease,
    KeepLease {
        lease: LeaseId,
        key: Option<Key>,
    },
    RevokeLease(LeaseId),
    Load,
    Write(Txn),
    /// The process has to end.
    Halt(Halt),
    /// The registration is over: end all work, forget all messages.
    Left,
    Log(Line),
}

/// The agent.
#[derive(Debug)]
pub(crate) struct Agent {
    identity: Registration,
    options: Options,
    mutants: Mutants,
    membership: Membership,
    lane: WriteLane,
    /// SIGTERM, or the hook has the proof or the promise: it never registers again.
    last_life: bool,
    /// It gave up office, and sits out until then.
    no_candidacy_before: Instant,
    /// Since when it is `Stopping`.
    stopping_since: Option<Instant>,
    /// The registration's revision that a taking of the exception compared whose outcome is not known: until the
    /// registration has another, it may still take effect.
    exception_in_doubt: Option<Revision>,
    /// What people are told when the write under way has taken effect.
    announced: Option<Line>,
}

impl Agent {
    pub(crate) fn new(identity: Registration, options: Options, mutants: Mutants) -> Self {
        Self {
            identity,
            options,
            mutants,
            membership: Membership::Outside { not_before: Instant::default() },
            lane: WriteLane::default(),
            last_life: false,
            no_candidacy_before: Instant::default(),
            stopping_since: None,
            exception_in_doubt: None,
            announced: None,
        }
    }

    /// This capture's name.
    pub(crate) fn id(&self) -> &CaptureId {
        &self.identity.id
    }

    /// The registered life, while its lease can be trusted.
    pub(crate) fn me(&self) -> Option<Incarnation> {
        match &self.membership {
            Membership::Member { node_epoch, .. } => {
                Some(Incarnation { capture: self.identity.id.clone(), node_epoch: *node_epoch })
            }
            _ => None,
        }
    }

    /// The process was told to end: it works on, and never registers again.
    pub(crate) fn terminate(&mut self) {
        self.last_life = true;
    }

    /// Whether the hook may have the proof, which makes it final.
    ///
    /// Not while a write of this agent is pending or of unknown outcome: it could make the capture `Alive` again.
    pub(crate) fn prove(&mut self, view: &View) -> bool {
        let proven = self.me().is_some_and(|me| view.is_registered(&me))
            && self.lane.is_free(view)
            && self.exception_in_doubt.is_none()
            && view.liveness(&self.identity.id) == Some(Liveness::Stopping);
        if proven && !self.mutants.has(Mutant::RegistersAfterProof) {
            self.last_life = true;
        }
        proven
    }

    /// Whether this capture is not registered, has nothing, and from now on never will be and have.
    ///
    /// Not while its work ends. A registration that is being written is given up, whether it takes effect or not.
    pub(crate) fn renounce(&mut self) -> bool {
        let nothing = !matches!(self.membership, Membership::Member { .. } | Membership::Leaving);
        if nothing && !self.mutants.has(Mutant::RegistersAfterPromise) {
            self.last_life = true;
        }
        nothing
    }

    /// Gives up office, and sits out a lease period.
    pub(crate) fn resign(&mut self, now: Now) {
        self.no_candidacy_before = now.monotonic + self.options.lease;
    }

    /// The present registration is over, by release or loss: all work ends, then it may register anew.
    pub(crate) fn leave(&mut self) -> Vec<AgentOutput> {
        let outputs = match &self.membership {
            Membership::Joining { lease, .. } | Membership::Member { lease, .. } => {
                vec![AgentOutput::Left, AgentOutput::RevokeLease(lease.id)]
            }
            _ => return Vec::new(),
        };
        self.membership = Membership::Leaving;
        self.stopping_since = None;
        self.exception_in_doubt = None;
        outputs
    }

    /// Asked to register anew. Refused to a process that is to end.
    pub(crate) fn release(&mut self, view: &View) -> Vec<AgentOutput> {
        let stopping = view.liveness(&self.identity.id) == Some(Liveness::Stopping);
        if self.last_life || !stopping || !self.lane.is_free(view) { Vec::new() } else { self.leave() }
    }

    /// All work has ended.
    pub(crate) fn all_stopped(&mut self, now: Now) {
        if self.membership == Membership::Leaving {
            self.membership =
                if self.last_life { Membership::Ended } else { Membership::Outside { not_before: now.monotonic } };
        }
    }

    fn margin(&self) -> Duration {
        self.options.lease / 10
    }

    fn lease(&self, id: LeaseId, sent_at: Instant) -> Lease {
        let trusted = self.options.lease.saturating_sub(self.margin());
        Lease { id, trusted_until: sent_at + trusted, next_keep: sent_at + self.options.lease / 4 }
    }

    pub(crate) fn lease_granted(&mut self, id: LeaseId, sent_at: Instant, nonce: u64) -> Vec<AgentOutput> {
        if !matches!(self.membership, Membership::AwaitingLease { .. }) {
            return vec![AgentOutput::RevokeLease(id)];
        }
        let (lease, node_epoch) = (self.lease(id, sent_at), NodeEpoch(nonce));
        self.membership = Membership::Joining { lease, node_epoch, told: false };
        Vec::new()
    }

    pub(crate) fn lease_not_granted(&mut self, now: Now) {
        if matches!(self.membership, Membership::AwaitingLease { .. }) {
            self.membership = Membership::Outside { not_before: now.monotonic + self.options.heartbeat };
        }
    }

    pub(crate) fn lease_kept(&mut self, id: LeaseId, sent_at: Instant) {
        let renewed = self.lease(id, sent_at);
        if let Membership::Joining { lease, .. } | Membership::Member { lease, .. } = &mut self.membership
            && lease.id == id
            && renewed.trusted_until > lease.trusted_until
        {
            lease.trusted_until = renewed.trusted_until;
        }
    }

    pub(crate) fn lease_lost(&mut self, id: LeaseId) -> Vec<AgentOutput> {
        match &self.membership {
            Membership::Joining { lease, .. } | Membership::Member { lease, .. } if lease.id == id => self.leave(),
            _ => Vec::new(),
        }
    }

    /// Takes the outcome of its write.
    pub(crate) fn written(&mut self, outcome: TxnOutcome) -> Vec<AgentOutput> {
        if outcome != TxnOutcome::Unknown {
            self.exception_in_doubt = None;
        }
        let announced = self.announced.take().filter(|_| matches!(outcome, TxnOutcome::Committed(_)));
        let load = self.lane.ended(outcome).then_some(AgentOutput::Load);
        announced.map(AgentOutput::Log).into_iter().chain(load).collect()
    }

    /// The view was loaded anew.
    pub(crate) fn reloaded(&mut self) {
        self.lane.reloaded();
    }

    /// When [`Agent::advance`] is due.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        let membership = match &self.membership {
            Membership::Outside { not_before } => Some(*not_before),
            Membership::AwaitingLease { not_after } => Some(*not_after),
            Membership::Joining { lease, .. } | Membership::Member { lease, .. } => {
                Some(lease.trusted_until.min(lease.next_keep))
            }
            Membership::Leaving | Membership::Ended => None,
        };
        let may_leave = !self.last_life && self.lane == WriteLane::Free;
        let stopping = self.stopping_since.filter(|_| may_leave).map(|since| since + self.options.stopping_timeout);
        membership.into_iter().chain(stopping).min()
    }

    /// Does what is due: after every event.
    pub(crate) fn advance(&mut self, view: Option<&View>, now: Now) -> Vec<AgentOutput> {
        let mut outputs = self.advance_lease(now);
        if let Some(view) = view {
            outputs.extend(self.advance_registration(view, now));
        }
        outputs
    }

    /// Keeps the lease, and ends the registration when that can no longer be trusted.
    pub(crate) fn advance_lease(&mut self, now: Now) -> Vec<AgentOutput> {
        let heartbeat = self.options.heartbeat;
        let keep_every = self.options.lease / 4;
        let member = matches!(self.membership, Membership::Member { .. });
        let key = member.then(|| KeyName::Capture(self.identity.id.clone()).key());
        match &mut self.membership {
            Membership::Outside { not_before } if *not_before <= now.monotonic => {
                if self.last_life {
                    self.membership = Membership::Ended;
                    return Vec::new();
                }
                self.membership = Membership::AwaitingLease { not_after: now.monotonic + self.options.lease };
                vec![AgentOutput::GrantLease]
            }
            Membership::AwaitingLease { not_after } if *not_after <= now.monotonic => {
                self.membership = Membership::Outside { not_before: now.monotonic + heartbeat };
                Vec::new()
            }
            Membership::Joining { lease, .. } | Membership::Member { lease, .. } => {
                if lease.trusted_until <= now.monotonic {
                    return self.leave();
                }
                if lease.next_keep <= now.monotonic {
                    lease.next_keep = now.monotonic + keep_every;
                    return vec![AgentOutput::KeepLease { lease: lease.id, key }];
                }
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn advance_registration(&mut self, view: &View, now: Now) -> Vec<AgentOutput> {
        match self.membership.clone() {
            Membership::Joining { lease, node_epoch, told } => self.join(view, &lease, node_epoch, told),
            Membership::Member { lease, node_epoch } => {
                let me = Incarnation { capture: self.identity.id.clone(), node_epoch };
                let Some(registered) = view.captures.get(&me.capture).filter(|_| view.is_registered(&me)) else {
                    return self.leave();
                };
                // Two that joined in the same moment did not see each other: the later one goes.
                if let Some(halt) = stranger(view, registered.created) {
                    return self.leave_for_good(halt);
                }
                self.serve(view, &me, lease.id, now)
            }
            _ => Vec::new(),
        }
    }

    fn join(&mut self, view: &View, lease: &Lease, node_epoch: NodeEpoch, told: bool) -> Vec<AgentOutput> {
        let me = Incarnation { capture: self.identity.id.clone(), node_epoch };
        if self.last_life {
            return self.leave();
        }
        if view.is_registered(&me) {
            self.membership = Membership::Member { lease: lease.clone(), node_epoch };
            self.lane.is_free(view);
            let line = Line::info("capture is registered").of(&me.capture);
            return vec![AgentOutput::Log(line.with("node_epoch", &node_epoch.to_string()))];
        }
        let taken = view.captures.contains_key(&self.identity.id);
        if taken && !told && self.lane == WriteLane::Free {
            self.membership = Membership::Joining { lease: lease.clone(), node_epoch, told: true };
            let line = Line::info("the name is registered, waiting until that ends").of(&self.identity.id);
            return vec![AgentOutput::Log(line)];
        }
        if taken || !self.lane.is_free(view) {
            return Vec::new();
        }
        if let Some(halt) = stranger(view, Revision::MAX) {
            return self.leave_for_good(halt);
        }
        self.identity.node_epoch = node_epoch;
        self.identity.version = view.common_version();
        let draft = Draft::default()
            .put_leased(view, &KeyName::Capture(self.identity.id.clone()), &self.identity, Some(lease.id))
            .put_leased(view, &KeyName::Owner(me), &candidacy(view, false), Some(lease.id));
        self.write(draft.finish())
    }

    fn leave_for_good(&mut self, halt: Halt) -> Vec<AgentOutput> {
        let mut outputs = self.leave();
        outputs.push(AgentOutput::Halt(halt));
        outputs
    }

    fn write(&mut self, txn: Txn) -> Vec<AgentOutput> {
        self.lane = WriteLane::Waiting;
        vec![AgentOutput::Write(txn)]
    }

    /// A member's duties: stand in the election while `Alive`, withdraw when not, and take the exception when nobody is.
    fn serve(&mut self, view: &View, me: &Incarnation, lease: LeaseId, now: Now) -> Vec<AgentOutput> {
        let liveness = view.liveness(&me.capture).unwrap_or(Liveness::Alive);
        if liveness == Liveness::Stopping {
            let since = *self.stopping_since.get_or_insert(now.monotonic);
            let overdue = now.monotonic.since(since) >= self.options.stopping_timeout;
            if overdue && !self.last_life && self.lane.is_free(view) {
                return self.leave();
            }
        } else {
            self.stopping_since = None;
        }
        if !self.lane.is_free(view) {
            return Vec::new();
        }
        if let Some(resolving) = self.resolve_exception(view, lease) {
            return resolving;
        }
        let standing = view.owners.contains_key(me);
        match (liveness, standing) {
            (Liveness::Alive, true) => self.take_office(view, me, lease),
            (Liveness::Alive, false) if now.monotonic >= self.no_candidacy_before => self.stand(view, me, lease),
            (Liveness::Alive, false) => Vec::new(),
            (_, true) if !self.mutants.has(Mutant::CandidateWhileDraining) => {
                self.write(Draft::default().delete(view, &KeyName::Owner(me.clone())).finish())
            }
            _ => self.make_exception(view, me, lease, now),
        }
    }

    /// The winner of the election acts only after a transaction that shows that it is registered and `Alive`.
    fn take_office(&mut self, view: &View, me: &Incarnation, lease: LeaseId) -> Vec<AgentOutput> {
        match view.leader() {
            Some((leader, _, false)) if leader == me => {
                let mut draft =
                    Draft::default().put_leased(view, &KeyName::Owner(me.clone()), &candidacy(view, true), Some(lease));
                if !self.mutants.has(Mutant::WinnerActsUnchecked) {
                    draft = draft
                        .require_same(view, &KeyName::Capture(me.capture.clone()))
                        .require_same(view, &KeyName::Liveness(me.capture.clone()));
                }
                self.write(draft.finish())
            }
            _ => Vec::new(),
        }
    }

    fn stand(&mut self, view: &View, me: &Incarnation, lease: LeaseId) -> Vec<AgentOutput> {
        let draft = Draft::default()
            .put_leased(view, &KeyName::Owner(me.clone()), &candidacy(view, false), Some(lease))
            .require_same(view, &KeyName::Capture(me.capture.clone()))
            .require_same(view, &KeyName::Liveness(me.capture.clone()));
        self.write(draft.finish())
    }

    /// Writes the registration anew, so that a taking of the exception whose outcome is not known has none any more.
    fn resolve_exception(&mut self, view: &View, lease: LeaseId) -> Option<Vec<AgentOutput>> {
        let compared = self.exception_in_doubt?;
        let registration = view.captures.get(&self.identity.id)?;
        if registration.modified != compared {
            self.exception_in_doubt = None;
            return None;
        }
        let name = KeyName::Capture(self.identity.id.clone());
        let draft = Draft::default().put_leased(view, &name, &registration.value, Some(lease));
        self.lane = WriteLane::Waiting;
        Some(vec![AgentOutput::Write(draft.finish())])
    }

    /// No registered capture is `Alive`: this one becomes so again, unless one joined meanwhile.
    fn make_exception(&mut self, view: &View, me: &Incarnation, lease: LeaseId, now: Now) -> Vec<AgentOutput> {
        let needed = !view.anybody_alive() && view.owners.is_empty();
        if !needed || self.last_life || self.mutants.has(Mutant::NoException) {
            return Vec::new();
        }
        let mut draft = Draft::default()
            .delete(view, &KeyName::Liveness(me.capture.clone()))
            .require_same(view, &KeyName::Capture(me.capture.clone()))
            .put_leased(view, &KeyName::Owner(me.clone()), &candidacy(view, false), Some(lease));
        for prefix in [KeyName::CAPTURES, KeyName::LIVENESS, KeyName::OWNERS] {
            draft = draft.require(Compare::PrefixUnchanged(prefix.into(), view.revision));
        }
        let mut line = Line::warn("nobody was alive, this capture works again").of(&me.capture);
        if let Some(record) = view.record.as_ref().filter(|record| record.value.incarnation() == *me) {
            line = Line::warn("drain ended: no peers").drain(&record.value);
            let end = DrainEnd {
                version: view.common_version(),
                outcome: DrainOutcome::NoPeers,
                ended_at_ms: now.wall,
                record: record.value.clone(),
            };
            draft =
                draft.delete(view, &KeyName::DrainRecord).put(view, &KeyName::DrainHistory(record.value.epoch), &end);
        }
        self.announced = Some(line);
        self.exception_in_doubt = view.captures.get(&me.capture).map(|kept| kept.modified);
        self.write(draft.finish())
    }
}

fn candidacy(view: &View, acting: bool) -> Candidacy {
    Candidacy { version: view.common_version(), acting, unknown: std::collections::BTreeMap::new() }
}

/// Why this build cannot be in a cluster with those that were there before this revision.
fn stranger(view: &View, before: Revision) -> Option<Halt> {
    let peer = view.stranger(before)?;
    Some(Halt::Protocol { peer: peer.id.clone(), release: peer.binary_version.to_string(), theirs: peer.protocol })
}

/// Deletes a registration with its candidacy, as the coordinator does with a capture that is not heard.
pub(crate) fn unregister(view: &View, who: &Incarnation) -> Draft {
    let draft = Draft::default().delete(view, &KeyName::Capture(who.capture.clone()));
    let candidacy = KeyName::Owner(who.clone());
    if view.owners.contains_key(who) { draft.delete(view, &candidacy) } else { draft }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use super::*;
    use crate::{
        model::{DrainEpoch, LivenessMark, PROTOCOL, ProtocolRange, UnixMillis, VALUE_VERSION, encode},
        store::{Entry, Listing, Model, Op},
    };

    const EPOCH: NodeEpoch = NodeEpoch(7);
    const LEASE: LeaseId = LeaseId(1);
    const NEXT: ProtocolRange = ProtocolRange { min: PROTOCOL.max + 1, max: PROTOCOL.max + 2 };
    const NEIGHBOUR: ProtocolRange = ProtocolRange { min: PROTOCOL.max, max: PROTOCOL.max + 1 };

    fn registration(id: &str, node_epoch: u64, protocol: ProtocolRange) -> Registration {
        Registration {
            version: VALUE_VERSION,
            id: CaptureId::new(id).unwrap(),
            node_epoch: NodeEpoch(node_epoch),
            advertise_addr: Arc::from("h:1"),
            pod_name: None,
            pod_uid: None,
            protocol,
            binary_version: Arc::from("9.9.9"),
            labels: BTreeMap::new(),
            unknown: BTreeMap::new(),
        }
    }

    fn identity() -> Registration {
        registration("a", EPOCH.0, PROTOCOL)
    }

    /// A store with nothing but this capture, which is `Stopping`.
    fn alone(registered_at: Revision) -> View {
        let entry = |name: KeyName, value: Arc<[u8]>, revision| Entry {
            key: name.key(),
            value,
            create_revision: revision,
            mod_revision: revision,
            lease: None,
        };
        let mark = LivenessMark {
            version: VALUE_VERSION,
            liveness: Liveness::Stopping,
            node_epoch: EPOCH,
            drain_epoch: DrainEpoch(1),
            unknown: BTreeMap::new(),
        };
        let id = identity().id;
        let entries = vec![
            entry(KeyName::Capture(id.clone()), encode(&identity()), registered_at),
            entry(KeyName::Liveness(id), encode(&mark), 2),
        ];
        View::load(&Listing { revision: registered_at.max(2), entries }, Mutants::default()).unwrap()
    }

    #[test]
    fn no_proof_while_the_exception_may_still_take_effect() {
        let now = Now { monotonic: Instant::default(), wall: UnixMillis(0) };
        let mut agent = Agent::new(identity(), Options::default(), Mutants::default());
        agent.advance(None, now);
        agent.lease_granted(LEASE, now.monotonic, EPOCH.0);
        let view = alone(1);
        agent.advance(Some(&view), now);
        let outputs = agent.advance(Some(&view), now);
        assert!(matches!(outputs[..], [AgentOutput::Write(_)]), "it takes the exception: {outputs:?}");
        agent.written(TxnOutcome::Unknown);
        agent.reloaded();
        assert!(!agent.prove(&view), "the write may land when the hook has let the pod go");
        let outputs = agent.advance(Some(&view), now);
        assert!(matches!(outputs[..], [AgentOutput::Write(_)]), "it makes sure that it cannot: {outputs:?}");
        agent.written(TxnOutcome::Committed(3));
        assert!(agent.prove(&alone(3)));
    }

    /// What a capture `me` of node epoch 7 does that has a lease, and sees these registrations, in this order of birth.
    fn outputs(captures: &[(&str, u64, ProtocolRange)]) -> Vec<AgentOutput> {
        let mut store = Model::new();
        for (id, node_epoch, protocol) in captures {
            let value = registration(id, *node_epoch, *protocol);
            let op = Op::Put { key: KeyName::Capture(value.id.clone()).key(), value: encode(&value), lease: None };
            store.txn(&Txn { compares: Vec::new(), ops: vec![op] });
        }
        let view = View::load(&store.list("", KeyName::WATCH_END), Mutants::default()).unwrap();
        let mut agent = Agent::new(registration("me", 0, PROTOCOL), Options::default(), Mutants::default());
        let now = Now::default();
        assert_eq!(agent.advance(None, now), [AgentOutput::GrantLease]);
        agent.lease_granted(LEASE, now.monotonic, EPOCH.0);
        let mut outputs = agent.advance(Some(&view), now);
        if outputs.iter().all(|output| matches!(output, AgentOutput::Log(_))) {
            outputs = agent.advance(Some(&view), now);
        }
        outputs
    }

    fn halts(outputs: &[AgentOutput]) -> Option<String> {
        let [AgentOutput::Left, AgentOutput::RevokeLease(LEASE), AgentOutput::Halt(halt)] = outputs else {
            return None;
        };
        Some(halt.to_string())
    }

    #[test]
    fn a_capture_does_not_join_one_that_speaks_another_protocol() {
        let said = halts(&outputs(&[("a", 1, PROTOCOL), ("b", 2, NEXT)])).unwrap();
        assert!(said.starts_with("capture b, release 9.9.9, speaks protocol 2 to 3, this build 1"), "{said}");
        for welcome in [vec![], vec![("a", 1, PROTOCOL)], vec![("a", 1, NEIGHBOUR)]] {
            let outputs = outputs(&welcome);
            assert!(matches!(outputs.as_slice(), [AgentOutput::Write(_)]), "{welcome:?}: {outputs:?}");
        }
    }

    #[test]
    fn a_former_life_of_another_protocol_is_waited_for() {
        assert_eq!(outputs(&[("me", 1, NEXT)]), []);
    }

    #[test]
    fn of_two_that_joined_at_once_the_later_one_goes() {
        assert!(halts(&outputs(&[("b", 2, NEXT), ("me", 7, PROTOCOL)])).is_some());
        let stays = outputs(&[("me", 7, PROTOCOL), ("b", 2, NEXT)]);
        assert!(matches!(stays.as_slice(), [AgentOutput::Write(_)]), "{stays:?}");
    }
}
