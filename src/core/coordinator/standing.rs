//! How each changefeed stands: derived from its placement in the view and from its host's report.

use super::Coordinator;
use crate::{
    model::{ChangefeedId, ChangefeedState, Incarnation, MaintainerPhase, MaintainerReport},
    view::View,
};

/// How a changefeed's maintainer stands.
#[derive(Debug, Clone, Copy)]
pub(super) enum Standing<'a> {
    /// It has no place, or its place is over: it may be placed.
    Unplaced,
    /// Its host was evicted a moment ago, and may still be at work.
    HostFading,
    /// Its host has not shown it yet.
    Starting(&'a Incarnation),
    /// It is there.
    Running(&'a Incarnation, &'a MaintainerReport),
    /// It was told to end, and has not yet.
    Stopping(&'a Incarnation),
}

impl Coordinator {
    /// Whether a changefeed shall run.
    pub(super) fn shall_run(view: &View, changefeed: &ChangefeedId) -> bool {
        view.infos.get(changefeed).is_some_and(|info| info.value.state == ChangefeedState::Running)
    }

    /// How a changefeed's maintainer stands.
    pub(super) fn standing<'a>(&'a self, view: &'a View, changefeed: &ChangefeedId) -> Standing<'a> {
        let Some(place) = view.places.get(changefeed).map(|kept| &kept.value) else { return Standing::Unplaced };
        if !view.is_registered(&place.host) {
            let fading = self.evicted.contains_key(&place.host) && !view.captures.contains_key(&place.host.capture);
            return if fading { Standing::HostFading } else { Standing::Unplaced };
        }
        let report = self.peers.get(&place.host.capture).and_then(|peer| peer.report.as_ref());
        let Some(report) = report else { return Standing::Starting(&place.host) };
        let shown = report.maintainer(changefeed).filter(|m| m.epoch == place.epoch);
        match shown {
            Some(m) if m.phase == MaintainerPhase::Stopping => Standing::Stopping(&place.host),
            Some(m) => Standing::Running(&place.host, m),
            None if report.ended.get(changefeed).is_some_and(|ended| *ended >= place.epoch) => Standing::Unplaced,
            None => Standing::Starting(&place.host),
        }
    }
}
