//! The store's behaviour in memory: what etcd does, without etcd.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::{Change, Changes, Compare, Entry, Key, LeaseId, Listing, Op, Revision, Txn, TxnOutcome};
use crate::model::Instant;

/// Most revisions that a watch may lie behind.
pub const LOG_MAX_REVISIONS: usize = 10_000;

/// The changes that a watch asks for are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("changes up to revision {0} are compacted")]
pub struct Compacted(pub Revision);

/// By default one that has run out.
#[derive(Debug, Clone, Default)]
struct LeaseState {
    ttl: Duration,
    ends_at: Instant,
}

/// A store in memory.
#[derive(Debug, Clone, Default)]
pub struct Model {
    revision: Revision,
    compacted: Revision,
    next_lease: i64,
    keys: BTreeMap<Key, Entry>,
    leases: BTreeMap<LeaseId, LeaseState>,
    log: VecDeque<(Revision, Vec<Change>)>,
}

impl Model {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// A store with these keys at this revision; nothing can be watched from before it.
    pub fn restore(revision: Revision, entries: impl IntoIterator<Item = Entry>) -> Self {
        let keys = entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
        Self { revision, compacted: revision, keys, ..Self::default() }
    }

    /// Takes over what was persisted, as after a crash, but keeps the leases that are alive.
    ///
    /// A key whose lease is over here shows that this end was not persisted: the lease comes back as one that has run
    /// out, to be ended again.
    pub fn reload(&mut self, revision: Revision, entries: impl IntoIterator<Item = Entry>) {
        let (leases, next_lease) = (std::mem::take(&mut self.leases), self.next_lease);
        *self = Self { next_lease, leases, ..Self::restore(revision, entries) };
        for lease in self.keys.values().filter_map(|entry| entry.lease) {
            self.leases.entry(lease).or_default();
        }
    }

    /// The last revision.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Gives out a lease.
    pub fn grant(&mut self, ttl: Duration, now: Instant) -> LeaseId {
        self.next_lease += 1;
        let lease = LeaseId(self.next_lease);
        self.leases.insert(lease, LeaseState { ttl, ends_at: now + ttl });
        lease
    }

    /// Keeps a lease alive for its full time from now on. Whether there is such a lease; one that has run out is none,
    /// also before it is ended.
    pub fn keep(&mut self, lease: LeaseId, now: Instant) -> bool {
        let Some(state) = self.leases.get_mut(&lease).filter(|state| state.ends_at > now) else { return false };
        state.ends_at = now + state.ttl;
        true
    }

    /// Ends a lease, and with it its keys.
    pub fn revoke(&mut self, lease: LeaseId) {
        if self.leases.remove(&lease).is_none() {
            return;
        }
        let keys: Vec<Key> =
            self.keys.values().filter(|entry| entry.lease == Some(lease)).map(|entry| entry.key.clone()).collect();
        self.apply(keys.into_iter().map(Op::Delete));
    }

    /// Ends the leases that have run out.
    pub fn expire(&mut self, now: Instant) {
        let over: Vec<_> =
            self.leases.iter().filter(|(_, state)| state.ends_at <= now).map(|(lease, _)| *lease).collect();
        for lease in over {
            self.revoke(lease);
        }
    }

