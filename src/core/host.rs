//! What runs on a capture: dispatchers and maintainers, which orders it takes, and what it reports of them.
//!
//! The seal is derived, not remembered: while the highest state that was heard lists this capture as not `Alive`, every
//! creation of work is refused; a later state that no longer does lifts it.

mod dispatchers;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use self::dispatchers::{Dispatcher, DispatcherState, Dispatchers};
use crate::{
    maintainer::{Input, Output},
    maintainers::Maintainers,
    model::{
        ChangefeedConfig, ChangefeedEpoch, ChangefeedId, CommitTs, DispatcherFate, DispatcherNews, DrainEpoch,
        DrainState, HostedDispatcher, Incarnation, MESSAGE_MAX_BYTES, MESSAGE_MAX_DISPATCHERS, NewDispatcher, Now,
        Order, Report, SpanId, Status, WorkCount, WriterEpoch, parts,
    },
    mutant::{Mutant, Mutants},
    store::Revision,
    work::{DispatcherKey, WorkOrder},
};

/// What becomes of the creation of a dispatcher.
enum Verdict {
    CarryOut,
    /// It was ordered before; the news of its start or end will follow.
    UnderWay,
    Answer(DispatcherFate),
}

/// The highest writer epoch that ended, was stopped or refused for a span, and where the one that ended had come to. Of a
/// dispatcher that is there its own is higher, unless a later one was refused.
type Ended = BTreeMap<SpanId, (WriterEpoch, Option<CommitTs>)>;

/// The dispatchers of one changefeed.
#[derive(Debug)]
struct Feed {
    /// The highest maintainer that was heard; lower ones are refused.
    epoch: ChangefeedEpoch,
    /// Where that maintainer is; `None` after the changefeed was stopped here.
    maintainer: Option<Incarnation>,
    dispatchers: Dispatchers,
    highest: Ended,
    news: Vec<DispatcherNews>,
    /// Failures that the maintainer has not shown to know of, and so are told with every heartbeat.
    unheard: BTreeMap<SpanId, DispatcherNews>,
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
    pub(crate) maintainers: Maintainers,
    /// The highest placement of each changefeed that was started or told to stop here.
    placements: BTreeMap<ChangefeedId, ChangefeedEpoch>,
    /// The highest number known of changefeeds that are no more.
    gone: BTreeMap<ChangefeedId, ChangefeedEpoch>,
    /// Changefeeds that may be no more.
    doubtful: BTreeSet<ChangefeedId>,
    /// Changefeeds of which news wait.
    waiting: BTreeSet<ChangefeedId>,
    /// Whether some of these shall not wait for the next flush.
    hurry: bool,
    dispatcher_count: u64,
    reports: u64,
}

