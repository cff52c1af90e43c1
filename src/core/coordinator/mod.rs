//! The coordinator: places maintainers, runs the drain, and tells every capture how it stands.
//!
//! It remembers little. What is decided stands in the store, and is read back through the view; what is the case is in
//! the captures' reports. So a successor continues from the same two sources, and nobody has to ask again.

mod command;
mod drain;
mod heartbeat;
mod index;
mod plan;
mod request;
mod schedule;
mod share;
mod standing;
mod status;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use self::index::Index;
use crate::{
    log::Line,
    measure::Measurement,
    model::{
        Answer, Blocker, CaptureId, ChangefeedEpoch, ChangefeedId, Command, DrainEpoch, DrainState, HookReport,
        Incarnation, Instant, KeyName, NodeEpoch, Now, Options, Refusal, Report, Request, RequestId, Stamp, Term,
        UnixMillis,
    },
    mutant::{Mutant, Mutants},
    store::{Compare, Txn, TxnOutcome},
    view::View,
    write::{Draft, WriteLane},
};

/// Most calls that wait for a decision; more are told to come again.
const QUEUE_MAX: usize = 1024;

/// How many ends of hooks are remembered, and shown.
const HOOK_REPORTS_MAX: usize = 32;

/// What is said when the outcome of a write is known.
#[derive(Debug, Default)]
pub(crate) struct Promises {
    answers: Vec<(RequestId, Answer)>,
    lines: Vec<Line>,
}

impl Promises {
    pub(crate) fn is_empty(&self) -> bool {
        self.answers.is_empty() && self.lines.is_empty()
    }

    /// What is said, now that it is.
    pub(crate) fn settle(self, outcome: TxnOutcome) -> Vec<Output> {
        let refusal = match outcome {
            TxnOutcome::Committed(_) => None,
            TxnOutcome::Refused(_) => Some("the cluster changed meanwhile; ask again"),
            TxnOutcome::Unknown => Some("the store did not answer; ask again"),
        };
        let answer = |(id, answer)| {
            let answer = refusal.map_or(Ok(answer), |why| Err(Refusal::NotReady(why.to_owned())));
            Output::Answer { id, answer }
        };
        let lines = self.lines.into_iter().filter(|_| refusal.is_none()).map(Output::Log);
        lines.chain(self.answers.into_iter().map(answer)).collect()
    }
}

/// What the coordinator wants done.
#[derive(Debug)]
pub(crate) enum Output {
    Send {
        to: Incarnation,
        command: Command,
    },
    Write(Txn),
    Load,
    Answer {
        id: RequestId,
        answer: Result<Answer, Refusal>,
    },
    Log(Line),
    Measured(Measurement),
    /// Sit out a lease period.
    Resigned,
}

/// A capture as the coordinator hears it.
#[derive(Debug)]
struct Peer {
    node_epoch: NodeEpoch,
    heard_at: Instant,
    report: Option<Report>,
    /// It registered in this term. Until it is heard it is no destination, and so it has nothing.
    newcomer: bool,
    /// It was sent a heartbeat, and with the report that answers it is looked for what runs and should not.
    look_for_strays: bool,
    /// What its last heartbeat told of who may get work, and of shares.
    told: (Vec<Incarnation>, BTreeMap<ChangefeedId, u32>),
}

impl Peer {
    fn new(node_epoch: NodeEpoch, heard_at: Instant, newcomer: bool) -> Self {
        Self { node_epoch, heard_at, report: None, newcomer, look_for_strays: false, told: Default::default() }
    }

    fn life(&self, id: &CaptureId) -> Incarnation {
        Incarnation { capture: id.clone(), node_epoch: self.node_epoch }
    }

    /// Whether nobody needs to hear what it has.
    fn is_surely_empty(&self) -> bool {
        self.newcomer && self.report.is_none()
    }
}

/// A maintainer on its way from one capture to another.
#[derive(Debug, Clone)]
struct Move {
    /// The placement that it leaves.
    from: ChangefeedEpoch,
    /// When its stop is sent again.
    retry: Retry,
    /// When its stop was first ordered.
    since: Instant,
    /// Whether an order for it was repeated, or it had to go on from where it was sent.
    repeated: bool,
}

/// A command that is repeated until it is seen to have taken effect.
#[derive(Debug, Clone, Copy)]
struct Retry {
    due: Instant,
    attempt: u32,
}

/// A share that was taken back.
#[derive(Debug)]
struct Recalled {
    host: Incarnation,
    share: u32,
    /// The heartbeat that takes it back.
    beat: u64,
}

/// How the drain that is on has come along, in this term.
#[derive(Debug, Clone)]
struct Progress {
    epoch: DrainEpoch,
    /// The first state that tells of it: who echoes it or a later one has heard.
    told: Stamp,
    remaining: Option<u64>,
    moved_at: UnixMillis,
    phase: Option<crate::model::DrainPhase>,
    blocked: Vec<Blocker>,
}

