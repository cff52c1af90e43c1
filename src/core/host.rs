//! What runs on a capture: dispatchers and maintainers, which orders it takes, and what it reports of them.
//!
//! The seal is derived, not remembered: while the highest state that was heard lists this capture as not `Alive`, every
//! creation of work is refused; a later state that no longer does lifts it.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    maintainer::Maintainer,
    model::{
        ChangefeedConfig, ChangefeedEpoch, ChangefeedId, CommitTs, DispatcherFate, DispatcherNews, DrainEpoch,
        DrainState, HostedDispatcher, Incarnation, MESSAGE_MAX_DISPATCHERS, MaintainerPhase, MaintainerReport,
        NewDispatcher, Order, Report, Span, SpanId, Status, WorkCount, WriterEpoch,
    },
    mutant::{Mutant, Mutants},
    store::Revision,
    work::{DispatcherKey, WorkOrder},
};

/// A dispatcher that runs here.
#[derive(Debug)]
struct Dispatcher {
    span: Span,
    writer_epoch: WriterEpoch,
    checkpoint_ts: CommitTs,
    state: DispatcherState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DispatcherState {
    Starting,
    Working,
    Stopping,
}

/// What becomes of the creation of a dispatcher.
enum Verdict {
    CarryOut,
    /// It was ordered before; the news of its start or end will follow.
    UnderWay,
    Answer(DispatcherFate),
}

/// The highest writer epoch that was created or stopped for a span, and where the stopped one had come to.
type Ended = BTreeMap<SpanId, (WriterEpoch, Option<CommitTs>)>;

/// The dispatchers of one changefeed.
#[derive(Debug)]
struct Feed {
    /// The highest maintainer that was heard; lower ones are refused.
    epoch: ChangefeedEpoch,
    /// Where that maintainer is; `None` after the changefeed was stopped here.
    maintainer: Option<Incarnation>,
    dispatchers: BTreeMap<SpanId, Dispatcher>,
    highest: Ended,
    news: Vec<DispatcherNews>,
    /// Failures that the maintainer has not shown to know of, and so are told with every heartbeat.
    unheard: BTreeMap<SpanId, DispatcherNews>,
}

/// A maintainer that runs here.
#[derive(Debug)]
enum HostedMaintainer {
    Running {
        epoch: ChangefeedEpoch,
        maintainer: Box<Maintainer>,
    },
    /// Its table trigger is ending.
    Ending {
        epoch: ChangefeedEpoch,
    },
}

/// What the host wants done.
#[derive(Debug)]
pub(crate) enum HostOutput {
    Work(WorkOrder),
    Status { to: Incarnation, changefeed: ChangefeedId, epoch: ChangefeedEpoch, status: Status },
}

/// All that runs on a capture in one life of it.
#[derive(Debug)]
pub(crate) struct Host {
    me: Incarnation,
    mutants: Mutants,
    state: DrainState,
    /// The highest drain epoch heard in any state.
    last_epoch: DrainEpoch,
    feeds: BTreeMap<ChangefeedId, Feed>,
    maintainers: BTreeMap<ChangefeedId, HostedMaintainer>,
    /// The highest placement of each changefeed that was started or told to stop here.
    placements: BTreeMap<ChangefeedId, ChangefeedEpoch>,
    /// The highest number known of changefeeds that are no more.
    gone: BTreeMap<ChangefeedId, ChangefeedEpoch>,
    dispatcher_count: u64,
    reports: u64,
    answers: u64,
}

impl Host {
    pub(crate) fn new(me: Incarnation, mutants: Mutants) -> Self {
        Self {
            me,
            mutants,
            state: DrainState::default(),
            last_epoch: DrainEpoch::default(),
            feeds: BTreeMap::new(),
            maintainers: BTreeMap::new(),
            placements: BTreeMap::new(),
            gone: BTreeMap::new(),
            dispatcher_count: 0,
            reports: 0,
            answers: 0,
        }
    }

    /// The highest drain state that was heard.
    pub(crate) fn state(&self) -> &DrainState {
        &self.state
    }

