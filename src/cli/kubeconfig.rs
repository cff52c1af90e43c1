//! The way to a Kubernetes API server.

use std::path::Path;

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};

use super::exit::Failure;

/// As a file says, or one of its contexts, or else the environment or the pod's own account; `failed` makes a sentence of
/// what is wrong with a file.
pub(super) async fn config(
    file: Option<&Path>,
    context: Option<String>,
    failed: impl Fn(KubeconfigError) -> Failure,
) -> Result<Config, Failure> {
    let is_plain = context.is_none();
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    match file {
        Some(file) => {
            let read = Kubeconfig::read_from(file).map_err(&failed)?;
            Config::from_custom_kubeconfig(read, &options).await.map_err(failed)
        }
        None if is_plain => Config::infer()
            .await
            .map_err(|error| Failure::environment(format!("no way to a Kubernetes API server: {error}"))),
        None => Config::from_kubeconfig(&options).await.map_err(failed),
    }
}

/// A client, as a file says, or else the environment or the pod's own account.
pub(super) async fn client(file: Option<&Path>) -> Result<Client, Failure> {
    let failed = |error| {
        let path = file.unwrap_or(Path::new("")).display();
        Failure::environment(format!("kubeconfig {path} is no good: {error}"))
    };
    let config = config(file, None, failed).await?;
    Client::try_from(config).map_err(|error| Failure::environment(format!("the API server: {error}")))
}
