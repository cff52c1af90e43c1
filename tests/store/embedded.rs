//! What a file alone does: locks, leases that are void, damage, full disks.

use std::{path::Path, time::Duration};

use capturedrain::store::{AnyStore, Store as _, StoreError};
use capturedrain_core::store::{Txn, TxnOutcome};

use crate::{END, commit, disk::SmallDisk, leased, processes::run, put, until};

async fn embedded(path: &Path) -> Result<AnyStore, StoreError> {
    AnyStore::open(&format!("embedded:{}", path.display()), "one").await
}

#[tokio::test(flavor = "multi_thread")]
async fn opening_a_file_again_keeps_keys_and_voids_leases() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let store = embedded(&path).await.unwrap();
    let lease = store.grant(Duration::from_mins(10)).await.unwrap();
    let revision = commit(&store, vec![], vec![put("a", "kept"), leased("b", lease)]).await.unwrap();
    let busy = embedded(&path).await.unwrap_err();
    assert!(matches!(busy, StoreError::InUse(_)), "{busy}");
    drop(store);
    let store = loop {
        // The lock goes with the last task that held the store.
        match embedded(&path).await {
            Err(StoreError::InUse(_)) => tokio::task::yield_now().await,
            other => break other.unwrap(),
        }
    };
    assert_eq!(&*store.get("a").await.unwrap().unwrap().value, b"kept");
    assert_eq!(store.get("b").await.unwrap(), None, "who held the lease is gone");
    assert!(store.list("", END).await.unwrap().revision > revision, "revisions go on");
}

/// The last value that is put, and one from before; both easily found in the file.
const LAST: &str = "the last value, which was answered";
const FORMER: &str = "the former value, which it replaced";

/// The bytes of a store, of a process that ended well, or that was killed.
async fn bytes_of_a_store(folder: &Path, killed: bool) -> Vec<u8> {
    let path = folder.join("original");
    let store = embedded(&path).await.unwrap();
    for n in 0..200 {
        commit(&store, vec![], vec![put(&format!("k/{n:03}"), &"filler ".repeat(40))]).await.unwrap();
    }
    commit(&store, vec![], vec![put("last", FORMER)]).await.unwrap();
    commit(&store, vec![], vec![put("last", LAST)]).await.unwrap();
    let as_it_stands = std::fs::read(&path).unwrap();
    drop(store);
    if killed {
        return as_it_stands;
    }
    loop {
        // The file is closed by the last task that held the store.
        match embedded(&path).await {
            Err(StoreError::InUse(_)) => tokio::task::yield_now().await,
            other => break drop(other.unwrap()),
        }
    }
    std::fs::read(&path).unwrap()
}

fn places(haystack: &[u8], needle: &str) -> Vec<usize> {
    (0..haystack.len() - needle.len()).filter(|at| haystack[*at..].starts_with(needle.as_bytes())).collect()
}

/// Opens these bytes as a store. Either it is refused by name, or everything that was answered is there.
async fn refused(folder: &Path, what: &str, bytes: &[u8]) -> bool {
    let path = folder.join(format!("damaged-{}", what.replace(' ', "-")));
    std::fs::write(&path, bytes).unwrap();
    match embedded(&path).await {
        Ok(store) => {
            let last = store.get("last").await.unwrap().unwrap_or_else(|| panic!("{what}: a key is lost"));
            assert_eq!(&*last.value, LAST.as_bytes(), "{what}: an older value");
            assert_eq!(store.list("k/", "k0").await.unwrap().entries.len(), 200, "{what}: keys are lost");
            false
        }
        Err(error) => {
            assert!(matches!(error, StoreError::Damaged { .. }), "{what}: {error:?}");
            assert!(error.to_string().contains(&format!("{} is damaged", path.display())), "{what}: {error}");
            true
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_rot_in_a_file_are_never_taken_for_state() {
    for killed in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let bytes = bytes_of_a_store(folder.path(), killed).await;
        assert!(!refused(folder.path(), "nothing", &bytes).await, "an intact file is opened");
        let mut without_last = bytes.clone();
        let found = places(&bytes, LAST);
        assert!(!found.is_empty());
        for at in found {
            without_last[at] ^= 0xff;
        }
        assert!(refused(folder.path(), "the last value", &without_last).await);
        let url = format!("embedded:{}", folder.path().join("damaged-the-last-value").display());
        let (code, said) = run(&["server", "--store", &url, "--addr", "127.0.0.1:0"], "").await;
        let sentence = said.lines().last().unwrap_or_default();
        assert!(code == 12 && sentence.starts_with("capturedrain: embedded store"), "{code}: {said}");
        let mut noticed = 0;
        for part in 0..64 {
            let at = bytes.len() * part / 64;
            let mut rotten = bytes.clone();
            for byte in &mut rotten[at..at + 16] {
                *byte ^= 0xff;
            }
            noticed += u32::from(refused(folder.path(), &format!("byte {at} of {}", bytes.len()), &rotten).await);
        }
        assert!(noticed > 4, "{noticed} of 64 damages were noticed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_cut_off_is_refused_and_an_empty_one_is_a_new_store() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = bytes_of_a_store(folder.path(), false).await;
    for length in [1, 100, 4096, 8192, bytes.len() / 2, bytes.len() - 4096, bytes.len() - 1] {
        assert!(refused(folder.path(), &format!("cut at {length}"), &bytes[..length]).await, "cut at {length}");
    }
    std::fs::write(folder.path().join("empty"), b"").unwrap();
    let store = embedded(&folder.path().join("empty")).await.unwrap();
    assert_eq!(store.list("", END).await.unwrap().entries, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_named_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    std::fs::write(&path, vec![7; 100_000]).unwrap();
    let error = embedded(&path).await.unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
    assert!(error.to_string().contains("store is damaged") && error.to_string().contains("move it away"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), vec![7; 100_000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_nothing_and_the_store_goes_on_when_there_is_room() {
    let Some(disk) = SmallDisk::mount("8m") else {
        return eprintln!("skipped: mounting a small disk needs root");
    };
    let ballast = disk.path().join("ballast");
    let store = embedded(&disk.path().join("store")).await.unwrap();
    commit(&store, vec![], vec![put("a", "kept")]).await.unwrap();
    // What the disk has left is taken, to the last byte.
    let _ = std::fs::write(&ballast, vec![0; 8 << 20]);
    let large = "x".repeat(64 << 10);
    let mut written = 0;
    loop {
        let ops = vec![put(&format!("fill/{written:03}"), &large)];
        match store.txn(Txn { compares: vec![], ops }).await.unwrap() {
            TxnOutcome::Committed(_) => written += 1,
            TxnOutcome::Unknown => break,
            TxnOutcome::Refused(_) => panic!("there is no condition to refuse"),
        }
        assert!(written < 1000, "the disk does not fill");
    }
    std::fs::remove_file(&ballast).unwrap();
    until("the store to take writes again", || async {
        matches!(store.txn(Txn { compares: vec![], ops: vec![put("b", "1")] }).await, Ok(TxnOutcome::Committed(_)))
    })
    .await;
    assert_eq!(&*store.get("a").await.unwrap().unwrap().value, b"kept");
    assert!(store.list("fill/", "fill0").await.unwrap().entries.len() >= written, "what was answered is there");
}