    /// Takes a drain state, if it is not lower than the one that is known. Whether it was taken.
    pub(crate) fn hear(&mut self, state: &DrainState) -> bool {
        if state.stamp < self.state.stamp && !self.mutants.has(Mutant::TakesLateState) {
            return false;
        }
        self.last_epoch = self.last_epoch.max(state.last_epoch);
        self.state = state.clone();
        true
    }

    fn is_sealed(&self) -> bool {
        self.state.seals(&self.me) && !self.mutants.has(Mutant::NoSeal)
    }

    /// All that is here, in any state.
    pub(crate) fn inventory(&self) -> WorkCount {
        WorkCount { maintainers: self.maintainers.len() as u64, dispatchers: self.dispatcher_count }
    }

    /// Starts a maintainer, unless it was started or stopped before, or this capture is sealed.
    pub(crate) fn admit_maintainer(&mut self, changefeed: &ChangefeedId, epoch: ChangefeedEpoch) -> bool {
        let known = self.placements.get(changefeed).copied().unwrap_or_default();
        let repeated = epoch <= known && !self.mutants.has(Mutant::StartsOldPlacement);
        if self.is_sealed() || repeated || self.is_gone(changefeed, epoch) || self.maintainers.contains_key(changefeed)
        {
            return false;
        }
        self.placements.insert(changefeed.clone(), epoch);
        true
    }

    /// Takes in a maintainer that was admitted.
    pub(crate) fn install(&mut self, changefeed: ChangefeedId, epoch: ChangefeedEpoch, maintainer: Box<Maintainer>) {
        self.maintainers.insert(changefeed, HostedMaintainer::Running { epoch, maintainer });
    }

    /// Ends the maintainer of this placement or a lower one.
    pub(crate) fn stop_maintainer(&mut self, changefeed: &ChangefeedId, epoch: ChangefeedEpoch) -> Vec<HostOutput> {
        let known = self.placements.entry(changefeed.clone()).or_default();
        *known = epoch.max(*known);
        match self.maintainers.get_mut(changefeed) {
            Some(hosted @ HostedMaintainer::Running { .. }) => {
                let HostedMaintainer::Running { epoch: running, .. } = *hosted else { return Vec::new() };
                if running > epoch {
                    return Vec::new();
                }
                if self.mutants.has(Mutant::TriggerLeftBehind) {
                    self.maintainers.remove(changefeed);
                    return Vec::new();
                }
                *hosted = HostedMaintainer::Ending { epoch: running };
                vec![HostOutput::Work(WorkOrder::StopTrigger { changefeed: changefeed.clone(), epoch: running })]
            }
            Some(HostedMaintainer::Ending { epoch: ending }) => {
                vec![HostOutput::Work(WorkOrder::StopTrigger { changefeed: changefeed.clone(), epoch: *ending })]
            }
            None => Vec::new(),
        }
    }

    /// The table trigger of an ended maintainer is gone, and with it the maintainer.
    pub(crate) fn trigger_stopped(&mut self, changefeed: &ChangefeedId, epoch: ChangefeedEpoch) -> bool {
        let ended =
            matches!(self.maintainers.get(changefeed), Some(HostedMaintainer::Ending { epoch: at }) if *at == epoch);
        if ended {
            self.maintainers.remove(changefeed);
        }
        ended
    }

    /// The running maintainer of a changefeed, of this epoch.
    pub(crate) fn maintainer(&mut self, changefeed: &ChangefeedId, epoch: ChangefeedEpoch) -> Option<&mut Maintainer> {
        match self.maintainers.get_mut(changefeed) {
            Some(HostedMaintainer::Running { epoch: at, maintainer }) if *at == epoch => Some(maintainer),
            _ => None,
        }
    }

    /// All running maintainers, in order.
    pub(crate) fn running(&mut self) -> impl Iterator<Item = (&ChangefeedId, ChangefeedEpoch, &mut Maintainer)> {
        self.maintainers.iter_mut().filter_map(|(changefeed, hosted)| match hosted {
            HostedMaintainer::Running { epoch, maintainer } => Some((changefeed, *epoch, &mut **maintainer)),
            HostedMaintainer::Ending { .. } => None,
        })
    }

