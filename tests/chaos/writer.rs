//! Keeps changing the source, in every way that a source can change.

use std::time::Duration;

use etcd_client::{Client, ConnectOptions, DeleteOptions, Txn, TxnOp};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng as _, SeedableRng as _},
};
use tokio::{sync::oneshot, task::JoinHandle, time};

const TABLES: u64 = 10;
const KEYS: u64 = 40;
/// Between two changes.
const PAUSE: Duration = Duration::from_millis(15);
/// How long an answer is waited for, and how long until the next attempt.
const PATIENCE: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(100);

/// Writes until it is stopped.
pub(crate) struct Writer {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// The next change; each value is there once in all history, so that any order can be told from any other.
fn change(rng: &mut ChaCha8Rng, number: &mut u64, prefix: &str) -> Txn {
    let mut below = |n: u64| rng.next_u64() % n;
    let (kind, table) = (below(40), below(TABLES));
    let mut put = |table: u64, row: u64| {
        *number += 1;
        TxnOp::put(format!("{prefix}t{table}/{row}"), number.to_string(), None)
    };
    let ops = match kind {
        // A table goes, and another change brings it back.
        0 => vec![TxnOp::delete(format!("{prefix}t{table}/"), Some(DeleteOptions::new().with_prefix()))],
        1..6 => vec![TxnOp::delete(format!("{prefix}t{table}/{}", below(KEYS)), None)],
        // Many keys at once, in tables that different captures have.
        6..12 => {
            let from = below(KEYS);
            (0..TABLES).flat_map(|table| [from, from + 1].map(|row| (table, row))).map(|(t, row)| put(t, row)).collect()
        }
        _ => vec![put(table, below(KEYS))],
    };
    Txn::new().and_then(ops)
}

impl Writer {
    /// Begins; an etcd that goes away is waited for.
    pub(crate) fn start(url: String, options: ConnectOptions, prefix: &'static str, seed: u64) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let (mut rng, mut number) = (ChaCha8Rng::seed_from_u64(seed), 0);
            let mut client: Option<Client> = None;
            loop {
                let written = async {
                    let mut connected = match client.take() {
                        Some(client) => client,
                        None => Client::connect([&url], Some(options.clone())).await?,
                    };
                    connected.txn(change(&mut rng, &mut number, prefix)).await?;
                    Ok::<_, etcd_client::Error>(connected)
                };
                client = time::timeout(PATIENCE, written).await.ok().and_then(Result::ok);
                let pause = if client.is_some() { PAUSE } else { RETRY };
                if time::timeout(pause, &mut stopped).await.is_ok() {
                    return;
                }
            }
        });
        Self { stop, task }
    }

    pub(crate) async fn stop(self) {
        let _ = self.stop.send(());
        self.task.await.unwrap();
    }
}
