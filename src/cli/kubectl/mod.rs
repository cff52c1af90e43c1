//! `kubectl capturedrain`: the same program under the name `kubectl-capturedrain`, and `capturedrain kubectl`.

pub(super) mod check;
mod status;

use std::{ffi::OsStr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use kube::Client;

use super::{
    Printing, block_on,
    exit::{Exit, Failure},
    kubeconfig::config,
};
use crate::plugin::Trouble;

/// The name by which kubectl finds the plugin.
const PLUGIN: &str = "kubectl-capturedrain";
/// kubectl's own options, as kubectl has them.
#[cfg(test)]
pub(super) const OWN_OPTIONS: [&str; 4] = ["namespace", "all_namespaces", "kubeconfig", "context"];
/// How long a connection to the API server may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether the program was started under the plugin's name.
pub(super) fn is_called(program: Option<&OsStr>) -> bool {
    let name = program.map(std::path::Path::new).and_then(|path| path.file_stem());
    name.is_some_and(|name| name.to_string_lossy().ends_with(PLUGIN))
}

/// See why a node does not empty, and whether everything is there that a drain needs
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-capturedrain",
    bin_name = "kubectl capturedrain",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = "\
Examples:
  kubectl capturedrain status           drains, captures by node, what waits
  kubectl capturedrain status --watch   again after each change
  kubectl capturedrain check            before the first drain

Exit codes: 0 done, 1 internal error, 2 wrong usage, 3 not found, 5 unreachable, 10 unauthorised, 12 kubeconfig or \
cluster not usable."
)]
pub(super) struct Plugin {
    #[command(flatten)]
    kubectl: Kubectl,
    #[command(flatten)]
    printing: Printing,
}

/// See how drains stand in Kubernetes: the plugin `kubectl capturedrain`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  capturedrain kubectl status -n shop
  capturedrain kubectl check -n shop --service cdc

The same as a plugin of kubectl, from then on `kubectl capturedrain status`:
  ln -s \"$(command -v capturedrain)\" ~/.local/bin/kubectl-capturedrain")]
pub(super) struct KubectlArgs {
    #[command(flatten)]
    kubectl: Kubectl,
}

/// What both names take.
#[derive(Debug, Args)]
struct Kubectl {
    #[command(subcommand)]
    command: KubectlCommand,
    #[command(flatten)]
    way: Way,
}

#[derive(Debug, Subcommand)]
enum KubectlCommand {
    Status(status::StatusArgs),
    Check(check::CheckArgs),
}

/// Which API server, and what there.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of kubectl")]
pub(super) struct Way {
    /// Namespace of drains and captures [default: the context's]
    #[arg(long, short, global = true, value_name = "NAME")]
    namespace: Option<String>,
    /// How the API server is reached [default: KUBECONFIG, ~/.kube/config, or the pod's own account]
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: the current one]
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
}

impl Way {
    /// A client, and the namespace that is meant.
    async fn open(&self) -> Result<(Client, String), Failure> {
        let failed = |error| Failure::environment(format!("the kubeconfig is no good: {error}"));
        let mut config = config(self.kubeconfig.as_deref(), self.context.clone(), failed).await?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        let namespace = self.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(|error| Failure::environment(format!("kubeconfig: {error}")))?;
        Ok((client, namespace))
    }
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        let exit = match &trouble {
            Trouble::Unreachable(_) => Exit::Unreachable,
            Trouble::Unauthorised(_) => Exit::Unauthorised,
            Trouble::NotFound(_) => Exit::NotFound,
        };
        Self::new(exit, trouble)
    }
}

/// Runs what kubectl asks for.
pub(super) fn run_plugin(plugin: Plugin) -> Result<Exit, Failure> {
    let Plugin { kubectl, printing } = plugin;
    block_on(&printing, "warn", run(KubectlArgs { kubectl }, &printing))
}

pub(super) async fn run(args: KubectlArgs, printing: &Printing) -> Result<Exit, Failure> {
    let Kubectl { command, way } = args.kubectl;
    match command {
        KubectlCommand::Status(args) => status::run(args, &way, printing).await,
        KubectlCommand::Check(args) => check::run(args, &way, printing).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_decides_which_program_it_is() {
        for name in ["kubectl-capturedrain", "/usr/bin/kubectl-capturedrain", "x/kubectl-capturedrain.exe"] {
            assert!(is_called(Some(OsStr::new(name))), "{name}");
        }
        for name in ["capturedrain", "/kubectl-capturedrain/capturedrain", ""] {
            assert!(!is_called(Some(OsStr::new(name))), "{name}");
        }
        assert!(!is_called(None));
    }
}
