//! Keeps together what the Secret holds, what the API server is told to believe, and what callers are shown.
//!
//! Every replica does it: a write that meets another's is dropped, and decided anew from what the other wrote.

use std::{collections::BTreeMap, fmt::Debug, sync::Arc, time::Duration};

use futures::{Stream, StreamExt as _, stream::BoxStream};
use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret},
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::{sync::watch, time};

use super::{
    MANAGER, WebhookConfig,
    error::{Error, category},
    metrics::Metrics,
    resolve::{CERTIFICATE, KEY},
};
use crate::operator::{
    certificates::{
        authority::{Pair, Unusable},
        plan::{Data, Held, Step},
        serving::{Serving, Shown},
    },
    webhook::WEBHOOK,
};

/// Who owns the field of the configuration that says which CA is believed.
const BUNDLE_MANAGER: &str = "capturedrain-operator-webhook";
/// How soon something that failed is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// How long may pass without a look at the time.
const LOOK_MAX: Duration = Duration::from_hours(1);

/// How the webhook is: why it cannot be called, if it cannot.
pub(super) type State = Result<(), String>;

/// Who keeps it.
pub(super) struct Keeper {
    client: Client,
    namespace: String,
    config: WebhookConfig,
    metrics: Arc<Metrics>,
    shown: Arc<Shown>,
    state: watch::Sender<State>,
    secret: Known<Secret>,
    configuration: Known<MutatingWebhookConfiguration>,
}

/// An object that is watched.
#[derive(Debug)]
enum Known<K> {
    /// It was not listed yet.
    Unknown,
    /// There is none.
    Missing,
    /// There is this one.
    There(Box<K>),
}

impl<K> Known<K> {
    fn get(&self) -> Option<&K> {
        match self {
            Self::There(object) => Some(object),
            Self::Unknown | Self::Missing => None,
        }
    }
}

/// One object that is watched, after each change.
fn follow<K>(api: Api<K>, name: &str) -> BoxStream<'static, Known<K>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let this = watcher::Config::default().fields(&format!("metadata.name={name}"));
    known(watcher(api, this).default_backoff()).boxed()
}

fn known<K: Send + 'static>(
    events: impl Stream<Item = Result<Event<K>, watcher::Error>> + Send + 'static,
) -> impl Stream<Item = Known<K>> + Send + 'static {
    let mut listed = None;
    events.filter_map(move |event| {
        let known = match event {
            Ok(Event::Apply(object)) => Some(Known::There(Box::new(object))),
            Ok(Event::Delete(_)) => Some(Known::Missing),
            Ok(Event::Init) => {
                listed = None;
                None
            }
            Ok(Event::InitApply(object)) => {
                listed = Some(object);
                None
            }
            Ok(Event::InitDone) => Some(listed.take().map_or(Known::Missing, |object| Known::There(Box::new(object)))),
            Err(error) => {
                tracing::debug!(%error, "what the webhook needs cannot be watched");
                None
            }
        };
        futures::future::ready(known)
    })
}

