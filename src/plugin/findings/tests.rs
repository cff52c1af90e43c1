//! Facts and what is made of them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::admissionregistration::v1::MutatingWebhook, apimachinery::pkg::version::Info};
use kube::CustomResourceExt as _;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use serde_json::{Value, json};

use super::*;
use crate::{
    operator::observe::Unseen,
    plugin::{
        Trouble,
        facts::{SecretFacts, ServiceFacts},
        hook::{HookFacts, Rehearsal},
    },
    view::CaptureView,
};

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn right(purpose: Purpose, is_vital: bool, verb: &'static str) -> Right {
    Right { purpose, is_vital, group: "", resource: "pods", object: None, verb }
}

fn capture(id: &str, liveness: &str, version: &str, heard: bool) -> CaptureView {
    from(json!({
        "id": id, "node_epoch": "1", "address": "h:1", "pod_name": id, "pod_uid": id, "version": version,
        "liveness": liveness, "is_coordinator": false, "heard": heard,
        "maintainer_count": null, "dispatcher_count": null,
    }))
}

fn pod(name: &str, grace: u32) -> k8s_openapi::api::core::v1::Pod {
    from(json!({"metadata": {"name": name, "labels": {"app": "cdc"}},
        "spec": {"containers": [], "terminationGracePeriodSeconds": grace}}))
}

fn slice(ports: &Value, addresses: &[&str]) -> k8s_openapi::api::discovery::v1::EndpointSlice {
    let endpoints: Vec<_> = addresses.iter().map(|address| json!({"addresses": [address]})).collect();
    from(json!({"metadata": {}, "addressType": "IPv4", "ports": ports, "endpoints": endpoints}))
}

fn service() -> ServiceFacts {
    ServiceFacts {
        name: "cdc".to_owned(),
        service: Ok(Some(from(json!({"metadata": {"name": "cdc"}})))),
        slices: Ok(vec![slice(&json!([{"name": "grpc", "port": 1}]), &["10.0.0.1", "10.0.0.2"])]),
        secret: None,
        captures: Ok(vec![capture("a", "Alive", "1", true), capture("b", "Alive", "1", true)]),
        pods: Ok(vec![pod("a", 600), pod("b", 600)]),
    }
}