    /// The earliest time at which a maintainer wants to be woken.
    pub(crate) fn wake_at(&self) -> Option<crate::model::Instant> {
        self.maintainers
            .values()
            .filter_map(|hosted| match hosted {
                HostedMaintainer::Running { maintainer, .. } => maintainer.wake_at(),
                HostedMaintainer::Ending { .. } => None,
            })
            .min()
    }

    /// Changefeeds that are no more: of each only the number is kept below which everything late is refused.
    ///
    /// An order can overtake what is told of the store. A changefeed epoch is at least the revision at which its placing
    /// was decided, so a view that has not come as far cannot say that its changefeed is no more.
    pub(crate) fn forget_changefeeds(&mut self, revision: Revision, exists: impl Fn(&ChangefeedId) -> bool) {
        let maintainers = &self.maintainers;
        let over = |id: &ChangefeedId, epoch: ChangefeedEpoch| {
            epoch.0 <= revision && !exists(id) && !maintainers.contains_key(id)
        };
        let placed = self.placements.extract_if(.., |id, epoch| over(id, *epoch));
        let hosted = self.feeds.extract_if(.., |id, feed| over(id, feed.epoch) && feed.dispatchers.is_empty());
        for (changefeed, epoch) in placed.chain(hosted.map(|(id, feed)| (id, feed.epoch))) {
            let highest = self.gone.entry(changefeed).or_default();
            *highest = epoch.max(*highest);
        }
    }

    /// Whether it comes from a changefeed that is no more.
    fn is_gone(&self, changefeed: &ChangefeedId, epoch: ChangefeedEpoch) -> bool {
        self.gone.get(changefeed).is_some_and(|highest| epoch <= *highest)
    }

    /// What the coordinator is told.
    pub(crate) fn report(&mut self) -> Report {
        self.reports += 1;
        let maintainers = self.maintainers.iter().map(|(changefeed, hosted)| match hosted {
            HostedMaintainer::Running { maintainer, .. } => maintainer.report(),
            HostedMaintainer::Ending { epoch } => ending(changefeed, *epoch),
        });
        Report {
            sequence: self.reports,
            echo: self.state.stamp,
            last_epoch: self.last_epoch,
            inventory: self.inventory(),
            maintainers: maintainers.collect(),
            ended: self.placements.clone(),
            dispatchers: self
                .feeds
                .iter()
                .filter(|(_, feed)| !feed.dispatchers.is_empty())
                .map(|(changefeed, feed)| (changefeed.clone(), (feed.dispatchers.len() as u64, feed.epoch)))
                .collect(),
        }
    }

    /// Takes an order of a maintainer.
    pub(crate) fn order(
        &mut self,
        from: &Incarnation,
        changefeed: &ChangefeedId,
        epoch: ChangefeedEpoch,
        order: Order,
    ) -> Vec<HostOutput> {
        if self.is_gone(changefeed, epoch) {
            return Vec::new();
        }
        let feed = self.feeds.entry(changefeed.clone()).or_insert_with(|| Feed::new(epoch, from));
        let stopped = epoch == feed.epoch && feed.maintainer.is_none();
        if (epoch < feed.epoch || stopped) && !self.mutants.has(Mutant::AcceptsLowerMaintainer) {
            return Vec::new();
        }
        if epoch > feed.epoch {
            // Lower maintainers are refused from now on, so what was remembered against their late orders can go.
            feed.highest.clear();
            feed.news.clear();
            feed.unheard.clear();
            feed.epoch = epoch;
        }
        feed.maintainer = Some(from.clone());
        match order {
            Order::Bootstrap { .. } => self.tell_inventory(changefeed),
            Order::Create { config, dispatchers } => self.create(changefeed, &config, dispatchers),
            Order::Stop(dispatchers) => self.stop(changefeed, &dispatchers),
        }
    }

    /// Ends all dispatchers of a changefeed that does not run, of this epoch and lower ones.
    pub(crate) fn stop_dispatchers(&mut self, changefeed: &ChangefeedId, epoch: ChangefeedEpoch) -> Vec<HostOutput> {
        let Some(feed) = self.feeds.get_mut(changefeed).filter(|feed| feed.epoch <= epoch) else { return Vec::new() };
        feed.epoch = epoch;
        feed.maintainer = None;
        feed.unheard.clear();
        let spans: Vec<_> = feed.dispatchers.iter().map(|(span, d)| (*span, d.writer_epoch)).collect();
        self.stop(changefeed, &spans)
    }

