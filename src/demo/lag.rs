//! Watches how far the changefeeds are behind.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use capturedrain_core::model::{ChangefeedId, Snapshot};
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{self, Instant, MissedTickBehavior},
};

use crate::{clock::wall, door::Door};

/// How often it looks.
const INTERVAL: Duration = Duration::from_millis(25);

/// How far behind all changefeeds were at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) highest_ms: u64,
    /// The 50th percentile over the changefeeds.
    pub(super) median_ms: u64,
}

/// The lag over time, as the coordinator knows it. While nobody is in office, what was last known grows older.
pub(super) struct Lag {
    samples: Arc<Mutex<Vec<Sample>>>,
    watcher: AbortHandle,
}

impl Lag {
    /// Begins to watch what any of these captures knows as coordinator.
    pub(super) fn watch(doors: watch::Receiver<Vec<Door>>) -> Self {
        let samples = Arc::new(Mutex::new(Vec::new()));
        let kept = samples.clone();
        let watcher = tokio::spawn(async move {
            let mut known = BTreeMap::new();
            let mut ticks = time::interval(INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let snapshots: Vec<_> = doors.borrow().iter().map(|door| door.snapshots.borrow().clone()).collect();
                if let Some(acting) = snapshots.iter().find(|snapshot| snapshot.is_coordinator) {
                    learn(&mut known, acting);
                }
                if let Some((highest_ms, median_ms)) = behind(&known, wall().0) {
                    let sample = Sample { at: Instant::now(), highest_ms, median_ms };
                    kept.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
                }
            }
        });
        Self { samples, watcher: watcher.abort_handle() }
    }

    /// What was seen from one moment to another.
    pub(super) fn between(&self, from: Instant, to: Instant) -> Vec<Sample> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let first = samples.partition_point(|sample| sample.at < from);
        samples[first..].iter().take_while(|sample| sample.at <= to).copied().collect()
    }

    /// The highest of what was seen since then; `None` when nothing was.
    pub(super) fn highest_since(&self, from: Instant) -> Option<u64> {
        highest(&self.between(from, Instant::now()))
    }
}

impl Drop for Lag {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

pub(super) fn highest(samples: &[Sample]) -> Option<u64> {
    samples.iter().map(|sample| sample.highest_ms).max()
}

/// The first moment from which on nothing was above the limit for as long as `hold`.
pub(super) fn calm_from(samples: &[Sample], limit_ms: u64, hold: Duration) -> Option<Instant> {
    let mut since = None;
    for sample in samples {
        if sample.highest_ms > limit_ms {
            since = None;
            continue;
        }
        let began = *since.get_or_insert(sample.at);
        if sample.at.duration_since(began) >= hold {
            return Some(began);
        }
    }
    None
}

fn learn(known: &mut BTreeMap<ChangefeedId, u64>, snapshot: &Snapshot) {
    for (id, feed) in &snapshot.changefeeds {
        if let Some(at) = feed.checkpoint_at_ms.filter(|at| *at > 0) {
            known.insert(id.clone(), at);
        }
    }
}

/// The highest lag and the 50th percentile, in milliseconds.
fn behind(known: &BTreeMap<ChangefeedId, u64>, now_ms: u64) -> Option<(u64, u64)> {
    let mut lags: Vec<_> = known.values().map(|at| now_ms.saturating_sub(*at)).collect();
    lags.sort_unstable();
    Some((*lags.last()?, *lags.get((lags.len() - 1) / 2)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_percentile_is_of_the_changefeeds() {
        let known = |ats: &[u64]| {
            let named =
                ats.iter().enumerate().filter_map(|(n, at)| Some((ChangefeedId::new(format!("f{n}")).ok()?, *at)));
            named.collect::<BTreeMap<_, _>>()
        };
        assert_eq!(behind(&known(&[]), 100), None);
        assert_eq!(behind(&known(&[40]), 100), Some((60, 60)));
        assert_eq!(behind(&known(&[10, 99, 70, 120]), 100), Some((90, 1)));
    }

    #[test]
    fn calm_has_to_last() {
        let began = Instant::now();
        let at = |ms: u64| began + Duration::from_millis(ms);
        let sample = |(ms, highest_ms)| Sample { at: at(ms), highest_ms, median_ms: 0 };
        let samples: Vec<_> = [(0, 90), (10, 5), (20, 50), (30, 10), (40, 9), (50, 8), (60, 99)].map(sample).to_vec();
        let from = |hold| calm_from(&samples, 10, Duration::from_millis(hold));
        assert_eq!([from(0), from(20), from(30)], [Some(at(10)), Some(at(30)), None]);
    }
}
