//! Commands that make the captures do what is decided. They are repeated until a report shows that they took effect.

use super::{Coordinator, Move, Output, Retry, standing::Standing};
use crate::{
    model::{ChangefeedEpoch, ChangefeedId, Command, Incarnation, Liveness, MaintainerPhase, Now},
    mutant::Mutant,
    view::View,
};

impl Coordinator {
    /// Starts, stops and moves, as far as the limits allow.
    pub(super) fn command(&mut self, view: &View, now: Now) {
        self.drop_finished_moves(view);
        if !self.is_ready() {
            return;
        }
        self.plan_moves(view, now);
        self.send_stops(view, now);
        self.send_starts(view, now);
    }

    /// A move is over when the maintainer is seen at its new place, or shall not run any more.
    fn drop_finished_moves(&mut self, view: &View) {
        let over: Vec<_> = self
            .moves
            .iter()
            .filter(|(feed, m)| {
                let epoch = view.places.get(*feed).map(|place| place.value.epoch);
                let arrived = epoch.is_some_and(|epoch| epoch > m.from)
                    && matches!(self.standing(view, feed), Standing::Running(..));
                arrived || !Self::shall_run(view, feed)
            })
            .map(|(feed, _)| feed.clone())
            .collect();
        for feed in over {
            self.moves.remove(&feed);
        }
    }

    /// Repeats the stop of moves whose time is up, and sends it for new ones.
    fn send_stops(&mut self, view: &View, now: Now) {
        let due: Vec<_> =
            self.moves.iter().filter(|(_, m)| m.retry.due <= now.monotonic).map(|(feed, _)| feed.clone()).collect();
        for feed in due {
            let host = match self.standing(view, &feed) {
                Standing::Starting(host) | Standing::Running(host, _) | Standing::Stopping(host) => Some(host.clone()),
                Standing::Unplaced | Standing::HostFading => None,
            };
            let Some(m) = self.moves.get(&feed) else { continue };
            let (from, mut retry) = (m.from, self.next_retry(m.retry, now));
            if self.mutants.has(Mutant::ForgetsMove) {
                retry.due = now.monotonic + std::time::Duration::from_hours(24);
            }
            if let (Some(to), true) = (host, view.places.get(&feed).is_some_and(|place| place.value.epoch == from)) {
                let command = Command::StopMaintainer { changefeed: feed.clone(), epoch: from };
                self.outputs.push(Output::Send { to, command });
            }
            self.moves.insert(feed, Move { from, retry });
        }
    }

    fn send_starts(&mut self, view: &View, now: Now) {
        self.starts.retain(|feed, (epoch, _)| view.places.get(feed).is_some_and(|place| place.value.epoch == *epoch));
        for (feed, place) in &view.places {
            let Some(info) = view.infos.get(feed).filter(|_| Self::shall_run(view, feed)) else { continue };
            let Standing::Starting(host) = self.standing(view, feed) else { continue };
            let host = host.clone();
            // One that may not start there any more is stopped by a move instead.
            if view.liveness(&host.capture) != Some(Liveness::Alive) {
                continue;
            }
            let retry = match self.starts.get(feed) {
                Some((_, retry)) if retry.due > now.monotonic => continue,
                Some((_, retry)) => self.next_retry(*retry, now),
                None => self.first_retry(now),
            };
            self.starts.insert(feed.clone(), (place.value.epoch, retry));
            let command = Command::StartMaintainer {
                changefeed: feed.clone(),
                epoch: place.value.epoch,
                place_revision: place.modified,
                config: info.value.config.clone(),
            };
            self.outputs.push(Output::Send { to: host, command });
        }
    }

    /// Ends what runs and should not: maintainers without a place, dispatchers of changefeeds that do not run, and on a
    /// drained target those that its maintainer does not know of. Once a heartbeat period.
    pub(super) fn stop_strays(&mut self, view: &View) {
        if !self.is_ready() {
            return;
        }
        let mut commands = Vec::new();
        for (id, peer) in &self.peers {
            let to = Incarnation { capture: id.clone(), node_epoch: peer.node_epoch };
            let Some(report) = &peer.report else { continue };
            for m in &report.maintainers {
                let placed = view.places.get(&m.changefeed);
                let here = placed.is_some_and(|place| place.value.host == to && place.value.epoch == m.epoch);
                if m.phase != MaintainerPhase::Stopping && !(here && Self::shall_run(view, &m.changefeed)) {
                    let command = Command::StopMaintainer { changefeed: m.changefeed.clone(), epoch: m.epoch };
                    commands.push((to.clone(), command));
                }
            }
            for (feed, (_, epoch)) in &report.dispatchers {
                if let Some(epoch) = self.stray_dispatchers(view, feed, *epoch, &to) {
                    commands.push((to.clone(), Command::StopDispatchers { changefeed: feed.clone(), epoch }));
                }
            }
        }
        self.outputs.extend(commands.into_iter().map(|(to, command)| Output::Send { to, command }));
    }

    /// The epoch up to which the dispatchers of a changefeed on a capture have to go, if they have to.
    fn stray_dispatchers(
        &self,
        view: &View,
        feed: &ChangefeedId,
        epoch: ChangefeedEpoch,
        host: &Incarnation,
    ) -> Option<ChangefeedEpoch> {
        let placed = view.places.get(feed).map(|place| place.value.epoch);
        if !Self::shall_run(view, feed) {
            return Some(placed.unwrap_or(epoch).max(epoch));
        }
        let drained = view.record.as_ref().is_some_and(|record| record.value.incarnation() == *host);
        let Standing::Running(_, m) = self.standing(view, feed) else { return None };
        let unknown = m.stamp == self.state.stamp
            && m.dispatchers.as_ref().is_some_and(|by_capture| !by_capture.contains_key(&host.capture));
        // Only those of earlier maintainers: the present one may have news that this report does not have yet.
        (drained && unknown && epoch < m.epoch).then_some(epoch)
    }

    pub(super) fn begin_move(&mut self, feed: ChangefeedId, from: ChangefeedEpoch, now: Now) {
        self.moves.insert(feed, Move { from, retry: Retry { due: now.monotonic, attempt: 0 } });
    }
}
