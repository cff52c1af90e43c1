//! Which changefeeds something has to be done about, kept up to date as they change: nobody looks for them among all.
//!
//! What is derived of a changefeed depends on its keys in the view, on what its host reports of it, and on the drain
//! state. Whatever of these changes makes it stale, and it is looked at again before anything is decided.

use std::collections::{BTreeMap, BTreeSet};

use super::{Coordinator, standing::Standing};
use crate::{
    model::{CaptureId, ChangefeedId, Incarnation, KeyName, Liveness, MaintainerReport, Report},
    view::View,
};

/// Something that has to be done about a changefeed, or stands in the way. All but the last concern those that shall run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mark {
    /// It has to be placed: it has no place that holds, or sinks know a writer of a later one.
    Unplaced,
    /// Its maintainer has to be started where it is placed.
    Starting,
    /// Its maintainer is, or is to be started, on a capture that is not `Alive`.
    Leaving,
    /// Its maintainer has ended or is ending where it is placed.
    Ending,
    /// Its maintainer does not run.
    Unsettled,
    /// Its maintainer cannot go on.
    Failed,
    /// Its maintainer does not say that the drain is done.
    Disagreeing,
}

/// What is derived of a changefeed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Facts {
    marks: Vec<Mark>,
    /// Where it is placed, if it shall run and its host is registered.
    host: Option<Incarnation>,
    /// How many dispatchers its maintainer has to move.
    need: Option<u64>,
    /// How many moves its maintainer says that it may make or makes.
    holds: u64,
    in_flight: u64,
}

/// What is derived of all changefeeds.
#[derive(Debug, Default)]
pub(super) struct Index {
    stale: BTreeSet<ChangefeedId>,
    all_stale: bool,
    facts: BTreeMap<ChangefeedId, Facts>,
    marked: BTreeMap<Mark, BTreeSet<ChangefeedId>>,
    hosted: BTreeMap<Incarnation, BTreeSet<ChangefeedId>>,
    needs: BTreeMap<ChangefeedId, u64>,
    holds: BTreeMap<ChangefeedId, u64>,
    in_flight: u64,
}

impl Index {
    /// Everything has to be looked at again.
    pub(super) fn all_stale(&mut self) {
        self.all_stale = true;
    }

    /// These keys of the view have changed.
    pub(super) fn keys_changed(&mut self, keys: &[KeyName]) {
        for key in keys {
            if let KeyName::ChangefeedInfo(feed) | KeyName::ChangefeedPlace(feed) = key {
                self.stale.insert(feed.clone());
            }
        }
    }

    /// A capture reports something else than before.
    pub(super) fn report_changed(&mut self, before: Option<&Report>, after: &Report) {
        let Some(before) = before else { return self.all_stale() };
        if before.ended != after.ended {
            let differs = |feed: &&ChangefeedId| before.ended.get(*feed) != after.ended.get(*feed);
            self.stale.extend(before.ended.keys().chain(after.ended.keys()).filter(differs).cloned());
        }
        let differs = |m: &&MaintainerReport, other: &Report| other.maintainer(&m.changefeed) != Some(*m);
        let changed = after.maintainers.iter().filter(|m| differs(m, before));
        let gone = before.maintainers.iter().filter(|m| differs(m, after));
        self.stale.extend(changed.chain(gone).map(|m| m.changefeed.clone()));
    }

    /// Those with a mark, in order.
    pub(super) fn marked(&self, mark: Mark) -> impl Iterator<Item = &ChangefeedId> {
        self.marked.get(&mark).into_iter().flatten()
    }

    /// Those that shall run and are placed on a registered host, in order.
    pub(super) fn hosted(&self, host: &Incarnation) -> impl Iterator<Item = &ChangefeedId> {
        self.hosted.get(host).into_iter().flatten()
    }

    /// How many of those each capture has.
    pub(super) fn loads(&self) -> BTreeMap<CaptureId, u64> {
        self.hosted.iter().map(|(host, feeds)| (host.capture.clone(), feeds.len() as u64)).collect()
    }

    /// How many dispatchers each maintainer has to move that has any.
    pub(super) fn needs(&self) -> &BTreeMap<ChangefeedId, u64> {
        &self.needs
    }

    /// How many moves each maintainer says that it may make or makes, where that is not 0.
    pub(super) fn holds(&self) -> &BTreeMap<ChangefeedId, u64> {
        &self.holds
    }