/// Everything as it should be.
fn facts() -> Facts {
    Facts {
        now: "2026-01-01T00:00:30Z".parse().unwrap(),
        namespace: "shop".to_owned(),
        version: Info {
            major: "1".to_owned(),
            minor: "33+".to_owned(),
            git_version: "v1.33.4".to_owned(),
            ..Info::default()
        },
        is_served: Ok(true),
        crd: Ok(CaptureDrain::crd()),
        leases: Ok(vec![lease("operator-1", "2026-01-01T00:00:20.000000Z")]),
        own: vec![(right(Purpose::Status, true, "list"), true), (right(Purpose::Apply, true, "create"), true)],
        operators: Ok(BTreeMap::from([("op".to_owned(), vec![(right(Purpose::Operate, true, "list"), true)])])),
        services: vec![service()],
        budgets: Ok(vec![from(json!({"metadata": {"name": "cdc"},
            "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "cdc"}}}}))]),
        hook: HookFacts {
            hooks: Ok(vec![("hook".to_owned(), hook(&until(12, 31)))]),
            labels: Some(BTreeMap::from([("team".to_owned(), "a".to_owned())])),
            rehearsals: vec![rehearsal(&["299 - \"the capture in pod a, of Service cdc, would be drained first\""])],
        },
    }
}

fn hook(bundle: &ByteString) -> MutatingWebhook {
    from(json!({
        "name": "evictions.capturedrain.io", "admissionReviewVersions": ["v1"], "sideEffects": "NoneOnDryRun",
        "clientConfig": {"caBundle": bundle}, "failurePolicy": "Ignore",
    }))
}

fn rehearsal(warnings: &[&str]) -> Rehearsal {
    let warnings = Ok(warnings.iter().map(|warning| (*warning).to_owned()).collect());
    Rehearsal { pod: "a".to_owned(), is_marked: true, warnings }
}

#[test]
fn evictions_wait_where_the_webhook_is_there_and_answers() {
    let none = "webhook: warning: evictions do not wait for drains: install the operator with webhook.enabled";
    check(|facts| facts.hook.hooks = Ok(Vec::new()), &[none]);
    let other = |facts: &mut Facts| {
        let mut hook = hook(&until(12, 31));
        hook.namespace_selector = Some(from(json!({"matchLabels": {"team": "b"}})));
        facts.hook.hooks = Ok(vec![("hook".to_owned(), hook)]);
    };
    let left_out = "webhook: warning: evictions in namespace shop do not wait for drains: the namespaceSelector of \
                    MutatingWebhookConfiguration hook leaves it out";
    check(other, &[left_out]);
    let with =
        |bundle: ByteString| move |facts: &mut Facts| facts.hook.hooks = Ok(vec![("hook".to_owned(), hook(&bundle))]);
    let unwritten = "webhook: Environment: MutatingWebhookConfiguration hook has no caBundle: look at the operator's log, \
                     it writes it";
    check(with(ByteString::default()), &[unwritten]);
    let over = "webhook: Unauthorised: the CA of MutatingWebhookConfiguration hook has expired: look at the operator's \
                log, it renews it";
    check(with(until(1, 1)), &[over]);
    let silent = "webhook-eviction: Unreachable: an eviction of pod a would not wait: the webhook does not answer, which \
                  failurePolicy Ignore lets pass, or its matchCondition leaves the name out";
    check(|facts| facts.hook.rehearsals = vec![rehearsal(&[])], &[silent]);
    let unmarked = "webhook-eviction: warning: evictions of pod a do not wait: label the pods of captures with \
                    capturedrain.io/service=SERVICE";
    check(|facts| facts.hook.rehearsals[0].is_marked = false, &[unmarked]);
    let closed = |facts: &mut Facts| facts.hook.rehearsals[0].warnings = Err(Trouble::Unauthorised("no".to_owned()));
    check(closed, &["webhook-eviction: skipped: no"]);
}

fn lease(holder: &str, renewed: &str) -> Lease {
    from(json!({"metadata": {"name": "capturedrain-operator", "namespace": "system"},
        "spec": {"holderIdentity": holder, "renewTime": renewed, "leaseDurationSeconds": 15}}))
}

/// Changes the facts, and compares everything that is not ok, as `check: level: message`.
fn check(change: impl FnOnce(&mut Facts), expected: &[&str]) {
    let mut facts = facts();
    change(&mut facts);
    let found = findings(&facts).into_iter().filter(|finding| finding.level != Level::Ok);
    let found: Vec<_> = found
        .map(|finding| {
            let fault = match finding.level {
                Level::Failure(fault) => format!("{fault:?}"),
                level => level.as_str().to_owned(),
            };
            format!("{}: {fault}: {}", finding.check, finding.message)
        })
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn all_is_well_when_it_is() {
    check(|_| {}, &[]);
    assert_eq!(findings(&facts()).len(), 13);
}

#[test]
fn an_old_api_server_is_told() {
    let message = "version: Environment: the API server is v1.32.9: upgrade Kubernetes to 1.33 or later";
    let old = |facts: &mut Facts| {
        facts.version.minor = "32".to_owned();
        facts.version.git_version = "v1.32.9".to_owned();
    };
    check(old, &[message]);
    check(|facts| facts.version.major = "2".to_owned(), &[]);
}

#[test]
fn the_crd_has_to_be_there_and_of_this_binary() {
    let apply = "apply it with `capturedrain crd | kubectl apply --server-side -f -`";
    let missing = || Err(Trouble::NotFound("no".to_owned()));
    let absent = |facts: &mut Facts| (facts.is_served, facts.crd) = (Ok(false), missing());
    check(absent, &[&format!("crd: NotFound: the CRD is not installed: {apply}")]);
    check(|facts| facts.is_served = Ok(false), &[&format!("crd: NotFound: the CRD does not serve v1alpha1: {apply}")]);
    let other = |facts: &mut Facts| {
        let crd = facts.crd.as_mut().unwrap();
        crd.spec.versions[0].additional_printer_columns = None;
    };
    let message =
        format!("crd: warning: the CRD is of another release than this binary: if this one is newer, {apply}");
    check(other, &[&message]);
    let secret = |facts: &mut Facts| facts.crd = Err(Trouble::Unauthorised("you may not".to_owned()));
    check(secret, &["crd: skipped: v1alpha1 is served; whether the CRD is this binary's is not known: you may not"]);
}

#[test]
fn an_operator_has_to_hold_its_lease() {
    let place = "nobody holds Lease system/capturedrain-operator: look at the operator's pods and their log";
    let place = format!("operator: NotFound: {place}");
    check(|facts| facts.leases = Ok(vec![lease("", "2026-01-01T00:00:20.000000Z")]), &[&place]);
    check(|facts| facts.leases = Ok(vec![lease("x", "2025-12-31T23:59:59.000000Z")]), &[&place]);
    check(|facts| facts.leases = Ok(vec![lease("x", "2026-01-01T00:00:00.000000Z")]), &[]);
    let none = "operator: NotFound: there is no Lease capturedrain-operator: install the operator, or start \
                `capturedrain operator`";
    check(|facts| facts.leases = Ok(vec![]), &[none]);
    let unknown = |facts: &mut Facts| facts.leases = Err(Trouble::Unauthorised("no".to_owned()));
    check(unknown, &["operator: skipped: whether an operator runs is not known: no"]);
}

#[test]
fn missing_rights_are_named() {
    let none = |facts: &mut Facts| {
        for (_, may) in &mut facts.own {
            *may = false;
        }
    };
    let status = "rights-status: Unauthorised: you may not list pods: have it granted to see how drains stand in \
                  namespace shop";
    let apply =
        "rights-apply: Unauthorised: you may not create pods: have it granted to ask for drains in namespace shop";
    check(none, &[status, apply]);
    let little = |facts: &mut Facts| facts.own = vec![(right(Purpose::Status, false, "watch"), false)];
    let status =
        "rights-status: warning: you may not watch pods: have it granted to see how drains stand in namespace shop";
    check(little, &[status]);
    let elsewhere = vec![(right(Purpose::Operate, true, "list"), false)];
    let half = [elsewhere.clone(), vec![(right(Purpose::Operate, true, "watch"), true)]].concat();
    let operators = |all: &[(&str, &Vec<(Right, bool)>)]| {
        let all: BTreeMap<_, _> = all.iter().map(|(name, rights)| ((*name).to_owned(), (*rights).clone())).collect();
        move |facts: &mut Facts| facts.operators = Ok(all)
    };
    let lacks = "rights-operator: Unauthorised: op may not list pods in namespace shop: grant it";
    check(operators(&[("op", &half), ("other", &elsewhere)]), &[lacks]);
    let none = "rights-operator: warning: no operator has rights in namespace shop; there are other";
    check(operators(&[("other", &elsewhere)]), &[none]);
    let nobody = "rights-operator: skipped: no ServiceAccount has the label \
                  app.kubernetes.io/name=capturedrain-operator";
    check(|facts| facts.operators = Ok(BTreeMap::new()), &[nobody]);
}

#[test]
fn a_service_has_to_lead_somewhere() {
    let none = "service: skipped: neither a CaptureDrain nor a pod of this namespace names a Service: name the captures' by --service";
    check(|facts| facts.services.clear(), &[none]);
    let missing = "service: NotFound: there is no Service cdc: make it, or correct clusterRef.serviceName";
    check(|facts| facts.services[0].service = Ok(None), &[missing]);
    let empty = "service: Unreachable: no pod is behind Service cdc: start captures with the labels that it selects";
    check(|facts| facts.services[0].slices = Ok(vec![]), &[empty]);
    let ports = json!([{"name": "a", "port": 1}, {"name": "b", "port": 2}]);
    let unclear = "service: Environment: Service cdc has ports a, b: name the captures' one capturedrain";
    check(|facts| facts.services[0].slices = Ok(vec![slice(&ports, &["10.0.0.1"])]), &[unclear]);
}

#[test]
fn a_drain_needs_a_capture_to_spare() {
    let single = "captures: Environment: cdc has 1 capture that could work: a drain needs a second one to take the \
                  work, so add one";
    let alive = || capture("a", "Alive", "1", true);
    for other in [None, Some(capture("b", "Stopping", "1", true)), Some(capture("b", "Alive", "1", false))] {
        let captures = [alive()].into_iter().chain(other).collect();
        check(|facts| facts.services[0].captures = Ok(captures), &[single]);
    }
    let silent = vec![alive(), capture("b", "Alive", "1", true), capture("c", "Alive", "1", false)];
    let unheard = "captures: warning: c registered with cdc and not heard: look at the log";
    check(|facts| facts.services[0].captures = Ok(silent), &[unheard]);
    let mixed = vec![alive(), capture("b", "Alive", "2", true)];
    let versions = "capture-versions: warning: cdc has captures of 1 and 2: finish the upgrade";
    check(|facts| facts.services[0].captures = Ok(mixed), &[versions]);
    let far = || Err(Unseen::Unreachable("no route".to_owned()));
    let unknown = "captures: skipped: the captures of cdc cannot be asked from here (no route): `capturedrain \
                   captures` in one of their pods lists them";
    check(|facts| facts.services[0].captures = far(), &[unknown]);
    let one = |facts: &mut Facts| {
        facts.services[0].captures = far();
        facts.services[0].slices = Ok(vec![slice(&json!([{"port": 1}]), &["10.0.0.1"])]);
    };
    check(one, &[single]);
}

#[test]
fn pods_need_time_and_may_be_evicted() {
    let hasty = "grace-period: warning: little time to drain before the kill: a (30 s); set \
                 terminationGracePeriodSeconds to 60 or more";
    check(|facts| facts.services[0].pods = Ok(vec![pod("a", 30), pod("b", 60)]), &[hasty]);
    let budget = |spec: Value, status: Value| {
        let mut spec = spec;
        spec["selector"] = json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["cdc"]}]});
        Ok(vec![from(json!({"metadata": {"name": "none"}, "spec": spec, "status": status}))])
    };
    let never = "budget: Environment: PodDisruptionBudget none never allows an eviction: set maxUnavailable to 1";
    for spec in [
        json!({"maxUnavailable": 0}),
        json!({"maxUnavailable": "0%"}),
        json!({"minAvailable": "100%"}),
        json!({"minAvailable": 2}),
    ] {
        check(|facts| facts.budgets = budget(spec, Value::Null), &[never]);
    }
    check(|facts| facts.budgets = budget(json!({"minAvailable": 1}), Value::Null), &[]);
    let status = |allowed: i32| {
        json!({"observedGeneration": 1, "disruptionsAllowed": allowed, "currentHealthy": 1, "desiredHealthy": 1,
            "expectedPods": 2})
    };
    let spent = "budget: warning: PodDisruptionBudget none allows no eviction at the moment: see that all captures \
                 are ready";
    check(|facts| facts.budgets = budget(json!({"maxUnavailable": 1}), status(0)), &[spent]);
    check(|facts| facts.budgets = budget(json!({"maxUnavailable": 1}), status(1)), &[]);
    let of_others = json!([{"metadata": {"name": "x"},
        "spec": {"maxUnavailable": 0, "selector": {"matchLabels": {"app": "other"}}}}]);
    check(|facts| facts.budgets = Ok(from(of_others)), &[]);
}

/// A certificate that ends on a day of 2026.
fn until(month: u8, day: u8) -> ByteString {
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(2025, 1, 1);
    params.not_after = date_time_ymd(2026, month, day);
    let pem = params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
    ByteString(pem.into_bytes())
}

fn secret(entries: &[(&str, ByteString)]) -> SecretFacts {
    let data = entries.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    SecretFacts { name: "tls".to_owned(), data: Ok(Some(data)), complaint: None }
}

#[test]
fn certificates_are_there_and_last() {
    let check_secret =
        |secret: SecretFacts, expected: &[&str]| check(|facts| facts.services[0].secret = Some(secret), expected);
    let key = ByteString(b"key".to_vec());
    let all = |certificate: ByteString| {
        secret(&[("ca.crt", until(12, 31)), ("tls.crt", certificate), ("tls.key", key.clone())])
    };
    check_secret(all(until(2, 1)), &[]);
    check_secret(all(until(1, 1)), &["tls: Unauthorised: tls.crt of Secret tls expired on 2026-01-01: renew it"]);
    let soon = "tls: warning: tls.crt of Secret tls expires on 2026-01-10: renew it in time";
    check_secret(all(until(1, 10)), &[soon]);
    let lacking = "tls: NotFound: Secret tls has no ca.crt, no tls.key: add what is missing";
    check_secret(secret(&[("tls.crt", until(2, 1))]), &[lacking]);
    let odd = "tls: Environment: tls.crt of Secret tls is no certificate (there is no certificate in PEM form): \
               replace it";
    check_secret(all(ByteString(b"odd".to_vec())), &[odd]);
    let foreign = SecretFacts { complaint: Some("the key is another's".to_owned()), ..all(until(2, 1)) };
    check_secret(foreign, &["tls: Environment: Secret tls is no good: the key is another's"]);
    let absent = SecretFacts { data: Ok(None), ..all(until(2, 1)) };
    check_secret(absent, &["tls: NotFound: there is no Secret tls: make it with ca.crt, tls.crt and tls.key"]);
    let closed = SecretFacts { data: Err(Trouble::Unauthorised("no".to_owned())), ..all(until(2, 1)) };
    check_secret(closed, &["tls: skipped: no"]);
}
