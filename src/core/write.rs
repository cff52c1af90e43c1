//! One write at a time: the lane that keeps a part of a capture from deciding on what it has just changed.

use crate::{
    model::{KeyName, encode},
    store::{Compare, LeaseId, Op, Revision, Txn, TxnOutcome},
    view::View,
};

/// Whether a new write may be decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum WriteLane {
    /// It may.
    #[default]
    Free,
    /// One is under way.
    Waiting,
    /// One has ended, and the view does not show it yet.
    Settling(Revision),
    /// One was refused, so the view is stale, or ended without an answer; the view is being loaded anew.
    Reloading,
}

impl WriteLane {
    /// Whether a new write may be decided, on a view of this revision.
    pub(crate) fn is_free(&mut self, view: &View) -> bool {
        if matches!(self, Self::Settling(revision) if *revision <= view.revision) {
            *self = Self::Free;
        }
        *self == Self::Free
    }

    /// Takes the outcome of the write. Whether the view has to be loaded anew.
    pub(crate) fn ended(&mut self, outcome: TxnOutcome) -> bool {
        *self = match outcome {
            TxnOutcome::Committed(revision) => Self::Settling(revision),
            TxnOutcome::Refused(_) | TxnOutcome::Unknown => Self::Reloading,
        };
        *self == Self::Reloading
    }

    /// The view was loaded anew.
    pub(crate) fn reloaded(&mut self) {
        if *self == Self::Reloading {
            *self = Self::Free;
        }
    }
}

/// A transaction that compares every key which it replaces with the view.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    txn: Txn,
}

impl Draft {
    /// Adds a condition.
    #[must_use]
    pub(crate) fn require(mut self, compare: Compare) -> Self {
        self.txn.compares.push(compare);
        self
    }

    /// Adds the condition that a key is as the view has it.
    #[must_use]
    pub(crate) fn require_same(self, view: &View, name: &KeyName) -> Self {
        let compare = view.same(name);
        if self.txn.compares.contains(&compare) { self } else { self.require(compare) }
    }

    /// Replaces a key.
    #[must_use]
    pub(crate) fn put<T: serde::Serialize>(self, view: &View, name: &KeyName, value: &T) -> Self {
        self.put_leased(view, name, value, None)
    }

    /// Replaces a key that goes with a lease.
    #[must_use]
    pub(crate) fn put_leased<T: serde::Serialize>(
        self,
        view: &View,
        name: &KeyName,
        value: &T,
        lease: Option<LeaseId>,
    ) -> Self {
        let mut draft = self.require_same(view, name);
        draft.txn.ops.push(Op::Put { key: name.key(), value: encode(value), lease });
        draft
    }

    /// Deletes a key.
    #[must_use]
    pub(crate) fn delete(self, view: &View, name: &KeyName) -> Self {
        let mut draft = self.require_same(view, name);
        draft.txn.ops.push(Op::Delete(name.key()));
        draft
    }

    /// Adds operations whose conditions are there already.
    #[must_use]
    pub(crate) fn operations(mut self, ops: Vec<Op>) -> Self {
        self.txn.ops.extend(ops);
        self
    }

    /// Deletes a key that the view does not follow.
    #[must_use]
    pub(crate) fn delete_unseen(mut self, name: &KeyName) -> Self {
        self.txn.ops.push(Op::Delete(name.key()));
        self
    }

    /// Whether it would change nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.txn.ops.is_empty()
    }

    /// How many more operations of two compares each fit.
    pub(crate) fn room(&self) -> usize {
        let used = self.txn.compares.len().max(self.txn.ops.len());
        crate::store::TXN_MAX_OPS.saturating_sub(used) / 3
    }

    /// The transaction.
    pub(crate) fn finish(self) -> Txn {
        self.txn
    }
}
