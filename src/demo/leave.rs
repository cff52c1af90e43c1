//! The ways in which a capture leaves, and what is measured of each.

use std::{ops::RangeInclusive, time::Duration};

use capturedrain_core::model::{CaptureId, CommitTs};
use tokio::time::{self, Instant};

use super::{
    DemoError, Departure, Loss, Mark, PATIENCE, Way,
    cluster::{Cluster, Tables},
    lag::{Lag, calm_from, highest},
    outcome::Point,
    story::{CALM, Stage, wait_for},
};
use crate::{
    clock::wall,
    operator::reconcile,
    resource::{CaptureDrain, ManifestError, is_drained, is_finished, parse},
    verify::Proof,
};

/// For how long all work has to run elsewhere and the lag has to be calm before a departure is over.
const HOLD: Duration = Duration::from_millis(600);
/// The same, for the lag after the death of the coordinator.
const LOSS_HOLD: Duration = Duration::from_millis(300);
/// How often a `CaptureDrain` is reconciled.
const RECONCILE: Duration = Duration::from_millis(50);

/// The coordinator that was killed.
struct Killed {
    capture: CaptureId,
    at: Instant,
    /// When its successor was in office.
    succeeded: Option<Instant>,
}

/// A capture that left, as it was seen.
pub(super) struct Departed {
    pub(super) target: CaptureId,
    way: Way,
    dispatchers: u64,
    calm_ms: u64,
    limit_ms: u64,
    ordered: Instant,
    ordered_ts: CommitTs,
    left: Instant,
    calm: Instant,
    calm_ts: CommitTs,
    proven_empty: Option<bool>,
    killed: Option<Killed>,
    marks: Vec<(Instant, String)>,
}

impl Departed {
    fn order(cluster: &Cluster, way: Way, target: CaptureId, calm_ms: u64, limit_ms: u64) -> Self {
        let now = Instant::now();
        Self {
            way,
            dispatchers: cluster.dispatchers_on(&target),
            target,
            calm_ms,
            limit_ms,
            ordered: now,
            ordered_ts: wall().0,
            left: now,
            calm: now,
            calm_ts: 0,
            proven_empty: None,
            killed: None,
            marks: Vec::new(),
        }
    }

    fn mark(&mut self, stage: &Stage<'_>, what: String) {
        stage.tell(&what);
        self.marks.push((Instant::now(), what));
    }

    /// The commit timestamps of the rows that were at stake: those above the checkpoints when it was told to leave, up to
    /// the end of the window.
    pub(super) fn rows(&self) -> RangeInclusive<CommitTs> {
        self.ordered_ts.saturating_sub(self.limit_ms)..=self.calm_ts
    }

    fn since_order(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.ordered).as_millis()).unwrap_or(u64::MAX)
    }
}

/// Has a capture leave, waits until all work runs elsewhere and the lag is calm, and has it come back.
pub(super) async fn leave(
    cluster: &mut Cluster,
    (way, target): (Way, CaptureId),
    (calm_ms, limit_ms): (u64, u64),
    tables: &Tables,
    lag: &Lag,
    stage: &Stage<'_>,
) -> Result<Departed, DemoError> {
    let mut departed = Departed::order(cluster, way, target.clone(), calm_ms, limit_ms);
    match way {
        Way::Drain => drain(cluster, &mut departed, stage).await?,
        Way::Shutdown => {
            departed.mark(stage, format!("{target} gets SIGTERM, with --shutdown-timeout 0s"));
            cluster.take(&target)?.shut_down(Duration::ZERO).await;
        }
        Way::Kill => {
            departed.mark(stage, format!("{target} is killed"));
            cluster.take(&target)?.kill().await;
        }
    }
    departed.left = Instant::now();
    if way != Way::Kill {
        departed.mark(stage, format!("{target} has ended"));
    }
    departed.calm = settle(cluster, &departed, tables, lag, stage).await?;
    departed.calm_ts = wall().0;
    let seconds = Duration::from_millis(departed.since_order(departed.calm)).as_secs_f64();
    stage.tell(&format!("all work runs elsewhere, the lag is calm: {seconds:.2} s after the order to leave"));
    let absent = departed.killed.iter().map(|killed| killed.capture.clone()).chain([target]);
    for id in absent.collect::<Vec<_>>() {
        departed.mark(stage, format!("{id} comes back"));
        cluster.join(id).await?;
    }
    Ok(departed)
}

/// Waits until all work runs elsewhere and the lag is calm, and has been for a while. Returns since when.
async fn settle(
    cluster: &Cluster,
    departed: &Departed,
    tables: &Tables,
    lag: &Lag,
    stage: &Stage<'_>,
) -> Result<Instant, DemoError> {
    let total = tables.values().sum();
    let mut since = None;
    wait_for("all work to run again", async || {
        stage.progress("at work elsewhere", cluster.dispatchers_besides(&departed.target), total);
        let now = Instant::now();
        if !cluster.works_without(&departed.target, tables) {
            since = None;
            return None;
        }
        let began = *since.get_or_insert(now);
        calm_from(&lag.between(began, now), departed.limit_ms, HOLD)
    })
    .await
}

fn manifest(target: &CaptureId) -> Result<CaptureDrain, DemoError> {
    let text = format!(
        "apiVersion: capturedrain.io/v1alpha1\nkind: CaptureDrain\nmetadata:\n  name: demo\nspec:\n  \
         clusterRef:\n    serviceName: demo\n  target:\n    captureID: {target}\n  reason: demo\n"
    );
    let drains = parse(&text, "the demo's manifest")?;
    drains.into_iter().next().ok_or(ManifestError::Empty { file: "the demo's manifest".to_owned() }.into())
}

