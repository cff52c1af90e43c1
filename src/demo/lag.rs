//! The lag over time, sampled on a thread of its own so that nothing else holds it up.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::time::Instant;

use super::DemoError;
use crate::{clock::wall, verify::Probe};

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

/// The lag over time.
pub(super) struct Lag {
    samples: Arc<Mutex<Vec<Sample>>>,
    over: Arc<AtomicBool>,
}

impl Lag {
    /// Begins to watch.
    pub(super) fn watch(mut probe: Probe) -> Result<Self, DemoError> {
        let lag = Self { samples: Arc::default(), over: Arc::default() };
        let (samples, over) = (lag.samples.clone(), lag.over.clone());
        let look = move || {
            while !over.load(Ordering::Relaxed) {
                let at = Instant::now();
                if let Some((highest_ms, median_ms)) = summary(probe.lags(wall().0)) {
                    let sample = Sample { at, highest_ms, median_ms };
                    samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
                }
                thread::sleep(INTERVAL.saturating_sub(at.elapsed()));
            }
        };
        thread::Builder::new().name("lag".to_owned()).spawn(look).map_err(DemoError::Thread)?;
        Ok(lag)
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
        self.over.store(true, Ordering::Relaxed);
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

/// The highest and the 50th percentile.
fn summary(mut lags: Vec<u64>) -> Option<(u64, u64)> {
    lags.sort_unstable();
    Some((*lags.last()?, *lags.get((lags.len() - 1) / 2)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_percentile_is_of_the_changefeeds() {
        assert_eq!(summary(vec![]), None);
        assert_eq!(summary(vec![60]), Some((60, 60)));
        assert_eq!(summary(vec![90, 0, 30, 1]), Some((90, 1)));
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
