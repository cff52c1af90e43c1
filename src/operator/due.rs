//! When time alone changes something, so that nothing else has to be asked again and again.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    plan::{self, released_at},
    status::NO_PEERS_PATIENCE_SECONDS,
    validate::REGISTRATION_PATIENCE_SECONDS,
};
use crate::resource::{CaptureDrain, ClusterKind, is_drained, is_finished};

/// How soon what waits for another is looked at again, should nobody tell of it.
const QUEUE: Duration = Duration::from_secs(5);

/// After how long a drain is to be looked at again, if nothing happens before; `None`: never.
pub fn due(drain: &CaptureDrain, now: Timestamp) -> Option<Duration> {
    let status = drain.status.as_ref()?;
    let after = |from: Option<Timestamp>, seconds: Option<i64>| {
        let at = from?.as_second().saturating_add(seconds?);
        Timestamp::from_second(at).ok()
    };
    let until = |at: Timestamp| {
        let left = at.as_millisecond().saturating_sub(now.as_millisecond());
        Duration::from_millis(u64::try_from(left).unwrap_or(0))
    };
    let spec = &drain.spec;
    if is_finished(drain) {
        let ended = status.completion_time.as_ref().map(|at| at.0);
        return after(ended, spec.ttl_seconds_after_finished).map(until);
    }
    let progressed = status.last_progress_time.as_ref().or(status.start_time.as_ref()).map(|at| at.0);
    let alone = status.blocked_by.iter().find(|by| by.kind == "NoDestination").and_then(|by| by.since.as_ref());
    let patience = spec.progress_deadline_seconds.unwrap_or(NO_PEERS_PATIENCE_SECONDS);
    let is_stalled = crate::resource::stalled(drain).is_some();
    let moments = [
        released_at(drain),
        after(progressed, spec.progress_deadline_seconds).filter(|_| !is_drained(drain) && !is_stalled),
        after(alone.map(|since| since.0), Some(patience)).filter(|_| !is_drained(drain)),
    ];
    let next = moments.into_iter().flatten().map(until).min();
    let waits = match status.phase.as_deref() {
        Some("Queued") => Some(QUEUE),
        // What it refuses leaves no trace in what it says of itself.
        Some("Unknown") if spec.cluster_ref.kind == ClusterKind::TiCdc => Some(QUEUE),
        Some("Pending") if plan::epoch(drain).is_none() => {
            Some(Duration::from_secs(REGISTRATION_PATIENCE_SECONDS.unsigned_abs() / 12))
        }
        _ => None,
    };
    next.into_iter().chain(waits).min()
}

/// When a finished drain is to be deleted.
pub fn expires(drain: &CaptureDrain, now: Timestamp) -> bool {
    is_finished(drain)
        && drain.spec.ttl_seconds_after_finished.is_some()
        && due(drain, now).is_some_and(|left| left.is_zero())
}
