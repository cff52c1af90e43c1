//! A capture as a process: runs the core over store, doors and data path.

mod driver;
mod serve;
mod shutdown;
mod trouble;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use capturedrain_core::{
    model::{ChangefeedConfig, CommitTs, Halt, NameError, Options, Registration, Snapshot},
    process::Process,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
};

pub use serve::identity;
pub use serve::{Ending, ServeConfig, serve};
pub use shutdown::Farewell;

use self::driver::{Driver, Order, Tasks};
use crate::{
    client::Client,
    door::Door,
    http::ProbeError,
    listener::{Limits, Listener},
    metrics::Metrics,
    pipeline::Pipeline,
    store::AnyStore,
    tls::{Current, Dialer, TlsError},
    wire::Peers,
};

/// How many calls may wait for the core.
const CALLS_MAX: usize = 1024;

/// A capture that cannot be started, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Its address is not to be had.
    #[error("cannot listen on {addr}: {source}; choose another --addr, or end what uses it")]
    Listen {
        /// `host:port`
        addr: String,
        /// Why.
        source: std::io::Error,
    },
    /// A name that was made of the options cannot be used.
    #[error(transparent)]
    Name(#[from] NameError),
    /// It cannot work on what is in the store, or with who is there.
    #[error(transparent)]
    Halt(#[from] Halt),
    /// The doors ended.
    #[error("the server on {addr} failed: {source}")]
    Serve {
        /// `host:port`
        addr: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// It cannot say who it is.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A part of it panicked.
    #[error("a task of the capture ended unexpectedly: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// What one capture needs to start.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The cluster's name.
    pub cluster: Arc<str>,
    /// How it registers; the node epoch does not matter.
    pub identity: Registration,
    /// How the cluster behaves.
    pub options: Options,
    /// Where its state is persisted.
    pub store: AnyStore,
}

/// How a capture deals with others: who it says it is, and what it lets them use up.
#[derive(Debug, Clone, Default)]
pub struct Manners {
    /// `None`: everything in the clear.
    pub credentials: Option<Current>,
    /// What callers may use up.
    pub limits: Limits,
}

/// A running capture.
#[derive(Debug)]
pub struct Node {
    door: Door,
    addr: SocketAddr,
    /// A way to the cluster, by this capture.
    client: Client,
    orders: mpsc::Sender<Order>,
    driver: JoinHandle<Result<(), Halt>>,
    listener: Listener,
}

/// Takes an address to listen on.
///
/// # Errors
/// When it is taken or not of this machine.
pub async fn listen(addr: &str) -> Result<TcpListener, NodeError> {
    TcpListener::bind(addr).await.map_err(|source| NodeError::Listen { addr: addr.to_owned(), source })
}

/// Looks whether a changefeed could be run from here, and from where it starts.
async fn probe(config: ChangefeedConfig, start_ts: Option<CommitTs>) -> Result<(CommitTs, Vec<String>), ProbeError> {
    let found = crate::pipeline::probe(&config, start_ts).await;
    let found = found.map_err(|error| (error.category(), error.to_string()))?;
    Ok((found.start_ts, found.warnings))
}

/// Where a capture reaches itself: over TLS by the name that its certificate has.
fn own_addr(dialer: &Dialer, addr: SocketAddr, identity: &Registration) -> String {
    if dialer.is_secure() { identity.advertise_addr.to_string() } else { addr.to_string() }
}

impl Node {
    /// Starts a capture behind a listener, everything in the clear.
    ///
    /// # Errors
    /// When the listener has no address.
    pub fn start(config: NodeConfig, listener: TcpListener) -> Result<Self, NodeError> {
        Self::start_with(config, Manners::default(), listener)
    }

    /// Starts a capture behind a listener.
    ///
    /// # Errors
    /// When the listener has no address, or the credentials are no good for a server.
    pub fn start_with(config: NodeConfig, manners: Manners, listener: TcpListener) -> Result<Self, NodeError> {
        let addr = listener.local_addr().map_err(|source| NodeError::Listen { addr: String::new(), source })?;
        let (calls, call_inbox) = mpsc::channel(CALLS_MAX);
        let (work_events, work) = mpsc::channel(driver::EVENTS_MAX);
        let (orders, order_inbox) = mpsc::channel(4);
        let (snapshots, latest) = watch::channel(Arc::new(Snapshot::default()));
        let dialer = Dialer::with(manners.credentials.clone())?;
        let client = Client::of_capture(own_addr(&dialer, addr, &config.identity), dialer.clone());
        let metrics = Arc::new(Metrics::new(latest.clone()));
        let door = Door {
            cluster: config.cluster,
            capture: config.identity.id.clone(),
            pod_uid: config.identity.pod_uid.clone(),
            calls,
            snapshots: latest,
            metrics: metrics.clone(),
        };
        let driver = Driver {
            lease_ttl: config.options.lease,
            process: Process::new(config.identity, config.options),
            store: config.store,
            peers: Peers::new(dialer.clone()),
            pipeline: Pipeline::new(work_events),
            calls: call_inbox,
            work,
            orders: order_inbox,
            snapshots,
            metrics,
            tasks: Tasks::new(),
        };
        let probe: crate::http::Probe = Arc::new(|config, start_ts| Box::pin(probe(config, start_ts)));
        let doors = crate::wire::router(door.clone()).merge(crate::http::router(door.clone(), probe, dialer));
        let listener = Listener::start(listener, doors, manners.credentials, manners.limits)?;
        Ok(Self { door, addr, client, orders, driver: tokio::spawn(driver.run()), listener })
    }

    /// The way to ask it.
    pub fn door(&self) -> &Door {
        &self.door
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// Why it ended.
    pub async fn ended(&mut self) -> Result<(), NodeError> {
        tokio::select! {
            outcome = &mut self.driver => Ok(outcome??),
            outcome = self.listener.ended() => outcome?.map_err(|source| NodeError::Serve { addr: self.addr, source }),
        }
    }

    /// Drains it, as long as that may take, and ends it: what SIGTERM does.
    pub async fn shut_down(self, timeout: Duration) -> Farewell {
        let _ = self.orders.send(Order::Terminate).await;
        let farewell = shutdown::drain_self(&self.door, &self.client, timeout).await;
        let _ = self.orders.send(Order::Leave).await;
        let _ = self.driver.await;
        self.listener.end().await;
        farewell
    }

    /// Ends it at once, nothing flushed and no lease given back: what a kill does.
    pub async fn kill(self) {
        self.driver.abort();
        // Both have to be gone before anybody counts on it.
        self.listener.cut().await;
        let _ = self.driver.await;
    }
}
