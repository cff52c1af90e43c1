//! Answers evictions: memory first, and what has to be looked at when the decision asks for it.

mod effects;
mod observe;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::post,
};
use kube::{Client, runtime::events::Recorder};
use tokio::{net::TcpListener, sync::watch, time};

use self::{
    effects::Effects,
    observe::{Trouble, Witness},
};
use super::{OperatorError, cache::Caches, metrics::Metrics};
use crate::{
    listener::{Limits, Listener},
    operator::{
        certificates::serving::{Shown, server_config},
        webhook::{
            PATH,
            answer::answer,
            asked::{Asked, Review},
            decide::{Decision, Denial, Step, decide},
            facts::{Facts, PodFacts},
        },
    },
};

/// How often more is looked at before something is decided.
const LOOKS_MAX: usize = 4;
/// How long a decision may take: less than API servers wait, who would let the pod go then, as the failure policy says.
const JUDGE_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a connection may be idle: longer than API servers keep theirs, so that no call meets its end.
const IDLE_TIMEOUT: Duration = Duration::from_mins(5);
/// How long a call may take: API servers wait for less.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// What every call needs.
#[derive(Clone)]
struct Hall {
    witness: Arc<Witness>,
    effects: Arc<Effects>,
    metrics: Arc<Metrics>,
    stopped: watch::Receiver<bool>,
}

/// Begins to answer evictions.
pub(super) async fn open(
    addr: SocketAddr,
    client: &Client,
    around: (&Caches, &Arc<Metrics>),
    recorder: Recorder,
    shown: Arc<Shown>,
    stopped: watch::Receiver<bool>,
) -> Result<Listener, OperatorError> {
    let (caches, metrics) = around;
    let listener = TcpListener::bind(addr).await.map_err(|source| OperatorError::Listen { addr, source })?;
    let config = server_config(shown).map_err(OperatorError::Tls)?;
    let hall = Hall {
        witness: Arc::new(Witness::new(client.clone(), caches.clone(), metrics.clone())),
        effects: Arc::new(Effects::new(client.clone(), recorder)),
        metrics: metrics.clone(),
        stopped,
    };
    let doors = Router::new().route(PATH, post(evict)).with_state(hall);
    let limits = Limits { headers: IDLE_TIMEOUT, idle: IDLE_TIMEOUT, call: CALL_TIMEOUT, ..Limits::default() };
    Ok(Listener::start_for_strangers(listener, doors, config, limits))
}

async fn evict(State(hall): State<Hall>, body: Bytes) -> Response {
    let began = Instant::now();
    let review: Review = match serde_json::from_slice(&body) {
        Ok(review) => review,
        Err(error) => {
            return (StatusCode::BAD_REQUEST, format!("that is no AdmissionReview: {error}\n")).into_response();
        }
    };
    let uid = review.request.uid.clone();
    let asked = Asked::from(review.request);
    let judged = match time::timeout(JUDGE_TIMEOUT, hall.judge(&asked)).await {
        Ok(judged) => judged,
        Err(_) => deny(&hall.witness.remember(&asked), Trouble::late(JUDGE_TIMEOUT)),
    };
    let decision = judged.as_ref().map_or("Failed", name);
    hall.metrics.webhook.decided(decision, began.elapsed());
    let mut response = match judged {
        Ok(judged) => Json(answer(&uid, &asked, &judged)).into_response(),
        // What cannot be decided is for the failure policy.
        Err(failure) => {
            let (namespace, pod, category) = (&asked.namespace, &asked.name, failure.category);
            tracing::warn!(namespace, pod, requester = asked.user, category, error = %failure, "an eviction could not be decided");
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{failure}\n")).into_response()
        }
    };
    if *hall.stopped.borrow() {
        // Whoever keeps the connection is to come to another replica.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The name of a decision in metrics and logs.
fn name(decision: &Decision) -> &'static str {
    match decision {
        Decision::Pass { why, .. } => why.name(),
        Decision::Rehearsed(_) => "DryRun",
        Decision::Deny(denial) => denial.decision,
        Decision::Gone => "Replaced",
        Decision::Begin { .. } => "NotDrained",
    }
}

impl Hall {
    async fn judge(&self, asked: &Asked) -> Result<Decision, Trouble> {
        let mut facts = self.witness.remember(asked);
        for _ in 0..=LOOKS_MAX {
            let decision = match decide(&facts) {
                Step::Look(look) => match self.witness.look(&mut facts, look).await {
                    Ok(()) => continue,
                    Err(trouble) => deny(&facts, trouble)?,
                },
                Step::Answer(Decision::Begin { pod, cluster }) => match self.effects.begin(&facts, &pod, cluster).await
                {
                    Ok(denial) => Decision::Deny(denial),
                    Err(trouble) => deny(&facts, trouble)?,
                },
                Step::Answer(decision) => decision,
            };
            match &decision {
                Decision::Deny(denial) => self.effects.denied(&facts, denial),
                Decision::Pass { why, drain, .. } => self.effects.passed(&facts, *why, drain.as_deref()),
                Decision::Rehearsed(_) | Decision::Gone | Decision::Begin { .. } => {}
            }
            return Ok(decision);
        }
        // There are no more kinds of looks, so that only a pod that changes all the time comes here.
        Ok(Decision::Deny(Denial::not_drained("Unknown", format!("pod {} changes too fast", asked.name), None)))
    }
}

/// Trouble that passes holds the pod of a capture; for the rest there is the failure policy.
fn deny(facts: &Facts, trouble: Trouble) -> Result<Decision, Trouble> {
    let is_ours = facts.pod.pod().and_then(PodFacts::cluster).is_some();
    if !is_ours || !trouble.is_passing() {
        return Err(trouble);
    }
    let message = format!("whether pod {} may go is not known: {trouble}", facts.asked.name);
    Ok(Decision::Deny(Denial::not_drained("Unknown", message, None)))
}
