//! Of one cluster: its Service, its certificate, its captures and their pods.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{core::v1::Pod, policy::v1::PodDisruptionBudget},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::{
    ResourceExt as _,
    core::{Selector, SelectorExt as _},
};

use super::{Fault, Finding, Level};
use crate::{
    operator::{
        controller::{CA, CERTIFICATE, KEY, addresses},
        observe::Unseen,
    },
    plugin::{
        Trouble,
        facts::{SecretFacts, ServiceFacts},
    },
    tls::valid_until,
    view::CaptureView,
};

/// A certificate that ends within this is to be renewed.
pub(super) const RENEWAL: SignedDuration = SignedDuration::from_hours(14 * 24);
/// A pod that gets less time than this to end may be killed in the middle of its drain.
const GRACE_MIN_SECONDS: i64 = 60;
/// What a pod gets that says nothing.
const GRACE_DEFAULT_SECONDS: i64 = 30;
/// One to be drained, one to take its work.
const CAPTURES_MIN: usize = 2;

/// Everything about one cluster.
pub(super) fn findings(
    facts: &ServiceFacts,
    budgets: &Result<Vec<PodDisruptionBudget>, Trouble>,
    now: Timestamp,
) -> Vec<Finding> {
    let mut found = vec![service(facts)];
    found.extend(facts.secret.as_ref().map(|secret| tls(secret, now)));
    // Without anybody behind the Service there is nothing more to say.
    if !matches!(found[0].level, Level::Failure(_)) {
        found.extend(captures(facts));
        found.extend(pods(facts));
        found.extend(budget(facts, budgets));
    }
    found
}

fn service(facts: &ServiceFacts) -> Finding {
    let name = &facts.name;
    let finding = |level, message: String| Finding::new("service", level, message);
    let failure = |fault, message| finding(Level::Failure(fault), message);
    match (facts.service.as_ref(), facts.slices.as_ref().map(|slices| addresses(slices))) {
        (Ok(None), _) => {
            failure(Fault::NotFound, format!("there is no Service {name}: make it, or correct clusterRef.serviceName"))
        }
        (Err(trouble), _) | (_, Err(trouble)) => finding(Level::Skipped, format!("Service {name}: {trouble}")),
        (_, Ok(Err(ports))) => failure(
            Fault::Environment,
            format!("Service {name} has ports {ports}: name the captures' one capturedrain"),
        ),
        (_, Ok(Ok(found))) if found.is_empty() => failure(
            Fault::Unreachable,
            format!("no pod is behind Service {name}: start captures with the labels that it selects"),
        ),
        (_, Ok(Ok(found))) => finding(Level::Ok, format!("Service {name} leads to {}", found.join(", "))),
    }
}

fn tls(secret: &SecretFacts, now: Timestamp) -> Finding {
    let name = &secret.name;
    let finding = |level, message: String| Finding::new("tls", level, message);
    let failure = |fault, message| finding(Level::Failure(fault), message);
    let data = match &secret.data {
        Ok(Some(data)) => data,
        Ok(None) => {
            let message = format!("there is no Secret {name}: make it with {CA}, {CERTIFICATE} and {KEY}");
            return failure(Fault::NotFound, message);
        }
        Err(trouble) => return finding(Level::Skipped, trouble.to_string()),
    };
    let missing: Vec<_> = [CA, CERTIFICATE, KEY].into_iter().filter(|key| !data.contains_key(*key)).collect();
    if !missing.is_empty() {
        let message = format!("Secret {name} has no {}: add what is missing", missing.join(", no "));
        return failure(Fault::NotFound, message);
    }
    let mut soonest: Option<(Timestamp, &str)> = None;
    for key in [CA, CERTIFICATE] {
        match data.get(key).map(|pem| valid_until(&pem.0)) {
            Some(Ok(until)) => soonest = soonest.into_iter().chain([(until, key)]).min(),
            Some(Err(why)) => {
                let message = format!("{key} of Secret {name} is no certificate ({why}): replace it");
                return failure(Fault::Environment, message);
            }
            None => {}
        }
    }
    let Some((until, key)) = soonest else { return finding(Level::Skipped, format!("Secret {name} is empty")) };
    let day = until.strftime("%Y-%m-%d");
    if until <= now {
        return failure(Fault::Unauthorised, format!("{key} of Secret {name} expired on {day}: renew it"));
    }
    if let Some(complaint) = &secret.complaint {
        return failure(Fault::Environment, format!("Secret {name} is no good: {complaint}"));
    }
    if until <= now.saturating_add(RENEWAL).unwrap_or(Timestamp::MAX) {
        return finding(Level::Warning, format!("{key} of Secret {name} expires on {day}: renew it in time"));
    }
    finding(Level::Ok, format!("the certificates of Secret {name} are valid until {day}"))
}

fn captures(facts: &ServiceFacts) -> Vec<Finding> {
    let name = &facts.name;
    match &facts.captures {
        Ok(captures) => vec![spare(captures, name), versions(captures, name)],
        Err(Unseen::Unauthorized(why)) => {
            let message = format!("the captures of {name} may not be asked: {why}");
            vec![Finding::new("captures", Level::Warning, message)]
        }
        Err(unseen) => {
            let endpoints = facts.slices.as_ref().map(|slices| addresses(slices).map_or(0, |found| found.len()));
            // Where the captures cannot be asked, the endpoints at least can be counted.
            if endpoints.is_ok_and(|endpoints| endpoints < CAPTURES_MIN) {
                return vec![Finding::new("captures", Level::Failure(Fault::Environment), alone(name, 1))];
            }
            let message = format!(
                "the captures of {name} cannot be asked from here ({unseen}): \
                 `capturedrain captures` in one of their pods lists them"
            );
            vec![Finding::new("captures", Level::Skipped, message)]
        }
    }
}

