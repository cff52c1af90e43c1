//! A cluster's state in one file: the store model, with every change committed before it is answered.
//!
//! Opening the file takes its lock and voids all leases, since whoever held them is gone. The clocks of leases live in
//! memory and stand still while the machine is suspended (`CLOCK_MONOTONIC`), as those of the captures do that hold
//! them: they are all in this process. After an error of the file it is opened anew, and the model is what the file has;
//! until that succeeds nothing is served, since the model may have what was never persisted.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::{Duration, Instant as Clock},
};

use capturedrain_core::{
    model::Instant,
    store::{Entry, LeaseId, Listing, Model, Op, Revision, TXN_MAX_OPS, Txn, TxnOutcome},
};
use futures::{StreamExt as _, stream};
use tokio::{sync::watch, task, time};

use super::{Store, StoreError, Watch, WatchError, file::File};

/// The longest time between two looks at the leases.
const LEASE_LOOK: Duration = Duration::from_millis(200);
/// How long after leases could not be ended the next attempt is made.
const LEASE_BACKOFF: Duration = Duration::from_secs(1);

struct State {
    /// To be read only while the file is open: otherwise it may have what was never persisted.
    model: Model,
    /// `None` after an error, until it could be opened anew.
    file: Option<File>,
}

struct Shared {
    path: PathBuf,
    started: Clock,
    state: Mutex<State>,
    revision: watch::Sender<Revision>,
}

/// A store in one file, shared by all captures of a process.
#[derive(Clone)]
pub struct Embedded {
    shared: Arc<Shared>,
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Embedded").field(&self.shared.path).finish()
    }
}

impl Embedded {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// When another process has it, it is damaged, or cannot be written.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref().to_owned();
        let opened = task::spawn_blocking(move || -> Result<Self, StoreError> {
            let file = File::open(&path)?;
            let (revision, entries) = file.read()?;
            let leased: Vec<_> = entries.iter().filter(|e| e.lease.is_some()).map(|e| e.key.clone()).collect();
            let model = Model::restore(revision, entries);
            let shared = Shared {
                path,
                started: Clock::now(),
                state: Mutex::new(State { model, file: Some(file) }),
                revision: watch::Sender::new(revision),
            };
            // Several transactions, since one takes only so many operations; each is safe by itself.
            for keys in leased.chunks(TXN_MAX_OPS) {
                let ops = keys.iter().cloned().map(Op::Delete).collect();
                shared.change(|model| model.txn(&Txn { compares: Vec::new(), ops }))?;
            }
            Ok(Self { shared: Arc::new(shared) })
        });
        let store = joined(opened.await)??;
        tokio::spawn(end_leases(Arc::downgrade(&store.shared)));
        Ok(store)
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = self.shared.clone();
        joined(task::spawn_blocking(move || work(&shared)).await)?
    }
}

fn joined<T>(outcome: Result<T, task::JoinError>) -> Result<T, StoreError> {
    outcome.map_err(|error| StoreError::Rejected(error.to_string()))
}

