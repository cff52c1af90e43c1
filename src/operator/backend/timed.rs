//! A cluster whose answers are timed.

use std::fmt;

use capturedrain_core::model::{CaptureId, DrainEpoch, DrainRequest, NodeEpoch};
use futures::{FutureExt as _, future::BoxFuture, stream::BoxStream};
use prometheus_client::metrics::{family::Family, histogram::Histogram};
use tokio::time::Instant;

use super::{Backend, Cluster, Outcome, Unseen};

/// How long each request took, by kind and method.
pub type Durations = Family<[(&'static str, &'static str); 2], Histogram, fn() -> Histogram>;

/// Another, timed.
pub struct Timed<B> {
    inner: B,
    kind: &'static str,
    durations: Durations,
}

impl<B: Backend> Timed<B> {
    /// Of a kind.
    pub fn new(inner: B, kind: &'static str, durations: Durations) -> Self {
        Self { inner, kind, durations }
    }

    async fn time<T>(&self, method: &'static str, call: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let answer = call.await;
        let labels = [("kind", self.kind), ("method", method)];
        self.durations.get_or_create(&labels).observe(began.elapsed().as_secs_f64());
        answer
    }
}

impl<B: Backend> fmt::Debug for Timed<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl<B: Backend> Backend for Timed<B> {
    fn look(&self) -> BoxFuture<'_, Result<Cluster, Unseen>> {
        self.time("look", self.inner.look()).boxed()
    }

    fn follow(&self) -> BoxStream<'static, Result<Cluster, Unseen>> {
        self.inner.follow()
    }

    fn start<'a>(&'a self, request: &'a DrainRequest) -> BoxFuture<'a, Outcome> {
        self.time("start", self.inner.start(request)).boxed()
    }

    fn cancel<'a>(&'a self, capture: &'a CaptureId, epoch: DrainEpoch) -> BoxFuture<'a, Outcome> {
        self.time("cancel", self.inner.cancel(capture, epoch)).boxed()
    }

    fn release<'a>(&'a self, capture: &'a CaptureId, node_epoch: Option<NodeEpoch>) -> BoxFuture<'a, Outcome> {
        self.time("release", self.inner.release(capture, node_epoch)).boxed()
    }
}
