//! How a maintainer learns what is there: every registered capture tells its inventory.

use std::collections::BTreeMap;

use super::{Maintainer, Output, Planned, Site, Stage, position::Persisted};
use crate::{
    model::{CaptureId, DrainState, HostedDispatcher, Incarnation, Instant, Order},
    mutant::Mutant,
};

/// What a capture has told so far.
#[derive(Debug, Default)]
struct Inventory {
    host: Option<Incarnation>,
    /// Which of the host's answers the parts are of.
    answer: u64,
    parts: BTreeMap<u32, Vec<HostedDispatcher>>,
    count: Option<u32>,
    /// It is known to have nothing.
    excused: bool,
    asked_at: Option<Instant>,
}

impl Inventory {
    fn is_complete(&self) -> bool {
        self.count.is_some_and(|count| self.parts.len() == count as usize)
    }

    /// Takes out what was told; what counts from then on is that it was complete.
    fn open(&mut self) -> Vec<HostedDispatcher> {
        self.count = Some(0);
        std::mem::take(&mut self.parts).into_values().flatten().collect()
    }
}

/// The inventories of all registered captures.
#[derive(Debug, Default)]
pub(super) struct Bootstrap {
    captures: BTreeMap<CaptureId, Inventory>,
    next_ask: Option<Instant>,
}

impl Bootstrap {
    /// Follows the membership: who is gone is not waited for, who is new is asked.
    pub(super) fn follow(&mut self, state: &DrainState, now: Instant) {
        self.captures.retain(|id, inventory| {
            let present = state.captures.get(id).map(|(node_epoch, _)| *node_epoch);
            inventory.host.as_ref().map(|host| host.node_epoch) == present
        });
        for (id, (node_epoch, _)) in &state.captures {
            let host = Incarnation { capture: id.clone(), node_epoch: *node_epoch };
            let fresh = || Inventory { host: Some(host), ..Inventory::default() };
            self.captures.entry(id.clone()).or_insert_with(fresh);
        }
        self.next_ask = Some(now);
    }

    /// Nobody waits for what these have: nothing.
    pub(super) fn excuse(&mut self, newcomers: &[Incarnation]) {
        for inventory in self.captures.values_mut() {
            inventory.excused = inventory.host.as_ref().is_some_and(|host| newcomers.contains(host));
        }
    }

    /// What a capture told, once it is complete.
    fn told_by(&mut self, from: &Incarnation) -> Vec<HostedDispatcher> {
        let inventory = self.captures.get_mut(&from.capture).filter(|inventory| inventory.is_complete());
        inventory.map(Inventory::open).unwrap_or_default()
    }

    pub(super) fn take(
        &mut self,
        from: &Incarnation,
        answer: u64,
        (part, parts): (u32, u32),
        dispatchers: Vec<HostedDispatcher>,
    ) {
        let Some(inventory) = self.captures.get_mut(&from.capture) else { return };
        if inventory.host.as_ref() != Some(from) || inventory.is_complete() || answer < inventory.answer {
            return;
        }
        if answer > inventory.answer {
            // What has ended between two answers would be missed by a part of each.
            inventory.parts.clear();
            (inventory.answer, inventory.count) = (answer, Some(parts));
        }
        inventory.parts.insert(part, dispatchers);
    }

    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.next_ask.filter(|_| self.captures.values().any(|inventory| !inventory.is_complete()))
    }
}

impl Maintainer {
    /// Asks who has not answered, and begins to plan when everybody has.
    pub(super) fn advance_bootstrap(&mut self) {
        let due = self.bootstrap.next_ask.is_some_and(|at| at <= self.now);
        if due {
            self.bootstrap.next_ask = Some(self.now + self.options.heartbeat);
            let again = self.now;
            let patience = self.options.heartbeat;
            for inventory in self.bootstrap.captures.values_mut().filter(|inventory| !inventory.is_complete()) {
                if inventory.asked_at.is_some_and(|at| again.since(at) < patience) {
                    continue;
                }
                inventory.asked_at = Some(again);
                if let Some(to) = inventory.host.clone() {
                    let order = Order::Bootstrap { config: self.config.clone() };
                    self.outputs.push(Output::Order { to, order });
                }
            }
        }
        let answered = !self.bootstrap.captures.is_empty()
            && (self.bootstrap.captures.values().all(|inventory| inventory.is_complete() || inventory.excused)
                || self.mutants.has(Mutant::PlacesBeforeBootstrap));
        if !self.running && answered && !matches!(self.persisted, Persisted::Reading { .. }) {
            self.begin();
        }
    }

    /// What a capture has that joined when the plan was made: an earlier maintainer may have put something there that is
    /// not of the plan.
    pub(super) fn take_late_inventory(&mut self, from: &Incarnation) {
        for dispatcher in self.bootstrap.told_by(from) {
            let id = dispatcher.span.id();
            let known = self.spans.get(id).and_then(|planned| planned.stage.site());
            if known.is_none_or(|at| at.host != *from || at.writer_epoch != dispatcher.writer_epoch) {
                self.surplus.insert((id, dispatcher.writer_epoch), (from.clone(), self.now));
            }
        }
    }

    /// Rebuilds the plan. Of two dispatchers that could write the same row the higher writer stays.
    fn begin(&mut self) {
        self.running = true;
        let mut found: Vec<(Incarnation, HostedDispatcher)> = Vec::new();
        for inventory in self.bootstrap.captures.values_mut().filter(|inventory| inventory.is_complete()) {
            let Some(host) = inventory.host.clone() else { continue };
            found.extend(inventory.open().into_iter().map(|dispatcher| (host.clone(), dispatcher)));
        }
        found.sort_by_key(|(_, dispatcher)| std::cmp::Reverse(dispatcher.writer_epoch));
        for (host, dispatcher) in found {
            let overlaps = self
                .spans
                .of_table(&dispatcher.span.table)
                .into_iter()
                .filter_map(|id| self.spans.get(id))
                .any(|planned| planned.span.overlaps(&dispatcher.span));
            let at = Site { host, writer_epoch: dispatcher.writer_epoch };
            if overlaps {
                let key = (dispatcher.span.id(), dispatcher.writer_epoch);
                self.surplus.insert(key, (at.host, self.now));
                continue;
            }
            let stage = if dispatcher.stopping {
                Stage::Stopping { at, then: super::Then::Requeue }
            } else {
                Stage::Working { at }
            };
            let due = dispatcher.stopping.then_some(self.now);
            self.spans.put(Planned {
                span: dispatcher.span,
                stage,
                checkpoint_ts: dispatcher.checkpoint_ts.max(self.checkpoint_ts),
                attempt: 0,
                failures: 0,
                due,
                // The predecessor had begun to move it, and that counts against the limit.
                moving: dispatcher.stopping,
            });
        }
        self.outputs.push(Output::StartTrigger { start_ts: self.checkpoint_ts });
    }
}
