//! The data path of a simulated capture: dispatchers that follow the source's clock, and table triggers.

use std::{collections::BTreeMap, sync::Arc};

use capturedrain_core::{
    model::{ChangefeedEpoch, ChangefeedId, CommitTs, Span},
    work::{DispatcherKey, WorkEvent, WorkOrder},
};
use rand_chacha::{ChaCha8Rng, rand_core::Rng as _};

/// How many tables every changefeed has.
pub(crate) const TABLES: usize = 4;

/// A table's whole range.
pub(crate) fn table(n: usize) -> Span {
    let name = format!("t{n}");
    Span {
        start: format!("/{name}/").into_bytes().into(),
        end: format!("/{name}0").into_bytes().into(),
        table: Arc::from(name),
    }
}

/// Which table outgrows its span in a history in which tables change, and when.
const SPLITS: usize = 1;
const SPLITS_FROM: CommitTs = 20_000;

/// A key in the middle of a table.
pub(crate) fn middle(n: usize) -> Arc<[u8]> {
    format!("/t{n}/m").into_bytes().into()
}

/// A key in each half of a table.
pub(crate) fn halves(n: usize) -> [Vec<u8>; 2] {
    [format!("/t{n}/a").into_bytes(), format!("/t{n}/z").into_bytes()]
}

pub(crate) fn covers(span: &Span, key: &[u8]) -> bool {
    *span.start <= *key && *key < *span.end
}

/// When a table gets its first key, and when it loses its last, in a history in which tables change; one may come again.
pub(crate) fn lifetimes(n: usize) -> &'static [(CommitTs, CommitTs)] {
    match n {
        0 => &[(0, 35_000)],
        1 => &[(0, CommitTs::MAX)],
        2 => &[(20_000, 27_000), (27_150, 45_000), (45_050, CommitTs::MAX)],
        _ => &[(30_000, CommitTs::MAX)],
    }
}

/// Whether a table has keys.
pub(crate) fn lives(n: usize, ts: CommitTs) -> bool {
    lifetimes(n).iter().any(|(birth, end)| *birth <= ts && ts < *end)
}

#[derive(Debug, Clone)]
pub(crate) struct Dispatcher {
    pub(crate) span: Span,
    pub(crate) start_ts: CommitTs,
    pub(crate) written_ts: CommitTs,
    stopping: bool,
}

#[derive(Debug, Clone)]
struct Trigger {
    start_ts: CommitTs,
    /// Up to where its tables were told; nothing yet.
    told_ts: Option<CommitTs>,
    stopping: bool,
}

/// All that works in one process.
#[derive(Debug, Clone, Default)]
pub(crate) struct DataPath {
    pub(crate) dispatchers: BTreeMap<DispatcherKey, Dispatcher>,
    triggers: BTreeMap<(ChangefeedId, ChangefeedEpoch), Trigger>,
    stop_all: bool,
    tables_change: bool,
}

impl DataPath {
    pub(crate) fn new(tables_change: bool) -> Self {
        Self { tables_change, ..Self::default() }
    }

    pub(crate) fn order(&mut self, order: WorkOrder, _now_ts: CommitTs) {
        match order {
            WorkOrder::StartDispatcher { key, span, start_ts, .. } => {
                let dispatcher = Dispatcher { span, start_ts, written_ts: start_ts, stopping: false };
                self.dispatchers.entry(key).or_insert(dispatcher);
            }
            WorkOrder::StopDispatcher(key) => {
                if let Some(dispatcher) = self.dispatchers.get_mut(&key) {
                    dispatcher.stopping = true;
                }
            }
            WorkOrder::StartTrigger { changefeed, epoch, start_ts, .. } => {
                let trigger = Trigger { start_ts, told_ts: None, stopping: false };
                self.triggers.entry((changefeed, epoch)).or_insert(trigger);
            }
            WorkOrder::StopTrigger { changefeed, epoch } => {
                let trigger = self.triggers.entry((changefeed, epoch));
                trigger.or_insert(Trigger { start_ts: 0, told_ts: None, stopping: true }).stopping = true;
            }
            WorkOrder::StopAll => self.stop_all = true,
        }
    }

