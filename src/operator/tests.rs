//! Runs of a `CaptureDrain` from stage to stage, against clusters that are written down.

use capturedrain_core::model::{Answer, CaptureId, DrainEpoch, Refusal};
use jiff::Timestamp;

use super::{
    due::due,
    observe::{Cluster, Observed, Pod, PodSeen, Surroundings, Unseen},
    plan::{Action, Stage, plan},
    status::{Outcome, status},
    validate::validate,
};
use crate::{
    resource::{CaptureDrain, Work, ending, is_drained, is_finished, parse, stalled},
    view::{BlockerView, CaptureView, DrainEndView, DrainView, WorkView},
};

const INITIAL: WorkView = WorkView { maintainers: 1, dispatchers: 3 };

pub(super) fn drain(target: &str) -> CaptureDrain {
    let text = format!(
        "apiVersion: capturedrain.io/v1alpha1\nkind: CaptureDrain\nmetadata: {{name: x, generation: 1}}\nspec:\n  \
         clusterRef: {{serviceName: cdc}}\n  target: {{{target}}}\n"
    );
    parse(&text, "test").unwrap().remove(0)
}

/// A capture that is well; `a` coordinates.
pub(super) fn capture(id: &str, node_epoch: &str) -> CaptureView {
    CaptureView {
        id: id.to_owned(),
        node_epoch: node_epoch.to_owned(),
        address: "h:1".to_owned(),
        pod_name: Some(format!("pod-{id}")),
        pod_uid: Some(format!("uid-{id}")),
        version: "1".to_owned(),
        liveness: "Alive".to_owned(),
        is_coordinator: id == "a",
        heard: true,
        maintainer_count: Some(1),
        dispatcher_count: Some(3),
    }
}

fn cluster() -> Cluster {
    Cluster { captures: vec![capture("a", "0a"), capture("b", "0b")], ..Cluster::default() }
}

fn draining(target: &str, left: Option<WorkView>) -> Cluster {
    let drain = DrainView {
        is_draining: true,
        draining_capture_id: Some(target.to_owned()),
        drain_epoch: 7,
        phase: Some(
            if left.is_some_and(|left| left.maintainers == 0) { "MovingDispatchers" } else { "MovingMaintainers" }
                .to_owned(),
        ),
        remaining_maintainer_count: left.map(|left| left.maintainers),
        remaining_dispatcher_count: left.map(|left| left.dispatchers),
        initial: Some(INITIAL),
        ..DrainView::default()
    };
    Cluster { drain, ..cluster() }
}

fn ended(outcome: &str) -> Cluster {
    let end = DrainEndView {
        drain_epoch: 7,
        target: "b".to_owned(),
        node_epoch: "0b".to_owned(),
        outcome: outcome.to_owned(),
        initial: INITIAL,
        requesters: Vec::new(),
        reason: None,
        started_at: "2026-01-01T00:00:00Z".to_owned(),
        ended_at: "2026-01-01T00:00:01Z".to_owned(),
        duration_ms: 1000,
    };
    let mut cluster = Cluster { ends: vec![end], ..cluster() };
    if outcome == "Drained" {
        cluster.captures.iter_mut().filter(|at| at.id == "b").for_each(|at| "Stopping".clone_into(&mut at.liveness));
    }
    cluster
}

/// What is seen at a second of the test.
fn seen(cluster: Cluster, second: i64) -> Observed {
    let now = Timestamp::from_second(1_800_000_000 + second).unwrap();
    Observed { now, cluster: Ok(cluster), around: Surroundings::default() }
}

/// One round. What it wanted done.
fn look(drain: &mut CaptureDrain, observed: &Observed, outcome: &Outcome) -> Action {
    let aim = validate(drain, observed);
    let plan = plan(drain, &aim, observed);
    drain.status = Some(status(drain, &aim, &plan, outcome, observed));
    plan.action
}

/// One round without surroundings.
fn round(drain: &mut CaptureDrain, cluster: &Cluster, outcome: &Outcome, second: i64) -> Action {
    look(drain, &seen(cluster.clone(), second), outcome)
}

