//! Gauges that say what is the case, made from the latest snapshot at each scrape.

use std::{fmt, sync::Arc};

use capturedrain_core::{
    measure::MoveKind,
    model::{ChangefeedState, ChangefeedStatus, DrainPhase, DrainStatus, Liveness, Snapshot, UnixMillis},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeLabelSet, EncodeMetric as _},
    metrics::{MetricType, gauge::ConstGauge},
    registry::Unit,
};
use tokio::sync::watch;

use crate::view::liveness_name;

/// What the capture knows, and what time it is.
#[derive(Debug)]
pub(super) struct State {
    pub(super) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(super) now: fn() -> UnixMillis,
}

impl Collector for State {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // The lock is held no longer than it takes to copy a pointer.
        let snapshot = self.snapshots.borrow().clone();
        let mut page = Page(encoder);
        page.own(&snapshot)?;
        if snapshot.is_coordinator {
            page.cluster(&snapshot)?;
            page.changefeeds(&snapshot, (self.now)())?;
            if let Some(drain) = &snapshot.drain {
                page.drain(drain)?;
            }
        }
        Ok(())
    }
}

/// A family: its name without unit, its help, and its unit.
type About<'a> = (&'a str, &'a str, Option<&'a Unit>);

struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    /// What every capture says of itself.
    fn own(&mut self, snapshot: &Snapshot) -> fmt::Result {
        let about = ("build_info", "Which build this is; always 1.", None);
        self.family(about, [([("version", env!("CARGO_PKG_VERSION"))], 1_u64)])?;
        let about = ("is_coordinator", "1 on the capture that acts as coordinator, 0 on the others.", None);
        self.gauge(about, Some(u64::from(snapshot.is_coordinator)))
    }

    /// What the coordinator says of the cluster, whether a drain is on or not.
    fn cluster(&mut self, snapshot: &Snapshot) -> fmt::Result {
        let about = ("capture_liveness", "1 for the liveness that a registered capture has, 0 for the others.", None);
        let liveness = snapshot.captures.iter().flat_map(|(id, status)| {
            [Liveness::Alive, Liveness::Draining, Liveness::Stopping].map(|liveness| {
                let labels = [("capture", id.as_str()), ("liveness", liveness_name(liveness))];
                (labels, u64::from(status.liveness == liveness))
            })
        });
        self.family(about, liveness)?;
        let about = ("drain_epoch", "Number of the drain that is on; without one, the last that was given out.", None);
        self.gauge(about, Some(snapshot.last_epoch.0))
    }

    fn drain(&mut self, drain: &DrainStatus) -> fmt::Result {
        let about = ("drain_phase", "1 for the phase that the drain is in, 0 for the others.", None);
        let phases = [DrainPhase::MovingMaintainers, DrainPhase::MovingDispatchers, DrainPhase::Proving];
        let phase = phases.map(|phase| {
            let labels = [("target", drain.record.target.as_str()), ("phase", phase.as_str())];
            (labels, u64::from(drain.phase == phase))
        });
        self.family(about, phase)?;
        let about = ("drain_remaining_maintainers", "Maintainers on the target; absent while unknown.", None);
        self.gauge(about, drain.remaining.map(|left| left.maintainers))?;
        let about = ("drain_remaining_dispatchers", "Dispatchers on the target; absent while unknown.", None);
        self.gauge(about, drain.remaining.map(|left| left.dispatchers))?;
        let help = "When the number of what remains last fell, since 1970.";
        let about = ("drain_last_progress_timestamp", help, Some(&Unit::Seconds));
        self.gauge(about, Some(seconds(drain.last_progress_at_ms.0)))
    }

    fn changefeeds(&mut self, snapshot: &Snapshot, now: UnixMillis) -> fmt::Result {
        let feeds = || snapshot.changefeeds.values();
        let maintainers = feeds().map(|feed| feed.in_flight.maintainers).sum::<u64>();
        let dispatchers = feeds().map(|feed| feed.in_flight.dispatchers).sum::<u64>();
        let moves = [(MoveKind::Maintainer, maintainers), (MoveKind::Dispatcher, dispatchers)];
        let about = ("moves_in_flight", "Moves on their way in the cluster, those for balance included.", None);
        self.family(about, moves.map(|(kind, count)| ([("kind", kind.as_str())], count)))?;
        let help = "Age of the checkpoint of a running changefeed; absent while its maintainer has not told it.";
        let about = ("changefeed_checkpoint_lag", help, Some(&Unit::Seconds));
        let lag = |feed: &ChangefeedStatus| {
            let passed_at_ms = feed.checkpoint_at_ms.filter(|_| feed.state == ChangefeedState::Running)?;
            Some(seconds(now.0.saturating_sub(passed_at_ms)))
        };
        let lags = snapshot.changefeeds.iter();
        self.family(about, lags.filter_map(|(id, feed)| Some(([("changefeed", id.as_str())], lag(feed)?))))
    }

    /// One series without labels, or none.
    fn gauge<V: EncodeGaugeValue>(&mut self, (name, help, unit): About<'_>, value: Option<V>) -> fmt::Result {
        let Some(value) = value else { return Ok(()) };
        ConstGauge::new(value).encode(self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?)
    }

    /// As many series as there are; a family without any is not mentioned.
    fn family<L: EncodeLabelSet, V: EncodeGaugeValue>(
        &mut self,
        (name, help, unit): About<'_>,
        series: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result {
        let mut series = series.into_iter().peekable();
        if series.peek().is_none() {
            return Ok(());
        }
        let mut family = self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (labels, value) in series {
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[allow(clippy::cast_precision_loss, reason = "milliseconds since 1970 stay exact for 280,000 years")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use capturedrain_core::model::{
        CaptureId, CaptureStatus, ChangefeedConfig, ChangefeedId, DrainEpoch, DrainRecord, NodeEpoch, PROTOCOL,
        Registration, VALUE_VERSION, WorkCount,
    };
    use prometheus_client::{encoding::text, registry::Registry};

    use super::*;

    const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

    /// The series of a snapshot, without those that every capture has.
    fn check(snapshot: Snapshot, expected: &[&str]) {
        let mut registry = Registry::default();
        let (_sender, snapshots) = watch::channel(Arc::new(snapshot));
        registry.register_collector(Box::new(State { snapshots, now: || NOW }));
        let mut page = String::new();
        text::encode(&mut page, &registry).unwrap();
        let own = |line: &&str| line.starts_with('#') || line.starts_with("build_info") || line.starts_with("is_coord");
        let series: Vec<_> = page.lines().filter(|line| !own(line)).collect();
        assert_eq!(series, expected);
        let described = page.lines().filter(|line| line.starts_with("# TYPE")).count();
        let names = page.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(['{', ' ']).next());
        assert_eq!(described, names.collect::<std::collections::BTreeSet<_>>().len(), "{page}");
    }

    fn capture(id: &str, liveness: Liveness) -> (CaptureId, CaptureStatus) {
        let registration = Registration {
            version: VALUE_VERSION,
            id: id.parse().unwrap(),
            node_epoch: NodeEpoch(1),
            advertise_addr: "127.0.0.1:1".into(),
            pod_name: None,
            pod_uid: None,
            protocol: PROTOCOL,
            binary_version: "1".into(),
            labels: BTreeMap::new(),
            unknown: BTreeMap::new(),
        };
        (registration.id.clone(), CaptureStatus { registration, liveness, heard: true, work: None })
    }

    fn changefeed(id: &str, state: ChangefeedState, passed_at_ms: Option<u64>) -> (ChangefeedId, ChangefeedStatus) {
        let config = ChangefeedConfig {
            source: "synthetic://".into(),
            sink: "blackhole://".into(),
            start_ts: 0,
            span_max_keys: 0,
            unknown: BTreeMap::new(),
        };
        let status = ChangefeedStatus {
            config: Arc::new(config),
            state,
            warning: None,
            created_at_ms: UnixMillis(0),
            maintainer: None,
            checkpoint_ts: None,
            checkpoint_at_ms: passed_at_ms,
            dispatchers: BTreeMap::new(),
            in_flight: WorkCount { maintainers: 1, dispatchers: 2 },
        };
        (id.parse().unwrap(), status)
    }

    fn drain(phase: DrainPhase, remaining: Option<WorkCount>) -> DrainStatus {
        DrainStatus {
            record: DrainRecord {
                version: VALUE_VERSION,
                epoch: DrainEpoch(7),
                target: "b".parse().unwrap(),
                node_epoch: NodeEpoch(1),
                pod_uid: None,
                requesters: Vec::new(),
                reason: String::new(),
                started_at_ms: NOW,
                initial: WorkCount::default(),
                deadline_ms: None,
                on_deadline: capturedrain_core::model::OnDeadline::Hold,
                no_peers_policy: capturedrain_core::model::NoPeersPolicy::Hold,
                hook_deadline_ms: None,
                hook_report: None,
                avoid: Vec::new(),
                unknown: BTreeMap::new(),
            },
            phase,
            remaining,
            remaining_dispatchers: BTreeMap::new(),
            in_flight: WorkCount::default(),
            last_progress_at_ms: UnixMillis(NOW.0 - 1500),
            blocked_by: Vec::new(),
            proceeds: false,
        }
    }

    fn coordinator() -> Snapshot {
        Snapshot { is_coordinator: true, last_epoch: DrainEpoch(7), ..Snapshot::default() }
    }

    const IDLE: &[&str] =
        &["drain_epoch 7", "moves_in_flight{kind=\"maintainer\"} 0", "moves_in_flight{kind=\"dispatcher\"} 0"];

    fn between<'a>(first: &[&'a str], then: &[&'a str]) -> Vec<&'a str> {
        [first, then].concat()
    }

    #[test]
    fn only_the_coordinator_speaks_of_the_cluster() {
        let all = Snapshot {
            captures: BTreeMap::from([capture("a", Liveness::Alive)]),
            changefeeds: BTreeMap::from([changefeed("f", ChangefeedState::Running, Some(NOW.0))]),
            drain: Some(drain(DrainPhase::Proving, Some(WorkCount::default()))),
            ..coordinator()
        };
        check(Snapshot { is_coordinator: false, ..all }, &[]);
        check(coordinator(), IDLE);
    }

    #[test]
    fn each_registered_capture_has_one_liveness() {
        let captures = BTreeMap::from([capture("a", Liveness::Alive), capture("b", Liveness::Draining)]);
        let liveness = [
            "capture_liveness{capture=\"a\",liveness=\"Alive\"} 1",
            "capture_liveness{capture=\"a\",liveness=\"Draining\"} 0",
            "capture_liveness{capture=\"a\",liveness=\"Stopping\"} 0",
            "capture_liveness{capture=\"b\",liveness=\"Alive\"} 0",
            "capture_liveness{capture=\"b\",liveness=\"Draining\"} 1",
            "capture_liveness{capture=\"b\",liveness=\"Stopping\"} 0",
        ];
        check(Snapshot { captures, ..coordinator() }, &between(&liveness, IDLE));
    }

    #[test]
    fn what_is_left_of_a_drain_is_absent_while_unknown_and_gone_with_the_drain() {
        let phase = [
            "drain_phase{target=\"b\",phase=\"MovingMaintainers\"} 0",
            "drain_phase{target=\"b\",phase=\"MovingDispatchers\"} 1",
            "drain_phase{target=\"b\",phase=\"Proving\"} 0",
        ];
        let progress = "drain_last_progress_timestamp_seconds 1699999998.5";
        let unknown = drain(DrainPhase::MovingDispatchers, None);
        let lines = between(IDLE, &between(&phase, &[progress]));
        check(Snapshot { drain: Some(unknown), ..coordinator() }, &lines);
        let left = WorkCount { maintainers: 0, dispatchers: 31 };
        let known = drain(DrainPhase::MovingDispatchers, Some(left));
        let counts = ["drain_remaining_maintainers 0", "drain_remaining_dispatchers 31", progress];
        let lines = between(IDLE, &between(&phase, &counts));
        check(Snapshot { drain: Some(known), ..coordinator() }, &lines);
        check(coordinator(), IDLE);
    }

    #[test]
    fn every_metric_is_in_the_reference() {
        let all = Snapshot {
            captures: BTreeMap::from([capture("a", Liveness::Alive)]),
            changefeeds: BTreeMap::from([changefeed("f", ChangefeedState::Running, Some(NOW.0))]),
            drain: Some(drain(DrainPhase::Proving, Some(WorkCount::default()))),
            ..coordinator()
        };
        let (_sender, snapshots) = watch::channel(Arc::new(all));
        let page = crate::metrics::Metrics::new(snapshots).page(crate::metrics::Format::Text);
        let kinds = page.lines().filter_map(|line| line.strip_prefix("# TYPE capturedrain_")?.split_once(' '));
        let reference = include_str!("../../docs/reference.md").split("\n## Metrics\n").nth(1).unwrap();
        let rows = reference.split("\n## ").next().unwrap().lines().filter(|line| line.starts_with("| `"));
        let documented = rows.flat_map(|row| {
            let mut cells = row.split('|').map(str::trim).skip(1);
            let (names, kind) = (cells.next().unwrap(), cells.next().unwrap());
            names.split(", ").map(move |name| (name.trim_matches('`'), kind))
        });
        // An operator's are its own.
        let is_other = |name: &str| ["operator_", "webhook_"].iter().any(|part| name.starts_with(part));
        let documented: BTreeMap<_, _> = documented.filter(|(name, _)| !is_other(name)).collect();
        assert_eq!(kinds.collect::<BTreeMap<_, _>>(), documented);
    }

    #[test]
    fn the_lag_of_a_changefeed_is_told_while_it_runs_and_is_known() {
        let failed = ChangefeedState::Failed { error: "no".to_owned() };
        let changefeeds = BTreeMap::from([
            changefeed("ahead", ChangefeedState::Running, Some(NOW.0 + 5)),
            changefeed("failed", failed, Some(NOW.0)),
            changefeed("late", ChangefeedState::Running, Some(NOW.0 - 2250)),
            changefeed("paused", ChangefeedState::Paused, Some(NOW.0)),
            changefeed("unknown", ChangefeedState::Running, None),
        ]);
        let lines = [
            "drain_epoch 7",
            "moves_in_flight{kind=\"maintainer\"} 5",
            "moves_in_flight{kind=\"dispatcher\"} 10",
            "changefeed_checkpoint_lag_seconds{changefeed=\"ahead\"} 0.0",
            "changefeed_checkpoint_lag_seconds{changefeed=\"late\"} 2.25",
        ];
        check(Snapshot { changefeeds, ..coordinator() }, &lines);
    }
}