    /// Whether a trigger of this changefeed runs here.
    pub(crate) fn triggers(&self) -> impl Iterator<Item = &(ChangefeedId, ChangefeedEpoch)> {
        self.triggers.iter().filter(|(_, trigger)| !trigger.stopping).map(|(key, _)| key)
    }

    /// Works for a moment, and tells what came of it.
    ///
    /// With so many in a hundred thousand a dispatcher or a trigger fails.
    pub(crate) fn tick(&mut self, now_ts: CommitTs, rng: &mut ChaCha8Rng, fails: u64) -> Vec<WorkEvent> {
        let failing = |rng: &mut ChaCha8Rng, of: u64| fails > 0 && rng.next_u64() % 100_000 < fails / of;
        if self.stop_all {
            *self = Self::new(self.tables_change);
            return vec![WorkEvent::AllStopped];
        }
        let mut events = Vec::new();
        let mut ended = Vec::new();
        for (key, dispatcher) in &mut self.dispatchers {
            // Each is as fast as chance has it.
            if rng.next_u64().is_multiple_of(4) {
                continue;
            }
            if dispatcher.stopping {
                ended.push(key.clone());
                let checkpoint_ts = dispatcher.written_ts;
                events.push(WorkEvent::Stopped { key: key.clone(), checkpoint_ts });
                continue;
            }
            if failing(rng, 1) {
                ended.push(key.clone());
                let (key, checkpoint_ts) = (key.clone(), dispatcher.written_ts);
                let error = "a bad day".into();
                events.push(WorkEvent::Failed { key, checkpoint_ts, error, fatal: false, outranked_by: None });
                continue;
            }
            dispatcher.written_ts = dispatcher.written_ts.max(now_ts);
            let checkpoint_ts = dispatcher.written_ts;
            let grown = self.tables_change && dispatcher.span == table(SPLITS) && checkpoint_ts > SPLITS_FROM;
            let split_at = grown.then(|| middle(SPLITS));
            events.push(WorkEvent::Checkpoint { key: key.clone(), checkpoint_ts, split_at });
        }
        for key in ended {
            self.dispatchers.remove(&key);
        }
        let mut gone = Vec::new();
        for ((changefeed, epoch), trigger) in &mut self.triggers {
            let (changefeed, epoch) = (changefeed.clone(), *epoch);
            if trigger.stopping {
                gone.push((changefeed.clone(), epoch));
                events.push(WorkEvent::TriggerStopped { changefeed, epoch });
                continue;
            }
            if failing(rng, 4) {
                gone.push((changefeed.clone(), epoch));
                events.push(WorkEvent::TriggerFailed { changefeed, epoch, error: "a bad day".into() });
                continue;
            }
            // First what is there at the start, then what comes and goes.
            let resolved_ts = if trigger.told_ts.is_none() { trigger.start_ts } else { now_ts.max(trigger.start_ts) };
            let (born, ended) = changes(self.tables_change, trigger, resolved_ts);
            trigger.told_ts = Some(resolved_ts);
            events.push(WorkEvent::Tables { changefeed, epoch, born, ended, resolved_ts, resolved_at_ms: resolved_ts });
        }
        for key in gone {
            self.triggers.remove(&key);
        }
        events
    }
}

/// Tables with their first commit timestamp, and tables with their last.
type Births = Vec<(Span, CommitTs)>;
type Ends = Vec<(Arc<str>, CommitTs)>;

/// Tables that a trigger has to tell of.
fn changes(change: bool, trigger: &Trigger, until: CommitTs) -> (Births, Ends) {
    let (mut born, mut ended) = (Vec::new(), Vec::new());
    for n in 0..TABLES {
        let whole = table(n);
        let Some(since) = trigger.told_ts else {
            if !change || lives(n, until) {
                born.push((whole, trigger.start_ts + 1));
            }
            continue;
        };
        for (birth, end) in lifetimes(n).iter().filter(|_| change) {
            if *birth > since && *birth <= until {
                born.push((whole.clone(), *birth));
            }
            if *end > since && *end <= until {
                ended.push((whole.table.clone(), *end));
            }
        }
    }
    (born, ended)
}