fn started() -> Outcome {
    Outcome::Answered(Answer::Draining { epoch: DrainEpoch(7), current: None })
}

fn condition<'a>(drain: &'a CaptureDrain, kind: &str) -> (&'a str, &'a str) {
    let conditions = &drain.status.as_ref().unwrap().conditions;
    let found = conditions.iter().find(|condition| condition.type_ == kind);
    found.map_or(("", ""), |found| (found.status.as_str(), found.reason.as_str()))
}

fn check(drain: &CaptureDrain, phase: &str, conditions: &[(&str, &str, &str)]) {
    assert_eq!(drain.status.as_ref().unwrap().phase.as_deref(), Some(phase));
    for (kind, is, reason) in conditions {
        assert_eq!(condition(drain, kind), (*is, *reason), "{kind}");
    }
}

#[test]
fn a_drain_from_its_acceptance_to_its_end() {
    let mut drain = drain("captureID: b");
    let action = round(&mut drain, &cluster(), &started(), 0);
    let Action::Start(request) = action else { panic!("{action:?}") };
    assert_eq!((request.capture, request.pod_uid.as_deref()), (CaptureId::new("b").unwrap(), Some("uid-b")));
    assert_eq!(request.node_epoch.unwrap().to_string(), "000000000000000b");
    check(&drain, "Draining", &[("Accepted", "True", "Accepted"), ("Drained", "False", "ProgressUnknown")]);

    round(&mut drain, &draining("b", Some(INITIAL)), &Outcome::Idle, 1);
    check(&drain, "Draining", &[("Drained", "False", "InProgress"), ("Reconciling", "True", "MovingMaintainers")]);
    let left = WorkView { maintainers: 0, dispatchers: 2 };
    round(&mut drain, &draining("b", Some(left)), &Outcome::Idle, 2);
    check(&drain, "Draining", &[("Reconciling", "True", "MovingDispatchers")]);
    let remaining = drain.status.as_ref().unwrap().progress.as_ref().unwrap().remaining.unwrap();
    assert_eq!((remaining.maintainers, remaining.dispatchers), (Some(0), Some(2)));

    round(&mut drain, &ended("Drained"), &Outcome::Idle, 3);
    check(
        &drain,
        "Succeeded",
        &[
            ("Drained", "True", "Proven"),
            ("Succeeded", "True", "CaptureStopping"),
            ("Finished", "True", "CaptureStopping"),
            ("Reconciling", "False", "CaptureStopping"),
        ],
    );
    let last = drain.clone();
    assert_eq!(round(&mut drain, &cluster(), &Outcome::Idle, 9), Action::Nothing);
    assert_eq!(drain, last, "what has ended does not change any more");
}

#[test]
fn nothing_is_written_when_nothing_but_time_has_passed() {
    let mut drain = drain("captureID: b");
    round(&mut drain, &cluster(), &started(), 0);
    round(&mut drain, &draining("b", Some(INITIAL)), &Outcome::Idle, 1);
    let before = drain.clone();
    round(&mut drain, &draining("b", Some(INITIAL)), &Outcome::Idle, 60);
    assert_eq!(drain, before);
}

#[test]
fn what_is_unknown_is_absent_and_never_zero() {
    let mut drain = drain("captureID: b");
    round(&mut drain, &cluster(), &started(), 0);
    round(&mut drain, &draining("b", None), &Outcome::Idle, 1);
    check(&drain, "Draining", &[("Drained", "False", "ProgressUnknown")]);
    assert_eq!(drain.status.unwrap().progress.unwrap().remaining, None);
}

#[test]
fn a_pod_is_proven_empty_and_the_run_ends_when_it_is_gone() {
    let mut drain = drain("podName: pod-b");
    round(&mut drain, &cluster(), &started(), 0);
    round(&mut drain, &ended("Drained"), &Outcome::Idle, 1);
    check(&drain, "Drained", &[("Drained", "True", "Proven"), ("Reconciling", "True", "AwaitingPodDeletion")]);
    assert!(is_drained(&drain) && !is_finished(&drain));
    let gone = Cluster { captures: vec![capture("a", "0a")], ..ended("Drained") };
    round(&mut drain, &gone, &Outcome::Idle, 2);
    check(&drain, "Succeeded", &[("Drained", "True", "Proven"), ("Finished", "True", "PodGone")]);
}

