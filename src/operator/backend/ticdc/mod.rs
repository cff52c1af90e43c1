//! A cluster of `TiCDC`, by its open API: owner, captures, and one call that asks for a drain and says how many are left.
//!
//! `TiCDC` keeps no record of a drain, has no epoch and no way back, and a drain goes on only for as long as somebody
//! asks. So this process remembers: the number of a run is the moment of its first request, and a round of it is made each
//! second until the capture is gone. Maintainers are not counted there, so that their number is never known.
//!
//! **The proof.** An answer of 0 is none by itself: a cluster of several releases answers it when it skips the drain, a
//! stub answers it always, an owner that was just elected may. The target is taken for empty when all of this holds:
//!
//! 1. every registered capture is of a release that drains ([`version`]);
//! 2. two answers of 0, to the letter ([`wire`]), came in a row, nothing else between them, and an interval (1 s) apart;
//! 3. before and after each of them there was one owner, the same all the time, and another than the target;
//! 4. before and after each of them the target was registered, and was not the only one.
//!
//! It is void as soon as anything is heard to be on the target again, which a classic owner that balances may bring about:
//! so the asking does not stop at the proof. Anything else that is answered or is not (an error, a redirect, half a body,
//! a page of somebody else) is never read as a number.

mod call;
mod round;
mod run;
mod version;
mod wire;

use std::{fmt, sync::Arc, time::Duration};

use capturedrain_core::model::{Answer, CaptureId, DrainEpoch, DrainRequest, NodeEpoch, Refusal};
use futures::{
    FutureExt as _,
    future::BoxFuture,
    stream::{self, BoxStream, StreamExt as _},
};
use jiff::Timestamp;
use tokio::time;

use self::{
    call::Caller,
    round::Inner,
    run::{Heard, Run},
};
use super::{Backend, Cluster, Outcome, Unseen};
use crate::{tls::Dialer, view::CaptureView};

pub use self::run::DEADLINE_MS;

/// How often a drain is asked for.
const INTERVAL: Duration = Duration::from_secs(1);

/// A way to a cluster of `TiCDC`. Clones share it; drains are asked for as long as one of them is left.
#[derive(Clone)]
pub struct TiCdc {
    inner: Arc<Inner>,
}

impl fmt::Debug for TiCdc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TiCdc").field("servers", &self.inner.caller.servers()).finish_non_exhaustive()
    }
}

impl TiCdc {
    /// To the captures at these `host:port`s; any of them passes on what only the owner knows, and over TLS each has to
    /// prove the host by which it is named here. The login, a user and a password, goes to none but these.
    pub fn new(servers: Vec<String>, dialer: Dialer, login: Option<(String, String)>) -> Self {
        Self::with_interval(servers, dialer, login, INTERVAL)
    }

    /// The same with another time between two requests.
    pub fn with_interval(
        servers: Vec<String>,
        dialer: Dialer,
        login: Option<(String, String)>,
        interval: Duration,
    ) -> Self {
        Self { inner: Arc::new(Inner::new(Caller::new(servers, dialer, login), interval)) }
    }

    /// The name of the capture behind the first server: what it says of itself.
    ///
    /// # Errors
    /// When it does not say so.
    pub async fn own_id(&self) -> Result<String, Unseen> {
        let caller = &self.inner.caller;
        let server = caller.servers().first().map(String::as_str).unwrap_or_default();
        Ok(caller.status(server).await?.id)
    }

    async fn see(&self) -> Result<Cluster, Unseen> {
        let captures = self.inner.captures().await?;
        let now = Timestamp::now();
        let state = self.inner.state();
        let run = state.run.as_ref();
        let capture = |capture: wire::Capture| {
            let of = run.filter(|run| run.target == capture.id);
            let liveness = match of {
                Some(run) if run.is_proven() => "Stopping",
                Some(_) => "Draining",
                None => "Alive",
            };
            CaptureView {
                pod_name: capture.pod_name().map(str::to_owned),
                version: self.inner.version(&capture.id).unwrap_or_default(),
                // It is new at each start of the process.
                node_epoch: capture.id.clone(),
                address: capture.address,
                pod_uid: None,
                liveness: liveness.to_owned(),
                is_coordinator: capture.is_owner,
                heard: true,
                maintainer_count: None,
                dispatcher_count: of.and_then(Run::left),
                id: capture.id,
            }
        };
        let captures = captures.into_iter().map(capture).collect();
        let proven = run.filter(|run| run.is_proven()).map(|run| run.end(now));
        let ends = state.ends.iter().cloned().chain(proven).collect();
        let drain = run.map(|run| run.view(now)).unwrap_or_default();
        Ok(Cluster { captures, drain, ends, ..Cluster::default() })
    }

