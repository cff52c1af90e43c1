//! The drain state, and the heartbeats that repeat it for ever.

use super::{Coordinator, Output, Progress, Recalled};
use crate::{
    agent,
    log::Line,
    model::{
        CaptureId, ChangefeedId, Command, DrainNotice, DrainState, Heartbeat, Incarnation, KeyName, Liveness, Now,
        Stamp,
    },
    mutant::Mutant,
    view::View,
    write::Draft,
};

/// After this many lease periods without a report a capture that keeps its lease is not waited for.
const UNHEARD_LEASES: u32 = 3;
/// For so many heartbeats after a change those that are to be avoided get nothing while others may still hear of it.
const AVOID_HEARTBEATS: u32 = 2;

impl Coordinator {
    /// Brings the drain state up to date. A change has a new stamp, and is sent at once.
    pub(super) fn refresh_state(&mut self, view: &View, now: Now) {
        let mut state = DrainState {
            stamp: self.state.stamp,
            last_epoch: view.drain_epoch(),
            drain: view
                .record
                .as_ref()
                .map(|record| DrainNotice { epoch: record.value.epoch, target: record.value.incarnation() }),
            avoid: view.record.as_ref().map(|record| record.value.avoid.clone()).unwrap_or_default(),
            ..DrainState::default()
        };
        for (id, kept) in &view.captures {
            let liveness = view.liveness(id).unwrap_or(Liveness::Alive);
            state.captures.insert(id.clone(), (kept.value.node_epoch, liveness));
        }
        for gone in self.evicted.keys() {
            let stopping = (gone.node_epoch, Liveness::Stopping);
            state.captures.entry(gone.capture.clone()).or_insert(stopping);
        }
        if state == self.state {
            return;
        }
        state.stamp = Stamp { term: self.term, version: self.state.stamp.version + 1 };
        self.follow_record(view, state.stamp, now);
        self.avoid_until = now.monotonic + self.options.heartbeat * AVOID_HEARTBEATS;
        self.state = state;
        self.index.all_stale();
        self.next_heartbeat = now.monotonic;
    }

    fn follow_record(&mut self, view: &View, stamp: Stamp, now: Now) {
        let epoch = view.record.as_ref().map(|record| record.value.epoch);
        if self.progress.as_ref().map(|progress| progress.epoch) == epoch {
            return;
        }
        if let Some(record) = view.record.as_ref().map(|kept| &kept.value) {
            let line = if self.state.stamp.version == 0 {
                Line::info("coordinator goes on with a drain").of(&self.me.capture)
            } else {
                Line::info("drain starts").with("requester", &record.requesters.join(", "))
            };
            self.outputs.push(Output::Log(line.drain(record)));
        }
        if self.progress.is_some() {
            self.balance_after = now.monotonic + self.options.balance_cooldown;
        }
        self.unechoed = epoch.map(|_| (stamp, now.monotonic)).or(self.unechoed);
        self.progress = epoch.map(|epoch| Progress {
            epoch,
            told: stamp,
            remaining: None,
            moved_at: now.wall,
            phase: None,
            blocked: Vec::new(),
        });
    }

    /// Sends heartbeats: to everybody when the time has come, and at once to whom they tell something new of who may get
    /// work and how much of it may be moved, since the next move starts when one ends.
    pub(super) fn beat(&mut self, view: &View, now: Now) {
        let destinations = self.offered(view, now);
        let due = self.next_heartbeat <= now.monotonic;
        if due {
            self.next_heartbeat = now.monotonic + self.options.heartbeat;
        }
        let balance = self.may_balance(view, now);
        let newcomers = self.peers.iter().filter(|(_, peer)| peer.is_surely_empty());
        let newcomers: Vec<_> = newcomers.map(|(id, peer)| peer.life(id)).collect();
        let silent = self.mutants.has(Mutant::SaysItOnce) && self.peers.values().all(|peer| peer.report.is_some());
        for (id, peer) in &mut self.peers {
            let to = peer.life(id);
            let shares = self.granted.iter().filter(|(feed, _)| lives_on(view, feed, &to));
            let told = (destinations.clone(), shares.map(|(feed, share)| (feed.clone(), *share)).collect());
            if !due && peer.told == told {
                continue;
            }
            self.beats += 1;
            for (feed, before) in std::mem::replace(&mut peer.told, told.clone()).1 {
                if told.1.get(&feed).is_none_or(|share| *share < before) {
                    let known = self.recalled.remove(&feed).filter(|known| known.host == to);
                    let share = known.map_or(before, |known| known.share.max(before));
                    self.recalled.insert(feed, Recalled { host: to.clone(), share, beat: self.beats });
                }
            }
            peer.look_for_strays |= due;
            if silent {
                continue;
            }
            let heartbeat = Heartbeat {
                state: self.state.clone(),
                destinations: told.0,
                newcomers: newcomers.clone(),
                shares: told.1,
                balance,
                beat: self.beats,
            };
            self.outputs.push(Output::Send { to, command: Command::Heartbeat(Box::new(heartbeat)) });
        }
        if due {
            let released = self.released.iter().map(|to| Output::Send { to: to.clone(), command: Command::Release });
            self.outputs.extend(released);
        }
    }