#[test]
fn a_new_registration_voids_the_proof() {
    let mut drain = drain("podName: pod-b");
    round(&mut drain, &cluster(), &started(), 0);
    round(&mut drain, &ended("Drained"), &Outcome::Idle, 1);
    let reborn = Cluster { captures: vec![capture("a", "0a"), capture("b", "0c")], ..ended("Drained") };
    round(&mut drain, &reborn, &Outcome::Idle, 2);
    check(&drain, "Failed", &[("Drained", "False", "InProgress"), ("Succeeded", "False", "TargetReplaced")]);
}

#[test]
fn a_proven_capture_that_works_again_since_nobody_else_does_is_asked_again() {
    let mut drain = drain("podName: pod-b");
    round(&mut drain, &cluster(), &started(), 0);
    round(&mut drain, &ended("Drained"), &Outcome::Idle, 1);
    check(&drain, "Drained", &[("Drained", "True", "Proven")]);
    let alone = Cluster { captures: vec![capture("b", "0b")], ..ended("Drained") };
    let action = round(&mut drain, &alone, &Outcome::Refused(Refusal::NoPeers(CaptureId::new("b").unwrap())), 2);
    assert!(matches!(action, Action::Start(_)), "{action:?}");
    check(&drain, "Queued", &[("Drained", "False", "InProgress"), ("Stalled", "True", "NoDestination")]);
}

#[test]
fn another_drain_comes_first() {
    let mut drain = drain("captureID: b");
    assert_eq!(round(&mut drain, &draining("a", None), &Outcome::Idle, 0), Action::Nothing);
    check(&drain, "Queued", &[("Accepted", "True", "Queued"), ("Reconciling", "True", "BlockedByDrain")]);
    assert_eq!(drain.status.as_ref().unwrap().blocked_by[0].name.as_deref(), Some("a"));
    // The same, found out by asking.
    let other = Refusal::OtherDrain { target: CaptureId::new("a").unwrap(), epoch: DrainEpoch(3) };
    round(&mut drain, &cluster(), &Outcome::Refused(other), 1);
    check(&drain, "Queued", &[("Reconciling", "True", "BlockedByDrain")]);
    round(&mut drain, &cluster(), &started(), 2);
    check(&drain, "Draining", &[("Accepted", "True", "Accepted")]);
}

#[test]
fn every_end_has_its_reason() {
    for (outcome, reason) in [("Cancelled", "Withdrawn"), ("TargetGone", "TargetGone"), ("NoPeers", "NoPeers")] {
        let mut drain = drain("captureID: b");
        drain.spec.no_peers_policy = crate::resource::LimitPolicy::Proceed;
        round(&mut drain, &cluster(), &started(), 0);
        round(&mut drain, &ended(outcome), &Outcome::Idle, 1);
        assert_eq!(ending(&drain), Some(reason));
        check(&drain, "Failed", &[("Drained", "False", "InProgress"), ("Succeeded", "False", reason)]);
    }
    for (target, reason) in [("captureID: nobody", "NotACapture"), ("podName: nobody", "PodNotFound")] {
        let mut drain = drain(target);
        round(&mut drain, &cluster(), &Outcome::Idle, 0);
        check(&drain, "Failed", &[("Accepted", "False", reason), ("Finished", "True", reason)]);
    }
    let mut drain = drain("captureID: b, podUID: another");
    round(&mut drain, &cluster(), &Outcome::Idle, 0);
    assert_eq!(ending(&drain), Some("NotACapture"));
}

