//! How far each changefeed is behind its source, over time: seen from outside, in the files of its sink.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use capturedrain::{
    clock::wall,
    verify::{Feed, Probe},
};

/// How often it looks. Only files of which a row is due are looked at, yet the machine that is measured does it.
const INTERVAL: Duration = Duration::from_millis(50);

/// The lag of each changefeed at one moment, in milliseconds.
type Sample = (Instant, Vec<u64>);

/// The lag over time, sampled on a thread of its own.
pub(crate) struct Lag {
    samples: Arc<Mutex<Vec<Sample>>>,
    over: Arc<AtomicBool>,
}

impl Lag {
    pub(crate) fn watch(feeds: &[Feed]) -> Self {
        let mut probe = Probe::new(feeds).unwrap();
        let lag = Self { samples: Arc::default(), over: Arc::default() };
        let (samples, over) = (lag.samples.clone(), lag.over.clone());
        thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let at = Instant::now();
                let lags = probe.lags(wall().0);
                samples.lock().unwrap().push((at, lags));
                thread::sleep(INTERVAL.saturating_sub(at.elapsed()));
            }
        });
        lag
    }

    /// The highest lag of each changefeed from one moment to another, in milliseconds; empty when nobody looked.
    pub(crate) fn highest(&self, from: Instant, to: Instant) -> Vec<u64> {
        let samples = self.samples.lock().unwrap();
        let mut highest = Vec::new();
        for (_, lags) in samples.iter().filter(|(at, _)| (from..=to).contains(at)) {
            highest.resize(lags.len(), 0);
            highest.iter_mut().zip(lags).for_each(|(most, lag)| *most = (*lag).max(*most));
        }
        highest
    }
}

impl Drop for Lag {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}
