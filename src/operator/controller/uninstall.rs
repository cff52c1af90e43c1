//! What is to be done before an operator goes for good: nothing that it leaves behind may hold anything up.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams},
    runtime::events::{Recorder, Reporter},
};
use serde::Serialize;
use serde_json::json;
use tokio::time::{self, Instant};

use super::{
    MANAGER,
    cache::namespaced,
    error::{Error, category, is_gone},
    write::{self, FINALIZER},
};
use crate::{
    operator::{UNINSTALLED, event::Note},
    resource::{CaptureDrain, is_finished},
};

/// How often it is looked again.
const PACE: Duration = Duration::from_millis(500);
/// What is kept of the time for letting go what could not be withdrawn; of a short time, a half.
const RESERVE: Duration = Duration::from_secs(10);

/// What is to go.
#[derive(Debug, Clone)]
pub struct Uninstall {
    /// The only namespace that the operator looks after; `None`: all.
    pub namespace: Option<String>,
    /// The name of its `MutatingWebhookConfiguration`; `None`: it has none.
    pub webhook: Option<String>,
    /// How long all of this may take.
    pub timeout: Duration,
}

/// What has gone. Drains are called `NAMESPACE/NAME`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Uninstalled {
    /// Whether there is no webhook any more.
    pub is_webhook_gone: bool,
    /// Drains that were deleted, which called them off where they had begun.
    pub withdrawn: BTreeSet<String>,
    /// Those whose cluster could not be told in time: they may go on there.
    pub released: BTreeSet<String>,
}

/// Why something is left.
#[derive(Debug, thiserror::Error)]
#[error("{sentence}")]
pub struct UninstallError {
    sentence: String,
    /// A stable word of what Kubernetes said, `timeout` when it said nothing.
    pub category: &'static str,
}

/// Deletes the webhook, so that evictions ask nobody, then has all drains withdrawn that have not ended, and lets go those
/// that are still held when time is nearly up. Whatever Kubernetes refuses is tried again until then.
///
/// # Errors
/// When something is left at the end of the time.
pub async fn uninstall(client: &Client, what: &Uninstall) -> Result<Uninstalled, UninstallError> {
    let reserve = RESERVE.min(what.timeout / 2);
    let reporter = Reporter { controller: MANAGER.to_owned(), instance: None };
    let mut run = Run {
        client,
        what,
        recorder: Recorder::new(client.clone(), reporter),
        let_go_at: Instant::now() + what.timeout.saturating_sub(reserve),
        gone: Uninstalled::default(),
        trouble: None,
    };
    match time::timeout(what.timeout, run.until_done()).await {
        Ok(()) => Ok(run.gone),
        Err(_) => Err(run.trouble.unwrap_or_else(|| UninstallError {
            sentence: format!("the API server has not answered within {} s", what.timeout.as_secs()),
            category: "timeout",
        })),
    }
}

struct Run<'a> {
    client: &'a Client,
    what: &'a Uninstall,
    recorder: Recorder,
    let_go_at: Instant,
    gone: Uninstalled,
    /// Why the last round was not the last.
    trouble: Option<UninstallError>,
}

impl Run<'_> {
    async fn until_done(&mut self) {
        loop {
            // One does not wait for the other.
            let (webhook, left) = (self.delete_webhook().await, self.withdraw().await);
            self.trouble = match webhook.and(left) {
                Ok(None) => return,
                Ok(Some(left)) => {
                    let sentence = format!("CaptureDrain {left} is still there, or there again");
                    Some(UninstallError { sentence, category: "timeout" })
                }
                Err(error) => {
                    let (category, sentence) = (error.category(), error.chain().to_string());
                    if self.trouble.as_ref().is_none_or(|known| known.sentence != sentence) {
                        tracing::warn!(category, error = sentence, "it is tried again");
                    }
                    Some(UninstallError { sentence, category })
                }
            };
            time::sleep(PACE).await;
        }
    }

    /// Does with every drain what can be done now, and names one that is left.
    async fn withdraw(&mut self) -> Result<Option<String>, Error> {
        let drains = namespaced::<CaptureDrain>(self.client, self.what.namespace.as_deref());
        let drains = match drains.list(&ListParams::default()).await {
            Ok(drains) => drains.items,
            // There is no CRD.
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(Error::new("list", "CaptureDrains")(error)),
        };
        let mut outcome = Ok(None);
        for drain in &drains {
            match self.part_with(drain).await {
                Ok(true) => {}
                Ok(false) => outcome = outcome.map(|_| Some(name(drain))),
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }

    async fn delete_webhook(&mut self) -> Result<(), Error> {
        if self.gone.is_webhook_gone {
            return Ok(());
        }
        if let Some(name) = &self.what.webhook {
            let webhooks = Api::<MutatingWebhookConfiguration>::all(self.client.clone());
            match webhooks.delete(name, &DeleteParams::default()).await {
                Ok(_) => {}
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(Error::new("delete", format!("MutatingWebhookConfiguration {name}"))(error)),
            }
        }
        self.gone.is_webhook_gone = true;
        Ok(())
    }

    /// Whether nothing of ours holds this drain, and it is not to go any more.
    async fn part_with(&mut self, drain: &CaptureDrain) -> Result<bool, Error> {
        let is_held = write::has_finalizer(drain);
        if is_finished(drain) {
            // There is nothing to withdraw.
            if is_held {
                self.release(drain).await?;
            }
            return Ok(true);
        }
        if drain.metadata.deletion_timestamp.is_none() {
            // No person decides against the drain: evictions may have it begin again, once an operator is back.
            if let Err(error) = write::annotate(self.client, drain, UNINSTALLED, "true").await {
                let (category, error) = (error.category(), error.chain().to_string());
                tracing::warn!(category, error, "evictions will take this drain for withdrawn by a person");
            }
            write::delete(self.client, drain).await?;
            self.gone.withdrawn.insert(name(drain));
            return Ok(false);
        }
        if !is_held {
            return Ok(true);
        }
        self.gone.withdrawn.insert(name(drain));
        if Instant::now() >= self.let_go_at {
            self.release(drain).await?;
            self.gone.withdrawn.remove(&name(drain));
            self.gone.released.insert(name(drain));
            let sentence = "the operator is being removed, and could not call the drain off in time".to_owned();
            let note = Note { is_warning: true, reason: "FinalizerReleased", sentence };
            write::tell(&self.recorder, drain, vec![note]).await;
        }
        Ok(false)
    }

    /// Takes our finalizer away, whoever wrote it: a backup that was restored has made it somebody else's.
    async fn release(&self, drain: &CaptureDrain) -> Result<(), Error> {
        let others: Vec<_> = drain.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER).collect();
        let patch = json!({"metadata": {"resourceVersion": drain.resource_version(), "finalizers": others}});
        let drains = namespaced::<CaptureDrain>(self.client, drain.metadata.namespace.as_deref());
        match drains.patch(&drain.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => Ok(()),
            // Somebody was faster; the next round sees what is left.
            Err(error) if matches!(category(&error), "not_found" | "conflict") => Ok(()),
            Err(error) => Err(Error::new("release", format!("CaptureDrain {}", name(drain)))(error)),
        }
    }
}

fn name(drain: &CaptureDrain) -> String {
    format!("{}/{}", drain.metadata.namespace.as_deref().unwrap_or_default(), drain.name_any())
}
