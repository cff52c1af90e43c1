//! What a drain would come to: the scheduler's rules, counted instead of carried out.

use std::collections::BTreeMap;

use super::{Coordinator, standing::Standing};
use crate::{
    model::{CaptureId, DrainOutcome, DrainRequest, Plan, WorkCount},
    view::View,
};

/// How long a move takes as long as no drain has been measured, in milliseconds: a flush, two messages, a start.
const MOVE_GUESS_MS: u64 = 100;

impl Coordinator {
    /// What a request would come to, if these captures got the work.
    pub(super) fn plan_drain(&self, view: &View, request: &DrainRequest, destinations: &[CaptureId]) -> Plan {
        let preferred: Vec<_> = destinations.iter().filter(|id| !request.avoid.contains(id)).cloned().collect();
        let destinations = if preferred.is_empty() { destinations } else { &preferred };
        let target = &request.capture;
        let mut moves: BTreeMap<CaptureId, WorkCount> = BTreeMap::new();
        let loads = self.index.loads();
        let leaving = loads.get(target).copied().unwrap_or(0);
        for (capture, more) in spread(&loads, destinations, leaving) {
            moves.entry(capture).or_default().maintainers += more;
        }
        for feed in view.infos.keys().filter(|feed| Self::shall_run(view, feed)) {
            let Standing::Running(_, m) = self.standing(view, feed) else { continue };
            let Some(by_capture) = &m.dispatchers else { continue };
            let leaving = by_capture.get(target).copied().unwrap_or(0);
            for (capture, more) in spread(by_capture, destinations, leaving) {
                moves.entry(capture).or_default().dispatchers += more;
            }
        }
        let all = moves.values().fold(WorkCount::default(), |all, work| WorkCount {
            maintainers: all.maintainers + work.maintainers,
            dispatchers: all.dispatchers + work.dispatchers,
        });
        let limits = self.limits(all.dispatchers);
        let measured = self.measured_move_ms(view);
        let move_ms = measured.unwrap_or(MOVE_GUESS_MS);
        let estimate_ms = rounds(all, limits).saturating_mul(move_ms);
        Plan { moves, limits, move_ms, is_measured: measured.is_some(), estimate_ms }
    }

    fn limits(&self, dispatchers: u64) -> WorkCount {
        WorkCount {
            maintainers: self.options.drain_maintainer_batch_size as u64,
            dispatchers: self.dispatcher_limit(dispatchers),
        }
    }

    /// What a move took in the latest drain that came to its end.
    fn measured_move_ms(&self, view: &View) -> Option<u64> {
        let ends = view.history.values().rev().map(|end| &end.value);
        ends.filter(|end| end.outcome == DrainOutcome::Drained).find_map(|end| {
            let (initial, took_ms) = (end.record.initial, end.ended_at_ms.0.checked_sub(end.record.started_at_ms.0)?);
            took_ms.checked_div(rounds(initial, self.limits(initial.dispatchers)))
        })
    }
}

/// How many moves follow one another: maintainers first, as many at once as the limits let.
fn rounds(work: WorkCount, limits: WorkCount) -> u64 {
    work.maintainers.div_ceil(limits.maintainers.max(1)) + work.dispatchers.div_ceil(limits.dispatchers.max(1))
}

/// How many more each destination gets when so many go, one by one, to whoever has the fewest; ties fall to the smaller
/// name.
fn spread(counts: &BTreeMap<CaptureId, u64>, destinations: &[CaptureId], more: u64) -> Vec<(CaptureId, u64)> {
    let count = |id: &CaptureId| counts.get(id).copied().unwrap_or(0);
    let mut emptiest: Vec<_> = destinations.iter().map(|id| (count(id), id.clone())).collect();
    emptiest.sort();
    // Only those get any whom the rest can be brought level with.
    let (mut filled, mut sum) = (0, more);
    for (has, _) in &emptiest {
        if sum + has < has * (filled + 1) {
            break;
        }
        (filled, sum) = (filled + 1, sum + has);
    }
    let (Some(level), Some(mut surplus)) = (sum.checked_div(filled), sum.checked_rem(filled)) else {
        return Vec::new();
    };
    emptiest.retain(|(has, _)| *has <= level);
    emptiest.sort_by(|one, other| one.1.cmp(&other.1));
    let gets = emptiest.into_iter().map(|(has, id)| {
        let extra = surplus.min(1);
        surplus -= extra;
        (id, level - has + extra)
    });
    gets.filter(|(_, more)| *more > 0).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    /// What [`spread`] counts, done move by move.
    fn one_by_one(counts: &BTreeMap<CaptureId, u64>, destinations: &[CaptureId], more: u64) -> Vec<(CaptureId, u64)> {
        let mut now = counts.clone();
        for _ in 0..more {
            let fewest = |id: &&CaptureId| (now.get(*id).copied().unwrap_or(0), (*id).clone());
            let Some(id) = destinations.iter().min_by_key(fewest).cloned() else { break };
            *now.entry(id).or_default() += 1;
        }
        let before = |id: &CaptureId| counts.get(id).copied().unwrap_or(0);
        let gets = now.iter().map(|(id, count)| (id.clone(), count - before(id)));
        gets.filter(|(_, more)| *more > 0).collect()
    }

    #[test]
    fn what_is_counted_is_what_moves_one_by_one_would_come_to() {
        let ids: Vec<_> = ["a", "b", "c", "d"].iter().map(|id| CaptureId::new(id).unwrap()).collect();
        for has in [[0, 0, 0, 0], [0, 1, 2, 9], [7, 0, 7, 0], [3, 3, 2, 3], [9, 5, 1, 0]] {
            let counts: BTreeMap<_, _> = ids.iter().cloned().zip(has).collect();
            for destinations in [&ids[..], &ids[1..3], &ids[..1], &[]] {
                for more in 0..30 {
                    let counted = spread(&counts, destinations, more);
                    assert_eq!(counted, one_by_one(&counts, destinations, more), "{has:?} {destinations:?} {more}");
                }
            }
        }
    }

    #[test]
    fn maintainers_and_dispatchers_move_one_after_the_other() {
        let work = |maintainers, dispatchers| WorkCount { maintainers, dispatchers };
        assert_eq!(rounds(work(20, 1000), work(10, 10)), 102);
        assert_eq!(rounds(work(1, 11), work(10, 10)), 3);
        assert_eq!(rounds(work(0, 0), work(10, 10)), 0);
    }
}
