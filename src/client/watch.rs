//! Follows a drain for ever, over any number of coordinators.

use std::time::Duration;

use futures::{Stream, stream};
use tokio::time::{self, Instant};
use tonic::{Status, Streaming};

use super::{Attempt, Client, ClientError, ClusterView, Drains, RETRY, judge};
use crate::wire::{pb, refusal};

/// How long nobody at all may answer before the following ends: longer than a rolled cluster is away.
pub const SILENCE: Duration = Duration::from_secs(30);

/// Where the following stands.
struct Following {
    client: Client,
    /// When anybody answered last, were it that he does not know who coordinates.
    heard_at: Instant,
    /// Which server is asked next.
    next: usize,
    follow: Option<String>,
    stream: Option<Streaming<pb::WatchDrainResponse>>,
    /// Whether the loss of the coordinator was told since the last view.
    told: bool,
}

impl Client {
    /// The state of the drain now and on each change. A lost coordinator is an `Err` in it, told once, and not the end.
    ///
    /// It ends when none of the servers, and of the captures that the last view named, has answered for [`SILENCE`].
    pub fn watch(&self) -> impl Stream<Item = Result<ClusterView, ClientError>> + Send + use<> {
        let start = Following {
            client: self.clone(),
            heard_at: Instant::now(),
            next: 0,
            follow: None,
            stream: None,
            told: false,
        };
        stream::unfold(start, |mut following| async move {
            let item = following.item().await?;
            Some((item, following))
        })
    }
}

impl Following {
    /// What is next; `None` after too much silence.
    async fn item(&mut self) -> Option<Result<ClusterView, ClientError>> {
        loop {
            let attempt = match self.advance().await {
                Ok(view) => {
                    self.told = false;
                    self.heard_at = Instant::now();
                    return Some(self.client.read(view));
                }
                Err(attempt) => attempt,
            };
            if self.stream.take().is_some() {
                // It was there until now, however long it had nothing to say.
                self.heard_at = Instant::now();
            }
            if self.heard_at.elapsed() >= SILENCE {
                return None;
            }
            match attempt {
                Attempt::Follow(addr) => {
                    // Captures may disagree for a moment on who coordinates.
                    self.follow = Some(addr);
                    time::sleep(RETRY / 4).await;
                }
                Attempt::Later(reason) => {
                    time::sleep(RETRY).await;
                    if !self.told {
                        self.told = true;
                        return Some(Err(self.client.unreachable(reason)));
                    }
                }
                Attempt::Never(error) => {
                    time::sleep(RETRY).await;
                    return Some(Err(error));
                }
            }
        }
    }

    async fn advance(&mut self) -> Result<pb::DrainView, Attempt> {
        if self.stream.is_none() {
            let servers = self.client.servers.all();
            let addr = self.follow.take().unwrap_or_else(|| {
                self.next += 1;
                servers[(self.next - 1) % servers.len()].clone()
            });
            let connected = self.client.connect(&addr).await;
            let mut drains: Drains = connected.map_err(|why| Attempt::Later(format!("{addr}: {why}")))?;
            let opening = drains.watch_drain(pb::WatchDrainRequest {});
            let opened = time::timeout(self.client.attempt_timeout(), opening).await;
            let opened = opened.map_err(|_| Attempt::Later(format!("{addr} took too long")))?;
            self.stream = Some(opened.map_err(|status| self.judge(&status))?.into_inner());
        }
        let Some(stream) = &mut self.stream else { return Err(Attempt::Later(String::new())) };
        match stream.message().await {
            Ok(Some(message)) => Ok(message.view.unwrap_or_default()),
            Ok(None) => Err(Attempt::Later("the coordinator has ended".to_owned())),
            Err(status) => Err(self.judge(&status)),
        }
    }

    fn judge(&mut self, status: &Status) -> Attempt {
        // A refusal comes from a capture; everything else may come from the wire.
        if refusal::from_status(status).is_some() {
            self.heard_at = Instant::now();
        }
        judge(status)
    }
}
