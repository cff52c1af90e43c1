//! What captures say to each other.
//!
//! Every message names the life of its sender and of its receiver, and the generation that gives it authority: the
//! coordinator's [`Term`] or the maintainer's [`ChangefeedEpoch`]. A receiver refuses a lower generation and a message
//! for another life of itself.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    CaptureId, ChangefeedConfig, ChangefeedEpoch, ChangefeedId, CommitTs, DrainEpoch, Incarnation, Liveness, NodeEpoch,
    Span, SpanId, Term, WorkCount, WriterEpoch,
};
use crate::store::Revision;

/// A message with its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Who sends it.
    pub from: Incarnation,
    /// Who shall have it, in which life.
    pub to: Incarnation,
    /// What it says.
    pub body: Body,
}

impl Envelope {
    /// How many things it names that have to be looked at: what it costs to take it, with others that come together.
    pub fn weight(&self) -> usize {
        let named = match &self.body {
            Body::Command { command: Command::Heartbeat(heartbeat), .. } => heartbeat.shares.len(),
            Body::Command { .. } | Body::Order { order: Order::Bootstrap { .. }, .. } => 0,
            // Most of these are as they were.
            Body::Report { report, .. } => report.maintainers.len() / 16,
            Body::Order { order: Order::Create { dispatchers, .. }, .. } => dispatchers.len(),
            Body::Order { order: Order::Stop(dispatchers), .. } => dispatchers.len(),
            Body::Status { status: Status::Inventory { dispatchers, .. }, .. } => dispatchers.len(),
            Body::Status { status: Status::Progress(news), .. } => news.len(),
        };
        1 + named
    }
}

/// The four directions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// From the coordinator to a capture.
    Command {
        /// The coordinator's time in office.
        term: Term,
        /// What it wants.
        command: Command,
    },
    /// From a capture to the coordinator.
    Report {
        /// The time in office that it answers.
        term: Term,
        /// What it has.
        report: Box<Report>,
    },
    /// From a maintainer to a capture that hosts, or shall host, its dispatchers.
    Order {
        /// Whose.
        changefeed: ChangefeedId,
        /// The maintainer's generation.
        epoch: ChangefeedEpoch,
        /// What it wants.
        order: Order,
    },
    /// From a host of dispatchers to their maintainer.
    Status {
        /// Whose.
        changefeed: ChangefeedId,
        /// The generation that it answers.
        epoch: ChangefeedEpoch,
        /// What became of it.
        status: Status,
    },
}

/// The order in which a coordinator's views of the drain came about. The higher one holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Stamp {
    /// The coordinator's time in office.
    pub term: Term,
    /// Its count of changes of the state.
    pub version: u64,
}

/// A drain that is on, as captures hear of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainNotice {
    /// Its number.
    pub epoch: DrainEpoch,
    /// What is emptied.
    pub target: Incarnation,
}

/// The drain state: repeated with every heartbeat, for ever, so that no message of it can be lost.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DrainState {
    /// Its place in the order of states.
    pub stamp: Stamp,
    /// The last drain epoch given out.
    pub last_epoch: DrainEpoch,
    /// The drain that is on.
    pub drain: Option<DrainNotice>,
    /// Every registered capture, with its life and liveness.
    pub captures: BTreeMap<CaptureId, (NodeEpoch, Liveness)>,
    /// Captures that should rather not get work.
    pub avoid: Vec<CaptureId>,
}

impl DrainState {
    /// The liveness of a capture in this life; `None` when it is not registered.
    pub fn liveness(&self, who: &Incarnation) -> Option<Liveness> {
        let (node_epoch, liveness) = self.captures.get(&who.capture)?;
        (*node_epoch == who.node_epoch).then_some(*liveness)
    }

    /// Whether work may not be created on it: it is listed as not `Alive` with this node epoch.
    pub fn seals(&self, who: &Incarnation) -> bool {
        self.liveness(who).is_some_and(|liveness| liveness != Liveness::Alive)
    }
}

