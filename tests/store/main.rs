//! Stores: one behaviour for all of them, and what each does when it fails.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod conformance;
#[path = "../support/disk.rs"]
mod disk;
mod embedded;
#[path = "../support/etcd.rs"]
mod etcd;
mod on_etcd;
#[path = "../support/processes.rs"]
#[allow(dead_code, reason = "shared with the tests on whole clusters")]
mod processes;
mod servers;

use std::time::Duration;

use capturedrain::store::Store;
use capturedrain_core::store::{Compare, LeaseId, Op, Txn, TxnOutcome};
use tokio::time;

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// More than any key.
pub(crate) const END: &str = "\u{7f}";

pub(crate) fn put(key: &str, value: &str) -> Op {
    Op::Put { key: key.into(), value: value.as_bytes().into(), lease: None }
}

pub(crate) fn leased(key: &str, lease: LeaseId) -> Op {
    Op::Put { key: key.into(), value: b"x".as_slice().into(), lease: Some(lease) }
}

pub(crate) async fn commit(store: &impl Store, compares: Vec<Compare>, ops: Vec<Op>) -> Option<u64> {
    match store.txn(Txn { compares, ops }).await.unwrap() {
        TxnOutcome::Committed(revision) => Some(revision),
        TxnOutcome::Refused(_) => None,
        TxnOutcome::Unknown => panic!("a store that is there answers"),
    }
}

/// Waits for a condition of the store.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let asking = async {
        while !holds().await {
            time::sleep(Duration::from_millis(50)).await;
        }
    };
    time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {what}"));
}
