//! What the demo came to, for programs, the screen and the report.

use capturedrain_core::model::CaptureId;
use serde::Serialize;

use crate::verify::Proof;

/// How a capture leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// A `CaptureDrain` has it emptied, then it ends. The coordinator is killed half-way.
    Drain,
    /// SIGTERM with `--shutdown-timeout 0s`: it gives its lease back and ends with all its work.
    Shutdown,
    /// Killed: nothing is flushed, and its lease has to run out.
    Kill,
}

impl Way {
    /// In the order in which they are shown.
    pub(super) const ALL: [Self; 3] = [Self::Drain, Self::Shutdown, Self::Kill];

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Drain => "drained",
            Self::Shutdown => "by SIGTERM",
            Self::Kill => "by a kill",
        }
    }
}

/// How far behind the changefeeds were at one moment.
#[allow(clippy::struct_field_names, reason = "units are named")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Point {
    /// Since the order to leave; before it: below zero.
    pub(super) at_ms: i64,
    pub(super) highest_ms: u64,
    /// The 50th percentile over the changefeeds.
    pub(super) median_ms: u64,
}

/// Something that happened, for the chart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mark {
    /// Since the order to leave.
    pub at_ms: u64,
    /// What.
    pub what: String,
}

/// The coordinator that was killed while it had a capture drained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Loss {
    /// Which.
    pub capture: CaptureId,
    /// When, since the order to leave.
    pub killed_at_ms: u64,
    /// When the lag was calm again, since the order to leave.
    pub calm_at_ms: u64,
    /// By how much the highest lag between these two is above the calm one.
    pub lag_added_ms: u64,
}

/// How one capture left.
///
/// The window goes from the order to leave until all work runs elsewhere and the lag is as calm as before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Departure {
    /// How.
    pub way: Way,
    /// Which.
    pub capture: CaptureId,
    /// Dispatchers that it had.
    pub dispatchers: u64,
    /// From the order to its end.
    pub time_to_leave_ms: u64,
    /// From the order to the end of the window.
    pub calm_again_ms: u64,
    /// The highest lag of a changefeed right before the order.
    pub calm_lag_ms: u64,
    /// By how much the highest lag in the window is above that, the coordinator's death left out.
    pub lag_added_ms: u64,
    /// The coordinator that was killed meanwhile.
    pub coordinator: Option<Loss>,
    /// Whether the capture was proven empty before it ended; `None` when nobody asked for that.
    pub proven_empty: Option<bool>,
    /// Rows that were committed in the window, or just before and not yet past the checkpoint.
    pub rows: u64,
    /// Those of them that the sinks do not have.
    pub rows_lost: u64,
    /// Those of them that the sinks have more than once.
    pub rows_doubled: u64,
    /// What happened, in order.
    pub marks: Vec<Mark>,
    #[serde(skip)]
    pub(super) curve: Vec<Point>,
}

/// What the demo came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// How many captures.
    pub captures: u16,
    /// How many changefeeds.
    pub changefeeds: u16,
    /// Their tables together.
    pub tables: u16,
    /// Rows a second of all tables.
    pub rows_per_second: u64,
    /// What the rows are made of.
    pub seed: u64,
    /// The whole run.
    pub took_ms: u64,
    /// The ways of leaving.
    pub departures: Vec<Departure>,
    /// The sinks beside the sources, over the whole run.
    pub proof: Proof,
    /// Whether the sinks are equal to the sources, and whoever was to be drained was proven empty.
    pub proven: bool,
}

impl Outcome {
    pub(super) fn prove(departures: &[Departure], proof: &Proof) -> bool {
        proof.is_good() && departures.iter().all(|departure| departure.proven_empty != Some(false))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A made-up run.
    pub(in crate::demo) fn outcome() -> Outcome {
        let departure = |(n, way): (usize, Way)| Departure {
            way,
            capture: CaptureId::new(format!("capture-{n}")).unwrap_or_else(|_| unreachable!()),
            dispatchers: 100,
            time_to_leave_ms: 4_321 / (n as u64 * 50 + 1),
            calm_again_ms: 4_400,
            calm_lag_ms: 200,
            lag_added_ms: 34 + 1_000 * n as u64,
            coordinator: (way == Way::Drain).then(|| Loss {
                capture: CaptureId::new("capture-0").unwrap_or_else(|_| unreachable!()),
                killed_at_ms: 1_000,
                calm_at_ms: 3_200,
                lag_added_ms: 1_900,
            }),
            proven_empty: (way == Way::Drain).then_some(true),
            rows: 4_000,
            rows_lost: 0,
            rows_doubled: 0,
            marks: vec![Mark { at_ms: 0, what: "it is told <to> leave".to_owned() }],
            curve: [(-500, 190), (0, 200), (2_000, 2_200), (5_000, 180)]
                .map(|(at_ms, highest_ms)| Point { at_ms, highest_ms, median_ms: highest_ms / 2 })
                .to_vec(),
        };
        Outcome {
            captures: 3,
            changefeeds: 20,
            tables: 300,
            rows_per_second: 1_500,
            seed: 1,
            took_ms: 31_400,
            departures: Way::ALL.into_iter().enumerate().map(departure).collect(),
            proof: Proof { rows: 40_213, ..Proof::default() },
            proven: true,
        }
    }

    #[test]
    fn both_proofs_are_needed() {
        let good = outcome();
        assert!(Outcome::prove(&good.departures, &good.proof));
        let lossy = Proof { lost: 1, ..good.proof.clone() };
        assert!(!Outcome::prove(&good.departures, &lossy));
        assert!(!Outcome::prove(&good.departures, &Proof::default()), "an empty sink proves nothing");
        let mut departures = good.departures;
        departures[0].proven_empty = Some(false);
        assert!(!Outcome::prove(&departures, &good.proof), "the drain was not proven");
    }
}
