//! `capturedrain server`: captures from their options to their end by a signal.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use capturedrain_core::model::{CaptureId, NodeEpoch, Options, PROTOCOL, Registration, VALUE_VERSION};
use futures::future::join_all;
use tokio::signal::unix::{SignalKind, signal};

use super::{Farewell, Manners, Node, NodeConfig, NodeError, listen};
use crate::{
    store::AnyStore,
    tls::{Credentials, Current, Files},
};

/// What a server is told.
#[derive(Debug, Clone)]
pub struct ServeConfig {
    /// The cluster's name.
    pub cluster: Arc<str>,
    /// The first capture's name; `None`: `capture` and the port or number.
    pub id: Option<CaptureId>,
    /// `host:port` to listen on; the port counts up with the captures.
    pub addr: SocketAddr,
    /// `host:port` at which others reach the first capture, the port counting up with the captures; `None`: the address
    /// that it listens on.
    pub advertise_addr: Option<String>,
    /// How many captures this process runs.
    pub captures: u16,
    /// Its Kubernetes pod.
    pub pod_name: Option<String>,
    /// That pod's UID.
    pub pod_uid: Option<String>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// How the cluster behaves.
    pub options: Options,
    /// How long SIGTERM waits for the drain.
    pub shutdown_timeout: Duration,
    /// Where the credentials are; `None`: everything in the clear.
    pub tls: Option<Files>,
}

/// How a capture presents itself.
pub fn identity(id: CaptureId, advertise_addr: &str) -> Registration {
    Registration {
        version: VALUE_VERSION,
        id,
        node_epoch: NodeEpoch::default(),
        advertise_addr: Arc::from(advertise_addr),
        pod_name: None,
        pod_uid: None,
        protocol: PROTOCOL,
        binary_version: Arc::from(env!("CARGO_PKG_VERSION")),
        labels: BTreeMap::new(),
        unknown: BTreeMap::new(),
    }
}

impl ServeConfig {
    /// The captures' registrations and the addresses that they listen on.
    fn identities(&self) -> Result<Vec<(Registration, SocketAddr)>, NodeError> {
        let mut captures = Vec::new();
        for n in 0..self.captures.max(1) {
            let mut addr = self.addr;
            let port = addr.port().checked_add(n).ok_or_else(|| no_port(self.addr.to_string(), n))?;
            addr.set_port(if self.addr.port() == 0 { 0 } else { port });
            let name = match (&self.id, self.captures) {
                (Some(id), 0..=1) => id.to_string(),
                (Some(id), _) => format!("{id}-{n}"),
                (None, 0..=1) => format!("capture-{}", addr.port()),
                (None, _) => format!("capture-{n}"),
            };
            let id = CaptureId::new(&name)?;
            let advertised = self.advertised(n)?.unwrap_or(addr.to_string());
            let mut registration = identity(id, &advertised);
            registration.pod_name = self.pod_name.as_deref().map(Arc::from);
            registration.pod_uid = self.pod_uid.as_deref().map(Arc::from);
            registration.labels.clone_from(&self.labels);
            captures.push((registration, addr));
        }
        Ok(captures)
    }

    /// Where others reach capture `n`; `None`: where it listens.
    fn advertised(&self, n: u16) -> Result<Option<String>, NodeError> {
        let Some((first, (host, port))) = self.advertise_addr.as_ref().and_then(|at| Some((at, at.rsplit_once(':')?)))
        else {
            return Ok(self.advertise_addr.clone());
        };
        let port = port.parse::<u16>().ok().and_then(|port| port.checked_add(n));
        let port = port.ok_or_else(|| no_port(first.clone(), n))?;
        Ok(Some(format!("{host}:{port}")))
    }
}

fn no_port(addr: String, n: u16) -> NodeError {
    NodeError::Listen { addr, source: std::io::Error::other(format!("there is no port for capture {n}")) }
}

/// How a server ended, once it was told to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// As it should: proven empty, or without a drain because none was wanted or nobody could have taken the work.
    Done,
    /// The time for the drain was up, and work was left.
    WorkLeft,
    /// By a second signal, SIGINT, before the drain was done.
    Interrupted,
    /// The same by SIGTERM.
    Terminated,
}

/// The host of a `host:port`.
fn host(addr: &str) -> &str {
    addr.rsplit_once(':').map_or(addr, |(host, _)| host)
}

/// Runs captures until SIGTERM or SIGINT; then has them drained, and ends.
///
/// A second signal ends at once. With all captures of a cluster in one process there is nobody who could take the work,
/// so they end without a drain.
///
/// # Errors
/// When one cannot be started, or cannot go on.
pub async fn serve(config: ServeConfig, store: AnyStore) -> Result<Ending, NodeError> {
    let identities = config.identities()?;
    let hosts: Vec<_> = identities.iter().map(|(identity, _)| host(&identity.advertise_addr).to_owned()).collect();
    let check = Arc::new(move |new: &Credentials| hosts.iter().try_for_each(|host| new.check_capture(host)));
    let credentials = config.tls.clone().map(|files| Current::follow(files, check)).transpose()?;
    if credentials.as_ref().is_some_and(|current| !current.get().is_mutual()) {
        tracing::warn!("without --tls-ca nobody is asked who he is: whoever reaches this port may drain");
    }
    let mut nodes = Vec::new();
    for (mut identity, addr) in identities {
        let listener = listen(&addr.to_string()).await?;
        if addr.port() == 0
            && config.advertise_addr.is_none()
            && let Ok(bound) = listener.local_addr()
        {
            identity.advertise_addr = Arc::from(bound.to_string());
        }
        tracing::info!(capture = %identity.id, addr = %identity.advertise_addr, "capture starts");
        let (cluster, options) = (config.cluster.clone(), config.options.clone());
        let manners = Manners { credentials: credentials.clone(), ..Manners::default() };
        let node = NodeConfig { cluster, identity, options, store: store.clone() };
        nodes.push(Node::start_with(node, manners, listener)?);
    }
    let signals = signal(SignalKind::terminate()).and_then(|term| Ok((term, signal(SignalKind::interrupt())?)));
    let (mut terminate, mut interrupt) = signals.map_err(|source| NodeError::Serve { addr: config.addr, source })?;
    let failed = {
        let ends = nodes.iter_mut().map(|node| Box::pin(node.ended()));
        tokio::select! {
            (ended, ..) = futures::future::select_all(ends) => Some(ended),
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
        }
    };
    if let Some(ended) = failed {
        return ended.map(|()| Ending::Done);
    }
    let timeout = if nodes.len() > 1 { Duration::ZERO } else { config.shutdown_timeout };
    let farewells = join_all(nodes.into_iter().map(|node| node.shut_down(timeout)));
    let ending = tokio::select! {
        farewells = farewells => if farewells.contains(&Farewell::TooLate) { Ending::WorkLeft } else { Ending::Done },
        _ = terminate.recv() => Ending::Terminated,
        _ = interrupt.recv() => Ending::Interrupted,
    };
    if matches!(ending, Ending::Terminated | Ending::Interrupted) {
        tracing::warn!("second signal, ending at once");
    }
    Ok(ending)
}