/// A coordinator in office.
#[derive(Debug)]
pub(crate) struct Coordinator {
    me: Incarnation,
    term: Term,
    options: Options,
    mutants: Mutants,
    lane: WriteLane,
    /// What is answered, and told to people, when the write under way has taken effect.
    promised: Vec<(RequestId, Answer)>,
    announced: Vec<Line>,
    /// What is answered when the view shows the write that has: who asks next is to see what was done for this one.
    persisted: Vec<(RequestId, Answer)>,
    queue: VecDeque<(RequestId, Request)>,
    peers: BTreeMap<CaptureId, Peer>,
    state: DrainState,
    moves: BTreeMap<ChangefeedId, Move>,
    starts: BTreeMap<ChangefeedId, (ChangefeedEpoch, Retry)>,
    /// Unheard captures whose registration is deleted; their work fails over at this time, once it is known.
    evicted: BTreeMap<Incarnation, Option<Instant>>,
    granted: BTreeMap<ChangefeedId, u32>,
    /// What was granted and taken back, and is not known to be heard of yet.
    recalled: BTreeMap<ChangefeedId, Recalled>,
    index: Index,
    /// Something was heard since the last decisions.
    news: bool,
    /// Captures whose reports are to be looked through for what runs and should not.
    strays: BTreeSet<CaptureId>,
    /// Captures that were released, and are told so until they have registered anew.
    released: BTreeSet<Incarnation>,
    progress: Option<Progress>,
    /// The first state that tells of the latest drain, and since when, until every capture has echoed it.
    unechoed: Option<(Stamp, Instant)>,
    next_heartbeat: Instant,
    beats: u64,
    balance_after: Instant,
    /// How hooks have ended that said so in this term.
    hook_reports: VecDeque<HookReport>,
    /// Until when those that are to be avoided get nothing while others may still hear of the state.
    avoid_until: Instant,
    outputs: Vec<Output>,
}

impl Coordinator {
    pub(crate) fn new(me: Incarnation, term: Term, options: Options, mutants: Mutants, now: Now) -> Self {
        Self {
            me,
            term,
            mutants,
            lane: WriteLane::default(),
            promised: Vec::new(),
            announced: Vec::new(),
            persisted: Vec::new(),
            queue: VecDeque::new(),
            peers: BTreeMap::new(),
            state: DrainState { stamp: Stamp { term, version: 0 }, ..DrainState::default() },
            moves: BTreeMap::new(),
            starts: BTreeMap::new(),
            evicted: BTreeMap::new(),
            granted: BTreeMap::new(),
            recalled: BTreeMap::new(),
            index: Index::default(),
            news: true,
            strays: BTreeSet::new(),
            released: BTreeSet::new(),
            progress: None,
            unechoed: None,
            next_heartbeat: now.monotonic,
            beats: 0,
            balance_after: now.monotonic + options.balance_cooldown,
            hook_reports: VecDeque::new(),
            avoid_until: now.monotonic,
            outputs: Vec::new(),
            options,
        }
    }

    pub(crate) fn term(&self) -> Term {
        self.term
    }

    /// Takes a call; it is answered when it is decided and persisted.
    pub(crate) fn request(&mut self, id: RequestId, request: Request) {
        self.news = true;
        if self.queue.len() >= QUEUE_MAX {
            let answer = Err(Refusal::NotReady("too many calls wait".to_owned()));
            return self.outputs.push(Output::Answer { id, answer });
        }
        self.queue.push_back((id, request));
    }

    /// Takes a report, if it is newer than the last.
    pub(crate) fn report(&mut self, from: &Incarnation, mut report: Report, now: Now) {
        let Some(peer) = self.peers.get_mut(&from.capture).filter(|peer| peer.node_epoch == from.node_epoch) else {
            return;
        };
        if peer.report.as_ref().is_none_or(|known| known.sequence < report.sequence) {
            peer.heard_at = now.monotonic;
            if !report.maintainers.is_sorted_by_key(|m| &m.changefeed) {
                report.maintainers.sort_by(|one, other| one.changefeed.cmp(&other.changefeed));
            }
            self.recalled.retain(|_, recalled| recalled.host != *from || recalled.beat > report.beat);
            self.index.report_changed(peer.report.as_ref(), &report);
            peer.report = Some(report);
            if std::mem::take(&mut peer.look_for_strays) {
                self.strays.insert(from.capture.clone());
            }
            self.news = true;
        }
    }

    /// Takes the outcome of its write.
    pub(crate) fn written(&mut self, outcome: TxnOutcome) {
        self.news = true;
        let promises = self.take_promises();
        if let TxnOutcome::Committed(_) = outcome {
            self.outputs.extend(promises.lines.into_iter().map(Output::Log));
            self.persisted.extend(promises.answers);
        } else {
            self.outputs.extend(promises.settle(outcome));
        }
        if self.lane.ended(outcome) {
            self.outputs.push(Output::Load);
        }
    }

    /// The view was loaded anew.
    pub(crate) fn reloaded(&mut self) {
        self.lane.reloaded();
        self.index.all_stale();
        self.news = true;
    }

