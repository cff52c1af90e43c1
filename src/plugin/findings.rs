//! What the facts mean: for each thing that a drain needs whether it is there, and what to do when it is not.

mod cluster;
#[cfg(test)]
mod tests;
mod webhook;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::Lease,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::{
        CustomResourceDefinition, CustomResourceDefinitionVersion,
    },
};
use kube::{CustomResourceExt as _, ResourceExt as _};
use serde::{Serialize, Serializer};

use super::{
    Trouble,
    facts::{Facts, LEASE_NAME, Purpose, Right},
};
use crate::resource::CaptureDrain;

/// The oldest API server that is supported: its webhooks and CEL rules are what the CRD is written for.
const VERSION_MIN: (u32, u32) = (1, 33);
/// The version of `CaptureDrain` that this binary speaks.
const CRD_VERSION: &str = "v1alpha1";

/// Something that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at, as one stable word.
    pub check: &'static str,
    /// What came of it.
    pub level: Level,
    /// How it is, and what to do about it.
    pub message: String,
}

/// What came of looking at something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// It is as it should be.
    Ok,
    /// It could not be looked at from here.
    Skipped,
    /// Drains work, and will not always.
    Warning,
    /// Drains do not work, or not well.
    Failure(Fault),
}

/// What kind of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Something is not there.
    NotFound,
    /// Somebody does not answer.
    Unreachable,
    /// Somebody may not do what is needed, or is not believed.
    Unauthorised,
    /// Something is there and no good.
    Environment,
}

impl Level {
    /// The name that people and programs see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Skipped => "skipped",
            Self::Warning => "warning",
            Self::Failure(_) => "failure",
        }
    }
}

impl Serialize for Level {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl Finding {
    pub(super) fn new(check: &'static str, level: Level, message: impl Into<String>) -> Self {
        Self { check, level, message: message.into() }
    }
}

/// What the facts mean, in the order in which things are to be mended.
pub fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = vec![version(facts), crd(&facts.is_served, &facts.crd), operator(&facts.leases, facts.now)];
    found.push(rights("rights-status", "see how drains stand", Purpose::Status, &facts.own, &facts.namespace));
    found.push(rights("rights-apply", "ask for drains", Purpose::Apply, &facts.own, &facts.namespace));
    found.extend(operator_rights(facts));
    if facts.services.is_empty() {
        let message =
            "neither a CaptureDrain nor a pod of this namespace names a Service: name the captures' by --service";
        found.push(Finding::new("service", Level::Skipped, message));
    }
    for service in &facts.services {
        found.extend(cluster::findings(service, &facts.budgets, facts.now));
    }
    found.extend(webhook::findings(&facts.hook, &facts.namespace, facts.now));
    found
}

fn version(facts: &Facts) -> Finding {
    let number = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0);
    let is = (number(&facts.version.major), number(&facts.version.minor));
    let name = &facts.version.git_version;
    if is < VERSION_MIN {
        let (major, minor) = VERSION_MIN;
        let message = format!("the API server is {name}: upgrade Kubernetes to {major}.{minor} or later");
        return Finding::new("version", Level::Failure(Fault::Environment), message);
    }
    Finding::new("version", Level::Ok, format!("the API server is {name}"))
}

pub(super) fn crd(is_served: &Result<bool, Trouble>, crd: &Result<CustomResourceDefinition, Trouble>) -> Finding {
    const APPLY: &str = "apply it with `capturedrain crd | kubectl apply --server-side -f -`";
    let finding = |level, message: String| Finding::new("crd", level, message);
    match (is_served, crd) {
        (Ok(false), Ok(_)) => {
            finding(Level::Failure(Fault::NotFound), format!("the CRD does not serve {CRD_VERSION}: {APPLY}"))
        }
        (Ok(false), Err(_)) => finding(Level::Failure(Fault::NotFound), format!("the CRD is not installed: {APPLY}")),
        (_, Ok(crd)) if !is_ours(crd) => {
            let message = format!("the CRD is of another release than this binary: if this one is newer, {APPLY}");
            finding(Level::Warning, message)
        }
        (_, Ok(_)) => finding(Level::Ok, format!("the CRD is this binary's and serves {CRD_VERSION}")),
        (Ok(true), Err(trouble)) => {
            let message = format!("{CRD_VERSION} is served; whether the CRD is this binary's is not known: {trouble}");
            finding(Level::Skipped, message)
        }
        (Err(trouble), Err(_)) => finding(Level::Skipped, trouble.to_string()),
    }
}