/// What a coordinator wants of a capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Sent to every capture in every heartbeat period, and at once on a change.
    Heartbeat(Box<Heartbeat>),
    /// Host this maintainer.
    StartMaintainer {
        /// Whose.
        changefeed: ChangefeedId,
        /// The number of the placement.
        epoch: ChangefeedEpoch,
        /// The modification revision of its place key, which the maintainer's writes compare.
        place_revision: Revision,
        /// What it replicates.
        config: Arc<ChangefeedConfig>,
    },
    /// End this maintainer, and every one of a lower epoch.
    StopMaintainer {
        /// Whose.
        changefeed: ChangefeedId,
        /// The number of the placement.
        epoch: ChangefeedEpoch,
    },
    /// End all dispatchers of this changefeed: it does not run.
    StopDispatchers {
        /// Whose.
        changefeed: ChangefeedId,
        /// Those of this and of lower epochs.
        epoch: ChangefeedEpoch,
    },
    /// Register anew: the drain that stopped you is over and you live on.
    Release,
}

/// The coordinator's heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Heartbeat {
    /// The drain state.
    pub state: DrainState,
    /// Who may get work: not sealed, and known to have heard this very state.
    pub destinations: Vec<Incarnation>,
    /// Captures that registered in this term and were not heard yet. They have nothing, and are not waited for.
    pub newcomers: Vec<Incarnation>,
    /// How many dispatchers each maintainer of this capture may have on the move. Holds until the next heartbeat.
    pub shares: BTreeMap<ChangefeedId, u32>,
    /// Whether dispatchers may be moved for balance.
    pub balance: bool,
    /// Counts the heartbeats of this coordinator: of two with the same state the later one holds.
    pub beat: u64,
}

/// A capture's answer to a heartbeat; its first answer in a term is its bootstrap.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Counts the reports of this life; the coordinator takes only newer ones.
    pub sequence: u64,
    /// The stamp of the highest state that it has heard.
    pub echo: Stamp,
    /// The beat of the heartbeat that it has heard last.
    pub beat: u64,
    /// The highest drain epoch that it ever heard.
    pub last_epoch: DrainEpoch,
    /// All that it has, in any state.
    pub inventory: WorkCount,
    /// Its maintainers, in the order of their changefeeds.
    pub maintainers: Vec<MaintainerReport>,
    /// Placements that it was told to end or has ended: never started again.
    pub ended: BTreeMap<ChangefeedId, ChangefeedEpoch>,
    /// How many dispatchers it has of each changefeed, and the highest epoch that created one.
    pub dispatchers: BTreeMap<ChangefeedId, (u64, ChangefeedEpoch)>,
}

impl Report {
    /// What it says of the maintainer of a changefeed.
    pub(crate) fn maintainer(&self, changefeed: &ChangefeedId) -> Option<&MaintainerReport> {
        let found = self.maintainers.binary_search_by(|m| m.changefeed.cmp(changefeed));
        found.ok().and_then(|at| self.maintainers.get(at))
    }
}

/// How far a maintainer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MaintainerPhase {
    /// It collects the inventories of all captures.
    Bootstrapping,
    /// It plans.
    Running,
    /// It was told to end, and has not yet.
    Stopping,
}

/// What a maintainer says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaintainerReport {
    /// Whose.
    pub changefeed: ChangefeedId,
    /// Its generation.
    pub epoch: ChangefeedEpoch,
    /// How far it is.
    pub phase: MaintainerPhase,
    /// The stamp of the state that it last acted on.
    pub stamp: Stamp,
    /// Its checkpoint.
    pub checkpoint_ts: CommitTs,
    /// When the source's events up to the checkpoint had happened, in milliseconds since 1970; 0: unknown.
    pub checkpoint_at_ms: u64,
    /// Its dispatchers by capture, in any state, those on the way to it included; `None` while bootstrapping.
    pub dispatchers: Option<BTreeMap<CaptureId, u64>>,
    /// Its dispatchers that are on the move.
    pub in_flight: u32,
    /// The share that it last heard of.
    pub share: u32,
    /// Why it cannot go on, in one sentence.
    pub error: Option<String>,
    /// Why some of it does not go on for the time being.
    pub warning: Option<String>,
    /// Sinks know a writer of this later placement, so this one cannot write: it has to be placed above that.
    pub outranked_by: Option<ChangefeedEpoch>,
}

impl MaintainerReport {
    /// Whether it has to be placed anew, above a later placement that sinks know a writer of.
    pub(crate) fn is_outranked(&self) -> bool {
        self.outranked_by >= Some(self.epoch)
    }
}

/// What a maintainer wants of a host of dispatchers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Tell what you have of this changefeed, a part at a time, and refuse older maintainers from now on.
    Bootstrap {
        /// What it replicates.
        config: Arc<ChangefeedConfig>,
        /// The part after this span, in the order of their names; `None`: the first.
        after: Option<SpanId>,
    },
    /// Create dispatchers.
    Create {
        /// What it replicates.
        config: Arc<ChangefeedConfig>,
        /// Which.
        dispatchers: Vec<NewDispatcher>,
    },
    /// Stop dispatchers.
    Stop(Vec<(SpanId, WriterEpoch)>),
}