fn alone(name: &str, count: usize) -> String {
    let who = match count {
        0 => "none".to_owned(),
        1 => "1".to_owned(),
        count => count.to_string(),
    };
    format!("{name} has {who} capture that could work: a drain needs a second one to take the work, so add one")
}

fn spare(captures: &[CaptureView], name: &str) -> Finding {
    let works = captures.iter().filter(|capture| capture.liveness == "Alive" && capture.heard).count();
    let silent: Vec<_> = captures.iter().filter(|capture| !capture.heard).map(|at| at.id.as_str()).collect();
    if works < CAPTURES_MIN {
        return Finding::new("captures", Level::Failure(Fault::Environment), alone(name, works));
    }
    if !silent.is_empty() {
        let message = format!("{} registered with {name} and not heard: look at the log", silent.join(", "));
        return Finding::new("captures", Level::Warning, message);
    }
    Finding::new("captures", Level::Ok, format!("{name} has {works} captures that are Alive and heard"))
}

fn versions(captures: &[CaptureView], name: &str) -> Finding {
    let mut versions: Vec<_> = captures.iter().map(|capture| capture.version.as_str()).collect();
    versions.sort_unstable();
    versions.dedup();
    match versions.as_slice() {
        [] | [_] => Finding::new("capture-versions", Level::Ok, format!("{name} is all {}", versions.concat())),
        several => {
            let message = format!("{name} has captures of {}: finish the upgrade", several.join(" and "));
            Finding::new("capture-versions", Level::Warning, message)
        }
    }
}

fn pods(facts: &ServiceFacts) -> Option<Finding> {
    let finding = |level, message: String| Some(Finding::new("grace-period", level, message));
    let pods = match &facts.pods {
        Ok(pods) if pods.is_empty() => return None,
        Ok(pods) => pods,
        Err(trouble) => return finding(Level::Skipped, trouble.to_string()),
    };
    let grace = |pod: &Pod| {
        let said = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        said.unwrap_or(GRACE_DEFAULT_SECONDS)
    };
    let hasty: Vec<_> = pods.iter().filter(|pod| grace(pod) < GRACE_MIN_SECONDS).collect();
    if hasty.is_empty() {
        let least = pods.iter().map(grace).min().unwrap_or_default();
        return finding(Level::Ok, format!("pods of {} have {least} s or more to end", facts.name));
    }
    let named: Vec<_> = hasty.iter().map(|pod| format!("{} ({} s)", pod.name_any(), grace(pod))).collect();
    let message = format!(
        "little time to drain before the kill: {}; set terminationGracePeriodSeconds to {GRACE_MIN_SECONDS} or more",
        named.join(", ")
    );
    finding(Level::Warning, message)
}

fn budget(facts: &ServiceFacts, budgets: &Result<Vec<PodDisruptionBudget>, Trouble>) -> Option<Finding> {
    let finding = |level, message: String| Some(Finding::new("budget", level, message));
    let (budgets, pods) = match (budgets, &facts.pods) {
        (Ok(budgets), Ok(pods)) => (budgets, pods),
        (Err(trouble), _) | (_, Err(trouble)) => return finding(Level::Skipped, trouble.to_string()),
    };
    let of_captures = budgets.iter().filter_map(|budget| {
        let covered = pods.iter().filter(|pod| covers(budget, pod)).count();
        (covered > 0).then_some((budget, covered))
    });
    let of_captures: Vec<_> = of_captures.collect();
    if let Some((budget, _)) = of_captures.iter().find(|(budget, covered)| allows_nothing(budget, *covered)) {
        let message =
            format!("PodDisruptionBudget {} never allows an eviction: set maxUnavailable to 1", budget.name_any());
        return finding(Level::Failure(Fault::Environment), message);
    }
    let is_spent = |budget: &PodDisruptionBudget| {
        let status = budget.status.as_ref().filter(|status| status.observed_generation.is_some());
        status.is_some_and(|status| status.disruptions_allowed == 0)
    };
    if let Some((budget, _)) = of_captures.iter().find(|(budget, _)| is_spent(budget)) {
        let message = format!(
            "PodDisruptionBudget {} allows no eviction at the moment: see that all captures are ready",
            budget.name_any()
        );
        return finding(Level::Warning, message);
    }
    if pods.is_empty() {
        return None;
    }
    finding(Level::Ok, format!("no PodDisruptionBudget keeps the pods of {} from being evicted", facts.name))
}

fn covers(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.clone());
    // Without a selector it is for nobody, with an empty one for everybody.
    selector.and_then(|selector| Selector::try_from(selector).ok()).is_some_and(|all| all.matches(pod.labels()))
}

/// Whether a budget allows nothing even when all of so many pods are ready.
fn allows_nothing(budget: &PodDisruptionBudget, covered: usize) -> bool {
    let Some(spec) = &budget.spec else { return false };
    let is_all = |least: &IntOrString| match least {
        IntOrString::Int(least) => usize::try_from(*least).is_ok_and(|least| least >= covered),
        IntOrString::String(share) => share == "100%",
    };
    let is_none = |most: &IntOrString| match most {
        IntOrString::Int(most) => *most == 0,
        IntOrString::String(share) => share == "0%",
    };
    spec.max_unavailable.as_ref().is_some_and(is_none) || spec.min_available.as_ref().is_some_and(is_all)
}
