//! The operator as a process: caches of what Kubernetes has, connections to clusters, and the stages run for each
//! `CaptureDrain` by the replica that holds the Lease.

mod cache;
mod certificates;
mod clusters;
mod error;
mod hooks;
mod lease;
mod leaving;
mod metrics;
mod probe;
mod reconcile;
mod resolve;
mod rollouts;
mod uninstall;
mod webhook;
mod write;

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use futures::{FutureExt as _, StreamExt as _, stream};
use kube::{
    Client,
    runtime::{
        Controller,
        controller::{self, Config},
        events::{Recorder, Reporter},
        reflector::ObjectRef,
    },
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time,
};
use tokio_stream::wrappers::UnboundedReceiverStream;

use self::{
    cache::Caches, certificates::Keeper, clusters::Clusters, leaving::Leaving, metrics::Metrics, reconcile::Context,
};
use super::certificates::{authority::Unusable, plan::Settings};
use crate::resource::CaptureDrain;

pub use self::uninstall::{Uninstall, UninstallError, Uninstalled, uninstall};
pub(crate) use self::{
    cache::namespaced,
    clusters::ClusterKey,
    resolve::{CA, CERTIFICATE, Data, KEY, addresses, connect, pem, slices},
};

/// Who writes, as Kubernetes is told.
const MANAGER: &str = "capturedrain-operator";
/// How many drains are reconciled at once.
const CONCURRENCY: u16 = 8;
/// How long what is being carried out may take once the process is to end.
const GOODBYE: Duration = Duration::from_secs(5);

/// How the operator runs.
#[derive(Debug, Clone)]
pub struct OperatorConfig {
    /// Where probes and metrics are served.
    pub addr: SocketAddr,
    /// The only namespace that is looked after; `None`: all.
    pub namespace: Option<String>,
    /// Where the Lease is, and what it is called.
    pub lease: (String, String),
    /// Who this replica is.
    pub identity: String,
    /// How long the Lease outlives its holder.
    pub lease_duration: Duration,
    /// How long a deleted drain of a cluster that cannot be reached keeps its object.
    pub let_go_after: Duration,
    /// How evictions are answered; `None`: they are not.
    pub webhook: Option<WebhookConfig>,
}

/// How evictions are answered.
#[derive(Debug, Clone)]
pub struct WebhookConfig {
    /// Where.
    pub addr: SocketAddr,
    /// The `MutatingWebhookConfiguration` that sends them.
    pub configuration: String,
    /// The Secret with the certificates, in the namespace of the Lease.
    pub secret: String,
    /// Whether the Secret is somebody else's, who also has its CA believed.
    pub is_given: bool,
    /// How certificates are made; the first name is the one by which the API server calls.
    pub certificates: Settings,
    /// How long evictions are answered once the process is to end.
    pub linger: Duration,
}

/// Why the operator cannot run.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The address is taken, or not one of this machine.
    #[error("cannot listen on {addr}")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The TLS library refuses.
    #[error("TLS cannot be set up")]
    Tls(#[source] Unusable),
}

/// Runs until `stop`, then gives the Lease back.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn run(
    config: OperatorConfig,
    client: Client,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), OperatorError> {
    let addr = config.addr;
    let listener = TcpListener::bind(addr).await.map_err(|source| OperatorError::Listen { addr, source })?;
    let caches = Caches::start(&client, config.namespace.as_deref());
    let metrics = Arc::new(Metrics::new(caches.clone(), config.webhook.is_some()));
    let (ending, stopped) = watch::channel(false);
    tokio::spawn(stop.map(move |()| ending.send_replace(true)));
    let (hook, certificates) = match &config.webhook {
        None => (None, None),
        Some(webhook) => {
            let (keeper, shown, state) = Keeper::new(&client, &config.lease.0, webhook, metrics.clone());
            let around = (&caches, &metrics);
            let recorder = recorder(&client, &config);
            let listener = webhook::open(webhook.addr, &client, around, recorder, shown, stopped.clone()).await?;
            tracing::info!(addr = %webhook.addr, "evictions are answered");
            (Some((listener, tokio::spawn(keeper.run()), webhook.linger)), Some(state))
        }
    };
    let hall = probe::Hall::new(caches.clone(), metrics.clone(), certificates, stopped.clone());
    let server = tokio::spawn(probe::serve(listener, hall));
    let mut lease = lease::compete(&client, &config);
    tracing::info!(%addr, identity = config.identity, "operator started");
    loop {
        if until(&mut lease, stopped.clone(), true).await {
            break;
        }
        metrics.set_leader(true);
        tracing::info!(identity = config.identity, "this replica has the lease and reconciles");
        let lost = lease.clone();
        lead(&client, &caches, &metrics, &config, lost, stopped.clone()).await;
        metrics.set_leader(false);
        if *stopped.borrow() {
            break;
        }
        tracing::warn!(identity = config.identity, "this replica has lost the lease");
    }
    // Nobody listens to the lease any more, so it is given back.
    lease.release().await;
    if let Some((listener, keeper, linger)) = hook {
        // Until everybody knows that this replica is going.
        time::sleep(linger).await;
        listener.end().await;
        keeper.abort();
    }
    server.abort();
    Ok(())
}