    /// When the next lease runs out, unless it is kept alive.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.leases.values().map(|state| state.ends_at).min()
    }

    /// All operations, if all conditions hold and all leases live; else none.
    pub fn txn(&mut self, txn: &Txn) -> TxnOutcome {
        let fits = txn.check_size().is_ok();
        let leased = |op: &Op| match op {
            Op::Put { lease: Some(lease), .. } => self.leases.contains_key(lease),
            _ => true,
        };
        if !fits || !txn.compares.iter().all(|compare| self.holds(compare)) || !txn.ops.iter().all(leased) {
            return TxnOutcome::Refused(self.revision);
        }
        self.apply(txn.ops.iter().cloned());
        TxnOutcome::Committed(self.revision)
    }

    fn holds(&self, compare: &Compare) -> bool {
        match compare {
            Compare::Created(key, revision) => self.keys.get(key).map_or(0, |entry| entry.create_revision) == *revision,
            Compare::Modified(key, revision) => self.keys.get(key).map_or(0, |entry| entry.mod_revision) == *revision,
            Compare::PrefixUnchanged(prefix, revision) => self
                .keys
                .range(prefix.clone()..)
                .take_while(|(key, _)| key.starts_with(&**prefix))
                .all(|(_, entry)| entry.mod_revision <= *revision),
        }
    }

    fn apply(&mut self, ops: impl Iterator<Item = Op>) {
        let revision = self.revision + 1;
        let mut changes = Vec::new();
        for op in ops {
            match op {
                Op::Put { key, value, lease } => {
                    let create_revision = self.keys.get(&key).map_or(revision, |entry| entry.create_revision);
                    let entry = Entry { key: key.clone(), value, create_revision, mod_revision: revision, lease };
                    self.keys.insert(key, entry.clone());
                    changes.push(Change::Put(entry));
                }
                Op::Delete(key) => {
                    if self.keys.remove(&key).is_some() {
                        changes.push(Change::Deleted(key));
                    }
                }
            }
        }
        if changes.is_empty() {
            return;
        }
        self.revision = revision;
        self.log.push_back((revision, changes));
        if self.log.len() > LOG_MAX_REVISIONS
            && let Some((oldest, _)) = self.log.pop_front()
        {
            self.compacted = oldest;
        }
    }

    /// A key.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.keys.get(key)
    }

    /// All keys from `start` to before `end`.
    pub fn list(&self, start: &str, end: &str) -> Listing {
        let entries = self.keys.range(Key::from(start)..Key::from(end)).map(|(_, entry)| entry.clone()).collect();
        Listing { revision: self.revision, entries }
    }

    /// What changed from `start` to before `end` after a revision.
    ///
    /// # Errors
    /// When that is not known any more.
    pub fn changes_after(&self, revision: Revision, start: &str, end: &str) -> Result<Changes, Compacted> {
        if revision < self.compacted {
            return Err(Compacted(self.compacted));
        }
        let inside = |change: &&Change| {
            let key = match change {
                Change::Put(entry) => &entry.key,
                Change::Deleted(key) => key,
            };
            start <= &**key && &**key < end
        };
        let known = self.log.partition_point(|(at, _)| *at <= revision);
        let later = self.log.range(known..).flat_map(|(_, changes)| changes);
        Ok(Changes { revision: self.revision, changes: later.filter(inside).cloned().collect() })
    }

    /// Forgets the changes up to a revision.
    pub fn compact(&mut self, revision: Revision) {
        self.compacted = self.compacted.max(revision.min(self.revision));
        self.log.retain(|(at, _)| *at > self.compacted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, lease: Option<LeaseId>) -> Op {
        Op::Put { key: key.into(), value: Vec::new().into(), lease }
    }

    fn commit(store: &mut Model, compares: Vec<Compare>, ops: Vec<Op>) -> bool {
        matches!(store.txn(&Txn { compares, ops }), TxnOutcome::Committed(_))
    }

    #[test]
    fn a_condition_that_does_not_hold_changes_nothing() {
        let mut store = Model::new();
        assert!(commit(&mut store, vec![Compare::Modified("a".into(), 0)], vec![put("a", None)]));
        assert!(!commit(&mut store, vec![Compare::Modified("a".into(), 0)], vec![put("a", None), put("b", None)]));
        assert_eq!(store.revision(), 1);
        assert!(store.get("b").is_none());
    }

    #[test]
    fn a_key_that_joins_a_prefix_is_noticed() {
        let mut store = Model::new();
        commit(&mut store, vec![], vec![put("capture/a", None)]);
        let seen = store.revision();
        let unchanged = Compare::PrefixUnchanged("capture/".into(), seen);
        assert!(commit(&mut store.clone(), vec![unchanged.clone()], vec![put("x", None)]));
        commit(&mut store, vec![], vec![put("capture/b", None)]);
        assert!(!commit(&mut store, vec![unchanged], vec![put("x", None)]));
    }

    #[test]
    fn keys_go_with_their_lease() {
        let mut store = Model::new();
        let lease = store.grant(Duration::from_secs(10), Instant::default());
        commit(&mut store, vec![], vec![put("a", Some(lease)), put("b", None)]);
        let later = Instant(Duration::from_secs(9));
        assert!(store.keep(lease, later));
        store.expire(Instant(Duration::from_secs(18)));
        assert!(store.get("a").is_some());
        store.expire(Instant(Duration::from_secs(19)));
        assert!(store.get("a").is_none() && store.get("b").is_some());
        assert!(!store.keep(lease, later));
        assert!(!commit(&mut store, vec![], vec![put("c", Some(lease))]), "a put on a lease that is over");
    }

    #[test]
    fn a_lease_that_has_run_out_is_not_kept() {
        let mut store = Model::new();
        let lease = store.grant(Duration::from_secs(10), Instant::default());
        assert!(!store.keep(lease, Instant(Duration::from_secs(10))));
    }

    #[test]
    fn an_end_of_a_lease_that_was_not_persisted_comes_again() {
        let mut store = Model::new();
        let (ended, alive) = (store.grant(Duration::from_secs(1), Instant::default()), LeaseId(2));
        assert_eq!(store.grant(Duration::from_mins(1), Instant::default()), alive);
        commit(&mut store, vec![], vec![put("a", Some(ended)), put("b", Some(alive))]);
        let persisted = store.list("", "z");
        let later = Instant(Duration::from_secs(2));
        store.expire(later);
        store.reload(persisted.revision, persisted.entries);
        assert!(store.get("a").is_some(), "as it was persisted");
        assert!(!store.keep(ended, later), "its end was told");
        assert!(store.next_expiry().is_some_and(|at| at <= later));
        store.expire(later);
        assert!(store.get("a").is_none() && store.get("b").is_some() && store.keep(alive, later));
    }

    #[test]
    fn a_watch_tells_what_its_range_has_seen() {
        let mut store = Model::new();
        commit(&mut store, vec![], vec![put("a", None), put("z", None)]);
        commit(&mut store, vec![], vec![Op::Delete("a".into())]);
        let changes = store.changes_after(1, "", "m").unwrap();
        assert_eq!(changes, Changes { revision: 2, changes: vec![Change::Deleted("a".into())] });
        store.compact(2);
        assert_eq!(store.changes_after(1, "", "m"), Err(Compacted(2)));
    }
}