#[test]
fn what_stalls_says_so_and_goes_on_when_it_can() {
    let mut drain = drain("captureID: b");
    for (unseen, reason) in [
        (Unseen::Unreachable("no answer".to_owned()), "ClusterUnreachable"),
        (Unseen::Unauthorized("who are you".to_owned()), "Unauthorized"),
    ] {
        let away = Observed { cluster: Err(unseen), ..seen(Cluster::default(), 0) };
        assert_eq!(look(&mut drain, &away, &Outcome::Idle), Action::Nothing);
        check(&drain, "Unknown", &[("Stalled", "True", reason)]);
    }
    round(&mut drain, &cluster(), &Outcome::Refused(Refusal::NoPeers(CaptureId::new("b").unwrap())), 1);
    assert_eq!(stalled(&drain), Some("NoDestination"));
    round(&mut drain, &cluster(), &started(), 2);
    let mut held = draining("b", Some(INITIAL));
    held.drain.blocked_by = vec![BlockerView { kind: "DeadlineHeld".to_owned(), name: None }];
    round(&mut drain, &held, &Outcome::Idle, 3);
    assert_eq!(stalled(&drain), Some("DeadlineHeld"));
    round(&mut drain, &draining("b", Some(INITIAL)), &Outcome::Idle, 4);
    assert_eq!(stalled(&drain), None);
    let mut late = draining("b", Some(INITIAL));
    late.drain.proceeds = true;
    round(&mut drain, &late, &Outcome::Idle, 5);
    assert_eq!(ending(&drain), Some("DeadlineProceeded"));
}

/// A drain that is on and last came along at this second of the test.
fn moved_at(second: i64, blocked_by: Option<&str>) -> Cluster {
    let mut observed = draining("b", Some(INITIAL));
    let blocker = |kind: &str| BlockerView { kind: kind.to_owned(), name: None };
    observed.drain.blocked_by = blocked_by.into_iter().map(blocker).collect();
    observed.drain.last_progress_at = Some(Timestamp::from_second(1_800_000_000 + second).unwrap().to_string());
    observed
}

#[test]
fn what_does_not_come_along_within_its_progress_deadline_is_stalled() {
    // (when it last moved, what blocks it, the second of the round) in turn, and what it is stalled by after each.
    let rounds = [
        ((0, None, 59), None),
        ((0, None, 60), Some("NoProgress")),
        ((0, Some("UnheardCapture"), 61), Some("NoProgress")),
        ((0, Some("NoDestination"), 62), Some("NoDestination")),
        ((0, Some("DeadlineHeld"), 63), Some("DeadlineHeld")),
        ((64, None, 64), None),
        ((64, None, 123), None),
        ((64, None, 124), Some("NoProgress")),
    ];
    for deadline in [None, Some(60)] {
        let mut drain = drain("captureID: b");
        drain.spec.progress_deadline_seconds = deadline;
        round(&mut drain, &cluster(), &started(), 0);
        for ((moved, blocked_by, second), reason) in rounds {
            round(&mut drain, &moved_at(moved, blocked_by), &Outcome::Idle, second);
            let reason = reason.filter(|reason| deadline.is_some() || *reason != "NoProgress");
            assert_eq!(stalled(&drain), reason, "{deadline:?} {moved} {blocked_by:?} {second}");
        }
        check(&drain, "Draining", &[("Drained", "False", "InProgress"), ("Reconciling", "True", "MovingMaintainers")]);
    }
}

#[test]
fn who_has_no_peers_is_held_or_let_go_as_the_policy_says() {
    use crate::resource::LimitPolicy::{Hold, Proceed};
    // Policy, progress deadline, seconds without a destination, and whether the run has ended.
    for (policy, deadline, seconds, over) in [
        (Hold, None, 9_999, false),
        (Proceed, None, 59, false),
        (Proceed, None, 60, true),
        (Proceed, Some(10), 9, false),
        (Proceed, Some(10), 10, true),
        (Proceed, Some(300), 299, false),
    ] {
        let mut drain = drain("captureID: b");
        (drain.spec.no_peers_policy, drain.spec.progress_deadline_seconds) = (policy, deadline);
        round(&mut drain, &cluster(), &started(), 0);
        // However long ago something moved: the time without a destination counts.
        round(&mut drain, &moved_at(-9_999, None), &Outcome::Idle, 1);
        round(&mut drain, &moved_at(-9_999, Some("NoDestination")), &Outcome::Idle, 5);
        round(&mut drain, &moved_at(-9_999, Some("NoDestination")), &Outcome::Idle, 5 + seconds);
        assert_eq!(ending(&drain), over.then_some("NoPeers"), "{policy:?} {deadline:?} {seconds}");
    }
    for (policy, ends) in [(Hold, None), (Proceed, Some("NoPeers"))] {
        let mut drain = drain("captureID: b");
        drain.spec.no_peers_policy = policy;
        round(&mut drain, &cluster(), &Outcome::Refused(Refusal::NoPeers(CaptureId::new("b").unwrap())), 0);
        assert_eq!((ending(&drain), stalled(&drain).is_some()), (ends, ends.is_none()));
    }
}