impl Shared {
    fn now(&self) -> Instant {
        Instant(self.started.elapsed())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| {
            // Nobody knows how far the model came before the panic. The file does.
            let mut state = poisoned.into_inner();
            state.file = None;
            self.state.clear_poison();
            state
        })
    }

    /// The model, as the file has it.
    fn opened(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        let mut state = self.state();
        self.reopen(&mut state)?;
        Ok(state)
    }

    /// Changes the model, and commits what changed. On an error the model is what the file has.
    fn change<T>(&self, change: impl FnOnce(&mut Model) -> T) -> Result<T, StoreError> {
        let mut state = self.opened()?;
        let before = state.model.revision();
        let answer = change(&mut state.model);
        let after = state.model.revision();
        if after == before {
            return Ok(answer);
        }
        if let Err(error) = self.commit(&state, before) {
            tracing::warn!(%error, "the embedded store is opened anew");
            state.file = None;
            // What was tried may be in the file or not: only the file knows. Who watches sees it when it is read again.
            if let Err(error) = self.reopen(&mut state) {
                tracing::warn!(%error, "the embedded store stays closed for now");
            }
            return Err(error);
        }
        drop(state);
        self.revision.send_replace(after);
        Ok(answer)
    }

    fn commit(&self, state: &State, before: Revision) -> Result<(), StoreError> {
        let Some(file) = &state.file else {
            return Err(StoreError::Io { path: self.path.clone(), reason: "it is closed".to_owned() });
        };
        let changed = state.model.changes_after(before, "", "\u{10ffff}");
        let changed = changed.map_err(|error| StoreError::Rejected(error.to_string()))?;
        file.write(state.model.revision(), &changed.changes)
    }

    fn reopen(&self, state: &mut State) -> Result<(), StoreError> {
        if state.file.is_some() {
            return Ok(());
        }
        let file = File::open(&self.path)?;
        let (revision, entries) = file.read()?;
        state.model.reload(revision, entries);
        state.file = Some(file);
        self.revision.send_replace(revision);
        Ok(())
    }
}

async fn end_leases(shared: Weak<Shared>) {
    loop {
        time::sleep(LEASE_LOOK).await;
        let Some(shared) = shared.upgrade() else { return };
        let ended = task::spawn_blocking(move || {
            let now = shared.now();
            let due = shared.opened()?.model.next_expiry().is_some_and(|at| at <= now);
            if due { shared.change(|model| model.expire(now)) } else { Ok(()) }
        });
        if let Ok(Err(error)) = ended.await {
            tracing::warn!(%error, "leases cannot be ended");
            time::sleep(LEASE_BACKOFF).await;
        }
    }
}

