//! Where dispatchers go: off captures that are not `Alive` first, then what is queued, then balance.

use super::{Maintainer, Order, Output, Stage, Then, spans::Planned};
use crate::{
    measure::{Measurement, MoveKind, MoveOutcome},
    model::{Incarnation, Instant, Liveness, NewDispatcher, SpanId},
    mutant::Mutant,
};

/// Most creations of one maintainer under way; more are queued until some are acknowledged.
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
        let leaving: Vec<_> = self
            .spans
            .hosts()
            .into_iter()
            .filter(|id| self.state.captures.get(id).is_some_and(|(_, l)| *l != Liveness::Alive))
            .collect();
        for capture in leaving {
            let room = self.moves_left();
            let home = capture == self.me.capture && !self.mutants.has(Mutant::DispatchersFirst);
            if room == 0 || home || !self.has_destination_besides(&capture) {
                continue;
            }
            for id in self.spans.working_on(&capture, room) {
                self.begin_move(id);
            }
        }
    }

    fn has_destination_besides(&self, capture: &crate::model::CaptureId) -> bool {
        self.destinations.iter().any(|who| who.capture != *capture)
    }

    fn begin_move(&mut self, id: SpanId) {
        if let Some(mut planned) = self.spans.take(id) {
            planned.moving = true;
            self.moves.insert(id, (self.now, false));
            self.stop(planned, Then::Requeue);
        }
    }

    /// An order for a span was not enough; if it is on the move, that is told when the move ends.
    pub(super) fn repeat_move(&mut self, id: SpanId) {
        if let Some((_, repeated)) = self.moves.get_mut(&id) {
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
        let load = |who: &Incarnation| self.spans.count_on(&who.capture);
        let fullest = self.destinations.iter().max_by_key(|who| (load(who), std::cmp::Reverse(&who.capture)));
        let emptiest = self.destinations.iter().min_by_key(|who| (load(who), &who.capture));
        let Some((fullest, emptiest)) = fullest.zip(emptiest) else { return };
        if load(fullest) < load(emptiest) + 2 {
            return;
        }
        for id in self.spans.working_on(&fullest.capture.clone(), 1) {
            self.begin_move(id);
        }
    }

    /// The least loaded destination, counting what is on its way to it; ties fall to the smaller name.
    fn choose(&self) -> Option<Incarnation> {
        let best = self.destinations.iter().min_by_key(|who| {
            (self.state.avoid.contains(&who.capture), self.spans.count_on(&who.capture), &who.capture)
        });
        best.cloned()
    }

    pub(super) fn place_queued(&mut self) {
        while self.spans.creating() < CREATING_MAX
            && let Some(id) = self.spans.next_queued(self.now)
        {
            let Some(host) = self.choose() else { return };
            let Some(planned) = self.spans.take(id) else { return };
            self.create(planned, host);
        }
    }

    fn create(&mut self, mut planned: Planned, host: Incarnation) {
        let at = self.site(host);
        let order = NewDispatcher {
            span: planned.span.clone(),
            writer_epoch: at.writer_epoch,
            start_ts: planned.checkpoint_ts,
        };
        self.orders.entry(at.host.clone()).or_default().create.push(order);
        planned.due = Some(self.later(planned.attempt));
        planned.stage = Stage::Creating { at };
        self.spans.put(planned);
    }

    fn later(&self, attempt: u32) -> Instant {
        let doubled = self.options.move_timeout.saturating_mul(1 << attempt.min(16));
        self.now + doubled.min(self.options.move_timeout_max)
    }

    /// Orders whose time is up. A creation is stopped, and that has to be acknowledged before another starts; a stop is
    /// sent again, for as long as its host is registered.
    pub(super) fn repeat_orders(&mut self) {
        while let Some(id) = self.spans.next_due(self.now) {
            let Some(mut planned) = self.spans.take(id) else { return };
            self.repeat_move(id);
            planned.attempt += 1;
            planned.due = Some(self.later(planned.attempt));
            if self.mutants.has(Mutant::StartsWithoutAck) {
                self.take_stopped(planned);
                continue;
            }
            if let Stage::Creating { at } = &planned.stage {
                planned.stage = Stage::Stopping { at: at.clone(), then: Then::Requeue };
            }
            if let Some(at) = planned.stage.site() {
                self.orders.entry(at.host.clone()).or_default().stop.push((id, at.writer_epoch));
            }
            self.spans.put(planned);
        }
        let again = self.now + self.options.move_timeout;
        for ((span, writer_epoch), (host, due)) in &mut self.surplus {
            if *due <= self.now {
                *due = again;
                let order = Order::Stop(vec![(*span, *writer_epoch)]);
                self.outputs.push(Output::Order { to: host.clone(), order });
            }
        }
    }
}