fn recorder(client: &Client, config: &OperatorConfig) -> Recorder {
    let reporter = Reporter { controller: MANAGER.to_owned(), instance: Some(config.identity.clone()) };
    Recorder::new(client.clone(), reporter)
}

/// Waits until the lease is held, or is not; `true` when the process is to end.
async fn until(lease: &mut lease::Lease, mut stopped: watch::Receiver<bool>, held: bool) -> bool {
    tokio::select! {
        biased;
        _ = stopped.wait_for(|stopped| *stopped) => true,
        () = lease.until(held) => false,
    }
}

/// Reconciles until the lease is lost or the process is to end.
async fn lead(
    client: &Client,
    caches: &Caches,
    metrics: &Arc<Metrics>,
    config: &OperatorConfig,
    mut lease: lease::Lease,
    stopped: watch::Receiver<bool>,
) {
    let (clusters, news) = Clusters::new(client.clone(), metrics.clone());
    let clusters = Arc::new(clusters);
    let (told, heard) = mpsc::unbounded_channel();
    let news = news.inspect(move |key| {
        // Nobody follows what leaves any more once the lease is lost.
        let _ = told.send(key.clone());
    });
    let recorder = recorder(client, config);
    let leaving = Leaving::new(caches.clone(), clusters.clone(), recorder.clone());
    let context =
        Context::new(client.clone(), caches.clone(), clusters, recorder, metrics.clone(), config.let_go_after);
    let context = Arc::new(context);
    let mut ended = Box::pin(async move { until(&mut lease, stopped, false).await }).shared();
    let drains = caches.drains.clone();
    let of_cluster = news.flat_map(move |key| stream::iter(cache::unfinished(&drains, |drain| key.is_of(drain))));
    let everything = caches.clone();
    let ready = async move { everything.ready().await }.map(drop).into_stream();
    let concerned = caches.concerned();
    let controller = Controller::for_shared_stream(stream::pending(), caches.drains.clone())
        .with_config(Config::default().concurrency(CONCURRENCY))
        .reconcile_all_on(ready)
        .reconcile_on(of_cluster)
        .reconcile_on(concerned)
        .graceful_shutdown_on(ended.clone().map(|_| ()));
    let mut rounds = Box::pin(controller.run(reconcile::reconcile, reconcile::retry, context.clone()));
    let told = async {
        while let Some(round) = rounds.next().await {
            tell(&round);
        }
    };
    tokio::select! {
        () = told => {}
        () = leaving.follow(UnboundedReceiverStream::new(heard)) => {}
        () = async { (&mut ended).await; time::sleep(GOODBYE).await } => {}
    }
}

type Round = Result<
    (ObjectRef<CaptureDrain>, controller::Action),
    controller::Error<error::Error, kube::runtime::watcher::Error>,
>;

fn tell(round: &Round) {
    match round {
        Ok(_) | Err(controller::Error::ObjectNotFound(_)) => {}
        Err(controller::Error::ReconcilerFailed(error, object)) => {
            let (namespace, category) = (object.namespace.as_deref().unwrap_or_default(), error.category());
            tracing::warn!(namespace, name = object.name, category, error = %error.chain(), "a round failed");
        }
        Err(error) => tracing::warn!(%error, "the controller failed for a moment"),
    }
}
