//! The way to other captures: one stream to each, bounded; what does not fit or arrive is lost, and repeated by those
//! who need it.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use capturedrain_core::model::Envelope;
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, transport::Endpoint};

use super::{cause, envelope, pb};
use crate::door::{Call, Door};

/// How many messages to one capture may wait.
const OUTBOX_MAX: usize = 1024;
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long after a stream broke the next one is tried.
const RECONNECT_BACKOFF: Duration = Duration::from_millis(100);
/// How often a silent connection is tried, so that a dead one is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// After which a peer that nothing was sent to is forgotten.
const FORGET_AFTER: Duration = Duration::from_mins(2);

struct Peer {
    outbox: mpsc::Sender<pb::Envelope>,
    used: Instant,
}

/// All captures that this one speaks to, by address.
#[derive(Default)]
pub struct Peers {
    peers: HashMap<Arc<str>, Peer>,
    swept: Option<Instant>,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.peers.keys()).finish()
    }
}

impl Peers {
    /// Nobody yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sends a message, soon; never waits. `to` is `host:port`.
    pub fn send(&mut self, to: &Arc<str>, envelope: &Envelope) {
        let now = Instant::now();
        self.forget_unused(now);
        let peer = self.peers.entry(to.clone()).or_insert_with(|| {
            let (outbox, messages) = mpsc::channel(OUTBOX_MAX);
            tokio::spawn(speak(to.clone(), messages));
            Peer { outbox, used: now }
        });
        peer.used = now;
        match peer.outbox.try_send(envelope::encode(envelope)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => tracing::debug!(peer = %to, "messages pile up, one is dropped"),
            Err(TrySendError::Closed(_)) => {
                self.peers.remove(to);
            }
        }
    }

    fn forget_unused(&mut self, now: Instant) {
        if self.swept.is_none_or(|at| now.duration_since(at) > FORGET_AFTER) {
            self.swept = Some(now);
            self.peers.retain(|_, peer| now.duration_since(peer.used) < FORGET_AFTER);
        }
    }
}

/// Keeps one stream to a capture open for as long as somebody has something to send.
async fn speak(to: Arc<str>, mut messages: mpsc::Receiver<pb::Envelope>) {
    let Ok(endpoint) = Endpoint::from_shared(format!("http://{to}")) else {
        tracing::warn!(peer = %to, "a capture advertises an address that is none");
        return;
    };
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    let mut reachable = true;
    // A stream is opened for a message, so that nothing is dialled that nobody wants.
    while let Some(first) = messages.recv().await {
        let lost = match endpoint.connect().await {
            Ok(channel) => {
                if !reachable {
                    tracing::info!(peer = %to, "capture is reached again");
                }
                reachable = true;
                stream(channel, first, &mut messages).await
            }
            Err(error) => Some(cause(&error)),
        };
        let Some(error) = lost else { return };
        if reachable {
            tracing::info!(peer = %to, error, "capture is not reached");
            reachable = false;
        }
        time::sleep(RECONNECT_BACKOFF).await;
        // What waited for the connection is old by now, and will be said again.
        while messages.try_recv().is_ok() {}
    }
}

/// Sends what comes until the stream breaks (why), or nobody sends any more (`None`).
async fn stream(
    channel: tonic::transport::Channel,
    first: pb::Envelope,
    messages: &mut mpsc::Receiver<pb::Envelope>,
) -> Option<String> {
    let (sender, outgoing) = mpsc::channel(1);
    let mut client = pb::capture_service_client::CaptureServiceClient::new(channel);
    let mut delivery = std::pin::pin!(client.deliver(ReceiverStream::new(outgoing)));
    let mut next = Some(first);
    loop {
        let sending = async {
            match next.take() {
                Some(message) => sender.send(message).await.is_ok(),
                None => true,
            }
        };
        tokio::select! {
            biased;
            ended = &mut delivery => {
                return Some(why(ended));
            }
            _ = sending => {}
        }
        tokio::select! {
            ended = &mut delivery => {
                return Some(why(ended));
            }
            message = messages.recv() => next = Some(message?),
        }
    }
}

/// Why a stream ended: by the last cause that is known.
fn why(ended: Result<Response<pb::DeliverResponse>, Status>) -> String {
    match ended {
        Ok(_) => "the stream was closed".to_owned(),
        Err(status) => std::error::Error::source(&status).map_or_else(|| status.message().to_owned(), cause),
    }
}

/// The door that other captures come through.
pub(super) struct CaptureDoor {
    door: Door,
}

impl CaptureDoor {
    pub(super) fn new(door: Door) -> Self {
        Self { door }
    }
}

#[tonic::async_trait]
impl pb::capture_service_server::CaptureService for CaptureDoor {
    async fn deliver(&self, call: Request<Streaming<pb::Envelope>>) -> Result<Response<pb::DeliverResponse>, Status> {
        let mut messages = call.into_inner();
        while let Some(message) = messages.message().await? {
            let envelope = envelope::decode(message).map_err(|error| Status::invalid_argument(error.to_string()))?;
            if self.door.calls.send(Call::Message(envelope)).await.is_err() {
                return Err(Status::unavailable("this capture is ending"));
            }
        }
        Ok(Response::new(pb::DeliverResponse {}))
    }
}
