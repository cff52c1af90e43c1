//! What a file alone does: locks, leases that are void, damage, full disks.

use std::{path::Path, time::Duration};

use capturedrain::store::{AnyStore, Store as _, StoreError};
use capturedrain_core::store::{Txn, TxnOutcome};

use crate::{END, commit, disk::SmallDisk, leased, put, until};

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
