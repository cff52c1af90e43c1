//! `capturedrain operator`

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use kube::Client;

use super::{
    exit::{Exit, Failure},
    kubeconfig::config,
    signals::Signals,
    value,
};
use crate::operator::controller::{OperatorConfig, OperatorError, run as operate};

/// Shortest time of the Lease.
const LEASE_MIN: Duration = Duration::from_secs(3);

/// Run the Kubernetes operator, which has the captures of `CaptureDrain` objects drained
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kubectl apply -f crds/capturedrain.yaml
  capturedrain operator                   as the kubeconfig or the own pod says
  capturedrain operator --namespace shop  looks after one namespace only

Several replicas may run: the one that holds the Lease reconciles, another takes over when it ends. SIGTERM gives the Lease \
back; drains that are on go on.")]
pub(super) struct OperatorArgs {
    /// Address for probes and metrics: /healthz, /readyz, /metrics
    #[arg(long, env = "CAPTUREDRAIN_ADDR", default_value = "127.0.0.1:8081", value_name = "HOST:PORT")]
    addr: SocketAddr,
    /// The only namespace that is looked after [default: all]
    #[arg(long, env = "CAPTUREDRAIN_NAMESPACE", value_name = "NAME")]
    namespace: Option<String>,
    /// How the API server is reached [default: KUBECONFIG, ~/.kube/config, or the pod's own account]
    #[arg(long, env = "CAPTUREDRAIN_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Namespace of the Lease [default: the pod's, or `default`]
    #[arg(long, env = "CAPTUREDRAIN_LEASE_NAMESPACE", value_name = "NAME")]
    lease_namespace: Option<String>,
    /// Name of the Lease: operators that share it take turns
    #[arg(long, env = "CAPTUREDRAIN_LEASE_NAME", default_value = "capturedrain-operator", value_name = "NAME")]
    lease_name: String,
    /// How long another replica waits for one that is silent
    #[arg(long, env = "CAPTUREDRAIN_LEASE_DURATION", value_name = "DURATION", default_value = "15s", value_parser = value::duration)]
    lease_duration: Duration,
    /// How long a deleted `CaptureDrain` is kept for a cluster that cannot be reached to call its drain off
    #[arg(long, env = "CAPTUREDRAIN_LET_GO_AFTER", value_name = "DURATION", default_value = "60s", value_parser = value::duration)]
    let_go_after: Duration,
    /// Name of this replica [default: its pod's, or a random one]
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    identity: Option<String>,
}

fn random_name() -> Result<String, Failure> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).map_err(|error| Failure::environment(format!("no randomness: {error}")))?;
    Ok(format!("operator-{:08x}", u32::from_le_bytes(bytes)))
}

pub(super) async fn run(args: OperatorArgs) -> Result<Exit, Failure> {
    if args.lease_duration < LEASE_MIN {
        return Err(Failure::usage(format!("--lease-duration has to be at least {} s", LEASE_MIN.as_secs())));
    }
    let path = args.kubeconfig.as_deref();
    let failed = |error| {
        let path = path.unwrap_or(Path::new("")).display();
        Failure::environment(format!("kubeconfig {path} is no good: {error}"))
    };
    let config = config(path, None, failed).await?;
    let namespace = args.lease_namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config).map_err(|error| Failure::environment(format!("the API server: {error}")))?;
    let operator = OperatorConfig {
        addr: args.addr,
        namespace: args.namespace,
        lease: (namespace, args.lease_name),
        identity: args.identity.map_or_else(random_name, Ok)?,
        lease_duration: args.lease_duration,
        let_go_after: args.let_go_after,
    };
    let mut signals = Signals::listen()?;
    let stop = async move {
        signals.next().await;
        tracing::info!("told to end: drains that are on go on");
    };
    operate(operator, client, stop).await?;
    Ok(Exit::Done)
}

impl From<OperatorError> for Failure {
    fn from(error: OperatorError) -> Self {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        Self::environment(format!("{error}{cause}"))
    }
}