    /// How many moves of dispatchers are under way.
    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    fn set(&mut self, feed: &ChangefeedId, facts: Facts) {
        let before = self.facts.get(feed).cloned().unwrap_or_default();
        if before == facts {
            return;
        }
        for mark in &before.marks {
            remove(&mut self.marked, mark, feed);
        }
        if let Some(host) = &before.host {
            remove(&mut self.hosted, host, feed);
        }
        for mark in &facts.marks {
            self.marked.entry(*mark).or_default().insert(feed.clone());
        }
        if let Some(host) = &facts.host {
            self.hosted.entry(host.clone()).or_default().insert(feed.clone());
        }
        replace(&mut self.needs, feed, facts.need);
        replace(&mut self.holds, feed, Some(facts.holds).filter(|holds| *holds > 0));
        self.in_flight = self.in_flight - before.in_flight + facts.in_flight;
        if facts == Facts::default() {
            self.facts.remove(feed);
        } else {
            self.facts.insert(feed.clone(), facts);
        }
    }
}

fn remove<K: Ord>(sets: &mut BTreeMap<K, BTreeSet<ChangefeedId>>, key: &K, feed: &ChangefeedId) {
    if let Some(set) = sets.get_mut(key) {
        set.remove(feed);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}

fn replace(values: &mut BTreeMap<ChangefeedId, u64>, feed: &ChangefeedId, value: Option<u64>) {
    match value {
        Some(value) => drop(values.insert(feed.clone(), value)),
        None => drop(values.remove(feed)),
    }
}

impl Coordinator {
    /// Looks again at what is stale.
    pub(super) fn refresh_index(&mut self, view: &View) {
        let mut stale = std::mem::take(&mut self.index.stale);
        if std::mem::take(&mut self.index.all_stale) {
            stale.extend(view.infos.keys().chain(view.places.keys()).chain(self.index.facts.keys()).cloned());
        }
        for feed in stale {
            let facts = self.facts(view, &feed);
            self.index.set(&feed, facts);
        }
    }

    fn facts(&self, view: &View, feed: &ChangefeedId) -> Facts {
        let standing = self.standing(view, feed);
        let mut facts = Facts::default();
        if let Standing::Running(_, m) = standing
            && view.infos.contains_key(feed)
        {
            facts.need = Self::need(view, m);
            facts.holds = u64::from(m.share.max(m.in_flight));
        }
        if !Self::shall_run(view, feed) {
            return facts;
        }
        let place = view.places.get(feed).map(|place| &place.value.host);
        facts.host = place.filter(|host| view.is_registered(host)).cloned();
        let alive =
            |host: &Incarnation| view.liveness(&host.capture).is_none_or(|liveness| liveness == Liveness::Alive);
        match standing {
            Standing::Unplaced => {
                facts.marks.push(Mark::Unplaced);
                if facts.host.is_some() {
                    facts.marks.push(Mark::Ending);
                }
            }
            Standing::HostFading => {}
            Standing::Stopping(_) => facts.marks.push(Mark::Ending),
            Standing::Starting(host) => facts.marks.push(if alive(host) { Mark::Starting } else { Mark::Leaving }),
            Standing::Running(host, m) => {
                facts.in_flight = u64::from(m.in_flight);
                facts.marks.extend((!alive(host)).then_some(Mark::Leaving));
                facts.marks.extend(m.is_outranked().then_some(Mark::Unplaced));
                facts.marks.extend(m.error.is_some().then_some(Mark::Failed));
            }
        }
        if !matches!(standing, Standing::Running(..)) {
            facts.marks.push(Mark::Unsettled);
        }
        let target = view.record.as_ref().map(|record| &record.value.target);
        if target.is_some_and(|target| !self.agrees(&standing, target)) {
            facts.marks.push(Mark::Disagreeing);
        }
        facts
    }

    /// Whether the present maintainer of a changefeed says that it has nothing on a drain's target and nothing on the way.
    fn agrees(&self, standing: &Standing<'_>, target: &CaptureId) -> bool {
        let Standing::Running(_, m) = standing else { return false };
        m.stamp == self.state.stamp
            && m.in_flight == 0
            && m.dispatchers.as_ref().is_some_and(|by_capture| !by_capture.contains_key(target))
    }
}
