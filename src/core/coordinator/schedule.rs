//! Who gets which maintainer: drain before everything, then what has no place, then balance.
//!
//! The same input gives the same plan: all maps are ordered, and ties fall to the smaller name.

use std::collections::BTreeMap;

use super::{Coordinator, standing::Standing};
use crate::{
    model::{
        CaptureId, ChangefeedEpoch, ChangefeedId, ChangefeedState, Incarnation, KeyName, Liveness, Now, Placement,
        VALUE_VERSION,
    },
    mutant::Mutant,
    view::View,
    write::Draft,
};

impl Coordinator {
    /// Begins moves: off captures that are not `Alive`, up to the limit; else, when all is quiet, one for balance.
    pub(super) fn plan_moves(&mut self, view: &View, now: Now) {
        let limit = self.options.drain_maintainer_batch_size;
        let destinations = self.destinations(view);
        if destinations.is_empty() {
            return;
        }
        let mut leaving = Vec::new();
        let mut room =
            if self.mutants.has(Mutant::IgnoresBatch) { usize::MAX } else { limit.saturating_sub(self.moves.len()) };
        for (feed, place) in &view.places {
            let (Standing::Running(host, _) | Standing::Starting(host)) = self.standing(view, feed) else { continue };
            let alive = view.liveness(&host.capture).is_none_or(|liveness| liveness == Liveness::Alive);
            if alive || !Self::shall_run(view, feed) {
                continue;
            }
            match self.moves.get(feed) {
                Some(under_way) if under_way.from == place.value.epoch => continue,
                // It was on its way to a capture that now drains itself: it goes on from there, in the same slot.
                Some(_) => {}
                None if room == 0 => continue,
                None => room -= 1,
            }
            leaving.push((feed.clone(), place.value.epoch));
        }
        if leaving.is_empty() && self.moves.is_empty() && self.may_balance(view, now) {
            leaving.extend(self.balance(view, &destinations));
        }
        for (feed, from) in leaving {
            self.begin_move(feed, from, now);
        }
    }

    /// One maintainer off the fullest capture, when another has at least two fewer and everything runs.
    fn balance(&self, view: &View, destinations: &[Incarnation]) -> Option<(ChangefeedId, ChangefeedEpoch)> {
        let running = |feed: &ChangefeedId| matches!(self.standing(view, feed), Standing::Running(..));
        if !view.infos.keys().filter(|feed| Self::shall_run(view, feed)).all(running) {
            return None;
        }
        let loads = loads(view);
        let load = |who: &Incarnation| loads.get(&who.capture).copied().unwrap_or(0);
        let fullest = destinations.iter().max_by_key(|who| (load(who), std::cmp::Reverse(&who.capture)))?;
        let emptiest = destinations.iter().min_by_key(|who| (load(who), &who.capture))?;
        if load(fullest) < load(emptiest) + 2 {
            return None;
        }
        let (feed, place) =
            view.places.iter().find(|(feed, place)| place.value.host == *fullest && Self::shall_run(view, feed))?;
        Some((feed.clone(), place.value.epoch))
    }

    /// Places maintainers that have no place, as many as fit one transaction.
    pub(super) fn place(&self, view: &View, _now: Now) -> Option<Draft> {
        if !self.is_ready() {
            return None;
        }
        let destinations = self.destinations(view);
        let mut loads = loads(view);
        let mut draft = self.draft();
        for feed in view.infos.keys().filter(|feed| Self::shall_run(view, feed)) {
            if draft.room() < 2 {
                break;
            }
            let above = match self.standing(view, feed) {
                Standing::Unplaced => ChangefeedEpoch::default(),
                Standing::Running(_, m) if m.outranked_by >= Some(m.epoch) => m.outranked_by.unwrap_or_default(),
                _ => continue,
            };
            let Some(host) = self.choose(view, &destinations, &loads) else { break };
            *loads.entry(host.capture.clone()).or_default() += 1;
            let epoch = self.next_placement(view, feed).max(above.next());
            let placement = Placement { version: VALUE_VERSION, host: host.clone(), epoch };
            draft = draft
                .put(view, &KeyName::ChangefeedPlace(feed.clone()), &placement)
                .require_same(view, &KeyName::ChangefeedInfo(feed.clone()))
                .require_same(view, &KeyName::Capture(host.capture));
        }
        (!draft.is_empty()).then_some(draft)
    }

    /// The least loaded destination, one that is to be avoided only when there is no other.
    fn choose(
        &self,
        view: &View,
        destinations: &[Incarnation],
        loads: &BTreeMap<CaptureId, u64>,
    ) -> Option<Incarnation> {
        let avoid = view.record.as_ref().map(|record| record.value.avoid.as_slice()).unwrap_or_default();
        let mut candidates = destinations.to_vec();
        if self.mutants.has(Mutant::TurnsMoveBack)
            && let Some(record) = &view.record
        {
            candidates = vec![record.value.incarnation()];
        }
        candidates.into_iter().min_by_key(|who| {
            let load = loads.get(&who.capture).copied().unwrap_or(0);
            (avoid.contains(&who.capture), load, who.capture.clone())
        })
    }

    /// A number above every placement of this changefeed, also of a deleted one of the same name: no placement's number
    /// is above the revision that wrote it.
    fn next_placement(&self, view: &View, feed: &ChangefeedId) -> ChangefeedEpoch {
        let placed = view.places.get(feed).map(|place| place.value.epoch).unwrap_or_default();
        let reports = self.peers.values().filter_map(|peer| peer.report.as_ref());
        let known = reports.flat_map(|report| {
            let ended = report.ended.get(feed).copied();
            let hosted = report.dispatchers.get(feed).map(|(_, epoch)| *epoch);
            ended.into_iter().chain(hosted)
        });
        known.fold(placed, Ord::max).next().max(ChangefeedEpoch(view.revision))
    }

    /// Persists that a changefeed cannot go on by itself.
    pub(super) fn fail_changefeeds(&mut self, view: &View) -> Option<Draft> {
        let (feed, error) = view.infos.keys().find_map(|feed| match self.standing(view, feed) {
            Standing::Running(_, m) if Self::shall_run(view, feed) => Some((feed.clone(), m.error.clone()?)),
            _ => None,
        })?;
        let mut info = view.infos.get(&feed)?.value.clone();
        let line = crate::log::Line::warn("changefeed failed").on(&feed).with("error", &error);
        info.state = ChangefeedState::Failed { error };
        self.announced.push(line);
        let draft = self.draft().put(view, &KeyName::ChangefeedInfo(feed.clone()), &info);
        Some(self.without_place(draft, view, &feed))
    }
}

/// How many maintainers each capture has, those on their way to it included.
fn loads(view: &View) -> BTreeMap<CaptureId, u64> {
    let mut loads = BTreeMap::new();
    for (feed, place) in &view.places {
        if Coordinator::shall_run(view, feed) && view.is_registered(&place.value.host) {
            *loads.entry(place.value.host.capture.clone()).or_default() += 1;
        }
    }
    loads
}
