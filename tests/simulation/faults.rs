//! What goes wrong, and how often.

use std::collections::BTreeSet;

use capturedrain_core::model::CaptureId;

/// Rates are in a thousand.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    pub(crate) delay_ms: u64,
    pub(crate) loss: u64,
    pub(crate) doubled: u64,
    /// Arrives a second time, many seconds later.
    pub(crate) late: u64,
    /// Of the data path, in a hundred thousand, each time that a dispatcher works.
    pub(crate) fails: u64,
    pub(crate) keep_lost: u64,
    pub(crate) write_unknown: u64,
    pub(crate) watch_breaks: u64,
    pub(crate) store_is_away: bool,
    /// One-way cuts, from and to.
    pub(crate) cuts: BTreeSet<(CaptureId, CaptureId)>,
}

impl Faults {
    /// A good day.
    pub(crate) fn none() -> Self {
        Self { delay_ms: 5, ..Self::default() }
    }

    /// A bad day; how bad depends on the seed.
    pub(crate) fn some(random: u64) -> Self {
        let pick = |shift: u32, levels: &[u64]| levels[(random >> shift) as usize % levels.len()];
        Self {
            delay_ms: pick(0, &[5, 40, 400]),
            loss: pick(8, &[0, 20, 150]),
            doubled: pick(16, &[0, 30, 200]),
            keep_lost: pick(24, &[0, 50, 300]),
            write_unknown: pick(32, &[0, 30, 150]),
            watch_breaks: pick(40, &[0, 20, 100]),
            ..Self::default()
        }
    }

    pub(crate) fn cut(&self, from: &CaptureId, to: &CaptureId) -> bool {
        self.cuts.contains(&(from.clone(), to.clone()))
    }
}
