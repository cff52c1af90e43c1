//! Commands that make the captures do what is decided. They are repeated until a report shows that they took effect.

use super::{Coordinator, Move, Output, Retry, standing::Standing};
use crate::{
    log::Line,
    measure::{Measurement, MoveKind, MoveOutcome},
    model::{ChangefeedEpoch, ChangefeedId, Command, Incarnation, Liveness, MaintainerPhase, Now},
    mutant::Mutant,
    view::View,
};

impl Coordinator {
    /// Starts, stops and moves, as far as the limits allow.
    pub(super) fn command(&mut self, view: &View, now: Now) {
        self.drop_finished_moves(view, now);
        if !self.is_ready() {
            return;
        }
        self.adopt_moves(view, now);
        self.plan_moves(view, now);
        self.send_stops(view, now);
        self.send_starts(view, now);
    }

    /// A move is over when the maintainer is seen at its new place, or shall not run any more.
    fn drop_finished_moves(&mut self, view: &View, now: Now) {
        let over: Vec<_> = self
            .moves
            .iter()
            .filter_map(|(feed, m)| {
                let epoch = view.places.get(feed).map(|place| place.value.epoch);
                let arrived = epoch.is_some_and(|epoch| epoch > m.from)
                    && matches!(self.standing(view, feed), Standing::Running(..));
                let dropped = || (!Self::shall_run(view, feed)).then_some(MoveOutcome::Dropped);
                let outcome = if arrived { Some(MoveOutcome::arrived(m.repeated)) } else { dropped() };
                Some((feed.clone(), outcome?, now.monotonic.since(m.since)))
            })
            .collect();
        for (feed, outcome, took) in over {
            self.moves.remove(&feed);
            let ended = Measurement::MoveEnded { kind: MoveKind::Maintainer, outcome, took };
            self.outputs.push(Output::Measured(ended));
        }
    }

    /// Moves that a predecessor began: they count against the limit, and have to arrive.
    fn adopt_moves(&mut self, view: &View, now: Now) {
        if self.mutants.has(Mutant::ForgetsPredecessor) {
            return;
        }
        let under_way = view.places.iter().filter(|(feed, place)| {
            let left = match self.standing(view, feed) {
                Standing::Stopping(_) => true,
                Standing::Unplaced => view.is_registered(&place.value.host),
                _ => false,
            };
            left && Self::shall_run(view, feed) && !self.moves.contains_key(*feed)
        });
        let under_way: Vec<_> = under_way.map(|(feed, place)| (feed.clone(), place.value.epoch)).collect();
        for (feed, from) in under_way {
            self.begin_move(feed, from, now);
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
            let (from, attempt, since) = (m.from, m.retry.attempt, m.since);
            let repeated = m.repeated || attempt > 0;
            let mut retry = self.next_retry(self.options.move_timeout, m.retry, now);
            if self.mutants.has(Mutant::ForgetsMove) {
                retry.due = now.monotonic + std::time::Duration::from_hours(24);
            }
            if let (Some(to), true) = (host, view.places.get(&feed).is_some_and(|place| place.value.epoch == from)) {
                if attempt > 0 {
                    self.log_retry(view, "stop of a maintainer is repeated", &feed, attempt);
                }
                let command = Command::StopMaintainer { changefeed: feed.clone(), epoch: from };
                self.outputs.push(Output::Send { to, command });
            }
            self.moves.insert(feed, Move { from, retry, since, repeated });
        }
    }

    fn send_starts(&mut self, view: &View, now: Now) {
        let mut before = std::mem::take(&mut self.starts);
        for (feed, place) in &view.places {
            let Some(info) = view.infos.get(feed).filter(|_| Self::shall_run(view, feed)) else { continue };
            let Standing::Starting(host) = self.standing(view, feed) else { continue };
            let host = host.clone();
            // One that may not start there any more is stopped by a move instead.
            if view.liveness(&host.capture) != Some(Liveness::Alive) {
                continue;
            }
            let under_way = before.remove(feed).filter(|(epoch, _)| *epoch == place.value.epoch);
            let retry = match under_way {
                Some((epoch, retry)) if retry.due > now.monotonic => {
                    self.starts.insert(feed.clone(), (epoch, retry));
                    continue;
                }
                Some((_, retry)) => retry,
                None => Retry { due: now.monotonic, attempt: 0 },
            };
            if retry.attempt > 0 {
                if let Some(m) = self.moves.get_mut(feed) {
                    m.repeated = true;
                }
                self.log_retry(view, "start of a maintainer is repeated", feed, retry.attempt);
            }
            // Its host may be ending an earlier one of the same changefeed, and then takes the next start.
            let retry = self.next_retry(self.options.heartbeat * 2, retry, now);
            self.starts.insert(feed.clone(), (place.value.epoch, retry));
            let command = Command::StartMaintainer {
                changefeed: feed.clone(),
                epoch: place.value.epoch,
                place_revision: place.modified,
                config: info.value.config.clone(),
            };
            self.outputs.push(Output::Send { to: host, command });
        }
        if self.mutants.has(Mutant::NeverRests) {
            self.starts.extend(before);
        }
    }

    fn log_retry(&mut self, view: &View, message: &'static str, feed: &ChangefeedId, attempt: u32) {
        let mut line = Line::info(message).on(feed).with("attempt", &attempt.to_string());
        if let Some(record) = &view.record {
            line = line.drain(&record.value);
        }
        self.outputs.push(Output::Log(line));
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
        let since = self.moves.get(&feed).map_or(now.monotonic, |under_way| under_way.since);
        let repeated = self.moves.contains_key(&feed);
        let retry = Retry { due: now.monotonic, attempt: 0 };
        self.moves.insert(feed, Move { from, retry, since, repeated });
    }
}
