//! How the limit on dispatcher moves is shared out among the maintainers.
//!
//! What a maintainer was granted stays counted until its host shows that it has heard of less, and its moves until they
//! have ended: so the sum never passes the limit, whatever is lost or late on the way.

use std::collections::BTreeMap;

use super::Coordinator;
use crate::{model::MaintainerReport, view::View};

/// The least limit of a drain, whatever its size.
const LIMIT_MIN: u64 = 10;

impl Coordinator {
    fn limit(&self, view: &View) -> u64 {
        self.dispatcher_limit(view.record.as_ref().map_or(0, |record| record.value.initial.dispatchers))
    }

    /// The limit of a drain that begins with so many dispatchers.
    pub(super) fn dispatcher_limit(&self, initial: u64) -> u64 {
        let set = self.options.drain_dispatcher_batch_size as u64;
        if set > 0 { set } else { LIMIT_MIN.max(initial / 100) }
    }

    /// Grants what the maintainers need, as far as the limit goes.
    pub(super) fn grant_shares(&mut self, view: &View) {
        if !self.is_ready() {
            return;
        }
        let limit = self.limit(view);
        let needs = self.index.needs();
        let mut committed = self.index.holds().clone();
        let told = self.peers.values().flat_map(|peer| &peer.told.1).map(|(feed, share)| (feed, *share));
        let recalled = self.recalled.iter().map(|(feed, recalled)| (feed, recalled.share));
        for (feed, share) in told.chain(recalled) {
            let most = committed.entry(feed.clone()).or_default();
            *most = u64::from(share).max(*most);
        }
        let used: u64 = committed.values().sum();
        let quota = (limit / (needs.len() as u64).max(1)).max(1);
        let mut room = limit.saturating_sub(used);
        let mut granted: BTreeMap<_, _> = committed.into_iter().filter(|(feed, _)| needs.contains_key(feed)).collect();
        // First everybody's quota, then what that leaves goes to those who can use it, in order.
        for most in [quota, u64::MAX] {
            for (feed, need) in needs {
                if room == 0 {
                    break;
                }
                let has = granted.get(feed).copied().unwrap_or(0);
                let more = (*need).min(most).saturating_sub(has).min(room);
                room -= more;
                granted.insert(feed.clone(), has + more);
            }
        }
        granted.retain(|_, share| *share > 0);
        self.granted =
            granted.into_iter().map(|(feed, share)| (feed, u32::try_from(share).unwrap_or(u32::MAX))).collect();
    }

    /// How many dispatchers a maintainer has to move; `None` when none.
    pub(super) fn need(view: &View, m: &MaintainerReport) -> Option<u64> {
        let by_capture = m.dispatchers.as_ref()?;
        let leaving = by_capture
            .iter()
            .filter(|(id, _)| view.liveness(id).is_some_and(|liveness| liveness != crate::model::Liveness::Alive))
            .map(|(_, count)| *count)
            .sum::<u64>();
        if leaving + u64::from(m.in_flight) > 0 {
            return Some(leaving + u64::from(m.in_flight));
        }
        let alive = view.captures.keys().filter(|id| view.liveness(id) == Some(crate::model::Liveness::Alive));
        let counts: Vec<u64> = alive.map(|id| by_capture.get(id).copied().unwrap_or(0)).collect();
        let uneven = counts.iter().max().zip(counts.iter().min()).is_some_and(|(most, least)| *most >= least + 2);
        (uneven && view.record.is_none()).then_some(1)
    }
}
