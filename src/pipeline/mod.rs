//! The data path: dispatchers that bring rows from a source to a sink, and table triggers that watch for tables.
//!
//! Orders of the core come in, [`WorkEvent`]s go out. Each dispatcher and each trigger is a task of its own.

mod config;
mod dispatcher;
mod error;
mod etcd;
mod probe;
mod sink;
mod source;
mod table;
mod trigger;

use std::{collections::HashMap, fmt, panic::AssertUnwindSafe};

use capturedrain_core::{
    model::{ChangefeedEpoch, ChangefeedId},
    work::{DispatcherKey, WorkEvent, WorkOrder},
};
use futures::FutureExt as _;
use tokio::{
    sync::{mpsc, oneshot},
    task::AbortHandle,
};

use self::sink::Mirrors;
pub use self::{
    config::{EtcdUrl, SinkUrl, SourceUrl, SyntheticUrl, TlsFiles, check_config},
    error::PipelineError,
    probe::{Probe, probe},
    sink::{SinkRow, SpanLine, fence_reads_back, file_name, parse_file_name},
    source::{Row, RowOp, etcd_history, etcd_state, mirror_state, synthetic_rows, synthetic_table},
    table::{folder, table_of},
};

/// How many orders pass between two looks for tasks that have ended.
const SWEEP_ORDERS: u32 = 256;

/// A running task.
struct Running {
    stop: Option<oneshot::Sender<()>>,
    abort: AbortHandle,
}

/// All dispatchers and triggers of a capture.
pub struct Pipeline {
    events: mpsc::Sender<WorkEvent>,
    mirrors: Mirrors,
    dispatchers: HashMap<DispatcherKey, Running>,
    triggers: HashMap<(ChangefeedId, ChangefeedEpoch), Running>,
    until_sweep: u32,
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipeline")
            .field("dispatchers", &self.dispatchers.len())
            .field("triggers", &self.triggers.len())
            .finish_non_exhaustive()
    }
}

impl Pipeline {
    /// Nothing runs yet. What happens is told through `events`.
    pub fn new(events: mpsc::Sender<WorkEvent>) -> Self {
        Self {
            events,
            mirrors: Mirrors::default(),
            dispatchers: HashMap::new(),
            triggers: HashMap::new(),
            until_sweep: SWEEP_ORDERS,
        }
    }

    /// Takes an order of the core. Never waits; a repeated order does nothing.
    pub fn order(&mut self, order: WorkOrder) {
        self.sweep();
        match order {
            WorkOrder::StartDispatcher { key, span, start_ts, config } => {
                if !self.dispatchers.contains_key(&key) {
                    let (stop, stopped) = oneshot::channel();
                    let (events, panicked) = (self.events.clone(), key.clone());
                    let job = dispatcher::Job { key: key.clone(), span, start_ts, config };
                    let work = dispatcher::run(job, self.mirrors.clone(), events.clone(), stopped);
                    let abort = spawn(work, events, move |error| WorkEvent::Failed {
                        key: panicked,
                        checkpoint_ts: start_ts,
                        error,
                        fatal: true,
                        outranked_by: None,
                    });
                    self.dispatchers.insert(key, Running { stop: Some(stop), abort });
                }
            }
            WorkOrder::StopDispatcher(key) => {
                if let Some(stop) = self.dispatchers.get_mut(&key).and_then(|running| running.stop.take()) {
                    // A task that has ended by itself has said so.
                    let _ = stop.send(());
                }
            }
            WorkOrder::StartTrigger { changefeed, epoch, start_ts, config } => {
                let key = (changefeed.clone(), epoch);
                if !self.triggers.contains_key(&key) {
                    let (stop, stopped) = oneshot::channel();
                    let (events, panicked) = (self.events.clone(), changefeed.clone());
                    let job = trigger::Job { changefeed, epoch, start_ts, config };
                    let work = trigger::run(job, events.clone(), stopped);
                    let abort = spawn(work, events, move |error| WorkEvent::TriggerFailed {
                        changefeed: panicked,
                        epoch,
                        error,
                    });
                    self.triggers.insert(key, Running { stop: Some(stop), abort });
                }
            }
            WorkOrder::StopTrigger { changefeed, epoch } => {
                let running = self.triggers.get_mut(&(changefeed.clone(), epoch));
                let told = running.and_then(|running| running.stop.take()).is_some_and(|stop| stop.send(()).is_ok());
                if !told {
                    self.tell(WorkEvent::TriggerStopped { changefeed, epoch });
                }
            }
            WorkOrder::StopAll => {
                self.abort_all();
                self.tell(WorkEvent::AllStopped);
            }
        }
    }

    fn tell(&self, event: WorkEvent) {
        let events = self.events.clone();
        tokio::spawn(async move {
            // The capture is gone when nobody receives.
            let _ = events.send(event).await;
        });
    }

    fn abort_all(&mut self) {
        let dispatchers = self.dispatchers.drain().map(|(_, running)| running);
        for running in dispatchers.chain(self.triggers.drain().map(|(_, running)| running)) {
            running.abort.abort();
        }
    }

    /// Forgets tasks that have ended.
    fn sweep(&mut self) {
        self.until_sweep -= 1;
        if self.until_sweep == 0 {
            self.until_sweep = SWEEP_ORDERS;
            self.dispatchers.retain(|_, running| !running.abort.is_finished());
            self.triggers.retain(|_, running| !running.abort.is_finished());
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.abort_all();
    }
}

/// Runs a task; a panic in it is told as the failure that it is.
fn spawn(
    work: impl Future<Output = ()> + Send + 'static,
    events: mpsc::Sender<WorkEvent>,
    failed: impl FnOnce(String) -> WorkEvent + Send + 'static,
) -> AbortHandle {
    let guarded = async move {
        if AssertUnwindSafe(work).catch_unwind().await.is_err() {
            let _ = events.send(failed("the data path met a bug and panicked; its log has more".to_owned())).await;
        }
    };
    tokio::spawn(guarded).abort_handle()
}