    /// The gate: who may get work. `Alive`, and known to have heard the latest state in its present life.
    pub(super) fn destinations(&self, view: &View) -> Vec<Incarnation> {
        let gated = self.peers.iter().filter(|(id, peer)| {
            let heard = peer.report.as_ref().is_some_and(|report| report.echo == self.state.stamp);
            view.liveness(id) == Some(Liveness::Alive) && (heard || self.mutants.has(Mutant::NoEchoGate))
        });
        gated.map(|(id, peer)| peer.life(id)).collect()
    }

    /// Those who get work at this moment: nobody, while only those are known to have heard that are to be avoided, and
    /// another may say so in time.
    pub(super) fn offered(&self, view: &View, now: Now) -> Vec<Incarnation> {
        let gated = self.destinations(view);
        let avoid = &self.state.avoid;
        if avoid.is_empty()
            || now.monotonic >= self.avoid_until
            || gated.iter().any(|who| !avoid.contains(&who.capture))
        {
            return gated;
        }
        let is_awaited = |id: &CaptureId| {
            view.liveness(id) == Some(Liveness::Alive) && !avoid.contains(id) && self.heard_within(id, 1, now)
        };
        let waits = self.peers.keys().any(is_awaited) && !self.mutants.has(Mutant::HurriesToTheAvoided);
        if waits { Vec::new() } else { gated }
    }

    /// Whether work may be moved only to spread it better.
    pub(super) fn may_balance(&self, view: &View, now: Now) -> bool {
        self.is_ready() && view.record.is_none() && now.monotonic >= self.balance_after
    }

    /// Whether a capture was heard within so many lease periods.
    pub(super) fn heard_within(&self, id: &CaptureId, leases: u32, now: Now) -> bool {
        self.peers.get(id).is_some_and(|peer| now.monotonic.since(peer.heard_at) < self.options.lease * leases)
    }

    /// Captures that keep their lease, are not heard, and may have work.
    pub(super) fn unheard(&self, now: Now) -> Vec<CaptureId> {
        let waited_for = self.peers.iter().filter(|(_, peer)| !peer.is_surely_empty()).map(|(id, _)| id);
        waited_for.filter(|id| !self.heard_within(id, UNHEARD_LEASES, now)).cloned().collect()
    }

    /// Deletes the registration of a capture that is not heard, as long as those are a minority.
    pub(super) fn evict_unheard(&mut self, view: &View, now: Now) -> Option<Draft> {
        let unheard = self.unheard(now);
        if unheard.len() * 2 >= self.peers.len() || self.mutants.has(Mutant::EvictsNobody) {
            return None;
        }
        let who = view.incarnation(unheard.first()?)?;
        self.evicted.entry(who.clone()).or_default();
        self.index.all_stale();
        self.announced.push(Line::warn("unheard capture loses its registration").of(&who.capture));
        let mut draft = self.draft();
        let gone = agent::unregister(view, &who).finish();
        for compare in gone.compares {
            draft = draft.require(compare);
        }
        Some(draft.operations(gone.ops))
    }

    /// Takes away liveness marks of registrations that are over.
    pub(super) fn clear_marks(&self, view: &View) -> Option<Draft> {
        let stale = view.liveness.iter().find(|(id, mark)| {
            let present = view.captures.get(*id).map(|kept| kept.value.node_epoch);
            let of_record = view.record.as_ref().is_some_and(|record| record.value.target == **id);
            present != Some(mark.value.node_epoch) && !of_record
        });
        stale.map(|(id, _)| self.draft().delete(view, &KeyName::Liveness(id.clone())))
    }
}

fn lives_on(view: &View, feed: &ChangefeedId, host: &Incarnation) -> bool {
    view.places.get(feed).is_some_and(|place| place.value.host == *host)
}
