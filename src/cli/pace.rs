//! How long what is left may take, from how fast it went lately.

use std::{collections::VecDeque, time::Duration};

/// What counts as lately.
const WINDOW: Duration = Duration::from_secs(30);
/// How far apart the moments are that are remembered, so that a window of them stays small.
const GRAIN: Duration = Duration::from_millis(100);

/// How much was left at moments of the last [`WINDOW`].
#[derive(Debug, Default)]
pub(super) struct Pace {
    seen: VecDeque<(Duration, u64)>,
}

impl Pace {
    /// Takes in how much is left now, `at` so long after some beginning. What is unknown, or more than before, begins
    /// anew: another coordinator counts.
    pub(super) fn see(&mut self, at: Duration, left: Option<u64>) {
        let Some(left) = left else { return self.seen.clear() };
        if self.seen.back().is_some_and(|(_, before)| left > *before) {
            self.seen.clear();
        }
        if self.seen.len() > 1 && self.seen.iter().nth_back(1).is_some_and(|(before, _)| at < *before + GRAIN) {
            self.seen.pop_back();
        }
        self.seen.push_back((at, left));
        while self.seen.get(1).is_some_and(|(next, _)| *next + WINDOW <= at) {
            self.seen.pop_front();
        }
    }

    /// How long the rest takes at that pace; `None` while nothing moves.
    pub(super) fn time_left(&self, now: Duration) -> Option<Duration> {
        let begin = now.saturating_sub(WINDOW);
        let before = self.seen.iter().rev().find(|(at, _)| *at <= begin);
        let ((since, at_first), (_, left)) = (before.or(self.seen.front())?, self.seen.back()?);
        let since = begin.max(*since);
        let moved = at_first.checked_sub(*left).filter(|moved| *moved > 0)?;
        let took_ms = u64::try_from(now.saturating_sub(since).as_millis()).unwrap_or(u64::MAX);
        Some(Duration::from_millis(took_ms.saturating_mul(*left) / moved))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(seen: &[(u64, Option<u64>)], now_ms: u64, left_ms: Option<u64>) {
        let mut pace = Pace::default();
        for (at_ms, left) in seen {
            pace.see(Duration::from_millis(*at_ms), *left);
        }
        assert_eq!(pace.time_left(Duration::from_millis(now_ms)), left_ms.map(Duration::from_millis), "{seen:?}");
    }

    #[test]
    fn the_rest_goes_as_fast_as_the_last_of_it_went() {
        check(&[], 0, None);
        check(&[(0, Some(100))], 5_000, None);
        check(&[(0, Some(100)), (1_000, Some(90))], 1_000, Some(9_000));
        // Standing still makes it longer.
        check(&[(0, Some(100)), (1_000, Some(90))], 2_000, Some(18_000));
        check(&[(0, Some(100)), (1_000, Some(90))], 40_000, None);
        // A slow beginning is forgotten.
        check(&[(0, Some(100)), (60_000, Some(99)), (61_000, Some(98)), (70_000, Some(58))], 70_000, Some(41_428));
        check(&[(0, Some(100)), (1_000, Some(50)), (2_000, None), (3_000, Some(50))], 3_000, None);
        check(&[(0, Some(100)), (1_000, Some(50)), (2_000, Some(80)), (3_000, Some(40))], 3_000, Some(1_000));
        check(&[(0, Some(10)), (1_000, Some(0))], 1_000, Some(0));
    }

    #[test]
    fn a_million_moves_are_not_a_million_moments() {
        let mut pace = Pace::default();
        for n in 0..1_000_000_u64 {
            pace.see(Duration::from_micros(n * 60), Some(1_000_000 - n));
        }
        assert!(pace.seen.len() <= 302, "{}", pace.seen.len());
        let left = pace.time_left(Duration::from_mins(1)).unwrap_or_default();
        assert!(left < Duration::from_millis(10), "{left:?}");
    }
}
