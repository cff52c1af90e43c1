//! A dispatcher: the rows of one span, from the source into the sink, and how far it has come.

use std::{sync::Arc, time::Duration};

use capturedrain_core::{
    model::{ChangefeedConfig, CommitTs, Span},
    work::{DispatcherKey, WorkEvent},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{self, Instant},
};

use super::{
    PipelineError, SinkUrl, SourceUrl,
    sink::{Mirrors, Sink},
    source::{Feed, SplitPoint},
};

/// How long a stop waits for what was read already to be safe in the sink.
const STOP_MAX: Duration = Duration::from_secs(5);
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
    /// A look at the size of the span that is on.
    sizing: Option<SplitPoint>,
}

/// What happens next.
enum Step {
    Stop,
    Safe(CommitTs),
    Read,
    SplitAt(Option<Arc<[u8]>>),
}

/// Runs a dispatcher until it is stopped or fails, and tells which.
pub(super) async fn run(job: Job, mirrors: Mirrors, events: mpsc::Sender<WorkEvent>, mut stop: oneshot::Receiver<()>) {
    let (key, start_ts) = (job.key.clone(), job.start_ts);
    let opened = tokio::select! {
        opened = Dispatcher::open(job, &mirrors, events.clone()) => opened,
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
            let (fatal, outranked_by) = (error.is_fatal(), error.outranked_by(key.writer_epoch));
            WorkEvent::Failed { key, checkpoint_ts, error: error.to_string(), fatal, outranked_by }
        }
    };
    tell(&events, event).await;
}

async fn tell(events: &mpsc::Sender<WorkEvent>, event: WorkEvent) {
    // The capture is gone when nobody receives.
    let _ = events.send(event).await;
}

impl Dispatcher {
    async fn open(job: Job, mirrors: &Mirrors, events: mpsc::Sender<WorkEvent>) -> Result<Self, PipelineError> {
        let source = SourceUrl::parse(&job.config.source)?;
        let sink = SinkUrl::parse(&job.config.sink)?;
        let mut feed = Feed::of(&source, &job.span, job.start_ts);
        feed.open().await?;
        let sink = Sink::open(&sink, &source, &job, mirrors).await?;
        let now = Instant::now();
        let (checkpoint_ts, told_ts) = (job.start_ts, job.start_ts);
        let size_at = now + SIZE_INTERVAL;
        Ok(Self { job, sink, feed, events, checkpoint_ts, told_at: now, told_ts, size_at, sizing: None })
    }

    /// Reads on while what was read before is being written, as long as there is room.
    async fn work(&mut self, mut stop: oneshot::Receiver<()>) -> Result<(), PipelineError> {
        self.tell_checkpoint(None).await;
        loop {
            let next = tokio::select! {
                biased;
                _ = &mut stop => Step::Stop,
                safe = self.sink.next_safe(), if self.sink.is_busy() => Step::Safe(safe?),
                split_at = next_of(&mut self.sizing) => Step::SplitAt(split_at),
                batch = self.feed.next(), if self.sink.has_room() => {
                    self.sink.take(batch?)?;
                    Step::Read
                }
            };
            match next {
                Step::Stop => return self.settle().await,
                Step::Safe(safe_ts) => self.checkpoint_ts = self.checkpoint_ts.max(safe_ts),
                Step::Read => {}
                Step::SplitAt(split_at) => {
                    self.sizing = None;
                    if split_at.is_some() {
                        self.tell_checkpoint(split_at).await;
                    }
                }
            }
            self.look_at_size();
            // What is not told now is told with the next notice of progress, a few times a second.
            if self.checkpoint_ts > self.told_ts && self.told_at.elapsed() >= TELL_INTERVAL {
                self.tell_checkpoint(None).await;
            }
        }
    }

    /// Makes safe what was read. A sink that does not answer is not waited for: what it lacks is above the checkpoint.
    async fn settle(&mut self) -> Result<(), PipelineError> {
        let written = async {
            while self.sink.is_busy() {
                self.checkpoint_ts = self.checkpoint_ts.max(self.sink.next_safe().await?);
            }
            Ok(())
        };
        time::timeout(STOP_MAX, written).await.unwrap_or(Ok(()))
    }

    async fn tell_checkpoint(&mut self, split_at: Option<Arc<[u8]>>) {
        (self.told_at, self.told_ts) = (Instant::now(), self.checkpoint_ts);
        let (key, checkpoint_ts) = (self.job.key.clone(), self.checkpoint_ts);
        tell(&self.events, WorkEvent::Checkpoint { key, checkpoint_ts, split_at }).await;
    }

    /// Begins to look, now and then, whether the span has become too large. The table "" shares its range with others and
    /// stays whole.
    fn look_at_size(&mut self) {
        let max = self.job.config.span_max_keys;
        if max > 0 && !self.job.span.table.is_empty() && self.size_at <= Instant::now() && self.sizing.is_none() {
            self.size_at = Instant::now() + SIZE_INTERVAL;
            self.sizing = self.feed.split_point(max);
        }
    }
}

/// Where to split, once that is known; for ever when nobody looks.
async fn next_of(sizing: &mut Option<SplitPoint>) -> Option<Arc<[u8]>> {
    match sizing {
        Some(looking) => looking.await.unwrap_or_else(|error| {
            tracing::warn!(%error, "the size of a span is not known, it stays whole for now");
            None
        }),
        None => std::future::pending().await,
    }
}
