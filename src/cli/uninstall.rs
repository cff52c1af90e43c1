//! `capturedrain operator-uninstall`

use std::{fmt::Write as _, path::PathBuf, time::Duration};

use clap::Args;

use super::{
    Printing,
    exit::{Exit, Failure},
    kubeconfig::client,
    signals::Signals,
    value,
};
use crate::operator::controller::{Uninstall, UninstallError, Uninstalled, uninstall};

/// Leave nothing behind that could hold anything up, before an operator is removed
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  capturedrain operator-uninstall --webhook-name capturedrain
  capturedrain operator-uninstall --namespace shop --timeout 30s

Deletes the webhook, then every `CaptureDrain` that has not ended, which calls its drain off; the operator has to run for \
that. Those that are still held shortly before the time is up are let go, and named: their drains may go on. The chart runs \
this before it removes the operator.

Exit codes: 0 nothing is left, 5 the API server does not answer or something is left, 10 rights are missing, 12 the \
kubeconfig is no good.")]
pub(super) struct UninstallArgs {
    /// The only namespace that the operator looks after [default: all]
    #[arg(long, env = "CAPTUREDRAIN_NAMESPACE", value_name = "NAME")]
    namespace: Option<String>,
    /// Its `MutatingWebhookConfiguration` [default: it has none]
    #[arg(long, env = "CAPTUREDRAIN_WEBHOOK_NAME", value_name = "NAME")]
    webhook_name: Option<String>,
    /// How long all of this may take
    #[arg(long, env = "CAPTUREDRAIN_TIMEOUT", value_name = "DURATION", default_value = "90s", value_parser = value::duration)]
    timeout: Duration,
    /// How the API server is reached [default: KUBECONFIG, ~/.kube/config, or the pod's own account]
    #[arg(long, env = "CAPTUREDRAIN_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

pub(super) async fn run(args: UninstallArgs, printing: &Printing) -> Result<Exit, Failure> {
    let mut signals = Signals::listen()?;
    let client = client(args.kubeconfig.as_deref()).await?;
    let name = |name: Option<String>| name.filter(|name| !name.is_empty());
    let what = Uninstall { namespace: name(args.namespace), webhook: name(args.webhook_name), timeout: args.timeout };
    let gone = tokio::select! {
        gone = uninstall(&client, &what) => gone?,
        exit = signals.next() => return Ok(exit),
    };
    printing.print(&gone, text)?;
    Ok(Exit::Done)
}

fn text(gone: &Uninstalled) -> String {
    let mut text = "the webhook is gone\n".to_owned();
    for drain in &gone.withdrawn {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "withdrawn: {drain}");
    }
    for drain in &gone.released {
        let _ = writeln!(
            text,
            "released: {drain} could not be withdrawn in time; if its drain goes on, `capturedrain cancel` ends it"
        );
    }
    text
}

impl From<UninstallError> for Failure {
    fn from(error: UninstallError) -> Self {
        let exit = match error.category {
            "forbidden" | "unauthenticated" => Exit::Unauthorised,
            _ => Exit::Unreachable,
        };
        Self::new(exit, error)
    }
}