    /// These keys of the view have changed.
    pub(crate) fn keys_changed(&mut self, keys: &[KeyName]) {
        self.index.keys_changed(keys);
        self.news = true;
    }

    /// Whether there is anything to decide: when nothing was heard and the time has not come, there is not.
    pub(crate) fn is_due(&self, now: Now) -> bool {
        self.news || self.wake_at() <= now.monotonic
    }

    /// Its time in office is over: the calls that wait are told. What is left is promised for the write under way.
    pub(crate) fn step_down(mut self) -> (Vec<Output>, Promises) {
        for (id, _) in std::mem::take(&mut self.queue) {
            let answer = Err(Refusal::NotCoordinator { coordinator: None });
            self.outputs.push(Output::Answer { id, answer });
        }
        self.answer_persisted();
        self.outputs.push(Output::Log(Line::info("coordinator leaves office").of(&self.me.capture)));
        let promises = self.take_promises();
        (self.outputs, promises)
    }

    fn take_promises(&mut self) -> Promises {
        Promises { answers: std::mem::take(&mut self.promised), lines: std::mem::take(&mut self.announced) }
    }

    fn answer_persisted(&mut self) {
        let answers = std::mem::take(&mut self.persisted).into_iter();
        self.outputs.extend(answers.map(|(id, answer)| Output::Answer { id, answer: Ok(answer) }));
    }

    /// When [`Coordinator::advance`] is due.
    pub(crate) fn wake_at(&self) -> Instant {
        let moves = self.moves.values().map(|m| m.retry.due);
        let retries = moves.chain(self.starts.values().map(|(_, retry)| retry.due)).filter(|_| self.is_ready());
        let failovers = self.evicted.values().copied().flatten();
        retries.chain(failovers).chain([self.next_heartbeat]).min().unwrap_or(self.next_heartbeat)
    }

    /// Does what is due.
    pub(crate) fn advance(&mut self, view: &View, now: Now) -> Vec<Output> {
        self.news = false;
        if self.state.stamp.version == 0 {
            self.outputs.push(Output::Log(Line::info("coordinator takes office").of(&self.me.capture)));
        }
        self.follow_membership(view, now);
        self.refresh_state(view, now);
        self.refresh_index(view);
        self.grant_shares(view);
        self.beat(view, now);
        self.command(view, now);
        self.stop_strays(view);
        self.follow_progress(view, now);
        if self.lane.is_free(view) {
            self.answer_persisted();
            self.decide(view, now);
        }
        std::mem::take(&mut self.outputs)
    }

    /// Decides on at most one write; the first that has something to do.
    fn decide(&mut self, view: &View, now: Now) {
        let decided = self
            .end_drain(view, now)
            .or_else(|| self.serve_requests(view, now))
            .or_else(|| self.fail_changefeeds(view))
            .or_else(|| self.place(view, now))
            .or_else(|| self.evict_unheard(view, now))
            .or_else(|| self.clear_marks(view));
        if let Some(draft) = decided {
            self.lane = WriteLane::Waiting;
            self.outputs.push(Output::Write(draft.finish()));
        }
    }

    /// A transaction of this term.
    fn draft(&self) -> Draft {
        if self.mutants.has(Mutant::WritesWithoutTerm) {
            return Draft::default();
        }
        Draft::default().require(Compare::Created(KeyName::Owner(self.me.clone()).key(), self.term.0))
    }

    /// Whether every capture that may have work has answered in this term. Before, nobody places anything.
    fn is_ready(&self) -> bool {
        self.mutants.has(Mutant::PlacesBeforeBootstrap)
            || (!self.peers.is_empty()
                && self.peers.values().all(|peer| peer.report.is_some() || peer.is_surely_empty()))
    }

    fn follow_membership(&mut self, view: &View, now: Now) {
        self.peers
            .retain(|id, peer| view.captures.get(id).is_some_and(|kept| kept.value.node_epoch == peer.node_epoch));
        let newcomer = self.state.stamp.version > 0;
        for (id, kept) in &view.captures {
            let (node_epoch, heard_at) = (kept.value.node_epoch, now.monotonic);
            self.peers.entry(id.clone()).or_insert_with(|| Peer::new(node_epoch, heard_at, newcomer));
        }
        let lease = self.options.lease;
        for (_, until) in self.evicted.iter_mut().filter(|(who, _)| !view.is_registered(who)) {
            until.get_or_insert(now.monotonic + lease);
        }
        let evicted = self.evicted.len();
        self.evicted.retain(|_, until| until.is_none_or(|until| now.monotonic < until));
        if self.evicted.len() < evicted {
            self.index.all_stale();
        }
        self.released.retain(|who| view.is_registered(who));
        self.recalled.retain(|_, recalled| view.is_registered(&recalled.host));
    }

    /// When a command is repeated that was first sent with this patience.
    fn next_retry(&self, patience: Duration, retry: Retry, now: Now) -> Retry {
        let doubled = patience.saturating_mul(1 << retry.attempt.min(16));
        Retry { due: now.monotonic + doubled.min(self.options.move_timeout_max), attempt: retry.attempt + 1 }
    }
}
