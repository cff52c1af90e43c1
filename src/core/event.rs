//! What happens to a capture, and what it wants done.

use std::sync::Arc;

use crate::{
    log::Line,
    measure::Measurement,
    model::{
        Answer, ChangefeedEpoch, ChangefeedId, Envelope, Halt, Instant, Position, Refusal, Request, RequestId, Term,
        ValueError,
    },
    store::{Changes, Key, LeaseId, Listing, Revision, Txn, TxnOutcome},
    work::{WorkEvent, WorkOrder},
};

/// Which part of a capture writes; each has at most one write under way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Registration, candidacy, own liveness in the exception.
    Agent,
    /// The decisions of a coordinator, in this time in office.
    Coordinator(Term),
    /// A maintainer's position.
    Maintainer(ChangefeedId, ChangefeedEpoch),
}

/// What happens to a capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The time that [`Process::wake_at`](crate::process::Process::wake_at) named has come, or any other.
    Wake,
    /// The store granted a lease that was asked for; `nonce` is fresh randomness for a node epoch.
    LeaseGranted {
        /// Which.
        lease: LeaseId,
        /// When the request was sent.
        sent_at: Instant,
        /// 64 random bits.
        nonce: u64,
    },
    /// The store did not answer, or refused, a request for a lease.
    LeaseNotGranted,
    /// A keep-alive was answered: the lease lives for its full time from `sent_at` on.
    LeaseKept {
        /// Which.
        lease: LeaseId,
        /// When the request was sent.
        sent_at: Instant,
    },
    /// A keep-alive was answered: there is no such lease, or not the key that should go with it.
    LeaseLost(LeaseId),
    /// All watched keys at one revision: the answer to [`Effect::Load`], or after the watch had to start anew.
    Loaded(Listing),
    /// The watch tells what changed.
    Changed(Changes),
    /// A transaction ended.
    Written {
        /// Whose.
        lane: Lane,
        /// How.
        outcome: TxnOutcome,
    },
    /// The answer to [`Effect::ReadPosition`]; with the key's modification revision.
    PositionRead {
        /// Whose.
        changefeed: ChangefeedId,
        /// For which maintainer.
        epoch: ChangefeedEpoch,
        /// What is persisted.
        position: Option<(Position, Revision)>,
    },
    /// What was read for a position cannot be understood.
    Unreadable(ValueError),
    /// Another capture says something.
    Message(Envelope),
    /// The data path tells something.
    Work(WorkEvent),
    /// A door asks something.
    Request {
        /// For the answer.
        id: RequestId,
        /// What.
        request: Request,
    },
    /// The process was told to end (SIGTERM): it goes on working, but never registers again.
    Terminate,
    /// The process ends: all work stops, and the lease is given back.
    Leave,
    /// The hook asks for the proof: answered by `Answer::Drained` when it is there, and by `Answer::Done` when this capture
    /// is not registered and has nothing. Either is final: it never registers again.
    Prove(RequestId),
}

/// What a capture wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Ask the store for a lease.
    GrantLease,
    /// Keep a lease alive, and look whether this key is still there and goes with it.
    KeepLease {
        /// Which.
        lease: LeaseId,
        /// The registration, once there is one.
        key: Option<Key>,
    },
    /// Give a lease back.
    RevokeLease(LeaseId),
    /// Read all watched keys, and watch from there on.
    Load,
    /// Carry out a transaction, and tell its outcome.
    Write {
        /// Whose.
        lane: Lane,
        /// What.
        txn: Txn,
    },
    /// Read a changefeed's position: one attempt, which is asked for again with each heartbeat.
    ReadPosition {
        /// Whose.
        changefeed: ChangefeedId,
        /// For which maintainer.
        epoch: ChangefeedEpoch,
    },
    /// Send a message to the address, if the receiver is not this process.
    Send {
        /// `host:port`.
        to: Arc<str>,
        /// What.
        envelope: Envelope,
    },
    /// Tell the data path.
    Work(WorkOrder),
    /// Answer a door.
    Answer {
        /// Which request.
        id: RequestId,
        /// With what.
        answer: Result<Answer, Refusal>,
    },
    /// Tell people.
    Log(Line),
    /// Add it up.
    Measured(Measurement),
    /// The process has to end, and say why.
    Halt(Halt),
}
