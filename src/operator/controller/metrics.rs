//! What the operator tells Prometheus. `docs/reference.md` has the list.

use std::{collections::BTreeMap, fmt, time::Duration};

use jiff::Timestamp;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{
        MetricType,
        counter::Counter,
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use super::cache::Caches;
use crate::{
    metrics::{Format, PREFIX, page},
    operator::backend::Durations,
    resource::{is_finished, stalled},
};

/// All phases of a drain.
const PHASES: [&str; 7] = ["Pending", "Queued", "Draining", "Drained", "Succeeded", "Failed", "Unknown"];

/// What one replica counts and measures.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    leader: Gauge,
    reconciles: Family<[(&'static str, &'static str); 2], Counter>,
    /// Requests to clusters.
    pub(super) backend: Durations,
    /// Evictions, and the certificate with which they are answered.
    pub(super) webhook: Webhook,
}

/// What the webhook counts and measures.
#[derive(Debug, Default)]
pub(super) struct Webhook {
    requests: Family<[(&'static str, &'static str); 1], Counter>,
    duration: Option<Histogram>,
    expiry: Gauge,
}

impl Webhook {
    fn register(&mut self, registry: &mut Registry) {
        registry.register("webhook_requests", "Evictions that were asked about, by decision", self.requests.clone());
        let duration = Histogram::new(exponential_buckets(0.00025, 2.0, 15));
        registry.register_with_unit(
            "webhook_request_duration",
            "From an eviction that is asked about to the answer",
            Unit::Seconds,
            duration.clone(),
        );
        self.duration = Some(duration);
        registry.register_with_unit(
            "webhook_certificate_expiry_timestamp",
            "When the certificate ends that callers are shown; 0 while there is none",
            Unit::Seconds,
            self.expiry.clone(),
        );
    }

    /// An eviction was decided.
    pub(super) fn decided(&self, decision: &'static str, took: Duration) {
        self.requests.get_or_create(&[("decision", decision)]).inc();
        if let Some(duration) = &self.duration {
            duration.observe(took.as_secs_f64());
        }
    }

    /// Callers are shown another certificate.
    pub(super) fn shows(&self, until: Timestamp) {
        self.expiry.set(until.as_second());
    }
}

/// 1 ms to 16 s, above the longest that a client waits.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

impl Metrics {
    pub(super) fn new(caches: Caches, has_webhook: bool) -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix(PREFIX),
            leader: Gauge::default(),
            reconciles: Family::default(),
            backend: Durations::new_with_constructor(durations),
            webhook: Webhook::default(),
        };
        let registry = &mut metrics.registry;
        registry.register(
            "operator_leader",
            "1 when this replica reconciles, 0 when another one does",
            metrics.leader.clone(),
        );
        registry.register(
            "operator_reconciles",
            "Rounds that ended, by outcome, and by category of the error where there was one",
            metrics.reconciles.clone(),
        );
        registry.register_with_unit(
            "operator_backend_request_duration",
            "From a request of a cluster to its answer, its search for the coordinator included",
            Unit::Seconds,
            metrics.backend.clone(),
        );
        registry.register_collector(Box::new(Drains(caches)));
        if has_webhook {
            metrics.webhook.register(registry);
        }
        let _ = metrics.reconciles.get_or_create(&[("outcome", "done"), ("category", "")]);
        metrics
    }

    pub(super) fn set_leader(&self, is_leader: bool) {
        self.leader.set(i64::from(is_leader));
    }

    /// A round ended.
    pub(super) fn reconciled(&self, outcome: &'static str, category: &'static str) {
        self.reconciles.get_or_create(&[("outcome", outcome), ("category", category)]).inc();
    }

    /// All series, as they are at this moment.
    pub(super) fn page(&self, format: Format) -> String {
        page(&self.registry, format)
    }
}

/// How the drains stand, read at each scrape.
#[derive(Debug)]
struct Drains(Caches);

impl Collector for Drains {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let drains = self.0.drains.state();
        let mut phases: BTreeMap<&str, i64> = PHASES.iter().map(|phase| (*phase, 0)).collect();
        let mut oldest: Option<i64> = None;
        let mut waiting = 0;
        let mut stalls: BTreeMap<&str, i64> = BTreeMap::new();
        for drain in &drains {
            let phase = drain.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
            *phases.entry(phase).or_default() += 1;
            waiting += i64::from(phase == "Queued");
            let created = drain.metadata.creation_timestamp.as_ref().filter(|_| !is_finished(drain));
            let created = created.map(|created| created.0.as_second());
            oldest = oldest.into_iter().chain(created).min();
            if let Some(reason) = stalled(drain).filter(|_| !is_finished(drain)) {
                *stalls.entry(reason).or_default() += 1;
            }
        }
        let mut family =
            encoder.encode_descriptor("operator_drains", "CaptureDrains by phase", None, MetricType::Gauge)?;
        for (phase, count) in phases {
            ConstGauge::new(count).encode(family.encode_family(&[("phase", phase)])?)?;
        }
        let depth = encoder.encode_descriptor(
            "operator_queue_depth",
            "CaptureDrains that wait for others",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(waiting).encode(depth)?;
        if !stalls.is_empty() {
            let mut family = encoder.encode_descriptor(
                "operator_stalled_drains",
                "CaptureDrains that will not go on by themselves, by reason",
                None,
                MetricType::Gauge,
            )?;
            for (reason, count) in stalls {
                ConstGauge::new(count).encode(family.encode_family(&[("reason", reason)])?)?;
            }
        }
        if let Some(oldest) = oldest {
            let encoder = encoder.encode_descriptor(
                "operator_oldest_drain_timestamp",
                "When the oldest CaptureDrain that has not finished was made; absent without one",
                Some(&Unit::Seconds),
                MetricType::Gauge,
            )?;
            ConstGauge::new(oldest).encode(encoder)?;
        }
        Ok(())
    }
}
