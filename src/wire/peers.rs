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
use tonic::{Request, Response, Status, Streaming};

use super::{cause, envelope, pb};
use crate::{
    door::{Call, Door},
    tls::{Dialer, distrust},
};

/// How many messages to one capture may wait.
const OUTBOX_MAX: usize = 1024;
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
pub struct Peers {
    dialer: Dialer,
    known: HashMap<Arc<str>, Peer>,
    swept: Option<Instant>,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.known.keys()).finish()
    }
}

impl Peers {
    /// Nobody yet.
    pub fn new(dialer: Dialer) -> Self {
        Self { dialer, known: HashMap::new(), swept: None }
    }

    /// Sends a message, soon; never waits. `to` is `host:port`.
    pub fn send(&mut self, to: &Arc<str>, envelope: &Envelope) {
        let now = Instant::now();
        self.forget_unused(now);
        let peer = self.known.entry(to.clone()).or_insert_with(|| {
            let (outbox, messages) = mpsc::channel(OUTBOX_MAX);
            tokio::spawn(speak(to.clone(), self.dialer.clone(), messages));
            Peer { outbox, used: now }
        });
        peer.used = now;
        match peer.outbox.try_send(envelope::encode(envelope)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => tracing::debug!(peer = %to, "messages pile up, one is dropped"),
            Err(TrySendError::Closed(_)) => {
                self.known.remove(to);
            }
        }
    }

    fn forget_unused(&mut self, now: Instant) {
        if self.swept.is_none_or(|at| now.duration_since(at) > FORGET_AFTER) {
            self.swept = Some(now);
            self.known.retain(|_, peer| now.duration_since(peer.used) < FORGET_AFTER);
        }
    }
}

/// Keeps one stream to a capture open for as long as somebody has something to send.
async fn speak(to: Arc<str>, mut dialer: Dialer, mut messages: mpsc::Receiver<pb::Envelope>) {
    let mut reachable = true;
    // A stream is opened for a message, so that nothing is dialled that nobody wants.
    while let Some(first) = messages.recv().await {
        let Ok(endpoint) = dialer.endpoint(&to) else {
            tracing::warn!(peer = %to, "a capture advertises an address that is none");
            return;
        };
        let endpoint = endpoint.http2_keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE);
        let end = match endpoint.connect().await {
            Ok(channel) => {
                if !reachable {
                    tracing::info!(peer = %to, "capture is reached again");
                }
                reachable = true;
                tokio::select! {
                    end = stream(channel, first, &mut messages) => end,
                    () = dialer.renewed() => End::Renewed,
                }
            }
            Err(error) => End::Lost(distrust(&error).map_or_else(|| cause(&error), |why| why.to_string())),
        };
        let error = match end {
            End::Lost(error) => error,
            // The next message goes by the new credentials.
            End::Renewed => continue,
            End::Unused => return,
        };
        if reachable {
            tracing::info!(peer = %to, error, "capture is not reached");
            reachable = false;
        }
        time::sleep(RECONNECT_BACKOFF).await;
        // What waited for the connection is old by now, and will be said again.
        while messages.try_recv().is_ok() {}
    }
}

/// How a stream ended.
enum End {
    /// It broke, and why.
    Lost(String),
    /// This capture has other credentials.
    Renewed,
    /// Nobody sends any more.
    Unused,
}

/// Sends what comes until the stream ends.
async fn stream(
    channel: tonic::transport::Channel,
    first: pb::Envelope,
    messages: &mut mpsc::Receiver<pb::Envelope>,
) -> End {
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
                return End::Lost(why(ended));
            }
            _ = sending => {}
        }
        tokio::select! {
            ended = &mut delivery => {
                return End::Lost(why(ended));
            }
            message = messages.recv() => match message {
                Some(message) => next = Some(message),
                None => return End::Unused,
            },
        }
    }
}

/// Why a stream ended: by the last cause that is known.
fn why(ended: Result<Response<pb::DeliverResponse>, Status>) -> String {
    match ended {
        Ok(_) => "the stream was closed".to_owned(),
        Err(status) => match (distrust(&status), std::error::Error::source(&status)) {
            (Some(why), _) => why.to_string(),
            (None, Some(source)) => cause(source),
            (None, None) => status.message().to_owned(),
        },
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