    fn tell_inventory(&mut self, changefeed: &ChangefeedId) -> Vec<HostOutput> {
        let Some(feed) = self.feeds.get(changefeed) else { return Vec::new() };
        let hosted: Vec<_> = feed
            .dispatchers
            .values()
            .map(|d| HostedDispatcher {
                span: d.span.clone(),
                writer_epoch: d.writer_epoch,
                checkpoint_ts: d.checkpoint_ts,
                stopping: d.state == DispatcherState::Stopping,
            })
            .collect();
        let mut parts: Vec<_> = hosted.chunks(MESSAGE_MAX_DISPATCHERS).map(<[_]>::to_vec).collect();
        if parts.is_empty() {
            parts.push(Vec::new());
        }
        let count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
        self.answers += 1;
        let answer = self.answers;
        let inventory = |(dispatchers, part)| Status::Inventory { answer, part, parts: count, dispatchers };
        let statuses = parts.into_iter().zip(0..).map(inventory);
        statuses.filter_map(|status| feed.tell(changefeed, status)).collect()
    }

    fn create(
        &mut self,
        changefeed: &ChangefeedId,
        config: &Arc<ChangefeedConfig>,
        dispatchers: Vec<NewDispatcher>,
    ) -> Vec<HostOutput> {
        let sealed = self.is_sealed();
        let Some(feed) = self.feeds.get_mut(changefeed) else { return Vec::new() };
        let mut outputs = Vec::new();
        for new in dispatchers {
            let id = new.span.id();
            match feed.judge(id, new.writer_epoch, sealed) {
                Verdict::CarryOut => {}
                Verdict::UnderWay => continue,
                Verdict::Answer(what) => {
                    if what == DispatcherFate::Refused {
                        feed.remember(id, new.writer_epoch);
                    }
                    feed.news.push(DispatcherNews { span: id, writer_epoch: new.writer_epoch, what });
                    continue;
                }
            }
            feed.highest.insert(id, (new.writer_epoch, Some(new.start_ts)));
            self.dispatcher_count += 1;
            outputs.push(HostOutput::Work(WorkOrder::StartDispatcher {
                key: DispatcherKey { changefeed: changefeed.clone(), span: id, writer_epoch: new.writer_epoch },
                span: new.span.clone(),
                start_ts: new.start_ts,
                config: config.clone(),
            }));
            let dispatcher = Dispatcher {
                span: new.span,
                writer_epoch: new.writer_epoch,
                checkpoint_ts: new.start_ts,
                state: DispatcherState::Starting,
            };
            feed.dispatchers.insert(id, dispatcher);
        }
        outputs.extend(self.flush_news(changefeed));
        outputs
    }

    fn stop(&mut self, changefeed: &ChangefeedId, dispatchers: &[(SpanId, WriterEpoch)]) -> Vec<HostOutput> {
        let careless = self.mutants.has(Mutant::StopKillsNewer);
        let Some(feed) = self.feeds.get_mut(changefeed) else { return Vec::new() };
        let mut outputs = Vec::new();
        for &(span, writer_epoch) in dispatchers {
            if let Some(dispatcher) = feed.dispatchers.get_mut(&span)
                && (dispatcher.writer_epoch == writer_epoch || careless)
            {
                dispatcher.state = DispatcherState::Stopping;
                let key = DispatcherKey { changefeed: changefeed.clone(), span, writer_epoch: dispatcher.writer_epoch };
                outputs.push(HostOutput::Work(WorkOrder::StopDispatcher(key)));
                continue;
            }
            if feed.unheard.get(&span).is_some_and(|news| news.writer_epoch <= writer_epoch) {
                feed.unheard.remove(&span);
            }
            feed.remember(span, writer_epoch);
            let known = feed.highest.get(&span).filter(|(highest, _)| *highest == writer_epoch);
            let known = known.and_then(|(_, checkpoint_ts)| *checkpoint_ts);
            feed.news.push(DispatcherNews {
                span,
                writer_epoch,
                what: DispatcherFate::Stopped { checkpoint_ts: known },
            });
        }
        outputs.extend(self.flush_news(changefeed));
        outputs
    }

