//! What the persistence of a cluster offers: an ordered key space with revisions, leases, transactions and watches.
//!
//! The words and the behaviour are etcd's. [`model`] is the same behaviour in memory; the embedded store keeps that
//! model in a file, and the simulation runs it.

mod model;

pub use model::{Compacted, LOG_MAX_REVISIONS, Model};

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Most operations, and most compares, that one transaction may have (etcd's default).
pub const TXN_MAX_OPS: usize = 128;

/// A revision of the store; rises by one with each transaction that changes something.
pub type Revision = u64;

/// A key, always with the cluster's prefix taken off.
pub type Key = Arc<str>;

/// A lease: keys put with it vanish when it runs out. Never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(pub i64);

/// A key as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name.
    pub key: Key,
    /// Its value.
    pub value: Arc<[u8]>,
    /// The revision that created it.
    pub create_revision: Revision,
    /// The revision that last put it.
    pub mod_revision: Revision,
    /// The lease that it goes with.
    pub lease: Option<LeaseId>,
}

/// A condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compare {
    /// The key's create revision is this; 0: the key is absent.
    Created(Key, Revision),
    /// The key's modification revision is this; 0: the key is absent.
    Modified(Key, Revision),
    /// No key with this prefix was created or put after this revision.
    PrefixUnchanged(Key, Revision),
}

/// An operation of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Creates or replaces a key.
    Put {
        /// Its name.
        key: Key,
        /// Its value.
        value: Arc<[u8]>,
        /// The lease that it goes with. One that has run out fails the transaction.
        lease: Option<LeaseId>,
    },
    /// Deletes a key, if it is there.
    Delete(Key),
}

impl Op {
    /// The key that it touches. A transaction touches each key at most once.
    pub fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Delete(key) => key,
        }
    }
}

/// All operations, if all conditions hold; else none.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Txn {
    /// The conditions.
    pub compares: Vec<Compare>,
    /// The operations.
    pub ops: Vec<Op>,
}

/// A transaction that no store takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} operations in a transaction, {TXN_MAX_OPS} at most")]
pub struct TooLarge(pub usize);

impl Txn {
    /// Whether a store would take it.
    ///
    /// # Errors
    /// When it has more than [`TXN_MAX_OPS`] operations or compares.
    pub fn check_size(&self) -> Result<(), TooLarge> {
        let asked = self.ops.len().max(self.compares.len());
        if asked > TXN_MAX_OPS { Err(TooLarge(asked)) } else { Ok(()) }
    }
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TxnOutcome {
    /// Its operations took effect at this revision.
    Committed(Revision),
    /// A condition did not hold, or a lease had run out; the store stood at this revision.
    Refused(Revision),
    /// No answer came: it may have taken effect, or may yet.
    Unknown,
}

/// One key's change, as a watch tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Created or put.
    Put(Entry),
    /// Deleted, or gone with its lease.
    Deleted(Key),
}

/// All keys of a prefix at one revision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// The revision that it shows.
    pub revision: Revision,
    /// The keys, in order.
    pub entries: Vec<Entry>,
}

/// The changes of one or more revisions, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// The last revision that they cover.
    pub revision: Revision,
    /// What changed.
    pub changes: Vec<Change>,
}
