//! What a spec has to keep to, and the sentences that say what to write instead. The CRD carries the same rules in CEL,
//! for API servers; `tests/support/specs.yaml` holds both to the same verdicts.

use capturedrain_core::model::{CaptureId, NAME_MAX_BYTES, POD_UID_MAX_CHARS, REASON_MAX_CHARS};

use super::{CaptureDrainSpec, ClusterKind, ClusterRef, LimitPolicy, Target};

/// Most seconds that any field takes: a year, far from where sums with them would overflow.
const SECONDS_MAX: i64 = 31_536_000;
/// Longest name of a Service.
const LABEL_MAX_CHARS: usize = 63;
/// Longest name of a pod or a Secret.
const SUBDOMAIN_MAX_CHARS: usize = 253;

pub(super) const ONE_TARGET: &str = "write exactly one of target.podName and target.captureID";
pub(super) const POD_NAME: &str =
    "podName has to be the name of a pod of this namespace, as cdc-0: small letters, digits, - and .";
pub(super) const CAPTURE_ID: &str =
    "captureID has to be a capture's name: 1 to 128 letters, digits, '.', '_' or '-', not a dot first";
pub(super) const POD_UID: &str = "podUID cannot be empty: write the pod's metadata.uid, or leave it out";
pub(super) const SERVICE_NAME: &str = "serviceName has to be the name of a Service of this namespace, as cdc: small letters, digits and -, a letter first";
pub(super) const TLS_SECRET: &str =
    "tlsSecretName has to be the name of a Secret of this namespace, as cdc-tls: small letters, digits, - and .";
pub(super) const USER_SECRET: &str =
    "userSecretName has to be the name of a Secret of this namespace, as cdc-user: small letters, digits, - and .";
pub(super) const USER_KIND: &str =
    "userSecretName is for kind TiCDC: this project's captures know their clients by certificate, write tlsSecretName";
pub(super) const DEADLINE: &str = "deadlineSeconds has to be from 1 to 31536000, which is a year";
pub(super) const PROGRESS: &str = "progressDeadlineSeconds has to be from 1 to 31536000, which is a year";
pub(super) const RELEASE: &str = "releaseAfterSeconds has to be from 1 to 31536000, which is a year";
pub(super) const TTL: &str = "ttlSecondsAfterFinished has to be from 0 to 31536000, which is a year";
pub(super) const PROCEED: &str =
    "onDeadline Proceed needs a deadline: write in deadlineSeconds after how long the pod may go with work left";

/// The first rule that a spec breaks, as an API server would say it.
pub(super) fn broken_rule(spec: &CaptureDrainSpec) -> Option<String> {
    let texts = [
        ("reason", spec.reason.as_ref(), REASON_MAX_CHARS),
        ("clusterRef.serviceName", Some(&spec.cluster_ref.service_name), LABEL_MAX_CHARS),
        ("clusterRef.tlsSecretName", spec.cluster_ref.tls_secret_name.as_ref(), SUBDOMAIN_MAX_CHARS),
        ("clusterRef.userSecretName", spec.cluster_ref.user_secret_name.as_ref(), SUBDOMAIN_MAX_CHARS),
        ("target.podName", spec.target.pod_name.as_ref(), SUBDOMAIN_MAX_CHARS),
        ("target.captureID", spec.target.capture_id.as_ref(), NAME_MAX_BYTES),
        ("target.podUID", spec.target.pod_uid.as_ref(), POD_UID_MAX_CHARS),
    ];
    let long = texts.into_iter().find(|(_, text, max)| text.is_some_and(|text| text.chars().count() > *max));
    if let Some((what, _, max)) = long {
        return Some(format!("spec.{what} is too long: may not be more than {max} characters"));
    }
    let cluster = of_cluster(&spec.cluster_ref).map(|rule| ("clusterRef", rule));
    let target = of_target(&spec.target).map(|rule| ("target", rule));
    if let Some((field, rule)) = cluster.or(target) {
        return Some(format!("spec.{field}: {rule}"));
    }
    of_times(spec).map(|rule| format!("spec: {rule}"))
}

fn first(rules: impl IntoIterator<Item = (bool, &'static str)>) -> Option<&'static str> {
    rules.into_iter().find_map(|(holds, rule)| (!holds).then_some(rule))
}

fn of_cluster(cluster: &ClusterRef) -> Option<&'static str> {
    let of_secret = |name: &Option<String>| name.as_deref().is_none_or(is_subdomain);
    first([
        (is_service_name(&cluster.service_name), SERVICE_NAME),
        (of_secret(&cluster.tls_secret_name), TLS_SECRET),
        (of_secret(&cluster.user_secret_name), USER_SECRET),
        (cluster.user_secret_name.is_none() || cluster.kind == ClusterKind::TiCdc, USER_KIND),
    ])
}

fn of_target(target: &Target) -> Option<&'static str> {
    first([
        (target.pod_name.is_some() != target.capture_id.is_some(), ONE_TARGET),
        (target.pod_name.as_deref().is_none_or(is_subdomain), POD_NAME),
        (target.capture_id.as_deref().is_none_or(|id| CaptureId::new(id).is_ok()), CAPTURE_ID),
        (target.pod_uid.as_deref().is_none_or(|uid| !uid.is_empty()), POD_UID),
    ])
}

fn of_times(spec: &CaptureDrainSpec) -> Option<&'static str> {
    let from = |min: i64, seconds: Option<i64>| seconds.is_none_or(|seconds| (min..=SECONDS_MAX).contains(&seconds));
    first([
        (from(1, spec.deadline_seconds), DEADLINE),
        (from(1, spec.progress_deadline_seconds), PROGRESS),
        (from(1, spec.release_after_seconds), RELEASE),
        (from(0, spec.ttl_seconds_after_finished), TTL),
        (spec.on_deadline != LimitPolicy::Proceed || spec.deadline_seconds.is_some(), PROCEED),
    ])
}

/// Whether a Service may have this name (RFC 1035's labels).
fn is_service_name(name: &str) -> bool {
    is_label(name) && name.starts_with(|first: char| first.is_ascii_lowercase())
}

/// Whether a pod or a Secret may have this name (RFC 1123's subdomains).
fn is_subdomain(name: &str) -> bool {
    name.split('.').all(is_label)
}

fn is_label(label: &str) -> bool {
    let is_alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = [label.bytes().next(), label.bytes().last()];
    ends.into_iter().all(|end| end.is_some_and(is_alphanumeric))
        && label.bytes().all(|byte| is_alphanumeric(byte) || byte == b'-')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

    use serde_json::Value;

    use super::*;

    #[test]
    fn specs_are_judged_as_an_api_server_judges_them() {
        let cases: Vec<Value> = serde_yaml::from_str(include_str!("../../tests/support/specs.yaml")).unwrap();
        assert!(cases.len() > 20, "{}", cases.len());
        for case in cases {
            let spec: CaptureDrainSpec = serde_json::from_value(case["spec"].clone()).unwrap();
            match (broken_rule(&spec), case["says"].as_str()) {
                (None, None) => {}
                (Some(rule), Some(says)) => assert!(rule.contains(says), "{rule}: {case}"),
                (rule, _) => panic!("{rule:?}: {case}"),
            }
        }
    }
}
