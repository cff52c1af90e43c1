//! What a capture tells Prometheus. `docs/reference.md` has the list.
//!
//! What is the case is read from the snapshot at each scrape, so that it cannot be late and nothing stays behind; what has
//! happened is added up as the core says it.

mod format;
mod state;

use std::{fmt, sync::Arc};

use capturedrain_core::{
    measure::{Measurement, MoveKind, MoveOutcome},
    model::{DrainOutcome, HookReport, Snapshot},
};
use prometheus_client::{
    encoding::text,
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use tokio::sync::watch;

pub use self::format::Format;
use self::state::State;
use crate::{clock::wall, view::outcome_name};

/// What every name begins with.
pub const PREFIX: &str = "capturedrain";

/// Upper bounds of the buckets, in seconds: the first, and how many; each is twice the one before.
type Buckets = (f64, u16);
/// An eighth of a second, in which an idle capture is empty, to over an hour, since hardly a pod is given longer to end.
const DRAIN_BUCKETS: Buckets = (0.125, 16);
/// 2.5 ms, a round trip in one zone, to 40 s: who is not heard for three lease periods, 30 s, is not waited for.
const ACK_BUCKETS: Buckets = (0.0025, 15);
/// 2.5 ms, a few round trips, to 5.5 minutes, which is beyond the longest time-out of a move.
const MOVE_BUCKETS: Buckets = (0.0025, 18);

/// One label and its value.
type Labels<const N: usize> = [(&'static str, &'static str); N];

/// What one capture counts and measures.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    drains: Family<Labels<1>, Counter>,
    drain_duration: Histogram,
    drain_ack_duration: Histogram,
    moves: Family<Labels<2>, Counter>,
    move_duration: Family<Labels<1>, Histogram, fn() -> Histogram>,
    prestop_runs: Family<Labels<1>, Counter>,
}

fn histogram((first, count): Buckets) -> Histogram {
    Histogram::new(exponential_buckets(first, 2.0, count))
}

impl Metrics {
    /// Metrics of the capture that keeps these snapshots up to date.
    pub fn new(snapshots: watch::Receiver<Arc<Snapshot>>) -> Self {
        let metrics = Self {
            registry: Registry::with_prefix(PREFIX),
            drains: Family::default(),
            drain_duration: histogram(DRAIN_BUCKETS),
            drain_ack_duration: histogram(ACK_BUCKETS),
            moves: Family::default(),
            move_duration: Family::new_with_constructor(|| histogram(MOVE_BUCKETS)),
            prestop_runs: Family::default(),
        };
        metrics.show_zeros();
        metrics.register(State { snapshots, now: wall })
    }

    /// A rate needs a series that is there before its first event.
    fn show_zeros(&self) {
        for outcome in [DrainOutcome::Drained, DrainOutcome::Cancelled, DrainOutcome::TargetGone, DrainOutcome::NoPeers]
        {
            let _ = self.drains.get_or_create(&[("outcome", outcome_name(outcome))]);
        }
        for outcome in HookReport::OUTCOMES {
            let _ = self.prestop_runs.get_or_create(&[("outcome", outcome)]);
        }
        for kind in MoveKind::ALL {
            let _ = self.move_duration.get_or_create(&[("kind", kind.as_str())]);
            for outcome in MoveOutcome::ALL {
                let _ = self.moves.get_or_create(&[("kind", kind.as_str()), ("outcome", outcome.as_str())]);
            }
        }
    }

    /// The library ends each help with a full stop.
    fn register(mut self, state: State) -> Self {
        let registry = &mut self.registry;
        registry.register(
            "drains",
            "Drains that ended, each counted by the capture that coordinated then; from 0 again when that restarts",
            self.drains.clone(),
        );
        registry.register_with_unit(
            "drain_duration",
            "From the start of a drain to its end, over any number of coordinators, of those that ended as Drained",
            Unit::Seconds,
            self.drain_duration.clone(),
        );
        registry.register_with_unit(
            "drain_ack_duration",
            "From a coordinator's first word of a drain until every registered capture has echoed it",
            Unit::Seconds,
            self.drain_ack_duration.clone(),
        );
        registry.register(
            "moves",
            "Moves that ended, each counted by the coordinator or by the maintainer's capture; from 0 again when that restarts",
            self.moves.clone(),
        );
        registry.register_with_unit(
            "move_duration",
            "From the order to stop in one place until the work runs in another, of moves that arrived",
            Unit::Seconds,
            self.move_duration.clone(),
        );
        registry.register(
            "prestop_runs",
            "Hooks of pods that ended and said so, each counted by the capture that coordinated then; from 0 again when that restarts",
            self.prestop_runs.clone(),
        );
        registry.register_collector(Box::new(state));
        self
    }

    /// Adds up what the core says.
    pub fn record(&self, measured: Measurement) {
        match measured {
            Measurement::DrainEnded { outcome, took, .. } => {
                self.drains.get_or_create(&[("outcome", outcome_name(outcome))]).inc();
                if outcome == DrainOutcome::Drained {
                    self.drain_duration.observe(took.as_secs_f64());
                }
            }
            Measurement::DrainAcknowledged { took } => self.drain_ack_duration.observe(took.as_secs_f64()),
            Measurement::HookEnded { outcome } => {
                self.prestop_runs.get_or_create(&[("outcome", outcome)]).inc();
            }
            Measurement::MoveEnded { kind, outcome, took } => {
                self.moves.get_or_create(&[("kind", kind.as_str()), ("outcome", outcome.as_str())]).inc();
                if outcome != MoveOutcome::Dropped {
                    self.move_duration.get_or_create(&[("kind", kind.as_str())]).observe(took.as_secs_f64());
                }
            }
        }
    }