/// Has the target drained by a manifest, kills the coordinator when a third of the work has left, and ends the target when it
/// is proven empty.
async fn drain(cluster: &mut Cluster, departed: &mut Departed, stage: &Stage<'_>) -> Result<(), DemoError> {
    let target = departed.target.clone();
    let mut drain = manifest(&target)?;
    reconcile(cluster.client(), &mut drain).await;
    let epoch = drain.status.as_ref().and_then(|status| status.epoch).unwrap_or_default();
    departed.mark(stage, format!("CaptureDrain/demo has {target} emptied: epoch {epoch}"));
    let what = format!("{target} emptied");
    let half = wait_for("a third of the work to leave", async || {
        let drained = cluster.drained(&target);
        drained.as_ref().inspect(|drained| stage.progress(&what, drained.gone, drained.initial));
        // A small drain may be over before anybody sees its middle.
        match drained {
            Some(drained) if drained.gone * 3 >= drained.initial && drained.gone < drained.initial => {
                Some(Some(drained))
            }
            None if cluster.is_over(epoch) => Some(None),
            _ => None,
        }
    })
    .await?;
    if let Some((half, coordinator)) = half.zip(cluster.coordinator()) {
        let text =
            format!("{} of {} have left {target}: {coordinator}, the coordinator, is killed", half.gone, half.initial);
        departed.mark(stage, text);
        departed.killed = Some(Killed { capture: coordinator.clone(), at: Instant::now(), succeeded: None });
        cluster.take(&coordinator)?.kill().await;
    }
    let killed = departed.killed.is_some();
    let cluster_now = &*cluster;
    let successor = async {
        if !killed {
            return Ok::<_, DemoError>(None);
        }
        let next = wait_for("a successor", async || cluster_now.coordinator()).await?;
        let what = format!("{next} takes office and goes on under epoch {epoch}");
        stage.tell(&what);
        Ok(Some((Instant::now(), what)))
    };
    let until = Instant::now() + PATIENCE;
    let finished = async {
        while !is_finished(&drain) && Instant::now() < until {
            reconcile(cluster_now.client(), &mut drain).await;
            cluster_now.drained(&target).inspect(|drained| stage.progress(&what, drained.gone, drained.initial));
            time::sleep(RECONCILE).await;
        }
    };
    let (successor, ()) = tokio::join!(successor, finished);
    if let (Some((at, what)), Some(killed)) = (successor?, &mut departed.killed) {
        killed.succeeded = Some(at);
        departed.marks.push((at, what));
    }
    let proven = is_drained(&drain);
    departed.proven_empty = Some(proven);
    let stands = if proven { "is proven empty: its pod may go" } else { "is NOT proven empty" };
    departed.mark(stage, format!("{target} {stands}"));
    cluster.take(&target)?.shut_down(if proven { PATIENCE } else { Duration::ZERO }).await;
    Ok(())
}

/// What came of it.
pub(super) fn departure(departed: &Departed, lag: &Lag, rows: &Proof) -> Departure {
    let added =
        |from: Instant, to: Instant| highest(&lag.between(from, to)).unwrap_or(0).saturating_sub(departed.calm_ms);
    let loss_end = |killed: &Killed| {
        let after = lag.between(killed.succeeded.unwrap_or(departed.calm), departed.calm);
        calm_from(&after, departed.limit_ms, LOSS_HOLD).unwrap_or(departed.calm)
    };
    let loss = departed.killed.as_ref().map(|killed| (killed, loss_end(killed)));
    // What the coordinator's death did is not the drain's doing.
    let lag_added_ms = match loss {
        Some((killed, end)) => added(departed.ordered, killed.at).max(added(end, departed.calm)),
        None => added(departed.ordered, departed.calm),
    };
    let begin = departed.ordered.checked_sub(CALM).unwrap_or(departed.ordered);
    let curve = lag.between(begin, departed.calm + CALM);
    let at_ms = |at: Instant| {
        let before = departed.ordered.saturating_duration_since(at).as_millis();
        let since = i64::try_from(departed.since_order(at)).unwrap_or(i64::MAX);
        since - i64::try_from(before).unwrap_or(i64::MAX)
    };
    Departure {
        way: departed.way,
        capture: departed.target.clone(),
        dispatchers: departed.dispatchers,
        time_to_leave_ms: departed.since_order(departed.left),
        calm_again_ms: departed.since_order(departed.calm),
        calm_lag_ms: departed.calm_ms,
        lag_added_ms,
        coordinator: loss.map(|(killed, end)| Loss {
            capture: killed.capture.clone(),
            killed_at_ms: departed.since_order(killed.at),
            calm_at_ms: departed.since_order(end),
            lag_added_ms: added(killed.at, end),
        }),
        proven_empty: departed.proven_empty,
        rows: rows.rows,
        rows_lost: rows.lost,
        rows_doubled: rows.doubled,
        marks: departed
            .marks
            .iter()
            .map(|(at, what)| Mark { at_ms: departed.since_order(*at), what: what.clone() })
            .collect(),
        curve: curve
            .iter()
            .map(|sample| Point { at_ms: at_ms(sample.at), highest_ms: sample.highest_ms, median_ms: sample.median_ms })
            .collect(),
    }
}