    /// A dispatcher works, and has come this far. The first news of it leave at once, later ones with the next flush.
    pub(crate) fn checkpoint(
        &mut self,
        key: &DispatcherKey,
        checkpoint_ts: CommitTs,
        split_at: Option<Arc<[u8]>>,
    ) -> Vec<HostOutput> {
        let Some(feed) = self.feeds.get_mut(&key.changefeed) else { return Vec::new() };
        let Some(dispatcher) = feed.dispatchers.get_mut(&key.span).filter(|d| d.writer_epoch == key.writer_epoch)
        else {
            return Vec::new();
        };
        dispatcher.checkpoint_ts = dispatcher.checkpoint_ts.max(checkpoint_ts);
        let first = dispatcher.state == DispatcherState::Starting;
        if dispatcher.state == DispatcherState::Stopping {
            return Vec::new();
        }
        dispatcher.state = DispatcherState::Working;
        let what = DispatcherFate::Working { checkpoint_ts: dispatcher.checkpoint_ts, split_at };
        feed.news.push(DispatcherNews { span: key.span, writer_epoch: key.writer_epoch, what });
        if first { self.flush_news(&key.changefeed) } else { Vec::new() }
    }

    /// A dispatcher has ended.
    pub(crate) fn dispatcher_ended(
        &mut self,
        key: &DispatcherKey,
        checkpoint_ts: CommitTs,
        failed: Option<DispatcherFate>,
    ) -> Vec<HostOutput> {
        let Some(feed) = self.feeds.get_mut(&key.changefeed) else { return Vec::new() };
        if feed.dispatchers.get(&key.span).is_none_or(|d| d.writer_epoch != key.writer_epoch) {
            return Vec::new();
        }
        feed.dispatchers.remove(&key.span);
        self.dispatcher_count -= 1;
        let highest = feed.highest.entry(key.span).or_default();
        if highest.0 <= key.writer_epoch {
            *highest = (key.writer_epoch, Some(checkpoint_ts));
        }
        let unasked = failed.is_some();
        let what = failed.unwrap_or(DispatcherFate::Stopped { checkpoint_ts: Some(checkpoint_ts) });
        let news = DispatcherNews { span: key.span, writer_epoch: key.writer_epoch, what };
        if unasked && feed.maintainer.is_some() && !self.mutants.has(Mutant::FailsOnce) {
            feed.unheard.insert(key.span, news.clone());
        }
        feed.news.push(news);
        self.flush_news(&key.changefeed)
    }

    /// Tells again what nobody asked for and nobody has shown to know.
    pub(crate) fn repeat_failures(&mut self) {
        for feed in self.feeds.values_mut() {
            feed.news.extend(feed.unheard.values().cloned());
        }
    }

    /// Sends all news that wait.
    pub(crate) fn flush(&mut self) -> Vec<HostOutput> {
        let waiting: Vec<_> =
            self.feeds.iter().filter(|(_, feed)| !feed.news.is_empty()).map(|(id, _)| id.clone()).collect();
        waiting.iter().flat_map(|changefeed| self.flush_news(changefeed)).collect()
    }

    /// Whether news wait.
    pub(crate) fn has_news(&self) -> bool {
        self.feeds.values().any(|feed| !feed.news.is_empty())
    }

    fn flush_news(&mut self, changefeed: &ChangefeedId) -> Vec<HostOutput> {
        let Some(feed) = self.feeds.get_mut(changefeed) else { return Vec::new() };
        let news = std::mem::take(&mut feed.news);
        let parts = news.chunks(MESSAGE_MAX_DISPATCHERS);
        parts.filter_map(|part| feed.tell(changefeed, Status::Progress(part.to_vec()))).collect()
    }
}

impl Feed {
    fn new(epoch: ChangefeedEpoch, maintainer: &Incarnation) -> Self {
        Self {
            epoch,
            maintainer: Some(maintainer.clone()),
            dispatchers: BTreeMap::new(),
            highest: BTreeMap::new(),
            news: Vec::new(),
            unheard: BTreeMap::new(),
        }
    }