impl Store for Embedded {
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.with(move |shared| Ok(shared.opened()?.model.grant(ttl, shared.now()))).await
    }

    async fn keep(&self, lease: LeaseId) -> Result<bool, StoreError> {
        self.with(move |shared| Ok(shared.opened()?.model.keep(lease, shared.now()))).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.with(move |shared| shared.change(|model| model.revoke(lease))).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        txn.check_size()?;
        self.with(move |shared| {
            Ok(shared.change(|model| model.txn(&txn)).unwrap_or_else(|error| {
                tracing::warn!(%error, "no telling whether a transaction took effect");
                TxnOutcome::Unknown
            }))
        })
        .await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let key = key.to_owned();
        self.with(move |shared| Ok(shared.opened()?.model.get(&key).cloned())).await
    }

    async fn list(&self, start: &str, end: &str) -> Result<Listing, StoreError> {
        let (start, end) = (start.to_owned(), end.to_owned());
        self.with(move |shared| Ok(shared.opened()?.model.list(&start, &end))).await
    }

    fn watch(&self, start: &str, end: &str, after: Revision) -> Watch {
        let (start, end): (Arc<str>, Arc<str>) = (start.into(), end.into());
        let first = Some((self.clone(), self.shared.revision.subscribe(), after));
        stream::unfold(first, move |state| {
            let (start, end) = (start.clone(), end.clone());
            async move {
                let (store, mut revision, seen) = state?;
                loop {
                    // Marked as seen before it is read: a change in between wakes the next round.
                    revision.mark_unchanged();
                    let (start, end) = (start.clone(), end.clone());
                    let told =
                        store.with(move |shared| Ok(shared.opened()?.model.changes_after(seen, &start, &end))).await;
                    match told {
                        Ok(Ok(changes)) if changes.revision > seen => {
                            let next = changes.revision;
                            return Some((Ok(changes), Some((store, revision, next))));
                        }
                        Ok(Ok(_)) => revision.changed().await.ok()?,
                        Ok(Err(compacted)) => return Some((Err(WatchError::Compacted(compacted.0)), None)),
                        Err(error) => return Some((Err(WatchError::Broken(error)), None)),
                    }
                }
            }
        })
        .boxed()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use std::{fs, future::Future};

    use capturedrain_core::store::Change;

    use super::*;
    use crate::store::file::failing::Disk;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// A store on a disk that can be made to fail.
    async fn on_a_disk(path: &Path) -> (Embedded, Disk) {
        let store = Embedded::open(path).await.unwrap();
        let disk = Disk::default();
        let mut state = store.shared.state();
        state.file = None;
        state.file = Some(disk.open(path));
        drop(state);
        (store, disk)
    }

    fn put(key: &str, value: &str, lease: Option<LeaseId>) -> Txn {
        Txn { compares: Vec::new(), ops: vec![Op::Put { key: key.into(), value: value.as_bytes().into(), lease }] }
    }

    async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
        let asking = async {
            while !holds().await {
                time::sleep(Duration::from_millis(20)).await;
            }
        };
        assert!(time::timeout(PATIENCE, asking).await.is_ok(), "waited {PATIENCE:?} for {what}");
    }

    #[tokio::test]
    async fn what_was_never_persisted_is_not_served_while_the_file_cannot_be_opened() {
        let folder = tempfile::tempdir().unwrap();
        let (path, aside) = (folder.path().join("store"), folder.path().join("aside"));
        let (store, disk) = on_a_disk(&path).await;
        let TxnOutcome::Committed(revision) = store.txn(put("a", "persisted", None)).await.unwrap() else {
            unreachable!("there is no condition to refuse")
        };
        let mut watch = store.watch("", "z", revision);
        // The write fails, and what is at its path then is nothing that could be opened.
        fs::rename(&path, &aside).unwrap();
        fs::create_dir(&path).unwrap();
        disk.fail();
        assert_eq!(store.txn(put("a", "lost", None)).await.unwrap(), TxnOutcome::Unknown);
        assert!(store.get("a").await.is_err());
        assert!(store.list("", "z").await.is_err());
        assert!(store.keep(LeaseId(1)).await.is_err());
        let told = store.watch("", "z", revision).next().await;
        assert!(matches!(told, Some(Err(WatchError::Broken(_)))), "{told:?}");
        fs::remove_dir(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
        assert_eq!(&*store.get("a").await.unwrap().unwrap().value, b"persisted");
        assert!(matches!(store.txn(put("a", "later", None)).await.unwrap(), TxnOutcome::Committed(_)));
        let told = watch.next().await.unwrap().unwrap();
        assert!(matches!(&*told.changes, [Change::Put(entry)] if &*entry.value == b"later"), "{told:?}");
    }

    /// Lets the disk fail until somebody has noticed, with the keys of a lease still there afterwards.
    async fn ended_in_vain(path: &Path, ttl: Duration, end: impl AsyncFnOnce(&Embedded, LeaseId)) -> Embedded {
        let (store, disk) = on_a_disk(path).await;
        let lease = store.grant(ttl).await.unwrap();
        let written = store.txn(put("capture/a", "registered", Some(lease))).await.unwrap();
        assert!(matches!(written, TxnOutcome::Committed(_)), "{written:?}");
        disk.fail();
        end(&store, lease).await;
        until("the end to fail", || async { disk.failed() }).await;
        store
    }

    #[tokio::test]
    async fn a_registration_whose_lease_ran_out_on_a_full_disk_does_not_stay_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let store = ended_in_vain(&path, Duration::from_millis(100), async |_, _| ()).await;
        until("the registration to go", || async { store.get("capture/a").await.unwrap().is_none() }).await;
    }

    #[tokio::test]
    async fn a_lease_given_back_on_a_full_disk_ends_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let store = ended_in_vain(&path, Duration::from_hours(1), async |store: &Embedded, lease| {
            assert!(store.revoke(lease).await.is_err());
            assert!(!store.keep(lease).await.unwrap(), "who gave it back has it no more");
        })
        .await;
        until("the registration to go", || async { store.get("capture/a").await.unwrap().is_none() }).await;
    }
}
