//! Of the eviction webhook: is it there, does it mean this namespace, and does it answer?

use jiff::Timestamp;
use k8s_openapi::{api::admissionregistration::v1::MutatingWebhook, apimachinery::pkg::apis::meta::v1::LabelSelector};
use kube::core::{Selector, SelectorExt as _};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use super::{Fault, Finding, Level, cluster::RENEWAL};
use crate::{
    operator::{member::SERVICE, rollout::Marks},
    plugin::{
        Trouble,
        hook::{HookFacts, Rehearsal},
    },
    tls::valid_until_der,
};

/// Everything about it.
pub(super) fn findings(facts: &HookFacts, namespace: &str, now: Timestamp) -> Vec<Finding> {
    let finding = |level, message: String| Finding::new("webhook", level, message);
    let hooks = match &facts.hooks {
        Ok(hooks) => hooks,
        Err(trouble) => {
            let mut found = vec![finding(Level::Skipped, trouble.to_string())];
            found.extend(facts.rehearsals.iter().map(rehearsal));
            return found;
        }
    };
    let means = |hook: &MutatingWebhook| match (&hook.namespace_selector, &facts.labels) {
        (None, _) => true,
        (Some(selector), Some(labels)) => selects(selector, labels),
        // Every namespace has this label.
        (Some(selector), None) => {
            selects(selector, &Marks::from([("kubernetes.io/metadata.name".to_owned(), namespace.to_owned())]))
        }
    };
    let Some((name, hook)) = hooks.iter().find(|(_, hook)| means(hook)) else {
        let message = match hooks.first() {
            None => "evictions do not wait for drains: install the operator with webhook.enabled".to_owned(),
            Some((name, _)) => format!(
                "evictions in namespace {namespace} do not wait for drains: the namespaceSelector of \
                 MutatingWebhookConfiguration {name} leaves it out"
            ),
        };
        return vec![finding(Level::Warning, message)];
    };
    let mut found = vec![configuration(name, hook, now)];
    found.extend(facts.rehearsals.iter().map(rehearsal));
    found
}

fn selects(selector: &LabelSelector, labels: &Marks) -> bool {
    Selector::try_from(selector.clone()).is_ok_and(|selector| selector.matches(labels))
}

fn configuration(name: &str, hook: &MutatingWebhook, now: Timestamp) -> Finding {
    let finding = |level, message: String| Finding::new("webhook", level, message);
    let of = format!("MutatingWebhookConfiguration {name}");
    if hook.object_selector.as_ref().is_some_and(|selector| *selector != LabelSelector::default()) {
        let message = format!("{of} has an objectSelector, which sees no labels of pods: remove it");
        return finding(Level::Failure(Fault::Environment), message);
    }
    let bundle = hook.client_config.ca_bundle.as_ref().map(|bundle| bundle.0.as_slice()).unwrap_or_default();
    let ends: Vec<_> = CertificateDer::pem_slice_iter(bundle).filter_map(|der| valid_until_der(&der.ok()?)).collect();
    match ends.iter().max() {
        None => {
            let message = format!("{of} has no caBundle: look at the operator's log, it writes it");
            finding(Level::Failure(Fault::Environment), message)
        }
        Some(end) if *end <= now => {
            let message = format!("the CA of {of} has expired: look at the operator's log, it renews it");
            finding(Level::Failure(Fault::Unauthorised), message)
        }
        Some(end) if now.duration_since(*end).abs() < RENEWAL => finding(
            Level::Warning,
            format!("the CA of {of} expires on {end}: look at the operator's log, it renews it"),
        ),
        Some(_) => {
            let policy = hook.failure_policy.as_deref().unwrap_or("Fail");
            finding(Level::Ok, format!("{of} sends evictions of this namespace, failurePolicy {policy}"))
        }
    }
}

fn rehearsal(facts: &Rehearsal) -> Finding {
    let finding = |level, message: String| Finding::new("webhook-eviction", level, message);
    let pod = &facts.pod;
    if !facts.is_marked {
        let message = format!("evictions of pod {pod} do not wait: label the pods of captures with {SERVICE}=SERVICE");
        return finding(Level::Warning, message);
    }
    match &facts.warnings {
        Ok(warnings) if warnings.iter().any(|warning| is_ours(warning)) => {
            finding(Level::Ok, format!("an eviction of pod {pod} would wait for its drain"))
        }
        Ok(_) => {
            let message = format!(
                "an eviction of pod {pod} would not wait: the webhook does not answer, which failurePolicy Ignore lets \
                 pass, or its matchCondition leaves the name out"
            );
            finding(Level::Failure(Fault::Unreachable), message)
        }
        Err(trouble @ Trouble::Unauthorised(_)) => finding(Level::Skipped, trouble.to_string()),
        Err(trouble) => finding(Level::Failure(Fault::Unreachable), trouble.to_string()),
    }
}

/// One of the sentences of a rehearsal.
fn is_ours(warning: &str) -> bool {
    ["would be drained first", "could not go yet", "is drained: the pod could go"]
        .iter()
        .any(|part| warning.contains(part))
}
