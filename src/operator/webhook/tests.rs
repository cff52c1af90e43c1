use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{api::policy::v1::PodDisruptionBudget, apimachinery::pkg::apis::meta::v1::Time};
use serde_json::{Value, json};

use super::{
    answer::answer,
    asked::{Asked, Given, Review},
    budget::refusing,
    decide::{Decision, Look, Pass, Step, decide},
    facts::{BREAK_GLASS, Facts, Obstacles, PodFacts, Seen},
    make::{CALLERS_MAX, attempt, make, next_number},
};
use crate::{
    operator::{
        observe::{Cluster, Pod, Unseen},
        rollout::Marks,
    },
    resource::CaptureDrain,
    view::{CaptureView, DrainEndView},
};

fn now() -> Timestamp {
    "2026-11-25T12:00:00Z".parse().unwrap()
}

fn marks(pairs: &[(&str, &str)]) -> Marks {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// A running pod of a capture.
fn pod() -> PodFacts {
    PodFacts {
        pod: Pod {
            uid: "u1".to_owned(),
            ips: Vec::new(),
            created_at: now() - SignedDuration::from_hours(1),
            is_deleting: false,
        },
        labels: marks(&[("capturedrain.io/service", "cdc")]),
        annotations: Marks::new(),
        phase: "Running".to_owned(),
        node: Some("node-1".to_owned()),
    }
}

/// An eviction of it that is asked for the first time.
fn facts() -> Facts {
    let asked =
        Asked { namespace: "shop".to_owned(), name: "cdc-1".to_owned(), user: "ann".to_owned(), ..Asked::default() };
    Facts {
        now: now(),
        asked,
        pod: Seen::Cached(Some(pod())),
        is_node_closed: None,
        drains: Vec::new(),
        cluster: None,
        obstacles: Some(Obstacles::default()),
    }
}

/// A drain of the pod, as the webhook makes it, with a status.
fn drain(number: usize, status: Value) -> CaptureDrain {
    let facts = facts();
    let cluster = pod().cluster().unwrap();
    let mut drain = make(&facts.asked, &pod(), cluster, number, now());
    drain.metadata.creation_timestamp = Some(Time(now() - SignedDuration::from_secs(60)));
    drain.status = Some(serde_json::from_value(status).unwrap());
    drain
}

fn condition(kind: &str, is: &str, reason: &str) -> Value {
    json!({"type": kind, "status": is, "reason": reason, "message": "", "lastTransitionTime": "2026-11-25T11:00:00Z"})
}

fn finished(reason: &str) -> Value {
    json!({"podUID": "u1", "captureID": "b", "nodeEpoch": "e1", "epoch": 7, "conditions": [condition("Finished", "True", reason)]})
}

fn proven() -> Value {
    json!({"podUID": "u1", "captureID": "b", "nodeEpoch": "e1", "epoch": 7, "phase": "Drained",
        "conditions": [condition("Drained", "True", "Proven")]})
}

fn capture(id: &str, uid: &str, epoch: &str, liveness: &str) -> CaptureView {
    serde_json::from_value(json!({
        "id": id, "node_epoch": epoch, "address": "10.0.0.1:8300", "pod_name": null, "pod_uid": uid, "version": "1",
        "liveness": liveness, "is_coordinator": false, "heard": true, "maintainer_count": 0, "dispatcher_count": 0,
    }))
    .unwrap()
}

fn ended(epoch: u64, outcome: &str) -> DrainEndView {
    serde_json::from_value(json!({
        "drain_epoch": epoch, "target": "b", "node_epoch": "e1", "outcome": outcome,
        "initial": {"maintainers": 0, "dispatchers": 0}, "requesters": [], "reason": null,
        "started_at": "", "ended_at": "", "duration_ms": 0,
    }))
    .unwrap()
}

#[allow(clippy::unnecessary_wraps, reason = "as the facts have it")]
fn cluster(capture: CaptureView, ends: &[DrainEndView]) -> Option<Result<Cluster, Unseen>> {
    let others = self::capture("a", "u0", "e0", "Alive");
    Some(Ok(Cluster { captures: vec![others, capture], ends: ends.to_vec(), ..Cluster::default() }))
}

/// One word for what comes next.
fn word(step: &Step) -> String {
    match step {
        Step::Look(Look::Pod) => "look:pod".to_owned(),
        Step::Look(Look::Node) => "look:node".to_owned(),
        Step::Look(Look::Proof { .. }) => "look:proof".to_owned(),
        Step::Look(Look::Obstacles) => "look:obstacles".to_owned(),
        Step::Answer(Decision::Pass { why, .. }) => format!("pass:{}", why.name()),
        Step::Answer(Decision::Rehearsed(_)) => "rehearsed".to_owned(),
        Step::Answer(Decision::Deny(denial)) => format!("deny:{}", denial.decision),
        Step::Answer(Decision::Gone) => "gone".to_owned(),
        Step::Answer(Decision::Begin { .. }) => "begin".to_owned(),
    }
}

#[track_caller]
fn check(change: impl FnOnce(&mut Facts), expected: &str) {
    let mut facts = facts();
    change(&mut facts);
    assert_eq!(word(&decide(&facts)), expected);
}

fn with(facts: &mut Facts, change: impl FnOnce(&mut PodFacts)) {
    let (Seen::Cached(Some(pod)) | Seen::Live(Some(pod))) = &mut facts.pod else { return };
    change(pod);
}

fn live(facts: &mut Facts) {
    let (Seen::Cached(pod) | Seen::Live(pod)) = facts.pod.clone();
    facts.pod = Seen::Live(pod);
}

#[test]
fn what_is_not_ours_passes_from_memory_and_what_is_unknown_is_looked_at() {
    check(|facts| with(facts, |pod| pod.labels.clear()), "pass:NotOurs");
    check(|facts| facts.pod = Seen::Cached(None), "look:pod");
    check(|facts| facts.pod = Seen::Live(None), "pass:NoPod");
}

#[test]
fn pods_that_do_not_run_pass_once_that_is_sure() {
    for phase in ["Pending", "Succeeded", "Failed"] {
        check(|facts| with(facts, |pod| pod.phase = phase.to_owned()), "look:pod");
        check(
            |facts| {
                with(facts, |pod| pod.phase = phase.to_owned());
                live(facts);
            },
            "pass:NotRunning",
        );
    }
    check(
        |facts| {
            with(facts, |pod| pod.pod.is_deleting = true);
            live(facts);
        },
        "pass:NotRunning",
    );
    check(|facts| with(facts, |pod| pod.phase = String::new()), "begin");
}

#[test]
fn a_pod_that_is_not_meant_is_for_the_api_server_to_refuse() {
    let other = |facts: &mut Facts| facts.asked.uid = Some("u0".to_owned());
    check(other, "look:pod");
    check(
        |facts| {
            other(facts);
            live(facts);
        },
        "pass:OtherPod",
    );
    check(|facts| facts.asked.uid = Some("u1".to_owned()), "begin");
}

#[test]
fn a_dry_run_brings_nothing_about_and_says_what_would_be_drained() {
    let warn = |change: fn(&mut Facts)| {
        let mut facts = facts();
        facts.asked.is_dry_run = true;
        facts.obstacles = None;
        change(&mut facts);
        match decide(&facts) {
            Step::Answer(Decision::Rehearsed(warning)) => warning,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(warn(|_| {}).unwrap(), "the capture in pod cdc-1, of Service cdc, would be drained first");
    let on = warn(|facts| facts.drains = vec![Arc::new(drain(1, json!({"phase": "Draining"})))]);
    assert!(on.unwrap().starts_with("pod cdc-1 could not go yet: "));
    assert!(warn(|facts| facts.drains = vec![Arc::new(drain(1, proven()))]).unwrap().contains("is drained"));
    assert_eq!(warn(|facts| with(facts, |pod| pod.phase = "Failed".to_owned())), None);
}

#[test]
fn a_drain_begins_when_nothing_stands_in_its_way() {
    check(|facts| facts.obstacles = None, "look:obstacles");
    check(|_| {}, "begin");
    let obstacles = |budget: Option<&str>, withdrawn: Option<&str>| {
        Some(Obstacles { budget: budget.map(Into::into), withdrawn: withdrawn.map(Into::into) })
    };
    check(|facts| facts.obstacles = obstacles(Some("cdc"), None), "deny:Budget");
    check(|facts| facts.obstacles = obstacles(None, Some("u1-1")), "deny:Withdrawn");
    // One that is on does not end because a budget is short.
    check(
        |facts| {
            facts.drains = vec![Arc::new(drain(1, json!({"phase": "Draining"})))];
            facts.obstacles = obstacles(Some("cdc"), None);
        },
        "deny:NotDrained",
    );
}

#[test]
fn one_annotation_breaks_the_glass() {
    check(
        |facts| with(facts, |pod| drop(pod.annotations.insert(BREAK_GLASS.into(), "true".into()))),
        "pass:BreakGlass",
    );
    check(|facts| with(facts, |pod| drop(pod.annotations.insert(BREAK_GLASS.into(), "false".into()))), "begin");
}

#[track_caller]
fn check_drain(status: Value, seen: Option<Result<Cluster, Unseen>>, expected: &str) {
    check(
        |facts| {
            facts.drains = vec![Arc::new(drain(1, status))];
            facts.cluster = seen;
        },
        expected,
    );
}

#[test]
fn a_proof_counts_when_pod_and_cluster_say_the_same_now() {
    let stopping = || capture("b", "u1", "e1", "Stopping");
    check_drain(proven(), None, "look:proof");
    check_drain(proven(), cluster(stopping(), &[ended(7, "Drained")]), "pass:Drained");
    check_drain(proven(), cluster(stopping(), &[]), "pass:Drained");
    // The history knows of a later drain of this registration, or of another end.
    check_drain(proven(), cluster(stopping(), &[ended(7, "Drained"), ended(9, "Drained")]), "deny:Unproven");
    check_drain(proven(), cluster(stopping(), &[ended(7, "Cancelled")]), "deny:Unproven");
    check_drain(proven(), cluster(capture("b", "u1", "e2", "Stopping"), &[ended(7, "Drained")]), "deny:Unproven");
    check_drain(proven(), cluster(capture("b", "u1", "e1", "Alive"), &[ended(7, "Drained")]), "deny:Unproven");
    check_drain(proven(), Some(Err(Unseen::Unreachable("x".to_owned()))), "deny:Unproven");
    // Its process has ended.
    check_drain(proven(), cluster(capture("b", "u9", "e9", "Alive"), &[]), "pass:Drained");
    // Another pod's proof is none.
    let mut other = proven();
    other["podUID"] = "u0".into();
    check(
        |facts| {
            let mut of_other = drain(1, other);
            of_other.spec.target.pod_uid = Some("u0".to_owned());
            facts.drains = vec![Arc::new(of_other)];
        },
        "begin",
    );
}

#[test]
fn a_drain_that_is_over_says_whether_the_pod_may_go_with_work_left() {
    let (same, anew) = (|| capture("b", "u1", "e1", "Draining"), || capture("b", "u1", "e2", "Alive"));
    for reason in ["EvictionAbandoned", "TargetReplaced", "CancelUnsupported", "PodNotFound"] {
        check_drain(finished(reason), None, "begin");
    }
    check_drain(finished("Withdrawn"), None, "deny:Withdrawn");
    check_drain(finished("DeadlineProceeded"), None, "look:proof");
    check_drain(finished("DeadlineProceeded"), cluster(same(), &[]), "pass:DeadlineProceeded");
    check_drain(finished("DeadlineProceeded"), cluster(anew(), &[]), "begin");
    check_drain(finished("DeadlineProceeded"), Some(Err(Unseen::Unreachable("x".into()))), "pass:DeadlineProceeded");
    let alone = Some(Ok(Cluster { captures: vec![anew()], ..Cluster::default() }));
    check_drain(finished("NoPeers"), alone, "pass:NoPeers");
    check_drain(finished("NoPeers"), cluster(anew(), &[]), "begin");
    for reason in ["NotACapture", "TargetGone", "NoPeers"] {
        check_drain(finished(reason), cluster(capture("c", "u9", "e9", "Alive"), &[]), "pass:NothingToDrain");
        check_drain(finished(reason), cluster(anew(), &[]), "begin");
    }
    check_drain(finished("CaptureStopping"), cluster(capture("b", "u1", "e1", "Stopping"), &[]), "pass:Drained");
    check_drain(finished("CaptureStopping"), cluster(same(), &[]), "begin");
}

#[test]
fn a_deleted_drain_is_withdrawn_and_another_goes_before_it() {
    let mut going = drain(1, json!({"phase": "Draining"}));
    going.metadata.deletion_timestamp = Some(Time(now()));
    check(|facts| facts.drains = vec![Arc::new(going.clone())], "deny:Withdrawn");
    check(
        |facts| facts.drains = vec![Arc::new(drain(2, json!({"phase": "Draining"}))), Arc::new(going)],
        "deny:NotDrained",
    );
}

#[test]
fn a_cluster_that_was_never_reached_holds_nobody_beyond_the_deadline() {
    let unseen = json!({"phase": "Unknown", "conditions": [condition("Stalled", "True", "ClusterUnreachable")]});
    check_drain(unseen.clone(), None, "deny:NotDrained");
    let mut late = drain(1, unseen);
    late.metadata.creation_timestamp = Some(Time(now() - SignedDuration::from_secs(3600)));
    check(|facts| facts.drains = vec![Arc::new(late)], "pass:DeadlineProceeded");
}

#[test]
fn a_successor_is_gone_for_who_wanted_its_predecessor_gone() {
    let of_predecessor = |user: &str| {
        let mut drain = drain(1, finished("PodGone"));
        drain.spec.target.pod_uid = Some("u0".to_owned());
        drain.metadata.creation_timestamp = Some(Time(now() - SignedDuration::from_hours(2)));
        drain.metadata.annotations = Some(attempt(&[], user, now() - SignedDuration::from_secs(10)));
        Arc::new(drain)
    };
    // Whatever memory says: a node that is cordoned a moment ago is to be empty, too.
    check(|facts| facts.drains = vec![of_predecessor("ann")], "look:node");
    let sure = |facts: &mut Facts| {
        facts.drains = vec![of_predecessor("ann")];
        facts.is_node_closed = Some(false);
        live(facts);
    };
    check(sure, "gone");
    let check_not = |change: fn(&mut Facts)| {
        check(
            |facts| {
                sure(facts);
                change(facts);
            },
            "begin",
        );
    };
    check_not(|facts| facts.is_node_closed = Some(true));
    check_not(|facts| facts.asked.user = "bert".to_owned());
    check_not(|facts| facts.asked.uid = Some("u1".to_owned()));
    check_not(|facts| facts.now = now() + SignedDuration::from_mins(5));
    // One that waits for a node has not begun, and is gone all the same.
    check(
        |facts| {
            sure(facts);
            with(facts, |pod| (pod.node, pod.phase) = (None, "Pending".to_owned()));
        },
        "gone",
    );
}

#[test]
fn a_denial_counts_what_is_left_and_names_the_drain() {
    let check = |status: Value, expected: &str| {
        let mut facts = facts();
        facts.drains = vec![Arc::new(drain(1, status))];
        let Step::Answer(Decision::Deny(denial)) = decide(&facts) else { panic!("not denied") };
        assert_eq!(denial.message, expected);
        assert_eq!(denial.drain.as_deref(), Some("u1-1"));
    };
    let left = |count: Value| json!({"phase": "Draining", "progress": {"remaining": count}});
    check(
        left(json!({"maintainers": 1, "dispatchers": 30})),
        "pod cdc-1 is being drained, 1 maintainer and 30 dispatchers left (CaptureDrain u1-1)",
    );
    check(left(json!({"dispatchers": 1})), "pod cdc-1 is being drained, 1 dispatcher left (CaptureDrain u1-1)");
    check(json!({}), "pod cdc-1 is being drained, what is left is not known yet (CaptureDrain u1-1)");
    check(
        json!({"phase": "Queued", "blockedBy": [{"kind": "CaptureDrain", "name": "x"}]}),
        "pod cdc-1 is not drained, its drain waits for its turn, behind CaptureDrain x (CaptureDrain u1-1)",
    );
    check(
        json!({"conditions": [condition("Stalled", "True", "NoDestination")]}),
        "pod cdc-1 is not drained, and its drain does not go on by itself: NoDestination (CaptureDrain u1-1)",
    );
}

#[test]
fn an_answer_is_what_kubectl_waits_for() {
    let mut facts = facts();
    facts.drains = vec![Arc::new(drain(1, json!({})))];
    let Step::Answer(decision) = decide(&facts) else { panic!("not decided") };
    let said = answer("r1", &facts.asked, &decision);
    let status = &said["response"]["status"];
    assert_eq!((&said["response"]["uid"], &said["response"]["allowed"]), (&json!("r1"), &json!(false)));
    assert_eq!((&status["code"], &status["reason"]), (&json!(429), &json!("TooManyRequests")));
    assert_eq!(status["details"]["causes"][0]["reason"], "CaptureNotDrained");
    assert!(status["details"].get("retryAfterSeconds").is_none(), "{said}");
    let gone = answer("r1", &facts.asked, &Decision::Gone);
    assert_eq!(gone["response"]["status"]["code"], 404);
}

#[test]
fn an_allowed_eviction_means_one_pod() {
    let pass = Decision::Pass { why: Pass::Drained, uid: Some("u1".to_owned()), drain: None };
    let check = |uid: Option<&str>, given: Given, expected: Value| {
        let asked = Asked { uid: uid.map(Into::into), given, ..Asked::default() };
        let said = answer("r1", &asked, &pass);
        let patch = said["response"]["patch"].as_str().map(|text| {
            let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).unwrap();
            serde_json::from_slice::<Value>(&bytes).unwrap()
        });
        assert_eq!(patch.map_or(Value::Null, |patch| patch[0].clone()), expected);
    };
    let add = |path: &str, value: Value| json!({"op": "add", "path": path, "value": value});
    check(None, Given::Nothing, add("/deleteOptions", json!({"preconditions": {"uid": "u1"}})));
    check(None, Given::Options, add("/deleteOptions/preconditions", json!({"uid": "u1"})));
    check(None, Given::Preconditions, add("/deleteOptions/preconditions/uid", json!("u1")));
    check(Some("u1"), Given::Preconditions, Value::Null);
}

#[test]
fn a_request_is_read_with_both_kinds_of_dry_run() {
    let read = |dry: bool, options: Value| {
        let request = json!({
            "uid": "r1", "name": "cdc-1", "namespace": "shop", "operation": "CREATE", "dryRun": dry,
            "userInfo": {"username": "ann", "groups": ["sre"]}, "kind": {"kind": "Eviction"},
            "object": {"kind": "Eviction", "metadata": {"name": "cdc-1"}, "deleteOptions": options}, "oldObject": null,
        });
        let review = json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request});
        Asked::from(serde_json::from_value::<Review>(review).unwrap().request)
    };
    let plain = read(false, Value::Null);
    assert_eq!((plain.user.as_str(), plain.is_dry_run, plain.given), ("ann", false, Given::Nothing));
    assert!(read(true, Value::Null).is_dry_run);
    assert!(read(false, json!({"dryRun": ["All"]})).is_dry_run);
    assert!(!read(false, json!({"dryRun": []})).is_dry_run);
    let meant = read(false, json!({"gracePeriodSeconds": 5, "preconditions": {"uid": "u1"}}));
    assert_eq!((meant.uid.as_deref(), meant.given), (Some("u1"), Given::Preconditions));
}

