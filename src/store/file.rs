//! The file of an embedded store: its keys and its revision, in two tables of redb.

use std::path::{Path, PathBuf};

use capturedrain_core::store::{Change, Entry, LeaseId, Revision};
use redb::{Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, StorageError, TableDefinition};

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
    /// Opens the file, or makes it.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let database = Database::create(path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => StoreError::InUse(path.to_owned()),
            DatabaseError::Storage(error) => storage(path, &error.into()),
            other => StoreError::Damaged { path: path.to_owned(), reason: other.to_string() },
        })?;
        Ok(Self { path: path.to_owned(), database })
    }

    /// The last revision, and all keys.
    pub(super) fn read(&self) -> Result<(Revision, Vec<Entry>), StoreError> {
        read(&self.database).map_err(|error| storage(&self.path, &error))
    }

    /// Persists what changed. After an error it may be in the file or not, and the file has to be opened anew.
    pub(super) fn write(&self, revision: Revision, changes: &[Change]) -> Result<(), StoreError> {
        write(&self.database, revision, changes).map_err(|error| storage(&self.path, &error))
    }
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
