//! Watches how far the changefeeds are behind.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{task::AbortHandle, time};

use crate::{clock::wall, door::Door};

/// How often it looks.
const SAMPLE: Duration = Duration::from_millis(20);

/// The highest lag of any changefeed since the last reset.
pub(super) struct Lag {
    highest_ms: Arc<AtomicU64>,
    watcher: AbortHandle,
}

impl Lag {
    /// Begins to watch what any of these captures knows as coordinator.
    pub(super) fn watch(doors: Vec<Door>) -> Self {
        let highest_ms = Arc::new(AtomicU64::new(0));
        let highest = highest_ms.clone();
        let watcher = tokio::spawn(async move {
            loop {
                time::sleep(SAMPLE).await;
                let now = wall().0;
                for door in &doors {
                    let snapshot = door.snapshots.borrow().clone();
                    // A capture that was killed has left its last word behind.
                    if !snapshot.is_coordinator || door.calls.is_closed() {
                        continue;
                    }
                    let passed = snapshot.changefeeds.values().filter_map(|feed| feed.checkpoint_at_ms);
                    let lag = passed.filter(|at| *at > 0).map(|at| now.saturating_sub(at)).max().unwrap_or(0);
                    highest.fetch_max(lag, Ordering::Relaxed);
                }
            }
        });
        Self { highest_ms, watcher: watcher.abort_handle() }
    }

    pub(super) fn highest_ms(&self) -> u64 {
        self.highest_ms.load(Ordering::Relaxed)
    }

    pub(super) fn reset(&self) {
        self.highest_ms.store(0, Ordering::Relaxed);
    }
}

impl Drop for Lag {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}
