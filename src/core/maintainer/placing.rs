//! Where dispatchers go: off captures that are not `Alive` first, then what is queued, then balance.

use std::sync::Arc;

use super::{Maintainer, Output, Slot, Stage, Then};
use crate::{
    measure::{Measurement, MoveKind, MoveOutcome},
    model::{Incarnation, Instant, Liveness, NewDispatcher, SpanId},
    mutant::Mutant,
};

/// Most creations of one maintainer under way, those of moves left out: they have the share. More are queued until some
/// are acknowledged.
const CREATING_MAX: usize = 1024;

impl Maintainer {
    fn moves_left(&self) -> usize {
        if self.mutants.has(Mutant::IgnoresShare) {
            return usize::MAX;
        }
        (self.share as usize).saturating_sub(self.spans.moving())
    }

    /// Moves dispatchers off captures that are not `Alive`, within the share. The next begins when one ends. Not while
    /// this maintainer lives there itself: maintainers go first.
    pub(super) fn move_away(&mut self) {
        let leaves = |host: &&Arc<Incarnation>| self.state.liveness(host).is_some_and(|l| l != Liveness::Alive);
        let leaving: Vec<_> = self.spans.hosts().filter(leaves).cloned().collect();
        for host in leaving {
            let room = self.moves_left().min(self.room);
            let home = host.capture == self.me.capture && !self.mutants.has(Mutant::DispatchersFirst);
            if room == 0 || home || !self.has_destination_besides(&host) {
                continue;
            }
            for slot in self.spans.working_on(&host, room) {
                self.room -= 1;
                self.begin_move(slot);
            }
        }
    }

    fn has_destination_besides(&self, host: &Incarnation) -> bool {
        self.destinations.iter().any(|who| who.capture != host.capture)
    }

    fn begin_move(&mut self, slot: Slot) {
        let id = self.spans.change(slot, |planned| {
            planned.moving = true;
            planned.span.id()
        });
        self.moves.extend(id.map(|id| (id, (self.now, false))));
        self.stop(slot, Then::Requeue);
    }

    /// An order for a span was not enough; if it is on the move, that is told when the move ends.
    pub(super) fn repeat_move(&mut self, slot: Slot) {
        let id = self.spans.get(slot).filter(|planned| planned.moving).map(|planned| planned.span.id());
        if let Some((_, repeated)) = id.and_then(|id| self.moves.get_mut(&id)) {
            *repeated = true;
        }
    }

    /// If a span was on the move, it is not any more.
    pub(super) fn end_move(&mut self, id: SpanId, outcome: impl FnOnce(bool) -> MoveOutcome) {
        if let Some((since, repeated)) = self.moves.remove(&id) {
            let (kind, took) = (MoveKind::Dispatcher, self.now.since(since));
            let ended = Measurement::MoveEnded { kind, outcome: outcome(repeated), took };
            self.outputs.push(Output::Measured(ended));
        }
    }

    /// When everything works and nothing else is on: one dispatcher from the fullest to the emptiest capture.
    pub(super) fn spread(&mut self) {
        let quiet = self.balance && self.state.drain.is_none() && self.spans.all_work() && self.moves_left() > 0;
        if !quiet || self.destinations.len() < 2 {
            return;
        }
        let load = |who: &Incarnation| self.spans.count_on(who);
        let fullest = self.destinations.iter().max_by_key(|who| (load(who), std::cmp::Reverse(&who.capture)));
        let emptiest = self.destinations.iter().min_by_key(|who| (load(who), &who.capture));
        let Some((fullest, emptiest)) = fullest.zip(emptiest) else { return };
        if load(fullest) < load(emptiest) + 2 {
            return;
        }
        for slot in self.spans.working_on(&fullest.clone(), 1) {
            self.begin_move(slot);
        }
    }

    /// The least loaded destination, counting what is on its way to it; ties fall to the smaller name.
    fn choose(&self) -> Option<Arc<Incarnation>> {
        let best = self
            .destinations
            .iter()
            .min_by_key(|who| (self.state.avoid.contains(&who.capture), self.spans.count_on(who), &who.capture));
        best.cloned()
    }

    pub(super) fn place_queued(&mut self) {
        while self.room > 0
            && let Some(slot) = self.spans.next_queued(self.now, self.spans.creating() >= CREATING_MAX)
        {
            let Some(host) = self.choose() else { return };
            self.room -= 1;
            self.create(slot, host);
        }
    }

    fn create(&mut self, slot: Slot, host: Arc<Incarnation>) {
        let at = self.site(host);
        let Some(attempt) = self.spans.get(slot).map(|planned| planned.attempt) else { return };
        let due = self.later(attempt);
        let order = self.spans.change(slot, |planned| {
            planned.stage = Stage::Creating(at.clone());
            // What is persisted was proven by an earlier maintainer, of this span, too.
            let start_ts = planned.checkpoint_ts.max(self.checkpoint_ts);
            NewDispatcher { span: planned.span.clone(), writer_epoch: at.writer_epoch, start_ts }
        });
        self.spans.repeat_at(slot, due);
        self.orders.entry(at.host).or_default().create.extend(order);
    }

    fn later(&self, attempt: u16) -> Instant {
        let doubled = self.options.move_timeout.saturating_mul(1 << attempt.min(16));
        self.now + doubled.min(self.options.move_timeout_max)
    }

    /// Orders whose time is up. A creation is stopped, and that has to be acknowledged before another starts; a stop is
    /// sent again, for as long as its host is registered.
    pub(super) fn repeat_orders(&mut self) {
        while self.room > 0
            && let Some(slot) = self.spans.next_due(self.now)
        {
            self.room -= 1;
            self.repeat_move(slot);
            if self.mutants.has(Mutant::StartsWithoutAck) {
                self.take_stopped(slot, None);
                continue;
            }
            self.repeat_stop(slot);
        }
        let again = self.now + self.options.move_timeout;
        while self.room > 0
            && let Some((host, writer)) = self.surplus.next_due(self.now, again)
        {
            self.room -= 1;
            self.orders.entry(host).or_default().stop.push(writer);
        }
    }

    fn repeat_stop(&mut self, slot: Slot) {
        let Some(attempt) = self.spans.get(slot).map(|planned| planned.attempt.saturating_add(1)) else { return };
        let due = self.later(attempt);
        let stopped = self.spans.change(slot, |planned| {
            planned.attempt = attempt;
            let at = planned.stage.site()?.clone();
            let then = match &planned.stage {
                Stage::Stopping(_, then) => *then,
                _ => Then::Requeue,
            };
            planned.stage = Stage::Stopping(at.clone(), then);
            Some((planned.span.id(), at))
        });
        if let Some((id, at)) = stopped.flatten() {
            self.spans.repeat_at(slot, due);
            self.orders.entry(at.host).or_default().stop.push((id, at.writer_epoch));
        }
    }
}
