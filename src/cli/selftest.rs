//! `capturedrain operator-selftest`

use std::{path::PathBuf, time::Duration};

use clap::Args;
use tokio::time::{self, Instant};

use super::{
    Printing,
    exit::{Exit, Failure},
    kubeconfig::client,
    kubectl::check,
    signals::Signals,
    value,
};
use crate::plugin::{Finding, Level, SelfTest, selftest};

/// How often it is looked again while something fails.
const PACE: Duration = Duration::from_secs(1);
/// How long one look may take.
const LOOK: Duration = Duration::from_secs(30);

/// Say from inside the cluster whether an operator does its work: CRD, Lease, webhook
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  capturedrain operator-selftest --lease-namespace capturedrain
  capturedrain operator-selftest --webhook-name capturedrain --timeout 10s

Looks again until nothing fails or the time is up. The webhook is called as the API server calls it, believed by its caBundle \
alone. `helm test` runs this.

Exit codes, that of the first failure:
    0  nothing fails; there may be warnings
    3  something is missing: the CRD, a holder of the Lease, the webhook
    5  the API server or the webhook does not answer
   10  rights are missing, or the caBundle is not who signs for the webhook
   12  something is no good: no caBundle, an answer that makes no sense")]
pub(super) struct SelfTestArgs {
    /// Namespace of the operator's Lease [default: the pod's, or `default`]
    #[arg(long, env = "CAPTUREDRAIN_LEASE_NAMESPACE", value_name = "NAME")]
    lease_namespace: Option<String>,
    /// Name of the Lease
    #[arg(long, env = "CAPTUREDRAIN_LEASE_NAME", default_value = "capturedrain-operator", value_name = "NAME")]
    lease_name: String,
    /// Its `MutatingWebhookConfiguration` [default: it has none]
    #[arg(long, env = "CAPTUREDRAIN_WEBHOOK_NAME", value_name = "NAME")]
    webhook_name: Option<String>,
    /// How long it may take until nothing fails; it is looked once at least
    #[arg(long, env = "CAPTUREDRAIN_TIMEOUT", value_name = "DURATION", default_value = "60s", value_parser = value::duration)]
    timeout: Duration,
    /// How the API server is reached [default: KUBECONFIG, ~/.kube/config, or the pod's own account]
    #[arg(long, env = "CAPTUREDRAIN_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

pub(super) async fn run(args: SelfTestArgs, printing: &Printing) -> Result<Exit, Failure> {
    let mut signals = Signals::listen()?;
    let client = client(args.kubeconfig.as_deref()).await?;
    let namespace = args.lease_namespace.unwrap_or_else(|| client.default_namespace().to_owned());
    let webhook = args.webhook_name.filter(|name| !name.is_empty());
    let wanted = SelfTest { lease: (namespace, args.lease_name), webhook };
    let until = Instant::now() + args.timeout;
    let looking = async {
        loop {
            let found = time::timeout(LOOK, selftest(&client, &wanted)).await.ok();
            let is_well = found.as_ref().is_some_and(|found| !found.iter().any(is_failure));
            if is_well || Instant::now() >= until {
                return found;
            }
            time::sleep(PACE).await;
        }
    };
    let found = tokio::select! {
        found = looking => found,
        exit = signals.next() => return Ok(exit),
    };
    let nobody = || Failure::new(Exit::Unreachable, format!("nobody has answered within {} s", LOOK.as_secs()));
    let found = found.ok_or_else(nobody)?;
    printing.print(&found, |found| check::text(found))?;
    Ok(check::exit(&found))
}

fn is_failure(finding: &Finding) -> bool {
    matches!(finding.level, Level::Failure(_))
}
