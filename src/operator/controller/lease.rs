//! Which of several replicas reconciles. The Lease keeps them from working against each other; what makes it safe is the
//! epoch of the store.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease as LeaseObject;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder, LeaseManagerError};
use serde_json::json;
use tokio::{sync::watch, task::JoinHandle, time};

use super::OperatorConfig;

/// How long before its end the Lease is renewed, as a share of its time.
const GRACE_SHARE: u64 = 3;
/// How soon a Lease that cannot be had is asked for again.
const RETRY: Duration = Duration::from_secs(5);
/// How long giving it back may take.
const GOODBYE: Duration = Duration::from_secs(3);

/// How often it is tried to label it.
const LABEL_ATTEMPTS_MAX: u32 = 5;
/// What the Lease is labelled with.
const LABEL: (&str, &str) = ("app.kubernetes.io/name", "capturedrain-operator");

/// A share in the competition.
#[derive(Debug, Clone)]
pub(super) struct Lease {
    held: watch::Receiver<bool>,
    over: watch::Sender<bool>,
    ended: watch::Receiver<bool>,
}

impl Lease {
    /// Waits until it is held, or is not.
    pub(super) async fn until(&mut self, held: bool) {
        if self.held.wait_for(|is| *is == held).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Gives it back.
    pub(super) async fn release(mut self) {
        self.over.send_replace(true);
        if time::timeout(GOODBYE, self.ended.wait_for(|ended| *ended)).await.is_err() {
            tracing::warn!("the lease could not be given back in time, another replica takes it once it has expired");
        }
    }
}

/// Begins to compete.
pub(super) fn compete(client: &Client, config: &OperatorConfig) -> Lease {
    let (holding, held) = watch::channel(false);
    let (over, told) = watch::channel(false);
    let (ending, ended) = watch::channel(false);
    let (client, config) = (client.clone(), config.clone());
    tokio::spawn(async move {
        run(&client, &config, &holding, told).await;
        ending.send_replace(true);
    });
    Lease { held, over, ended }
}

async fn run(client: &Client, config: &OperatorConfig, holding: &watch::Sender<bool>, mut over: watch::Receiver<bool>) {
    let mut complaint = String::new();
    let mut is_labelled = false;
    loop {
        let manager = tokio::select! {
            manager = manager(client, config) => manager,
            _ = over.wait_for(|over| *over) => return,
        };
        match manager {
            Ok(manager) => {
                let (states, task) = manager.watch().await;
                if !std::mem::replace(&mut is_labelled, true) {
                    // Nothing waits for that.
                    tokio::spawn(label(client.clone(), config.lease.clone()));
                }
                if pass_on(states, task, holding, &mut over).await {
                    return;
                }
            }
            Err(error) => {
                let now = error.to_string();
                if complaint != now {
                    tracing::warn!(error = now, "the lease cannot be had");
                    complaint = now;
                }
            }
        }
        holding.send_replace(false);
        tokio::select! {
            () = time::sleep(RETRY) => {}
            _ = over.wait_for(|over| *over) => return,
        }
    }
}

/// Says whose the Lease is, whatever it is called: `kubectl capturedrain check` looks for that.
async fn label(client: Client, (namespace, name): (String, String)) {
    let leases: Api<LeaseObject> = Api::namespaced(client, &namespace);
    let patch = Patch::Merge(json!({"metadata": {"labels": {LABEL.0: LABEL.1}}}));
    for attempt in 1..=LABEL_ATTEMPTS_MAX {
        match leases.patch_metadata(&name, &PatchParams::default(), &patch).await {
            Ok(_) => return,
            Err(error) if attempt == LABEL_ATTEMPTS_MAX => tracing::warn!(%error, "the lease could not be labelled"),
            Err(_) => time::sleep(RETRY).await,
        }
    }
}

async fn manager(client: &Client, config: &OperatorConfig) -> Result<LeaseManager, LeaseManagerError> {
    let (namespace, name) = &config.lease;
    let duration = config.lease_duration.as_secs();
    LeaseManagerBuilder::new(client.clone(), name)
        .with_namespace(namespace)
        .with_identity(&config.identity)
        .with_duration(duration)
        .with_grace((duration / GRACE_SHARE).max(1))
        .build()
        .await
}

/// Passes on whether it is held; `true` when it was given back since the process is to end.
async fn pass_on(
    mut states: watch::Receiver<bool>,
    task: JoinHandle<Result<LeaseManager, LeaseManagerError>>,
    holding: &watch::Sender<bool>,
    over: &mut watch::Receiver<bool>,
) -> bool {
    loop {
        let is_held = *states.borrow_and_update();
        holding.send_if_modified(|held| std::mem::replace(held, is_held) != is_held);
        tokio::select! {
            changed = states.changed() => if changed.is_err() {
                return false;
            },
            _ = over.wait_for(|over| *over) => break,
        }
    }
    holding.send_replace(false);
    drop(states);
    if let Ok(Err(error)) = task.await {
        tracing::warn!(%error, "the lease could not be given back");
    }
    true
}
