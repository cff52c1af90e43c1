//! What a capture does when it is told to end: it has itself drained first.

use std::time::Duration;

use capturedrain_core::model::{Answer, DrainRequest, Liveness, Refusal};
use tokio::time;

use crate::{
    client::{Client, ClientError},
    door::Door,
};

/// How long after an attempt that came to nothing the next one follows.
const RETRY: Duration = Duration::from_millis(300);

/// How a capture leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Farewell {
    /// Proven empty.
    Empty,
    /// With its work, since nobody is there to take it.
    Alone,
    /// With its work, as it was told.
    Undrained,
    /// With work left, since time was up.
    TooLate,
}

/// Has the capture drained, and returns when it is proven empty, when nothing is left to protect, or when time is up.
pub(super) async fn drain_self(door: &Door, client: &Client, timeout: Duration) -> Farewell {
    if timeout.is_zero() {
        tracing::info!(capture = %door.capture, "ending without a drain");
        return Farewell::Undrained;
    }
    tracing::info!(capture = %door.capture, timeout_ms = timeout.as_millis(), "ending: draining this capture first");
    let capture = &door.capture;
    let farewell = time::timeout(timeout, until_drained(door, client)).await.unwrap_or(Farewell::TooLate);
    match farewell {
        Farewell::TooLate => tracing::warn!(%capture, "time is up, ending with work left"),
        Farewell::Alone => tracing::warn!(%capture, "no other capture could take the work, ending with it"),
        Farewell::Empty | Farewell::Undrained => tracing::info!(%capture, "nothing is left on this capture"),
    }
    farewell
}

async fn until_drained(door: &Door, client: &Client) -> Farewell {
    let mut snapshots = door.snapshots.clone();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        let Some(me) = snapshot.me.clone() else { return Farewell::Empty };
        if snapshot.liveness == Some(Liveness::Stopping) && matches!(door.prove().await, Ok(Answer::Drained { .. })) {
            return Farewell::Empty;
        }
        if snapshot.liveness == Some(Liveness::Alive) {
            let mut request = DrainRequest::new(door.capture.clone(), format!("shutdown of {}", door.capture));
            request.node_epoch = Some(me.node_epoch);
            match client.drain(request).await {
                Ok(_) => {}
                Err(ClientError::Refused(Refusal::NoPeers(_))) => {
                    return Farewell::Alone;
                }
                Err(error) => tracing::info!(capture = %door.capture, %error, "the drain of this capture has to wait"),
            }
        }
        // Either a change, or time for the next attempt.
        let _ = time::timeout(RETRY, snapshots.changed()).await;
    }
}
