//! The data path by itself: one changefeed, whose orders come from the test.

use std::{collections::HashMap, sync::Arc, time::Duration};

use capturedrain::pipeline::Pipeline;
use capturedrain_core::{
    model::{ChangefeedConfig, ChangefeedEpoch, ChangefeedId, CommitTs, Span, WriterEpoch},
    work::{DispatcherKey, WorkEvent, WorkOrder},
};
use etcd_client::Client;
use tokio::{sync::mpsc, time};

const PATIENCE: Duration = Duration::from_secs(30);

/// A data path with one changefeed.
pub(crate) struct Feed {
    pub(crate) pipeline: Pipeline,
    events: mpsc::Receiver<WorkEvent>,
    pub(crate) config: Arc<ChangefeedConfig>,
    /// The last checkpoint that each dispatcher told.
    checkpoints: HashMap<DispatcherKey, CommitTs>,
}

pub(crate) fn id() -> ChangefeedId {
    ChangefeedId::new("feed").unwrap()
}

impl Feed {
    pub(crate) fn new(source: &str, sink: &str) -> Self {
        let (events, inbox) = mpsc::channel(1024);
        let config = ChangefeedConfig { source: source.into(), sink: sink.into(), start_ts: 0, span_max_keys: 0 };
        Self { pipeline: Pipeline::new(events), events: inbox, config: Arc::new(config), checkpoints: HashMap::new() }
    }

    pub(crate) fn start(&mut self, span: &Span, counter: u64, start_ts: CommitTs) -> DispatcherKey {
        let writer_epoch = WriterEpoch { changefeed: ChangefeedEpoch(1), counter };
        let key = DispatcherKey { changefeed: id(), span: span.id(), writer_epoch };
        let order =
            WorkOrder::StartDispatcher { key: key.clone(), span: span.clone(), start_ts, config: self.config.clone() };
        self.pipeline.order(order);
        key
    }

    pub(crate) fn trigger(&mut self, start_ts: CommitTs) {
        let (changefeed, epoch) = (id(), ChangefeedEpoch(1));
        self.pipeline.order(WorkOrder::StartTrigger { changefeed, epoch, start_ts, config: self.config.clone() });
    }

    /// Waits for an event that is the answer.
    pub(crate) async fn until<T>(&mut self, what: &str, mut answer: impl FnMut(&WorkEvent) -> Option<T>) -> T {
        let waiting = async {
            while let Some(event) = self.events.recv().await {
                if let WorkEvent::Checkpoint { key, checkpoint_ts, .. } = &event {
                    self.checkpoints.insert(key.clone(), *checkpoint_ts);
                }
                if let Some(answer) = answer(&event) {
                    return answer;
                }
            }
            panic!("the data path ended before {what}");
        };
        time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {what}"))
    }

    /// Waits until a table gets its first key: its whole range, and when.
    pub(crate) async fn birth(&mut self, table: &str) -> (Span, CommitTs) {
        self.until("the birth", |event| match event {
            WorkEvent::Tables { born, .. } => born.iter().find(|(span, _)| &*span.table == table).cloned(),
            _ => None,
        })
        .await
    }

    pub(crate) async fn reaches(&mut self, key: &DispatcherKey, ts: CommitTs) -> CommitTs {
        self.until("a checkpoint", |event| match event {
            WorkEvent::Checkpoint { key: of, checkpoint_ts, .. } if of == key && *checkpoint_ts >= ts => {
                Some(*checkpoint_ts)
            }
            WorkEvent::Failed { error, .. } => panic!("{error}"),
            _ => None,
        })
        .await
    }

    /// The same, when its news may have come while others were waited for.
    pub(crate) async fn reaches_at_last(&mut self, key: &DispatcherKey, ts: CommitTs) -> CommitTs {
        if let Some(known) = self.checkpoints.get(key).filter(|known| **known >= ts) {
            return *known;
        }
        self.reaches(key, ts).await
    }

    pub(crate) async fn stop(&mut self, key: &DispatcherKey) -> CommitTs {
        self.pipeline.order(WorkOrder::StopDispatcher(key.clone()));
        self.until("the stop", |event| match event {
            WorkEvent::Stopped { key: of, checkpoint_ts } if of == key => Some(*checkpoint_ts),
            _ => None,
        })
        .await
    }

    pub(crate) async fn failure(&mut self) -> (String, bool) {
        self.until("a failure", |event| match event {
            WorkEvent::Failed { error, fatal, .. } => Some((error.clone(), *fatal)),
            WorkEvent::TriggerFailed { error, .. } => Some((error.clone(), true)),
            _ => None,
        })
        .await
    }
}

pub(crate) async fn put(client: &mut Client, key: &str, value: &str) -> CommitTs {
    let header = client.put(key, value, None).await.unwrap().header().cloned().unwrap();
    CommitTs::try_from(header.revision()).unwrap()
}

pub(crate) async fn delete(client: &mut Client, key: &str) -> CommitTs {
    let header = client.delete(key, None).await.unwrap().header().cloned().unwrap();
    CommitTs::try_from(header.revision()).unwrap()
}

/// The whole range of a table.
pub(crate) fn table(prefix: &str, name: &str) -> Span {
    let (start, end) = (format!("{prefix}{name}/").into_bytes(), format!("{prefix}{name}0").into_bytes());
    Span { table: name.into(), start: start.into(), end: end.into() }
}

/// Waits for something that no event tells.
pub(crate) async fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let waiting = async {
        while !is_so() {
            time::sleep(Duration::from_millis(20)).await;
        }
    };
    time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {what}"));
}