#[test]
fn a_drain_that_ended_without_a_peer_is_asked_for_again_until_one_comes() {
    let mut drain = drain("captureID: b");
    round(&mut drain, &cluster(), &started(), 0);
    let nobody = || Outcome::Refused(Refusal::NoPeers(CaptureId::new("b").unwrap()));
    let action = round(&mut drain, &ended("NoPeers"), &nobody(), 1);
    assert!(matches!(action, Action::Start(_)), "{action:?}");
    check(&drain, "Queued", &[("Drained", "False", "InProgress"), ("Stalled", "True", "NoDestination")]);
    assert_eq!(ending(&drain), None);
    let again = Outcome::Answered(Answer::Draining { epoch: DrainEpoch(8), current: None });
    round(&mut drain, &ended("NoPeers"), &again, 2);
    check(&drain, "Draining", &[("Stalled", "False", "MovingMaintainers")]);
}

#[test]
fn a_deleted_object_withdraws_its_own_drain_only() {
    let mut drain = drain("captureID: b");
    round(&mut drain, &cluster(), &started(), 0);
    let deleted = Timestamp::from_second(1_800_000_001).unwrap();
    drain.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(deleted));
    let mut others = draining("b", Some(INITIAL));
    others.drain.drain_epoch = 8;
    let others = seen(others, 1);
    let aim = validate(&drain, &others);
    assert_eq!(plan(&drain, &aim, &others).action, Action::Nothing, "epoch 8 is another's");
    let ours = seen(draining("b", Some(INITIAL)), 1);
    let stale = seen(cluster(), 1);
    let action = plan(&drain, &aim, &stale).action;
    assert!(matches!(action, Action::Cancel { .. }), "it is on, although that is not seen yet: {action:?}");
    let action = plan(&drain, &aim, &ours);
    assert_eq!(action.action, Action::Cancel { capture: CaptureId::new("b").unwrap(), epoch: DrainEpoch(7) });
    assert_eq!(action.stage, Stage::Ended { reason: "Withdrawn", succeeded: false });
}

/// A drain of the pod `b-0`, or of another target, of a cluster of `TiCDC`.
fn ticdc_drain(target: &str) -> CaptureDrain {
    let mut drain = drain(target);
    drain.spec.cluster_ref.kind = crate::resource::ClusterKind::TiCdc;
    drain
}

/// `TiCDC`'s captures: their ids are new at each start, their addresses name the pods.
fn ticdc(captures: &[(&str, &str)]) -> Cluster {
    let capture = |(id, pod): &(&str, &str)| CaptureView {
        address: format!("{pod}.peer.ns.svc:8301"),
        pod_name: Some((*pod).to_owned()),
        pod_uid: None,
        maintainer_count: None,
        dispatcher_count: None,
        ..capture(id, id)
    };
    Cluster { captures: captures.iter().map(capture).collect(), ..Cluster::default() }
}

/// What is seen with a pod of this UID.
fn seen_in(cluster: &Cluster, uid: &str, second: i64) -> Observed {
    let pod = Pod { uid: uid.to_owned(), ..Pod::default() };
    let around = Surroundings { pod: PodSeen::There(pod), ..Surroundings::default() };
    Observed { around, ..seen(cluster.clone(), second) }
}

/// A drain of kind `TiCDC` of pod `b-0` that is proven, in pod `u1`.
fn proven_ticdc() -> (CaptureDrain, Cluster) {
    let (mut drain, there) = (ticdc_drain("podName: b-0"), ticdc(&[("x1", "a-0"), ("x2", "b-0")]));
    look(&mut drain, &seen_in(&there, "u1", 0), &started());
    let proven = Cluster { ends: ended("Drained").ends, ..there };
    look(&mut drain, &seen_in(&proven, "u1", 1), &Outcome::Idle);
    check(&drain, "Drained", &[("Drained", "True", "Proven")]);
    (drain, proven)
}

