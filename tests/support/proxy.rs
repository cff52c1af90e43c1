//! A connection that a test can cut, or let stand still after so many bytes.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// Stands before a server.
pub(crate) struct Proxy {
    port: u16,
    /// How many bytes of answers may still pass.
    allowance: watch::Sender<u64>,
    /// Changes when all connections end.
    cut: watch::Sender<u64>,
    passed: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Stands before a port of this machine; all passes.
    pub(crate) async fn before(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (allowance, allowed) = watch::channel(u64::MAX);
        let (cut, cuts) = watch::channel(0);
        let passed = Arc::new(AtomicU64::new(0));
        let counted = passed.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (allowed, mut cuts, counted) = (allowed.clone(), cuts.clone(), counted.clone());
                cuts.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { return };
                    let ((from_client, to_client), (from_server, to_server)) =
                        (client.into_split(), server.into_split());
                    let questions = AtomicU64::new(0);
                    tokio::select! {
                        () = pass(from_client, to_server, None, &questions) => {}
                        () = pass(from_server, to_client, Some(allowed), &counted) => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Self { port, allowance, cut, passed, task }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Lets so many more bytes of answers pass, and then nothing.
    pub(crate) fn stall_after(&self, bytes: u64) {
        self.allowance.send(self.passed.load(Ordering::SeqCst) + bytes).unwrap();
    }

    /// Lets everything pass.
    pub(crate) fn release(&self) {
        self.allowance.send(u64::MAX).unwrap();
    }

    /// Ends all connections.
    pub(crate) fn cut(&self) {
        self.cut.send_modify(|cuts| *cuts += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut allowance: Option<watch::Receiver<u64>>,
    passed: &AtomicU64,
) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        if let Some(allowance) = &mut allowance {
            let room = |allowed: &u64| passed.load(Ordering::SeqCst) < *allowed;
            if allowance.wait_for(room).await.is_err() {
                return;
            }
        }
        let Ok(count @ 1..) = from.read(&mut buffer).await else { return };
        passed.fetch_add(count as u64, Ordering::SeqCst);
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