impl Keeper {
    /// One that has not begun, what it shows, and how the webhook is.
    pub(super) fn new(
        client: &Client,
        namespace: &str,
        config: &WebhookConfig,
        metrics: Arc<Metrics>,
    ) -> (Self, Arc<Shown>, watch::Receiver<State>) {
        let shown = Arc::new(Shown::default());
        let (state, states) = watch::channel(Err("there is no certificate yet".to_owned()));
        let keeper = Self {
            client: client.clone(),
            namespace: namespace.to_owned(),
            config: config.clone(),
            metrics,
            shown: shown.clone(),
            state,
            secret: Known::Unknown,
            configuration: Known::Unknown,
        };
        (keeper, shown, states)
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn configurations(&self) -> Api<MutatingWebhookConfiguration> {
        Api::all(self.client.clone())
    }

    /// Keeps it for as long as the process lives.
    pub(super) async fn run(mut self) {
        let mut secrets = follow(self.secrets(), &self.config.secret);
        let mut configurations = follow(self.configurations(), &self.config.configuration);
        let mut complaint = None;
        loop {
            let next = match self.round().await {
                Ok(next) => {
                    complaint = None;
                    next
                }
                Err(error) => {
                    if complaint.as_ref() != Some(&error) {
                        tracing::warn!(error, "certificates of the webhook cannot be kept");
                    }
                    let _ = self.state.send_replace(self.judge().map_err(|why| format!("{why}; {error}")));
                    complaint = Some(error);
                    RETRY
                }
            };
            tokio::select! {
                Some(secret) = secrets.next() => self.secret = secret,
                Some(configuration) = configurations.next() => self.configuration = configuration,
                () = time::sleep(next.min(LOOK_MAX)) => {}
            }
        }
    }

    /// Does what is due. How long nothing will be.
    async fn round(&mut self) -> Result<Duration, String> {
        let now = Timestamp::now();
        let mut next = LOOK_MAX;
        if !self.config.is_given {
            if matches!(self.secret, Known::Unknown) {
                return Ok(next);
            }
            let held = self.secret.get().and_then(|secret| Held::read(&data(secret), secret.annotations(), now));
            let step = held.as_ref().map(|held| held.step(now, &self.config.certificates));
            match (&held, step) {
                (Some(_), Some(Step::Wait(until))) => {
                    next =
                        Duration::try_from(until.duration_since(now)).unwrap_or_default() + Duration::from_millis(10);
                }
                (Some(held), Some(step)) => {
                    // What is published first, nobody has to wait for twice.
                    self.publish(held).await?;
                    let after = held.after(step, now, &self.config.certificates).map_err(unmade)?;
                    self.write(&after, step_name(step)).await?;
                }
                _ => {
                    let made = Held::make(now, &self.config.certificates).map_err(unmade)?;
                    self.write(&made, "made").await?;
                }
            }
            let held = self.secret.get().and_then(|secret| Held::read(&data(secret), secret.annotations(), now));
            if let Some(held) = held {
                self.publish(&held).await?;
            }
        }
        self.adopt(now);
        let state = self.judge();
        self.state.send_if_modified(|before| {
            if *before == state {
                return false;
            }
            match &state {
                Ok(()) => tracing::info!("the API server believes the webhook"),
                Err(why) => tracing::warn!(why, "the webhook cannot be called"),
            }
            before.clone_from(&state);
            true
        });
        Ok(next)
    }

    /// Writes the Secret, unless somebody else has meanwhile.
    async fn write(&mut self, held: &Held, what: &'static str) -> Result<(), String> {
        let mut secret = self.secret.get().cloned().unwrap_or_else(|| Secret {
            metadata: ObjectMeta { name: Some(self.config.secret.clone()), ..ObjectMeta::default() },
            type_: Some("kubernetes.io/tls".to_owned()),
            ..Secret::default()
        });
        secret.data = Some(held.data().into_iter().map(|(key, bytes)| (key, ByteString(bytes))).collect());
        for (key, value) in held.annotations() {
            match value {
                Some(value) => drop(secret.annotations_mut().insert(key.to_owned(), value)),
                None => drop(secret.annotations_mut().remove(key)),
            }
        }
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        let secrets = self.secrets();
        let written = if secret.metadata.resource_version.is_some() {
            secrets.replace(&self.config.secret, &params, &secret).await
        } else {
            secrets.create(&params, &secret).await
        };
        match written {
            Ok(written) => {
                tracing::info!(secret = self.config.secret, what, "certificates of the webhook");
                self.secret = Known::There(Box::new(written));
            }
            // Another replica was faster: what it wrote is on its way here.
            Err(error) if category(&error) == "conflict" => {}
            Err(error) => {
                let name = format!("Secret {}/{}", self.namespace, self.config.secret);
                return Err(Error::new("write", name)(error).chain().to_string());
            }
        }
        Ok(())
    }

    /// Has the API server believe what is held.
    async fn publish(&mut self, held: &Held) -> Result<(), String> {
        let Some(configuration) = self.configuration.get() else { return Ok(()) };
        let bundle = ByteString(held.bundle().into_bytes());
        if believed(configuration) == Some(&bundle) {
            return Ok(());
        }
        let name = &self.config.configuration;
        let part = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": { "name": name, "uid": configuration.uid() },
            "webhooks": [{ "name": WEBHOOK, "clientConfig": { "caBundle": bundle } }],
        });
        let params = PatchParams::apply(BUNDLE_MANAGER).force();
        let written = self.configurations().patch(name, &params, &Patch::Apply(part)).await;
        let failed =
            |error| Error::new("write", format!("MutatingWebhookConfiguration {name}"))(error).chain().to_string();
        self.configuration = Known::There(Box::new(written.map_err(failed)?));
        Ok(())
    }

    /// Shows callers what the Secret holds, once they believe it; the first one at once.
    fn adopt(&self, now: Timestamp) {
        let Some(secret) = self.secret.get() else { return };
        let data = data(secret);
        let text =
            |key: &str| data.get(key).and_then(|bytes| String::from_utf8(bytes.clone()).ok()).unwrap_or_default();
        let found = match Serving::of(&Pair { certificate: text(CERTIFICATE), key: text(KEY) }) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(secret = self.config.secret, %error, "the Secret holds no certificate that can be served");
                return;
            }
        };
        let before = self.shown.get();
        if before.as_ref().is_some_and(|before| **before == found) {
            return;
        }
        let is_better = self.is_believed(&found, now).is_ok()
            || before.is_none_or(|before| self.is_believed(&before, now).is_err());
        if is_better {
            tracing::info!(secret = self.config.secret, until = %found.ends_at(), "another certificate is shown");
            self.metrics.webhook.shows(found.ends_at());
            self.shown.set(found);
        }
    }

    fn is_believed(&self, serving: &Serving, now: Timestamp) -> Result<(), Unusable> {
        let bundle = self.configuration.get().and_then(believed).map(|bundle| bundle.0.as_slice());
        let name = self.config.certificates.names.first().map(String::as_str);
        serving.check(bundle.unwrap_or_default(), name.unwrap_or_default(), now)
    }

    /// Whether the API server believes what it is shown.
    fn judge(&self) -> State {
        let name = &self.config.configuration;
        match &self.configuration {
            Known::Unknown => return Err(format!("MutatingWebhookConfiguration {name} is not known yet")),
            Known::Missing => return Err(format!("there is no MutatingWebhookConfiguration {name}")),
            Known::There(found) if ours(found).is_none() => {
                return Err(format!("MutatingWebhookConfiguration {name} has no webhook {WEBHOOK}"));
            }
            Known::There(_) => {}
        }
        let shown = self.shown.get().ok_or_else(|| "there is no certificate yet".to_owned())?;
        let refused = |error| format!("the certificate does not fit the caBundle of {name}: {error}");
        self.is_believed(&shown, Timestamp::now()).map_err(refused)
    }
}

#[allow(clippy::needless_pass_by_value, reason = "the form that map_err wants")]
fn unmade(error: Unusable) -> String {
    format!("certificates cannot be made: {error}")
}

fn step_name(step: Step) -> &'static str {
    match step {
        Step::Announce => "another CA is published",
        Step::Switch => "the other CA signs",
        Step::Forget => "the old CA is forgotten",
        Step::Renew => "renewed",
        Step::Wait(_) => "kept",
    }
}

fn data(secret: &Secret) -> Data {
    let data: Option<&BTreeMap<_, _>> = secret.data.as_ref();
    data.into_iter().flatten().map(|(key, bytes)| (key.clone(), bytes.0.clone())).collect()
}

type Hook = k8s_openapi::api::admissionregistration::v1::MutatingWebhook;

fn ours(configuration: &MutatingWebhookConfiguration) -> Option<&Hook> {
    configuration.webhooks.iter().flatten().find(|hook| hook.name == WEBHOOK)
}

/// The CAs that the API server believes.
fn believed(configuration: &MutatingWebhookConfiguration) -> Option<&ByteString> {
    ours(configuration)?.client_config.ca_bundle.as_ref()
}
