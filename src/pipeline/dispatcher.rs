//! A dispatcher: the rows of one span, from the source into the sink, and how far it has come.

use std::{sync::Arc, time::Duration};

use capturedrain_core::{
    model::{ChangefeedConfig, CommitTs, Span},
    work::{DispatcherKey, WorkEvent},
};
use futures::FutureExt as _;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    PipelineError, SinkUrl, SourceUrl,
    sink::Sink,
    source::{Batch, Feed},
};

/// How many bytes are collected for one flush.
const FLUSH_MAX_BYTES: usize = 1 << 20;
/// How often a checkpoint is told at most.
const TELL_INTERVAL: Duration = Duration::from_millis(20);
/// How often the size of the span is looked at.
const SIZE_INTERVAL: Duration = Duration::from_secs(2);

/// What a dispatcher shall do.
pub(super) struct Job {
    pub(super) key: DispatcherKey,
    pub(super) span: Span,
    pub(super) start_ts: CommitTs,
    pub(super) config: Arc<ChangefeedConfig>,
}

struct Dispatcher {
    job: Job,
    sink: Sink,
    feed: Feed,
    events: mpsc::Sender<WorkEvent>,
    /// Everything up to here is in the sink, safe.
    checkpoint_ts: CommitTs,
    told_at: Instant,
    told_ts: CommitTs,
    size_at: Instant,
}

/// Runs a dispatcher until it is stopped or fails, and tells which.
pub(super) async fn run(job: Job, events: mpsc::Sender<WorkEvent>, mut stop: oneshot::Receiver<()>) {
    let (key, start_ts) = (job.key.clone(), job.start_ts);
    let opened = tokio::select! {
        opened = Dispatcher::open(job, events.clone()) => opened,
        _ = &mut stop => return tell(&events, WorkEvent::Stopped { key, checkpoint_ts: start_ts }).await,
    };
    let (checkpoint_ts, ended) = match opened {
        Ok(mut dispatcher) => {
            let ended = dispatcher.work(stop).await;
            (dispatcher.checkpoint_ts, ended)
        }
        Err(error) => (start_ts, Err(error)),
    };
    let event = match ended {
        Ok(()) => WorkEvent::Stopped { key, checkpoint_ts },
        Err(error) => {
            tracing::warn!(changefeed = %key.changefeed, dispatcher = %key.span, %error, "dispatcher failed");
            WorkEvent::Failed { key, checkpoint_ts, error: error.to_string(), fatal: error.is_fatal() }
        }
    };
    tell(&events, event).await;
}

async fn tell(events: &mpsc::Sender<WorkEvent>, event: WorkEvent) {
    // The capture is gone when nobody receives.
    let _ = events.send(event).await;
}

impl Dispatcher {
    async fn open(job: Job, events: mpsc::Sender<WorkEvent>) -> Result<Self, PipelineError> {
        let source = SourceUrl::parse(&job.config.source)?;
        let sink = SinkUrl::parse(&job.config.sink)?;
        let mut feed = Feed::of(&source, &job.span, job.start_ts);
        feed.open().await?;
        let sink = Sink::open(&sink, &job.span, &job.key, job.start_ts).await?;
        let now = Instant::now();
        let (checkpoint_ts, told_ts) = (job.start_ts, job.start_ts);
        Ok(Self { job, sink, feed, events, checkpoint_ts, told_at: now, told_ts, size_at: now + SIZE_INTERVAL })
    }

    async fn work(&mut self, mut stop: oneshot::Receiver<()>) -> Result<(), PipelineError> {
        self.tell_checkpoint(None).await;
        loop {
            let batch = tokio::select! {
                biased;
                _ = &mut stop => return self.flush().await,
                batch = self.feed.next() => batch?,
            };
            let mut reached = self.take(&batch)?;
            // What is ready as well goes into the same flush.
            while self.sink.waiting_bytes() < FLUSH_MAX_BYTES
                && let Some(batch) = self.feed.next().now_or_never()
            {
                reached = reached.max(self.take(&batch?)?);
            }
            self.flush().await?;
            self.checkpoint_ts = self.checkpoint_ts.max(reached);
            self.tell_progress().await;
        }
    }

    fn take(&mut self, batch: &Batch) -> Result<CommitTs, PipelineError> {
        for row in &batch.rows {
            self.sink.append(row)?;
        }
        Ok(batch.resolved_ts)
    }

    async fn flush(&mut self) -> Result<(), PipelineError> {
        self.sink.flush().await
    }

    async fn tell_progress(&mut self) {
        let split_at = self.split_at().await;
        let news = self.checkpoint_ts > self.told_ts && self.told_at.elapsed() >= TELL_INTERVAL;
        if news || split_at.is_some() {
            self.tell_checkpoint(split_at).await;
        }
    }

    async fn tell_checkpoint(&mut self, split_at: Option<Arc<[u8]>>) {
        (self.told_at, self.told_ts) = (Instant::now(), self.checkpoint_ts);
        let (key, checkpoint_ts) = (self.job.key.clone(), self.checkpoint_ts);
        tell(&self.events, WorkEvent::Checkpoint { key, checkpoint_ts, split_at }).await;
    }

    /// Where to split the span, now and then, when it has become too large. The table "" shares its range with others and
    /// stays whole.
    async fn split_at(&mut self) -> Option<Arc<[u8]>> {
        let max = self.job.config.span_max_keys;
        if max == 0 || self.job.span.table.is_empty() || self.size_at > Instant::now() {
            return None;
        }
        self.size_at = Instant::now() + SIZE_INTERVAL;
        self.feed.split_point(max).await
    }
}