impl Host {
    pub(crate) fn new(me: Incarnation, mutants: Mutants) -> Self {
        Self {
            me,
            mutants,
            state: DrainState::default(),
            last_epoch: DrainEpoch::default(),
            feeds: BTreeMap::new(),
            maintainers: Maintainers::default(),
            placements: BTreeMap::new(),
            gone: BTreeMap::new(),
            doubtful: BTreeSet::new(),
            waiting: BTreeSet::new(),
            hurry: false,
            dispatcher_count: 0,
            reports: 0,
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
        if self.is_sealed() || repeated || self.is_gone(changefeed, epoch) || self.maintainers.has(changefeed) {
            return false;
        }
        self.placements.insert(changefeed.clone(), epoch);
        self.doubtful.insert(changefeed.clone());
        true
    }

    /// Gives an input to the running maintainer of a changefeed, of this epoch.
    pub(crate) fn tell_maintainer(
        &mut self,
        changefeed: &ChangefeedId,
        epoch: ChangefeedEpoch,
        input: Input<'_>,
        now: Now,
    ) -> Vec<Output> {
        let target = self.state.drain.as_ref().map(|drain| &drain.target.capture);
        self.maintainers.handle(changefeed, epoch, input, target, now)
    }

    /// Ends the maintainer of this placement or a lower one.
    pub(crate) fn stop_maintainer(&mut self, changefeed: &ChangefeedId, epoch: ChangefeedEpoch) -> Vec<HostOutput> {
        let known = self.placements.entry(changefeed.clone()).or_default();
        *known = epoch.max(*known);
        self.doubtful.insert(changefeed.clone());
        let Some(ending) = self.maintainers.end(changefeed, epoch) else { return Vec::new() };
        if self.mutants.has(Mutant::TriggerLeftBehind) {
            self.maintainers.remove(changefeed, ending);
            return Vec::new();
        }
        vec![HostOutput::Work(WorkOrder::StopTrigger { changefeed: changefeed.clone(), epoch: ending })]
    }

    /// The table trigger of an ended maintainer is gone, and with it the maintainer.
    pub(crate) fn trigger_stopped(&mut self, changefeed: &ChangefeedId, epoch: ChangefeedEpoch) {
        if self.maintainers.remove(changefeed, epoch) {
            self.doubtful.insert(changefeed.clone());
        }
    }

    /// What is not known to exist any more, or of which something ended, is looked at.
    pub(crate) fn doubt(&mut self, changefeed: &ChangefeedId) {
        self.doubtful.insert(changefeed.clone());
    }

    /// All changefeeds are looked at.
    pub(crate) fn doubt_all(&mut self) {
        self.doubtful.extend(self.placements.keys().chain(self.feeds.keys()).cloned());
    }

    /// Changefeeds that are no more: of each only the number is kept below which everything late is refused.
    ///
    /// An order can overtake what is told of the store. A changefeed epoch is at least the revision at which its placing
    /// was decided, so a view that has not come as far cannot say that its changefeed is no more.
    pub(crate) fn forget_changefeeds(&mut self, revision: Revision, exists: impl Fn(&ChangefeedId) -> bool) {
        let doubtful = std::mem::take(&mut self.doubtful);
        for id in doubtful {
            if exists(&id) || self.maintainers.has(&id) {
                continue;
            }
            let placed = self.placements.get(&id).copied();
            let hosted = self.feeds.get(&id).filter(|feed| feed.dispatchers.is_empty()).map(|feed| feed.epoch);
            let over = |epoch: &ChangefeedEpoch| epoch.0 <= revision;
            if let Some(epoch) = placed.filter(over) {
                self.placements.remove(&id);
                self.note_gone(&id, epoch);
            }
            if let Some(epoch) = hosted.filter(over) {
                self.feeds.remove(&id);
                self.note_gone(&id, epoch);
            }
            if !placed.iter().chain(&hosted).all(over) {
                self.doubtful.insert(id);
            }
        }
    }

    fn note_gone(&mut self, changefeed: &ChangefeedId, epoch: ChangefeedEpoch) {
        let highest = self.gone.entry(changefeed.clone()).or_default();
        *highest = epoch.max(*highest);
    }

    /// Whether it comes from a changefeed that is no more.
    fn is_gone(&self, changefeed: &ChangefeedId, epoch: ChangefeedEpoch) -> bool {
        self.gone.get(changefeed).is_some_and(|highest| epoch <= *highest)
    }

    /// What the coordinator is told; `beat` is of its heartbeat that was heard last.
    pub(crate) fn report(&mut self, beat: u64) -> Report {
        self.reports += 1;
        Report {
            sequence: self.reports,
            echo: self.state.stamp,
            last_epoch: self.last_epoch,
            beat,
            inventory: self.inventory(),
            maintainers: self.maintainers.reports(),
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
        let doubtful = &mut self.doubtful;
        let feed = self.feeds.entry(changefeed.clone()).or_insert_with(|| {
            doubtful.insert(changefeed.clone());
            Feed::new(epoch, from)
        });
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
            Order::Bootstrap { after, .. } => self.tell_inventory(changefeed, after),
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
        let spans: Vec<_> = feed.dispatchers.after(None).map(|(span, d)| (span, d.writer_epoch)).collect();
        self.stop(changefeed, &spans)
    }

    fn tell_inventory(&mut self, changefeed: &ChangefeedId, after: Option<SpanId>) -> Vec<HostOutput> {
        let Some(feed) = self.feeds.get(changefeed) else { return Vec::new() };
        let mut rest = feed.dispatchers.after(after).map(|(_, d)| d).peekable();
        let (mut dispatchers, mut bytes) = (Vec::new(), 0);
        while dispatchers.len() < MESSAGE_MAX_DISPATCHERS
            && let Some(d) = rest.next_if(|d| bytes == 0 || bytes + d.span.bytes() <= MESSAGE_MAX_BYTES)
        {
            bytes += d.span.bytes();
            dispatchers.push(HostedDispatcher {
                span: d.span.clone(),
                writer_epoch: d.writer_epoch,
                checkpoint_ts: d.checkpoint_ts,
                stopping: d.state == DispatcherState::Stopping,
            });
        }
        let status = Status::Inventory { after, dispatchers, more: rest.peek().is_some() };
        feed.tell(changefeed, status).into_iter().collect()
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
            // A lower one is not needed any more: the dispatcher itself is remembered when it ends.
            feed.highest.remove(&id);
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
        self.tell_soon(changefeed);
        outputs
    }

    fn stop(&mut self, changefeed: &ChangefeedId, dispatchers: &[(SpanId, WriterEpoch)]) -> Vec<HostOutput> {
        let careless = self.mutants.has(Mutant::StopKillsNewer);
        let Some(feed) = self.feeds.get_mut(changefeed) else { return Vec::new() };
        let mut outputs = Vec::new();
        for &(span, writer_epoch) in dispatchers {
            if let Some(dispatcher) = feed.dispatchers.get_mut(span)
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
        self.tell_soon(changefeed);
        outputs
    }

    /// A dispatcher works, and has come this far. The first news of it leave at once, later ones with the next flush.
    pub(crate) fn checkpoint(&mut self, key: &DispatcherKey, checkpoint_ts: CommitTs, split_at: Option<Arc<[u8]>>) {
        let Some(feed) = self.feeds.get_mut(&key.changefeed) else { return };
        let Some(dispatcher) = feed.dispatchers.get_mut(key.span).filter(|d| d.writer_epoch == key.writer_epoch) else {
            return;
        };
        dispatcher.checkpoint_ts = dispatcher.checkpoint_ts.max(checkpoint_ts);
        let first = dispatcher.state == DispatcherState::Starting;
        if dispatcher.state == DispatcherState::Stopping {
            return;
        }
        dispatcher.state = DispatcherState::Working;
        let what = DispatcherFate::Working { checkpoint_ts: dispatcher.checkpoint_ts, split_at };
        feed.news.push(DispatcherNews { span: key.span, writer_epoch: key.writer_epoch, what });
        self.hurry |= first;
        self.wait(&key.changefeed);
    }

    /// A dispatcher has ended.
    pub(crate) fn dispatcher_ended(
        &mut self,
        key: &DispatcherKey,
        checkpoint_ts: CommitTs,
        failed: Option<DispatcherFate>,
    ) {
        let Some(feed) = self.feeds.get_mut(&key.changefeed) else { return };
        if feed.dispatchers.remove(key.span, key.writer_epoch).is_none() {
            return;
        }
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
        if feed.dispatchers.is_empty() {
            self.doubt(&key.changefeed);
        }
        self.tell_soon(&key.changefeed);
    }

    /// Tells again what nobody asked for and nobody has shown to know.
    pub(crate) fn repeat_failures(&mut self) {
        for (changefeed, feed) in self.feeds.iter_mut().filter(|(_, feed)| !feed.unheard.is_empty()) {
            feed.news.extend(feed.unheard.values().cloned());
            self.waiting.insert(changefeed.clone());
        }
    }

    fn wait(&mut self, changefeed: &ChangefeedId) {
        if !self.waiting.contains(changefeed) {
            self.waiting.insert(changefeed.clone());
        }
    }

    /// The news that there are leave with what else is done now.
    fn tell_soon(&mut self, changefeed: &ChangefeedId) {
        if self.feeds.get(changefeed).is_some_and(|feed| !feed.news.is_empty()) {
            self.hurry = true;
            self.wait(changefeed);
        }
    }

    /// Sends all news that wait.
    pub(crate) fn flush(&mut self) -> Vec<HostOutput> {
        self.hurry = false;
        let waiting = std::mem::take(&mut self.waiting);
        waiting.iter().flat_map(|changefeed| self.flush_news(changefeed)).collect()
    }

    /// Whether news wait, and whether for the next flush only.
    pub(crate) fn has_news(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether some news shall not wait.
    pub(crate) fn hurries(&self) -> bool {
        self.hurry
    }

    fn flush_news(&mut self, changefeed: &ChangefeedId) -> Vec<HostOutput> {
        let Some(feed) = self.feeds.get_mut(changefeed) else { return Vec::new() };
        let news = std::mem::take(&mut feed.news);
        let parts = parts(news, DispatcherNews::bytes).into_iter();
        parts.filter_map(|part| feed.tell(changefeed, Status::Progress(part))).collect()
    }
}

impl Feed {
    fn new(epoch: ChangefeedEpoch, maintainer: &Incarnation) -> Self {
        Self {
            epoch,
            maintainer: Some(maintainer.clone()),
            dispatchers: Dispatchers::default(),
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
        if let Some(dispatcher) = self.dispatchers.get(span) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Liveness, NodeEpoch, Span, Stamp, Term};

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
            unknown: BTreeMap::new(),
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