#[test]
fn the_pod_of_a_ticdc_capture_is_pinned_and_its_maintainers_stay_unknown() {
    let (drain, _) = proven_ticdc();
    let status = drain.status.unwrap();
    assert_eq!((status.pod_uid.as_deref(), status.node_epoch.as_deref()), (Some("u1"), Some("x2")));
    let progress = status.progress.unwrap();
    assert_eq!(progress.initial.unwrap(), Work { maintainers: None, dispatchers: Some(3) });
    assert_eq!(progress.remaining.unwrap(), Work { maintainers: None, dispatchers: Some(0) });
    assert_eq!(progress.in_flight, None);
}

#[test]
fn a_ticdc_process_that_starts_anew_in_its_pod_voids_the_proof() {
    let (mut drain, proven) = proven_ticdc();
    let anew = Cluster { captures: ticdc(&[("x1", "a-0"), ("x9", "b-0")]).captures, ..proven };
    look(&mut drain, &seen_in(&anew, "u1", 2), &Outcome::Idle);
    check(&drain, "Failed", &[("Drained", "False", "InProgress"), ("Succeeded", "False", "TargetReplaced")]);
}

#[test]
fn a_ticdc_pod_of_the_same_name_is_another() {
    let (mut drain, proven) = proven_ticdc();
    let anew = Cluster { captures: ticdc(&[("x1", "a-0"), ("x9", "b-0")]).captures, ..proven };
    look(&mut drain, &seen_in(&anew, "u2", 2), &Outcome::Idle);
    check(&drain, "Succeeded", &[("Drained", "True", "Proven"), ("Succeeded", "True", "PodGone")]);
}

#[test]
fn a_ticdc_proof_that_only_the_status_remembers_stands_when_its_target_has_gone() {
    let (drain, _) = proven_ticdc();
    let rest = ticdc(&[("x1", "a-0")]);
    let mut waiting = drain.clone();
    look(&mut waiting, &seen_in(&rest, "u1", 2), &Outcome::Idle);
    check(&waiting, "Drained", &[("Drained", "True", "Proven")]);
    let mut gone = drain.clone();
    let around = Surroundings { pod: PodSeen::Missing, ..Surroundings::default() };
    look(&mut gone, &Observed { around, ..seen(rest.clone(), 2) }, &Outcome::Idle);
    check(&gone, "Succeeded", &[("Succeeded", "True", "PodGone")]);
    // Without a proof it was not drained.
    let (mut unproven, there) = (ticdc_drain("captureID: x2"), ticdc(&[("x1", "a-0"), ("x2", "b-0")]));
    round(&mut unproven, &there, &started(), 0);
    round(&mut unproven, &rest, &Outcome::Idle, 1);
    assert_eq!(ending(&unproven), Some("TargetGone"));
}

#[test]
fn a_ticdc_drain_is_asked_for_again_under_its_number() {
    let (mut drain, there) = (ticdc_drain("captureID: x2"), ticdc(&[("x1", "a-0"), ("x2", "b-0")]));
    let Action::Start(first) = round(&mut drain, &there, &started(), 0) else { panic!("no start") };
    assert_eq!(first.epoch, None);
    let Action::Start(again) = round(&mut drain, &there, &started(), 1) else { panic!("no start") };
    assert_eq!(again.epoch, Some(DrainEpoch(7)));
}

#[test]
fn what_ticdc_refuses_is_looked_at_again_though_nothing_tells_of_it() {
    let (mut drain, there) = (ticdc_drain("captureID: x2"), ticdc(&[("x1", "a-0"), ("x2", "b-0")]));
    let refused = Outcome::Unseen(Unseen::Unsupported("old".to_owned()));
    round(&mut drain, &there, &refused, 0);
    check(&drain, "Unknown", &[("Stalled", "True", "DrainUnsupported")]);
    assert!(due(&drain, Timestamp::from_second(1_800_000_001).unwrap()).is_some());
}
