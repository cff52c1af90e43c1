//! The file of an embedded store: its keys and its revision, in two tables of redb.

use std::{
    io::ErrorKind,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use capturedrain_core::store::{Change, Entry, LeaseId, Revision};
use redb::{Builder, Database, ReadableDatabase as _, ReadableTable as _, StorageError, TableDefinition};

use super::StoreError;

/// Create revision, modification revision and lease (0: none), 8 bytes each, then the value.
const KEYS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("keys");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const REVISION: &str = "revision";
const HEADER_BYTES: usize = 24;

/// An open file, under its lock.
pub(super) struct File {
    path: PathBuf,
    database: Database,
}

impl File {
    /// Opens the file, or makes it; an empty one becomes a new store. All that it has is checked.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let database = guarded(path, || Ok(Builder::new().set_check_integrity_on_open(true).create(path)?))?;
        Ok(Self { path: path.to_owned(), database })
    }

    /// The last revision, and all keys.
    pub(super) fn read(&self) -> Result<(Revision, Vec<Entry>), StoreError> {
        guarded(&self.path, || read(&self.database))
    }

    /// Persists what changed. After an error it may be in the file or not, and the file has to be opened anew.
    pub(super) fn write(&self, revision: Revision, changes: &[Change]) -> Result<(), StoreError> {
        guarded(&self.path, || write(&self.database, revision, changes))
    }
}

/// Does something with redb, which answers some damages with a panic.
fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, StoreError> {
    // Who gets an error lets go of the database, so nobody sees what the panic left behind.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(outcome) => outcome.map_err(|error| storage(path, &error)),
        Err(_) => Err(StoreError::Damaged { path: path.to_owned(), reason: "its content makes no sense".to_owned() }),
    }
}

fn storage(path: &Path, error: &redb::Error) -> StoreError {
    let (path, reason) = (path.to_owned(), error.to_string());
    let damaged = match error {
        redb::Error::DatabaseAlreadyOpen => return StoreError::InUse(path),
        redb::Error::Io(error) => matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof),
        redb::Error::Corrupted(_)
        | redb::Error::UpgradeRequired(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableDoesNotExist(_)
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TypeDefinitionChanged { .. } => true,
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
    // redb's default durability is immediate: `commit` returns when the file is synced. In two phases, since otherwise a
    // last commit that is damaged later would be taken for one that was torn by a crash, and quietly left out: the
    // revision would go back, and with it every fence.
    let mut writing = file.begin_write()?;
    writing.set_two_phase_commit(true);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::panic, reason = "it is what is tried")]
    fn a_panic_over_a_damaged_file_is_an_error() {
        let error = guarded::<()>(Path::new("f"), || panic!("index out of bounds")).map(|()| "nothing");
        let sentence = error.map_or_else(|error| error.to_string(), str::to_owned);
        assert!(sentence.starts_with("embedded store f is damaged"), "{sentence}");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
pub(super) mod failing {
    //! A disk that fails when it is told to.

    use std::{
        fs::OpenOptions,
        io,
        path::Path,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
    };

    use redb::{Builder, StorageBackend, backends::FileBackend};

    use super::File;

    #[derive(Debug, Clone, Default)]
    pub(in crate::store) struct Disk {
        fails: Arc<AtomicBool>,
        failed: Arc<AtomicBool>,
    }

    impl Disk {
        /// From now on, for whoever has a file open on it.
        pub(in crate::store) fn fail(&self) {
            self.fails.store(true, Ordering::SeqCst);
        }

        /// Whether somebody has noticed.
        pub(in crate::store) fn failed(&self) -> bool {
            self.failed.load(Ordering::SeqCst)
        }

        pub(in crate::store) fn open(&self, path: &Path) -> File {
            let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
            let backend = Backend { inner: FileBackend::new(file).unwrap(), disk: self.clone() };
            File { path: path.to_owned(), database: Builder::new().create_with_backend(backend).unwrap() }
        }
    }

    #[derive(Debug)]
    struct Backend {
        inner: FileBackend,
        disk: Disk,
    }

    impl Backend {
        fn check(&self) -> io::Result<()> {
            if !self.disk.fails.load(Ordering::SeqCst) {
                return Ok(());
            }
            self.disk.failed.store(true, Ordering::SeqCst);
            Err(io::ErrorKind::StorageFull.into())
        }
    }

    impl StorageBackend for Backend {
        fn len(&self) -> io::Result<u64> {
            self.inner.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.inner.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.check().and_then(|()| self.inner.set_len(len))
        }

        fn sync_data(&self) -> io::Result<()> {
            self.check().and_then(|()| self.inner.sync_data())
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.check().and_then(|()| self.inner.write(offset, data))
        }

        fn close(&self) -> io::Result<()> {
            self.inner.close()
        }
    }
}