    /// How a run that is on answers a request.
    fn running(run: Option<&Run>, request: &DrainRequest) -> Option<Outcome> {
        let run = run?;
        let epoch = DrainEpoch(run.epoch);
        if run.target == request.capture.as_str() {
            let proven = Answer::Drained { epoch };
            let going_on = Answer::Draining { epoch, current: None };
            return Some(Outcome::Answered(if run.is_proven() { proven } else { going_on }));
        }
        let target = CaptureId::new(&run.target).ok()?;
        Some(Outcome::Refused(Refusal::OtherDrain { target, epoch }))
    }

    async fn begin(&self, request: &DrainRequest) -> Outcome {
        if let Some(outcome) = Self::running(self.inner.state().run.as_ref(), request) {
            return outcome;
        }
        let target = &request.capture;
        let mut run = Run::new(request, Timestamp::now());
        let heard = match self.inner.round(target.as_str()).await {
            Err(unseen) => return Outcome::Unseen(unseen),
            Ok(Heard::Missing) => return Outcome::Refused(Refusal::UnknownCapture(target.clone())),
            Ok(Heard::Alone) => return Outcome::Refused(Refusal::NoPeers(target.clone())),
            Ok(Heard::Busy(other)) => {
                let busy = |target| Refusal::OtherDrain { target, epoch: DrainEpoch(0) };
                let unnamed = || Refusal::NotReady("another capture is being drained".to_owned());
                return Outcome::Refused(CaptureId::new(other).map_or_else(|_| unnamed(), busy));
            }
            // A drain that was on goes on; one that was not has not begun.
            Ok(Heard::Nothing(why)) if request.epoch.is_none() => {
                return Outcome::Unseen(Unseen::Unreachable(why));
            }
            Ok(heard) => heard,
        };
        run.hear(heard, time::Instant::now(), self.inner.interval, Timestamp::now());
        let mut state = self.inner.state();
        // Another may have been asked for meanwhile.
        if let Some(outcome) = Self::running(state.run.as_ref(), request) {
            return outcome;
        }
        let answer = Answer::Draining { epoch: DrainEpoch(run.epoch), current: None };
        self.inner.keep_asking(&run);
        state.run = Some(run);
        Outcome::Answered(answer)
    }

    /// Asks no more. What the cluster has begun it may well finish.
    fn give_up(&self, capture: &CaptureId) -> Outcome {
        let mut state = self.inner.state();
        state.run.take_if(|run| run.target == capture.as_str());
        Outcome::CancelUnsupported
    }
}

impl Backend for TiCdc {
    fn look(&self) -> BoxFuture<'_, Result<Cluster, Unseen>> {
        self.see().boxed()
    }

    fn follow(&self) -> BoxStream<'static, Result<Cluster, Unseen>> {
        // Nothing is told here without being asked.
        stream::unfold((self.clone(), Duration::ZERO), |(backend, pause)| async move {
            time::sleep(pause).await;
            let seen = backend.see().await;
            let interval = backend.inner.interval;
            Some((seen, (backend, interval)))
        })
        .boxed()
    }

    fn start<'a>(&'a self, request: &'a DrainRequest) -> BoxFuture<'a, Outcome> {
        self.begin(request).boxed()
    }

    fn cancel<'a>(&'a self, capture: &'a CaptureId, _: DrainEpoch) -> BoxFuture<'a, Outcome> {
        async move { self.give_up(capture) }.boxed()
    }

    fn release<'a>(&'a self, capture: &'a CaptureId, _: Option<NodeEpoch>) -> BoxFuture<'a, Outcome> {
        async move { self.give_up(capture) }.boxed()
    }
}
