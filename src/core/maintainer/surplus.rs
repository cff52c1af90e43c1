//! Dispatchers that are not of the plan, and are being stopped.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::model::{CaptureId, Incarnation, Instant, SpanId, WriterEpoch};

type Writer = (SpanId, WriterEpoch);

/// Dispatchers that are not of the plan, by host, and when each is told to stop again.
#[derive(Debug, Default)]
pub(super) struct Surplus {
    by_host: BTreeMap<Arc<Incarnation>, BTreeMap<Writer, Instant>>,
    due: BTreeSet<(Instant, Arc<Incarnation>, Writer)>,
}

impl Surplus {
    /// One more, which is told to stop at `due`.
    pub(super) fn add(&mut self, host: Arc<Incarnation>, writer: Writer, due: Instant) {
        self.remove(&host, writer);
        self.by_host.entry(host.clone()).or_default().insert(writer, due);
        self.due.insert((due, host, writer));
    }

    /// It has ended, or never was.
    pub(super) fn remove(&mut self, host: &Incarnation, writer: Writer) {
        let Some((host, mut writers)) = self.by_host.remove_entry(host) else { return };
        if let Some(due) = writers.remove(&writer) {
            self.due.remove(&(due, host.clone(), writer));
        }
        if !writers.is_empty() {
            self.by_host.insert(host, writers);
        }
    }

    /// What was on hosts that are gone has ended with them.
    pub(super) fn retain_hosts(&mut self, is_there: impl Fn(&Incarnation) -> bool) {
        self.by_host.retain(|host, _| is_there(host));
    }

    /// One that has to be told to stop now; it is told again at `again`.
    pub(super) fn next_due(&mut self, now: Instant, again: Instant) -> Option<(Arc<Incarnation>, Writer)> {
        while self.due.first().is_some_and(|(due, ..)| *due <= now) {
            let (_, host, writer) = self.due.pop_first()?;
            // Those of hosts that are gone are left over in this index only.
            if self.by_host.get(&host).is_some_and(|writers| writers.contains_key(&writer)) {
                self.add(host.clone(), writer, again);
                return Some((host, writer));
            }
        }
        None
    }

    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.due.first().map(|(due, ..)| *due)
    }

    pub(super) fn is_on(&self, capture: &CaptureId) -> bool {
        self.by_host.keys().any(|host| host.capture == *capture)
    }

    /// How many there are on each capture.
    pub(super) fn counts(&self) -> impl Iterator<Item = (&CaptureId, u64)> {
        self.by_host.iter().map(|(host, writers)| (&host.capture, writers.len() as u64))
    }
}
