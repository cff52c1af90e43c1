//! What a door of a capture holds: a way to ask, and the latest of what the capture knows.
//!
//! Doors know the core's types and nothing of the process behind them.

use std::sync::Arc;

use capturedrain_core::model::{Answer, CaptureId, Envelope, NodeEpoch, Refusal, Request, Snapshot};
use tokio::sync::{mpsc, oneshot, watch};

use crate::metrics::Metrics;

/// A call that a door hands over.
#[derive(Debug)]
pub enum Call {
    /// Ask the capture, or the coordinator that it is.
    Request {
        /// What.
        request: Request,
        /// Where the answer goes.
        answer: oneshot::Sender<Result<Answer, Refusal>>,
    },
    /// The pod's hook asks whether this capture is proven empty, after which it never takes work again.
    Prove {
        /// Where the answer goes.
        answer: oneshot::Sender<Result<Answer, Refusal>>,
    },
    /// A message of another capture.
    Message(Envelope),
}

/// A door's end of a capture.
#[derive(Debug, Clone)]
pub struct Door {
    /// The cluster's name.
    pub cluster: Arc<str>,
    /// The capture's name, known before it is registered.
    pub capture: CaptureId,
    /// The UID of its Kubernetes pod, if it has one.
    pub pod_uid: Option<Arc<str>>,
    /// Calls go in here; bounded, so that callers wait instead of piling up.
    pub calls: mpsc::Sender<Call>,
    /// What the capture knows, replaced whole on each change.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// What it counts and measures.
    pub metrics: Arc<Metrics>,
}

impl Door {
    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// Refusals of the capture, and `NotReady` when it ends before it answers.
    pub async fn ask(&self, request: Request) -> Result<Answer, Refusal> {
        let (answer, outcome) = oneshot::channel();
        let gone = || Refusal::NotReady("this capture is ending".to_owned());
        self.calls.send(Call::Request { request, answer }).await.map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())?
    }

    /// Asks for the proof that this capture is empty and never takes work again: `Drained` when it was drained, `Done` when
    /// it is not registered.
    ///
    /// # Errors
    /// When there is none yet, or the capture ends before it answers.
    pub async fn prove(&self) -> Result<Answer, Refusal> {
        let (answer, outcome) = oneshot::channel();
        let gone = || Refusal::NotReady("this capture is ending".to_owned());
        self.calls.send(Call::Prove { answer }).await.map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())?
    }

    /// The present registration's number.
    pub fn node_epoch(&self) -> Option<NodeEpoch> {
        self.snapshots.borrow().me.as_ref().map(|me| me.node_epoch)
    }
}