    /// A writer of this epoch, or of a lower one, never starts here any more.
    fn remember(&mut self, span: SpanId, writer_epoch: WriterEpoch) {
        let highest = self.highest.entry(span).or_default();
        if highest.0 < writer_epoch {
            *highest = (writer_epoch, None);
        }
    }

    fn tell(&self, changefeed: &ChangefeedId, status: Status) -> Option<HostOutput> {
        let to = self.maintainer.clone()?;
        Some(HostOutput::Status { to, changefeed: changefeed.clone(), epoch: self.epoch, status })
    }

    /// What becomes of a creation.
    fn judge(&self, span: SpanId, writer_epoch: WriterEpoch, sealed: bool) -> Verdict {
        if let Some(dispatcher) = self.dispatchers.get(&span) {
            let same = dispatcher.writer_epoch == writer_epoch;
            return match dispatcher.state {
                DispatcherState::Working if same => {
                    Verdict::Answer(DispatcherFate::Working { checkpoint_ts: dispatcher.checkpoint_ts, split_at: None })
                }
                _ if same => Verdict::UnderWay,
                _ => Verdict::Answer(DispatcherFate::Refused),
            };
        }
        match self.highest.get(&span) {
            Some(&(highest, checkpoint_ts)) if highest == writer_epoch => {
                Verdict::Answer(DispatcherFate::Stopped { checkpoint_ts })
            }
            Some(&(highest, _)) if highest > writer_epoch => Verdict::Answer(DispatcherFate::Refused),
            _ if sealed => Verdict::Answer(DispatcherFate::Refused),
            _ => Verdict::CarryOut,
        }
    }
}

fn ending(changefeed: &ChangefeedId, epoch: ChangefeedEpoch) -> MaintainerReport {
    MaintainerReport {
        changefeed: changefeed.clone(),
        epoch,
        phase: MaintainerPhase::Stopping,
        stamp: crate::model::Stamp::default(),
        checkpoint_ts: 0,
        checkpoint_at_ms: 0,
        dispatchers: None,
        in_flight: 0,
        share: 0,
        error: None,
        warning: None,
        outranked_by: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Liveness, NodeEpoch, Stamp, Term};

    fn life(name: &str) -> Incarnation {
        Incarnation { capture: name.parse().unwrap(), node_epoch: NodeEpoch(1) }
    }

    fn state(version: u64, liveness: Liveness) -> DrainState {
        let me = life("a");
        let captures = BTreeMap::from([(me.capture, (me.node_epoch, liveness))]);
        DrainState { stamp: Stamp { term: Term(1), version }, captures, ..DrainState::default() }
    }

    fn create(host: &mut Host, counter: u64) -> bool {
        let config = Arc::new(ChangefeedConfig {
            source: "synthetic://".into(),
            sink: "blackhole://".into(),
            start_ts: 0,
            span_max_keys: 0,
        });
        let span = Span { table: "t".into(), start: b"a".as_slice().into(), end: b"b".as_slice().into() };
        let writer_epoch = WriterEpoch { changefeed: ChangefeedEpoch(1), counter };
        let dispatchers = vec![NewDispatcher { span, writer_epoch, start_ts: 0 }];
        let order = Order::Create { config, dispatchers };
        let outputs = host.order(&life("b"), &"f".parse().unwrap(), ChangefeedEpoch(1), order);
        outputs.iter().any(|output| matches!(output, HostOutput::Work(WorkOrder::StartDispatcher { .. })))
    }

    #[test]
    fn a_late_copy_of_a_refused_creation_starts_nothing() {
        let mut host = Host::new(life("a"), Mutants::default());
        host.hear(&state(1, Liveness::Draining));
        assert!(!create(&mut host, 1), "sealed");
        host.hear(&state(2, Liveness::Alive));
        assert!(!create(&mut host, 1), "its maintainer was told that it is refused, and has placed the span elsewhere");
        assert!(create(&mut host, 2));
    }
}