/// Whether a CRD is the one that this binary would install: the same schema, rules and columns.
fn is_ours(installed: &CustomResourceDefinition) -> bool {
    let version = |crd: &CustomResourceDefinition| {
        let mut versions = crd.spec.versions.clone().into_iter();
        versions.find(|version| version.name == CRD_VERSION).map(|version| CustomResourceDefinitionVersion {
            // What the API server fills in.
            selectable_fields: None,
            ..version
        })
    };
    version(installed) == version(&CaptureDrain::crd())
}

pub(super) fn operator(leases: &Result<Vec<Lease>, Trouble>, now: Timestamp) -> Finding {
    let finding = |level, message: String| Finding::new("operator", level, message);
    let leases = match leases {
        Ok(leases) => leases,
        Err(trouble) => return finding(Level::Skipped, format!("whether an operator runs is not known: {trouble}")),
    };
    let place = |lease: &Lease| format!("Lease {}/{}", lease.namespace().unwrap_or_default(), lease.name_any());
    if let Some((lease, holder)) = leases.iter().find_map(|lease| Some((lease, live_holder(lease, now)?))) {
        return finding(Level::Ok, format!("{holder} leads, by {}", place(lease)));
    }
    let message = match leases.first() {
        None => format!("there is no Lease {LEASE_NAME}: install the operator, or start `capturedrain operator`"),
        Some(lease) => format!("nobody holds {}: look at the operator's pods and their log", place(lease)),
    };
    finding(Level::Failure(Fault::NotFound), message)
}

/// Who holds a Lease. It counts for twice its time, since the clock here may differ from the holder's.
fn live_holder(lease: &Lease, now: Timestamp) -> Option<String> {
    let spec = lease.spec.as_ref()?;
    let renewed = spec.renew_time.as_ref()?.0.as_second();
    let seconds = i64::from(spec.lease_duration_seconds?).saturating_mul(2);
    let is_live = now.as_second().saturating_sub(renewed) <= seconds;
    spec.holder_identity.clone().filter(|holder| is_live && !holder.is_empty())
}

/// Whether all rights of a purpose are there.
fn rights(check: &'static str, aim: &str, purpose: Purpose, known: &[(Right, bool)], namespace: &str) -> Finding {
    let missing: Vec<_> = known.iter().filter(|(right, may)| right.purpose == purpose && !may).collect();
    if missing.is_empty() {
        return Finding::new(check, Level::Ok, format!("you may {aim}"));
    }
    let message = format!("you may not {}: have it granted to {aim} in namespace {namespace}", names(&missing));
    Finding::new(check, level(&missing), message)
}

fn level(missing: &[&(Right, bool)]) -> Level {
    if missing.iter().any(|(right, _)| right.is_vital) { Level::Failure(Fault::Unauthorised) } else { Level::Warning }
}

fn names(missing: &[&(Right, bool)]) -> String {
    let name = |right: &Right| {
        let object = right.object.as_ref().map(|object| format!("/{object}")).unwrap_or_default();
        format!("{} {}{object}", right.verb, right.resource)
    };
    let names: Vec<_> = missing.iter().map(|(right, _)| name(right)).collect();
    names.join(", ")
}

fn operator_rights(facts: &Facts) -> Vec<Finding> {
    let finding = |level, message: String| Finding::new("rights-operator", level, message);
    let operators = match &facts.operators {
        Ok(operators) => operators,
        Err(trouble) => return vec![finding(Level::Skipped, format!("not known: {trouble}"))],
    };
    if operators.is_empty() {
        let message = "no ServiceAccount has the label app.kubernetes.io/name=capturedrain-operator";
        return vec![finding(Level::Skipped, message.to_owned())];
    }
    // Those of other namespaces have no rights here, and need none.
    let looks_after = |known: &[(Right, bool)]| known.iter().any(|(right, may)| right.is_vital && *may);
    let here: Vec<_> = operators.iter().filter(|(_, known)| looks_after(known)).collect();
    if here.is_empty() {
        let all: Vec<_> = operators.keys().map(String::as_str).collect();
        let message = format!("no operator has rights in namespace {}; there are {}", facts.namespace, all.join(", "));
        return vec![finding(Level::Warning, message)];
    }
    let judge = |(account, known): (&String, &Vec<(Right, bool)>)| {
        let missing: Vec<_> = known.iter().filter(|(_, may)| !may).collect();
        if missing.is_empty() {
            return finding(Level::Ok, format!("{account} may do what an operator does"));
        }
        let what = names(&missing);
        let message = format!("{account} may not {what} in namespace {}: grant it", facts.namespace);
        finding(level(&missing), message)
    };
    here.into_iter().map(judge).collect()
}
