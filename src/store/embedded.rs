//! A cluster's state in one file: the store model, with every change committed before it is answered.
//!
//! Opening the file takes its lock and voids all leases, since whoever held them is gone. The clocks of leases live in
//! memory. After an error of the file it is opened anew, and the model is what the file has.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant as Clock},
};

use capturedrain_core::{
    model::Instant,
    store::{Change, Entry, LeaseId, Listing, Model, Op, Revision, TXN_MAX_OPS, Txn, TxnOutcome},
};
use futures::{StreamExt as _, stream};
use redb::{Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, StorageError, TableDefinition};
use tokio::{sync::watch, task, time};

use super::{Store, StoreError, Watch, WatchError};

/// Create revision, modification revision and lease (0: none), 8 bytes each, then the value.
const KEYS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("keys");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const REVISION: &str = "revision";
const HEADER_BYTES: usize = 24;
/// The longest time between two looks at the leases.
const LEASE_LOOK: Duration = Duration::from_millis(200);

struct State {
    model: Model,
    /// `None` after an error, until it could be opened anew.
    file: Option<Database>,
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
            let file = open_file(&path)?;
            let (revision, entries) = read(&file).map_err(|error| storage(&path, &error))?;
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

    async fn with<T: Send + 'static>(&self, work: impl FnOnce(&Shared) -> T + Send + 'static) -> Result<T, StoreError> {
        let shared = self.shared.clone();
        joined(task::spawn_blocking(move || work(&shared)).await)
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
        // A panic while it was held has left the model as some transaction made it, or as the file has it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the model, and commits what changed. On an error the model is what the file has.
    fn change<T>(&self, change: impl FnOnce(&mut Model) -> T) -> Result<T, StoreError> {
        let mut state = self.state();
        self.reopen(&mut state)?;
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
            let _ = self.reopen(&mut state);
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
        write(file, state.model.revision(), &changed.changes).map_err(|error| storage(&self.path, &error))
    }

    fn reopen(&self, state: &mut State) -> Result<(), StoreError> {
        if state.file.is_some() {
            return Ok(());
        }
        let file = open_file(&self.path)?;
        let (revision, entries) = read(&file).map_err(|error| storage(&self.path, &error))?;
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
            let due = shared.state().model.next_expiry().is_some_and(|at| at <= now);
            if due { shared.change(|model| model.expire(now)) } else { Ok(()) }
        });
        if let Ok(Err(error)) = ended.await {
            tracing::warn!(%error, "leases cannot be ended");
        }
    }
}

fn open_file(path: &Path) -> Result<Database, StoreError> {
    Database::create(path).map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::InUse(path.to_owned()),
        DatabaseError::Storage(error) => storage(path, &error.into()),
        other => StoreError::Damaged { path: path.to_owned(), reason: other.to_string() },
    })
}

fn storage(path: &Path, error: &redb::Error) -> StoreError {
    let (path, reason) = (path.to_owned(), error.to_string());
    let damaged = match error {
        redb::Error::Io(error) => error.kind() == std::io::ErrorKind::InvalidData,
        redb::Error::Corrupted(_) | redb::Error::TableTypeMismatch { .. } => true,
        _ => false,
    };
    if damaged { StoreError::Damaged { path, reason } } else { StoreError::Io { path, reason } }
}

fn read(file: &Database) -> Result<(Revision, Vec<Entry>), redb::Error> {
    let reading = file.begin_read()?;
    let table = match reading.open_table(KEYS) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok((0, Vec::new())),
        Err(error) => return Err(error.into()),
    };
    let revision = reading.open_table(META)?.get(REVISION)?.map_or(0, |value| value.value());
    let mut entries = Vec::new();
    for row in table.iter()? {
        let (key, value) = row?;
        let (header, rest) = value
            .value()
            .split_at_checked(HEADER_BYTES)
            .ok_or_else(|| StorageError::Corrupted(format!("the value of {} is too short", key.value())))?;
        let number = |n: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&header[n * 8..n * 8 + 8]);
            u64::from_le_bytes(bytes)
        };
        let lease = number(2).cast_signed();
        entries.push(Entry {
            key: key.value().into(),
            value: rest.into(),
            create_revision: number(0),
            mod_revision: number(1),
            lease: (lease != 0).then_some(LeaseId(lease)),
        });
    }
    Ok((revision, entries))
}

fn write(file: &Database, revision: Revision, changes: &[Change]) -> Result<(), redb::Error> {
    // redb's default durability is immediate: `commit` returns when the file is synced.
    let writing = file.begin_write()?;
    {
        let mut keys = writing.open_table(KEYS)?;
        for change in changes {
            match change {
                Change::Put(entry) => {
                    let lease = entry.lease.map_or(0, |lease| lease.0.cast_unsigned());
                    let header = [entry.create_revision, entry.mod_revision, lease].map(u64::to_le_bytes).concat();
                    keys.insert(&*entry.key, [&header, &*entry.value].concat().as_slice())?;
                }
                Change::Deleted(key) => drop(keys.remove(&**key)?),
            }
        }
        writing.open_table(META)?.insert(REVISION, revision)?;
    }
    writing.commit()?;
    Ok(())
}

impl Store for Embedded {
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.with(move |shared| shared.state().model.grant(ttl, shared.now())).await
    }

    async fn keep(&self, lease: LeaseId) -> Result<bool, StoreError> {
        self.with(move |shared| shared.state().model.keep(lease, shared.now())).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.with(move |shared| shared.change(|model| model.revoke(lease))).await?
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        if txn.ops.len() > TXN_MAX_OPS || txn.compares.len() > TXN_MAX_OPS {
            let asked = txn.ops.len().max(txn.compares.len());
            return Err(StoreError::Rejected(format!("{asked} operations in a transaction, {TXN_MAX_OPS} at most")));
        }
        self.with(move |shared| {
            shared.change(|model| model.txn(&txn)).unwrap_or_else(|error| {
                tracing::warn!(%error, "no telling whether a transaction took effect");
                TxnOutcome::Unknown
            })
        })
        .await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let key = key.to_owned();
        self.with(move |shared| shared.state().model.get(&key).cloned()).await
    }

    async fn list(&self, start: &str, end: &str) -> Result<Listing, StoreError> {
        let (start, end) = (start.to_owned(), end.to_owned());
        self.with(move |shared| shared.state().model.list(&start, &end)).await
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
                    let told = store.with(move |shared| shared.state().model.changes_after(seen, &start, &end)).await;
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