/// A dispatcher to be created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDispatcher {
    /// What it covers.
    pub span: Span,
    /// Its right to write.
    pub writer_epoch: WriterEpoch,
    /// The commit timestamp after which it starts.
    pub start_ts: CommitTs,
}

/// What a host says to a maintainer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// A part of what it has.
    Inventory {
        /// The part after this span, in the order of their names; `None`: the first.
        after: Option<SpanId>,
        /// Dispatchers that run or are being stopped, in the order of their spans' names.
        dispatchers: Vec<HostedDispatcher>,
        /// Whether there are more after the last of these.
        more: bool,
    },
    /// News of some dispatchers.
    Progress(Vec<DispatcherNews>),
}

/// Most dispatchers in one message: it is taken in within milliseconds.
pub const MESSAGE_MAX_DISPATCHERS: usize = 1024;
/// Most bytes of names, keys and errors in one message, unless it names one dispatcher only: with its numbers it stays
/// below gRPC's 4 MiB.
pub const MESSAGE_MAX_BYTES: usize = 2 << 20;

/// Cuts what is to be sent into messages, none of them empty; `bytes` tells the size of what has no fixed size.
pub(crate) fn parts<T>(items: Vec<T>, bytes: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut parts: Vec<Vec<T>> = Vec::new();
    let mut used = 0;
    for item in items {
        let size = bytes(&item);
        used += size;
        match parts.last_mut() {
            Some(part) if part.len() < MESSAGE_MAX_DISPATCHERS && used <= MESSAGE_MAX_BYTES => part.push(item),
            _ => {
                used = size;
                parts.push(vec![item]);
            }
        }
    }
    parts
}

/// A dispatcher as its host has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostedDispatcher {
    /// What it covers.
    pub span: Span,
    /// Its right to write.
    pub writer_epoch: WriterEpoch,
    /// Everything of its span up to here is in the sink.
    pub checkpoint_ts: CommitTs,
    /// Whether it is being stopped.
    pub stopping: bool,
}

/// News of one dispatcher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DispatcherNews {
    /// Its span.
    pub span: SpanId,
    /// Which writer.
    pub writer_epoch: WriterEpoch,
    /// What happened.
    pub what: DispatcherFate,
}

/// What can happen to a dispatcher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DispatcherFate {
    /// It works, and has come this far.
    Working {
        /// Its checkpoint.
        checkpoint_ts: CommitTs,
        /// Where to split it, when it has more keys than it should.
        split_at: Option<Arc<[u8]>>,
    },
    /// It has ended, or never was: nothing of this or a lower writer epoch will be started.
    Stopped {
        /// Its last checkpoint; `None` when the host never had it.
        checkpoint_ts: Option<CommitTs>,
    },
    /// Its creation was refused: the host is sealed, or knows a higher writer.
    Refused,
    /// It cannot go on by itself, and has ended.
    Failed {
        /// Why, in one sentence.
        error: String,
        /// Whether the changefeed has to fail; else it may be created anew.
        fatal: bool,
        /// The sink knows a writer of this later placement.
        outranked_by: Option<ChangefeedEpoch>,
    },
}

impl DispatcherNews {
    /// The size of what has no fixed size, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        match &self.what {
            DispatcherFate::Working { split_at, .. } => split_at.as_ref().map_or(0, |at| at.len()),
            DispatcherFate::Failed { error, .. } => error.len(),
            DispatcherFate::Stopped { .. } | DispatcherFate::Refused => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sizes: &[usize], expected: &[usize]) {
        let cut: Vec<_> = parts(sizes.to_vec(), |size| *size).iter().map(Vec::len).collect();
        assert_eq!(cut, expected);
    }

    #[test]
    fn a_message_is_cut_by_count_and_by_bytes_and_never_empty() {
        check(&[], &[]);
        check(&[MESSAGE_MAX_BYTES * 2, 1], &[1, 1]);
        check(&[MESSAGE_MAX_BYTES / 2; 5], &[2, 2, 1]);
        check(&vec![0; MESSAGE_MAX_DISPATCHERS + 1], &[MESSAGE_MAX_DISPATCHERS, 1]);
    }
}
