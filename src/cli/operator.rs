//! `capturedrain operator`

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, ValueEnum};
use kube::Client;

use super::{
    exit::{Exit, Failure},
    kubeconfig::config,
    signals::Signals,
    value,
};
use crate::operator::{
    certificates::plan::Settings,
    controller::{OperatorConfig, OperatorError, WebhookConfig, run as operate},
};

/// Shortest time of the Lease.
const LEASE_MIN: Duration = Duration::from_secs(3);
/// Shortest life of a certificate.
const CERT_LIFE_MIN: Duration = Duration::from_secs(3);

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
    #[command(flatten)]
    webhook: WebhookArgs,
}

/// How evictions are answered.
#[derive(Debug, Args)]
#[allow(clippy::struct_field_names, reason = "options are called after them")]
#[command(next_help_heading = "Eviction webhook")]
struct WebhookArgs {
    /// Where evictions are answered, over TLS [default: they are not]
    #[arg(long, env = "CAPTUREDRAIN_WEBHOOK_ADDR", value_name = "HOST:PORT")]
    webhook_addr: Option<SocketAddr>,
    /// `MutatingWebhookConfiguration` that sends them, whose `caBundle` is kept up to date
    #[arg(long, env = "CAPTUREDRAIN_WEBHOOK_NAME", default_value = "capturedrain-operator", value_name = "NAME")]
    webhook_name: String,
    /// Service by which the API server calls, in the namespace of the Lease
    #[arg(long, env = "CAPTUREDRAIN_WEBHOOK_SERVICE", default_value = "capturedrain-operator", value_name = "NAME")]
    webhook_service: String,
    /// Names and addresses by which it is called otherwise, as by a configuration with a URL
    #[arg(long, env = "CAPTUREDRAIN_WEBHOOK_HOST", value_name = "NAME[,NAME…]", value_delimiter = ',')]
    webhook_host: Vec<String>,
    /// Secret with the certificates, in the namespace of the Lease
    #[arg(
        long,
        env = "CAPTUREDRAIN_WEBHOOK_SECRET",
        default_value = "capturedrain-operator-webhook",
        value_name = "NAME"
    )]
    webhook_secret: String,
    /// Whose certificates are served
    #[arg(long, env = "CAPTUREDRAIN_WEBHOOK_CERT_MODE", value_enum, default_value_t = CertMode::Own, value_name = "MODE")]
    webhook_cert_mode: CertMode,
    /// How long a certificate of one's own is good for; it is replaced when a third is left
    #[arg(long, env = "CAPTUREDRAIN_WEBHOOK_CERT_LIFE", value_name = "DURATION", default_value = "720h", value_parser = value::duration)]
    webhook_cert_life: Duration,
    /// How long each step of a change of CA waits for API servers to know of the one before
    #[arg(long, env = "CAPTUREDRAIN_WEBHOOK_CA_WAIT", value_name = "DURATION", default_value = "5m", value_parser = value::duration)]
    webhook_ca_wait: Duration,
    /// How long evictions are still answered after SIGTERM
    #[arg(long, env = "CAPTUREDRAIN_WEBHOOK_LINGER", value_name = "DURATION", default_value = "10s", value_parser = value::duration)]
    webhook_linger: Duration,
}

/// Whose certificates are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CertMode {
    /// They are made and rotated by the operator
    #[value(name = "self")]
    Own,
    /// What the Secret holds, as cert-manager fills it and has its CA believed
    Secret,
}

impl WebhookArgs {
    fn config(self, namespace: &str) -> Result<Option<WebhookConfig>, Failure> {
        let Some(addr) = self.webhook_addr else { return Ok(None) };
        if self.webhook_cert_life < CERT_LIFE_MIN {
            return Err(Failure::usage(format!(
                "--webhook-cert-life has to be at least {} s",
                CERT_LIFE_MIN.as_secs()
            )));
        }
        let mut names = vec![format!("{}.{namespace}.svc", self.webhook_service)];
        names.extend(self.webhook_host);
        Ok(Some(WebhookConfig {
            addr,
            configuration: self.webhook_name,
            secret: self.webhook_secret,
            is_given: self.webhook_cert_mode == CertMode::Secret,
            certificates: Settings { names, life: self.webhook_cert_life, wait: self.webhook_ca_wait },
            linger: self.webhook_linger,
        }))
    }
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
        webhook: args.webhook.config(&namespace)?,
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
