//! How a maintainer learns what is there: every registered capture tells its inventory, one part for each question.
//!
//! What a part names goes into the plan as it comes, so that no event costs more than what it names. Nothing is placed
//! before every inventory is complete.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Maintainer, Output, Planned, Site, Stage, Then, position::Persisted, spans::Slot};
use crate::{
    model::{CaptureId, DrainState, HostedDispatcher, Incarnation, Instant, Order, SpanId, WriterEpoch},
    mutant::Mutant,
};

/// How far a capture has told its inventory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// All up to this span, in the order of their names.
    UpTo(Option<SpanId>),
    All,
}

/// The inventory of a capture.
#[derive(Debug)]
struct Inventory {
    host: Arc<Incarnation>,
    told: Told,
    /// It is known to have nothing.
    excused: bool,
    asked_at: Option<Instant>,
}

/// The inventories of all registered captures.
#[derive(Debug, Default)]
pub(super) struct Bootstrap {
    captures: BTreeMap<CaptureId, Inventory>,
    next_ask: Option<Instant>,
    /// Dispatchers that ended before the part that names them came.
    ended: BTreeSet<(SpanId, WriterEpoch)>,
}

impl Bootstrap {
    /// Follows the membership: who is gone is not waited for, who is new is asked.
    pub(super) fn follow(&mut self, state: &DrainState, now: Instant) {
        self.captures.retain(|_, inventory| state.liveness(&inventory.host).is_some());
        for (id, (node_epoch, _)) in &state.captures {
            let host = Arc::new(Incarnation { capture: id.clone(), node_epoch: *node_epoch });
            let fresh = || Inventory { host, told: Told::UpTo(None), excused: false, asked_at: None };
            self.captures.entry(id.clone()).or_insert_with(fresh);
        }
        self.next_ask = Some(now);
    }

    /// Takes note of a part, if it is the one that was asked for. Whose it is.
    fn take(
        &mut self,
        from: &Incarnation,
        after: Option<SpanId>,
        last: Option<SpanId>,
        now: Instant,
    ) -> Option<Arc<Incarnation>> {
        let inventory = self.captures.get_mut(&from.capture).filter(|inventory| *inventory.host == *from)?;
        if inventory.told != Told::UpTo(after) {
            return None;
        }
        inventory.told = last.map_or(Told::All, |last| Told::UpTo(Some(last)));
        inventory.asked_at = None;
        self.next_ask = Some(now);
        Some(inventory.host.clone())
    }

    /// Nobody waits for what these have: nothing.
    pub(super) fn excuse(&mut self, newcomers: &[Incarnation]) {
        for inventory in self.captures.values_mut() {
            inventory.excused = newcomers.contains(&inventory.host);
        }
    }

    fn is_complete(&self) -> bool {
        let done = |inventory: &Inventory| inventory.told == Told::All || inventory.excused;
        !self.captures.is_empty() && self.captures.values().all(done)
    }

    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.next_ask.filter(|_| self.captures.values().any(|inventory| inventory.told != Told::All))
    }

    /// A dispatcher that no part has named yet has ended.
    pub(super) fn note_end(&mut self, writer: (SpanId, WriterEpoch)) {
        self.ended.insert(writer);
    }
}

impl Maintainer {
    /// Takes a part of an inventory into the plan.
    pub(super) fn take_inventory(
        &mut self,
        from: &Incarnation,
        after: Option<SpanId>,
        dispatchers: Vec<HostedDispatcher>,
        more: bool,
    ) {
        let last = dispatchers.last().filter(|_| more).map(|hosted| hosted.span.id());
        let Some(host) = self.bootstrap.take(from, after, last, self.now) else { return };
        for dispatcher in dispatchers {
            if self.running { self.take_late(&host, &dispatcher) } else { self.adopt(&host, dispatcher) }
        }
    }

    /// What a capture has that joined when the plan was made: an earlier maintainer may have put something there that is
    /// not of the plan.
    fn take_late(&mut self, host: &Arc<Incarnation>, dispatcher: &HostedDispatcher) {
        let writer = (dispatcher.span.id(), dispatcher.writer_epoch);
        let known = self.spans.find(writer.0).and_then(|slot| self.spans.get(slot)?.stage.site());
        if known.is_none_or(|at| at.host != *host || at.writer_epoch != writer.1) {
            self.surplus.add(host.clone(), writer, self.now);
        }
    }

    /// Asks who has more to tell, and begins to plan when everybody has told all.
    pub(super) fn advance_bootstrap(&mut self) {
        let due = self.bootstrap.next_ask.is_some_and(|at| at <= self.now);
        if due {
            self.bootstrap.next_ask = Some(self.now + self.options.heartbeat);
            let (now, patience) = (self.now, self.options.heartbeat);
            for inventory in self.bootstrap.captures.values_mut() {
                let Told::UpTo(after) = inventory.told else { continue };
                if inventory.asked_at.is_some_and(|at| now.since(at) < patience) {
                    continue;
                }
                inventory.asked_at = Some(now);
                let order = Order::Bootstrap { config: self.config.clone(), after };
                self.outputs.push(Output::Order { to: (*inventory.host).clone(), order });
            }
        }
        let answered = self.bootstrap.is_complete()
            || (self.mutants.has(Mutant::PlacesBeforeBootstrap) && !self.bootstrap.captures.is_empty());
        if !self.running && answered && !matches!(self.persisted, Persisted::Reading { .. }) {
            self.begin();
        }
    }

    fn begin(&mut self) {
        self.running = true;
        self.bootstrap.ended.clear();
        self.outputs.push(Output::StartTrigger { start_ts: self.checkpoint_ts });
    }

    /// Takes a dispatcher that is there into the plan. Of two that could write the same row the higher writer stays.
    fn adopt(&mut self, host: &Arc<Incarnation>, dispatcher: HostedDispatcher) {
        let HostedDispatcher { span, writer_epoch, checkpoint_ts, stopping } = dispatcher;
        let writer = (span.id(), writer_epoch);
        if self.bootstrap.ended.contains(&writer) {
            return;
        }
        let rivals = self.spans.overlapping(&span);
        let writer_of = |slot: &Slot| self.spans.get(*slot)?.stage.site().map(|at| at.writer_epoch);
        if rivals.iter().filter_map(writer_of).any(|rival| rival > writer_epoch) {
            return self.surplus.add(host.clone(), writer, self.now);
        }
        for rival in rivals {
            let Some(beaten) = self.spans.remove(rival) else { continue };
            if let Some(at) = beaten.stage.site() {
                self.surplus.add(at.host.clone(), (beaten.span.id(), at.writer_epoch), self.now);
            }
        }
        self.unlisted.insert(span.table.clone());
        let at = Site { host: host.clone(), writer_epoch };
        let stage = if stopping { Stage::Stopping(at, Then::Requeue) } else { Stage::Working(at) };
        let checkpoint_ts = checkpoint_ts.max(self.checkpoint_ts);
        // What the predecessor had begun to move counts against the limit.
        let slot = self.spans.insert(Planned { span, stage, checkpoint_ts, attempt: 0, failures: 0, moving: stopping });
        if stopping {
            self.spans.repeat_at(slot, self.now);
        }
    }
}