    /// All series, as they are at this moment.
    pub fn page(&self, format: Format) -> String {
        page(&self.registry, format)
    }
}

/// All series of a registry, as they are at this moment.
pub fn page(registry: &Registry, format: Format) -> String {
    let mut page = String::new();
    // A string takes whatever is written to it.
    let _: fmt::Result = text::encode(&mut page, registry);
    match format {
        Format::OpenMetrics => page,
        Format::Text => format::as_text(&page),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use capturedrain_core::model::DrainEpoch;

    use super::*;

    /// The series whose name begins so, of a capture that has measured this.
    fn check(measured: &[Measurement], name: &str, expected: &[&str]) {
        let (_sender, snapshots) = watch::channel(Arc::default());
        let metrics = Metrics::new(snapshots);
        for measured in measured {
            metrics.record(*measured);
        }
        let page = metrics.page(Format::Text);
        let mut series: Vec<_> = page.lines().filter(|line| line.starts_with(name)).collect();
        series.sort_unstable();
        assert_eq!(series, expected);
    }

    fn ended(outcome: DrainOutcome) -> Measurement {
        Measurement::DrainEnded { epoch: DrainEpoch(1), outcome, took: Duration::from_millis(1500) }
    }

    #[test]
    fn drains_are_counted_from_zero_by_how_they_ended() {
        check(
            &[ended(DrainOutcome::Drained), ended(DrainOutcome::Cancelled), ended(DrainOutcome::Drained)],
            "capturedrain_drains_total",
            &[
                "capturedrain_drains_total{outcome=\"Cancelled\"} 1",
                "capturedrain_drains_total{outcome=\"Drained\"} 2",
                "capturedrain_drains_total{outcome=\"NoPeers\"} 0",
                "capturedrain_drains_total{outcome=\"TargetGone\"} 0",
            ],
        );
    }

    #[test]
    fn only_a_drain_that_was_finished_has_a_duration() {
        let ends = [ended(DrainOutcome::Drained), ended(DrainOutcome::Cancelled)];
        check(&ends, "capturedrain_drain_duration_seconds_sum", &["capturedrain_drain_duration_seconds_sum 1.5"]);
        let (one, two) = ("le=\"1.0\"} 0", "le=\"2.0\"} 1");
        let name = "capturedrain_drain_duration_seconds_bucket";
        check(&ends, &format!("{name}{{le=\"1."), &[&format!("{name}{{{one}")]);
        check(&ends, &format!("{name}{{le=\"2."), &[&format!("{name}{{{two}")]);
    }

    #[test]
    fn an_acknowledgement_has_a_duration() {
        let heard = Measurement::DrainAcknowledged { took: Duration::from_millis(250) };
        let name = "capturedrain_drain_ack_duration_seconds_sum";
        check(&[heard], name, &[&format!("{name} 0.25")]);
    }

    #[test]
    fn a_dropped_move_is_counted_and_has_no_duration() {
        let ended = |outcome| {
            let took = Duration::from_millis(500);
            Measurement::MoveEnded { kind: MoveKind::Dispatcher, outcome, took }
        };
        let moves = [ended(MoveOutcome::Done), ended(MoveOutcome::Retried), ended(MoveOutcome::Dropped)];
        check(
            &moves,
            "capturedrain_moves_total",
            &[
                "capturedrain_moves_total{kind=\"dispatcher\",outcome=\"done\"} 1",
                "capturedrain_moves_total{kind=\"dispatcher\",outcome=\"dropped\"} 1",
                "capturedrain_moves_total{kind=\"dispatcher\",outcome=\"retried\"} 1",
                "capturedrain_moves_total{kind=\"maintainer\",outcome=\"done\"} 0",
                "capturedrain_moves_total{kind=\"maintainer\",outcome=\"dropped\"} 0",
                "capturedrain_moves_total{kind=\"maintainer\",outcome=\"retried\"} 0",
            ],
        );
        let name = "capturedrain_move_duration_seconds_sum";
        let (dispatcher, maintainer) = ("{kind=\"dispatcher\"} 1.0", "{kind=\"maintainer\"} 0.0");
        check(&moves, name, &[&format!("{name}{dispatcher}"), &format!("{name}{maintainer}")]);
    }

    /// Longest and shortest bound of each histogram, in seconds.
    #[test]
    fn buckets_reach_from_a_good_day_to_what_is_waited_for() {
        let ends = |(first, count): Buckets| (first, exponential_buckets(first, 2.0, count).last());
        assert_eq!(ends(DRAIN_BUCKETS), (0.125, Some(4096.0)));
        assert_eq!(ends(ACK_BUCKETS), (0.0025, Some(40.96)));
        assert_eq!(ends(MOVE_BUCKETS), (0.0025, Some(327.68)));
    }
}
