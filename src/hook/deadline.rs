//! When a hook gives up: a margin before its pod is killed, counted from the first of its runs. Pure.

use std::time::Duration;

/// When one run gives up. All moments are in milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Deadline {
    /// When this run began.
    started_ms: u64,
    /// When the pod is killed at the latest, as far as that is known.
    killed_ms: u64,
    margin: Duration,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Deadline {
    /// Of a run that begins now in a pod that has so long to end.
    pub(super) fn new(started_ms: u64, grace_period: Duration, margin: Duration) -> Self {
        let killed_ms = started_ms.saturating_add(millis(grace_period));
        Self { started_ms, killed_ms, margin }
    }

    pub(super) fn killed_ms(&self) -> u64 {
        self.killed_ms
    }

    /// Somebody knows of an earlier end of the pod. One that lies before this run is of an earlier run, by hand: the pod
    /// was not being deleted then, or it would be gone.
    pub(super) fn learn(&mut self, killed_ms: Option<u64>) {
        let known = killed_ms.filter(|killed_ms| *killed_ms > self.started_ms);
        self.killed_ms = known.into_iter().chain([self.killed_ms]).min().unwrap_or(self.killed_ms);
    }

    /// When the hook gives up: it leaves the margin for the server's own end, and at most half of a short time.
    pub(super) fn at_ms(&self) -> u64 {
        let whole = self.killed_ms.saturating_sub(self.started_ms);
        self.killed_ms - millis(self.margin).min(whole / 2)
    }

    /// How much time is left.
    pub(super) fn left(&self, now_ms: u64) -> Duration {
        Duration::from_millis(self.at_ms().saturating_sub(now_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(grace_s: u64, margin_s: u64, learned: &[u64], at_ms: u64) {
        let mut deadline = Deadline::new(1_000, Duration::from_secs(grace_s), Duration::from_secs(margin_s));
        for killed_ms in learned {
            deadline.learn(Some(*killed_ms));
        }
        assert_eq!(deadline.at_ms(), at_ms, "{grace_s} {margin_s} {learned:?}");
    }

    #[test]
    fn the_least_of_all_counts_less_a_margin() {
        check(600, 10, &[], 591_000);
        check(600, 10, &[700_000], 591_000);
        check(600, 10, &[301_000, 400_000], 291_000);
        check(600, 10, &[u64::MAX], 591_000);
    }

    #[test]
    fn the_margin_takes_at_most_half_of_a_short_time() {
        check(10, 10, &[], 6_000);
        check(600, 10, &[11_000], 6_000);
        check(0, 10, &[], 1_000);
        check(600, 0, &[], 601_000);
    }

    #[test]
    fn what_lies_before_the_start_is_of_another_deletion() {
        check(600, 10, &[999, 1_000], 591_000);
    }
}
