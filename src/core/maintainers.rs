//! The maintainers of a capture: which run, when each wants to be woken, and what of them the coordinator is told at once.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    maintainer::{Input, Maintainer, Output},
    model::{CaptureId, ChangefeedEpoch, ChangefeedId, Instant, MaintainerPhase, MaintainerReport, Now, Stamp},
};

/// What of a maintainer would make the coordinator act, so that it is told at once and not with the next heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Urgent {
    phase: MaintainerPhase,
    /// It has nothing on the target of the drain that is on.
    off_target: bool,
    /// It has nothing on the move.
    quiet: bool,
}

/// A maintainer that runs here.
#[derive(Debug)]
enum Hosted {
    Running {
        epoch: ChangefeedEpoch,
        maintainer: Box<Maintainer>,
        due: Option<Instant>,
        urgent: Option<Urgent>,
    },
    /// Its table trigger is ending.
    Ending {
        epoch: ChangefeedEpoch,
    },
}

/// All maintainers of a capture.
#[derive(Debug, Default)]
pub(crate) struct Maintainers {
    hosted: BTreeMap<ChangefeedId, Hosted>,
    due: BTreeSet<(Instant, ChangefeedId)>,
    has_urgent_news: bool,
}

impl Maintainers {
    pub(crate) fn len(&self) -> usize {
        self.hosted.len()
    }

    pub(crate) fn has(&self, changefeed: &ChangefeedId) -> bool {
        self.hosted.contains_key(changefeed)
    }

    pub(crate) fn install(&mut self, changefeed: ChangefeedId, epoch: ChangefeedEpoch, maintainer: Box<Maintainer>) {
        let due = maintainer.wake_at();
        self.due.extend(due.map(|due| (due, changefeed.clone())));
        let running = Hosted::Running { epoch, maintainer, due, urgent: None };
        self.hosted.insert(changefeed, running);
        self.has_urgent_news = true;
    }

    /// Ends the maintainer of this placement or a lower one. Which one's trigger has to end, if any.
    pub(crate) fn end(&mut self, changefeed: &ChangefeedId, epoch: ChangefeedEpoch) -> Option<ChangefeedEpoch> {
        let hosted = self.hosted.get_mut(changefeed)?;
        match hosted {
            Hosted::Running { epoch: running, due, .. } if *running <= epoch => {
                let (running, due) = (*running, *due);
                if let Some(due) = due {
                    self.due.remove(&(due, changefeed.clone()));
                }
                *hosted = Hosted::Ending { epoch: running };
                self.has_urgent_news = true;
                Some(running)
            }
            Hosted::Running { .. } => None,
            Hosted::Ending { epoch } => Some(*epoch),
        }
    }

    /// The trigger of one that was ended is gone. Whether it was.
    pub(crate) fn remove(&mut self, changefeed: &ChangefeedId, epoch: ChangefeedEpoch) -> bool {
        let ended = matches!(self.hosted.get(changefeed), Some(Hosted::Ending { epoch: at }) if *at == epoch);
        if ended {
            self.hosted.remove(changefeed);
            self.has_urgent_news = true;
        }
        ended
    }

    /// The running maintainer of a changefeed, of this epoch.
    pub(crate) fn get(&self, changefeed: &ChangefeedId, epoch: ChangefeedEpoch) -> Option<&Maintainer> {
        match self.hosted.get(changefeed) {
            Some(Hosted::Running { epoch: at, maintainer, .. }) if *at == epoch => Some(maintainer),
            _ => None,
        }
    }

    /// Gives an input to the running maintainer of a changefeed, of this epoch.
    pub(crate) fn handle(
        &mut self,
        changefeed: &ChangefeedId,
        epoch: ChangefeedEpoch,
        input: Input<'_>,
        target: Option<&CaptureId>,
        now: Now,
    ) -> Vec<Output> {
        let Some(Hosted::Running { epoch: at, maintainer, due, urgent }) = self.hosted.get_mut(changefeed) else {
            return Vec::new();
        };
        if *at != epoch {
            return Vec::new();
        }
        let outputs = maintainer.handle(input, now);
        let next = maintainer.wake_at();
        if *due != next {
            if let Some(before) = due.take() {
                self.due.remove(&(before, changefeed.clone()));
            }
            self.due.extend(next.map(|next| (next, changefeed.clone())));
            *due = next;
        }
        let is_now = Some(Urgent {
            phase: maintainer.phase(),
            off_target: target.is_none_or(|target| maintainer.has_nothing_on(target)),
            quiet: maintainer.in_flight() == 0,
        });
        self.has_urgent_news |= *urgent != is_now;
        *urgent = is_now;
        outputs
    }

    /// One that wants to be woken by now.
    pub(crate) fn next_due(&self, now: Instant) -> Option<(ChangefeedId, ChangefeedEpoch)> {
        let (_, changefeed) = self.due.first().filter(|(due, _)| *due <= now)?;
        match self.hosted.get(changefeed) {
            Some(Hosted::Running { epoch, .. }) => Some((changefeed.clone(), *epoch)),
            _ => None,
        }
    }

    /// When the first wants to be woken.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// All that run, in order.
    pub(crate) fn running(&self) -> Vec<(ChangefeedId, ChangefeedEpoch)> {
        let running = self.hosted.iter().filter_map(|(changefeed, hosted)| match hosted {
            Hosted::Running { epoch, .. } => Some((changefeed.clone(), *epoch)),
            Hosted::Ending { .. } => None,
        });
        running.collect()
    }

    /// Whether the coordinator has to be told at once; asked for once.
    pub(crate) fn take_urgent_news(&mut self) -> bool {
        std::mem::take(&mut self.has_urgent_news)
    }

    /// What the coordinator is told of each, in order.
    pub(crate) fn reports(&self) -> Vec<MaintainerReport> {
        let reports = self.hosted.iter().map(|(changefeed, hosted)| match hosted {
            Hosted::Running { maintainer, .. } => maintainer.report(),
            Hosted::Ending { epoch } => ending(changefeed, *epoch),
        });
        reports.collect()
    }
}

fn ending(changefeed: &ChangefeedId, epoch: ChangefeedEpoch) -> MaintainerReport {
    MaintainerReport {
        changefeed: changefeed.clone(),
        epoch,
        phase: MaintainerPhase::Stopping,
        stamp: Stamp::default(),
        checkpoint_ts: 0,
        checkpoint_at_ms: 0,
        dispatchers: None,
        in_flight: 0,
        share: 0,
        error: None,
        warning: None,
        outranked_by: None,
    }
}
