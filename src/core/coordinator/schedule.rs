//! Who gets which maintainer: drain before everything, then what has no place, then balance.
//!
//! The same input gives the same plan: all maps are ordered, and ties fall to the smaller name.

use std::collections::BTreeMap;

use super::{Coordinator, index::Mark, standing::Standing};
use crate::{
    model::{CaptureId, ChangefeedEpoch, ChangefeedId, ChangefeedState, Incarnation, KeyName, Now, Placement},
    mutant::Mutant,
    view::View,
    write::Draft,
};

impl Coordinator {
    /// Begins moves: off captures that are not `Alive`, up to the limit; else, when all is quiet, one for balance.
    pub(super) fn plan_moves(&mut self, view: &View, now: Now) {
        let limit = self.options.drain_maintainer_batch_size;
        let destinations = self.offered(view, now);
        if destinations.is_empty() {
            return;
        }
        let mut leaving = Vec::new();
        let mut room =
            if self.mutants.has(Mutant::IgnoresBatch) { usize::MAX } else { limit.saturating_sub(self.moves.len()) };
        for feed in self.index.marked(Mark::Leaving) {
            let Some(place) = view.places.get(feed) else { continue };
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
        if self.index.marked(Mark::Unsettled).next().is_some() {
            return None;
        }
        let loads = self.index.loads();
        let load = |who: &Incarnation| loads.get(&who.capture).copied().unwrap_or(0);
        let fullest = destinations.iter().max_by_key(|who| (load(who), std::cmp::Reverse(&who.capture)))?;
        let emptiest = destinations.iter().min_by_key(|who| (load(who), &who.capture))?;
        if load(fullest) < load(emptiest) + 2 {
            return None;
        }
        let feed = self.index.hosted(fullest).next()?;
        Some((feed.clone(), view.places.get(feed)?.value.epoch))
    }

    /// Places maintainers that have no place, as many as fit one transaction.
    pub(super) fn place(&self, view: &View, now: Now) -> Option<Draft> {
        if !self.is_ready() {
            return None;
        }
        let destinations = self.offered(view, now);
        let mut loads = self.index.loads();
        let mut draft = self.draft();
        for feed in self.index.marked(Mark::Unplaced) {
            if draft.room() < 2 {
                break;
            }
            let above = match self.standing(view, feed) {
                Standing::Unplaced => ChangefeedEpoch::default(),
                Standing::Running(_, m) if m.is_outranked() => m.outranked_by.unwrap_or_default(),
                _ => continue,
            };
            let Some(host) = self.choose(view, &destinations, &loads) else { break };
            *loads.entry(host.capture.clone()).or_default() += 1;
            let placement = Placement {
                version: view.common_version(),
                host: host.clone(),
                epoch: self.next_placement(view, feed).max(above.next()),
                unknown: view.places.get(feed).map(|place| place.value.unknown.clone()).unwrap_or_default(),
            };
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
        let feed = self.index.marked(Mark::Failed).next()?.clone();
        let Standing::Running(_, m) = self.standing(view, &feed) else { return None };
        let error = m.error.clone()?;
        let mut info = view.infos.get(&feed)?.value.clone();
        let line = crate::log::Line::warn("changefeed failed").on(&feed).with("error", &error);
        info.state = ChangefeedState::Failed { error };
        self.announced.push(line);
        let draft = self.draft().put(view, &KeyName::ChangefeedInfo(feed.clone()), &info);
        Some(self.without_place(draft, view, &feed))
    }
}