#[test]
fn drains_of_a_pod_are_numbered_and_remember_the_latest_callers() {
    let named = |name: &str| {
        let mut named = drain(1, json!({}));
        named.metadata.name = Some(name.to_owned());
        named
    };
    assert_eq!(next_number("u1", [].iter()), 1);
    assert_eq!(next_number("u1", [named("u1-1"), named("u1-7"), named("u10-9"), named("mine")].iter()), 8);
    let many: Vec<_> = (0..20).map(|n| format!("user-{n}")).collect();
    let kept = attempt(&many, "user-3", now())["capturedrain.io/evicted-by"].clone();
    let kept: Vec<String> = serde_json::from_str(&kept).unwrap();
    assert_eq!((kept.len(), kept.last().map(String::as_str)), (CALLERS_MAX, Some("user-3")));
}

#[test]
fn budgets_refuse_as_the_api_server_would() {
    let budget = |spec: Value, allowed: i32, healthy: i32| -> PodDisruptionBudget {
        serde_json::from_value(json!({
            "metadata": {"name": "cdc"}, "spec": spec,
            "status": {"disruptionsAllowed": allowed, "currentHealthy": healthy, "desiredHealthy": 2, "expectedPods": 3},
        }))
        .unwrap()
    };
    let selector = json!({"selector": {"matchLabels": {"app": "cdc"}}});
    let check = |budget: PodDisruptionBudget, labels: &[(&str, &str)], is_ready, expected: Option<&str>| {
        assert_eq!(refusing(&[budget], &marks(labels), is_ready).as_deref(), expected);
    };
    let ours = [("app", "cdc")];
    let allows_nothing = Some("PodDisruptionBudget cdc allows no disruption now");
    check(budget(selector.clone(), 0, 2), &ours, true, allows_nothing);
    check(budget(selector.clone(), 1, 3), &ours, true, None);
    check(budget(selector.clone(), 0, 2), &[("app", "x")], true, None);
    check(budget(json!({}), 0, 2), &ours, true, None);
    // One that is not ready may go while those are there that are wanted, or whenever the budget says so.
    check(budget(selector.clone(), 0, 2), &ours, false, None);
    check(budget(selector.clone(), 0, 1), &ours, false, allows_nothing);
    let mut always = selector.clone();
    always["unhealthyPodEvictionPolicy"] = "AlwaysAllow".into();
    check(budget(always, 0, 1), &ours, false, None);
    // Two that select it have the API server fail, whatever they allow.
    let two = [budget(selector.clone(), 1, 3), budget(selector, 1, 3)];
    let why = refusing(&two, &marks(&ours), true);
    assert_eq!(why.as_deref(), Some("more than one PodDisruptionBudget selects it (cdc, cdc)"));
}
