//! What a capture shows of itself and of the cluster.

use super::Process;
use crate::{
    host::Host,
    model::{CaptureId, CaptureStatus, Liveness, Registration, Snapshot},
    view::View,
};

impl Process {
    /// What it knows.
    pub fn snapshot(&self) -> Snapshot {
        let Some(view) = &self.view else { return Snapshot::default() };
        let me = self.agent.me();
        let liveness = me.as_ref().and_then(|me| view.liveness(&me.capture));
        let term = view.leader().map(|(_, term, _)| term);
        let up_to_date = self.host.as_ref().is_some_and(|host| Some(host.state().stamp.term) == term);
        let captures = view.captures.iter().map(|(id, kept)| (id.clone(), self.capture_status(view, id, &kept.value)));
        let coordinator = self.coordinator.as_ref();
        Snapshot {
            ready: up_to_date && liveness.is_some_and(|liveness| liveness != Liveness::Stopping),
            liveness,
            is_coordinator: coordinator.is_some(),
            coordinator: view.coordinator().map(|at| (at.id.clone(), at.advertise_addr.clone())),
            captures: captures.collect(),
            last_epoch: view.drain_epoch(),
            work: self.host.as_ref().filter(|_| me.is_some()).map(Host::inventory),
            record: view.record.as_ref().map(|kept| kept.value.clone()),
            hook_reports: coordinator.map(|coordinator| coordinator.hook_reports(view)).unwrap_or_default(),
            drain: coordinator.and_then(|coordinator| coordinator.drain_status(view, self.now)),
            history: view.history.values().map(|end| end.value.clone()).collect(),
            changefeeds: coordinator.map(|coordinator| coordinator.changefeeds(view)).unwrap_or_default(),
            me,
        }
    }

    fn capture_status(&self, view: &View, id: &CaptureId, registration: &Registration) -> CaptureStatus {
        let (heard, work) =
            self.coordinator.as_ref().map(|coordinator| coordinator.work_of(id, self.now)).unwrap_or_default();
        let liveness = view.liveness(id).unwrap_or(Liveness::Alive);
        CaptureStatus { registration: registration.clone(), liveness, heard, work }
    }
}
