#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use capturedrain_core::model::{DrainEpoch, NodeEpoch};

use super::*;

const START_MS: u64 = 1_000_000;
const OWN: &str = "prestop of cdc-1";

fn course(no_peers: NoPeers) -> Course {
    let deadline = Deadline::new(START_MS, Duration::from_mins(10), Duration::from_secs(10));
    Course::new(Some("cdc-1".to_owned()), Some("uid".to_owned()), no_peers, deadline)
}

fn seen() -> HookStanding {
    HookStanding {
        proof: None,
        capture: "b".parse().unwrap(),
        node_epoch: Some(NodeEpoch(7)),
        is_stopping: false,
        work: Some(WorkCount { maintainers: 1, dispatchers: 2 }),
        killed_at_ms: None,
        record: None,
        withdrawn: None,
    }
}

fn on(epoch: u64, target: &str, requesters: &[&str], killed_at_ms: Option<u64>) -> HookStanding {
    let record = RecordSeen {
        epoch,
        target: target.to_owned(),
        node_epoch: Some(NodeEpoch(7)),
        requesters: requesters.iter().map(ToString::to_string).collect(),
        killed_at_ms,
        proceeds_at_ms: None,
    };
    HookStanding { record: Some(record), ..seen() }
}

fn refused(refusal: Refusal) -> Result<Answer, ClientError> {
    Err(ClientError::Refused(refusal))
}

fn no_peers() -> Result<Answer, ClientError> {
    refused(Refusal::NoPeers("b".parse().unwrap()))
}

fn silent() -> ClientError {
    ClientError::Unreachable { servers: "h:1".to_owned(), reason: "connection refused".to_owned() }
}

fn outcome(step: &Step) -> Option<Outcome> {
    match step {
        Step::End(end) => Some(end.outcome),
        Step::Ask(_) | Step::Wait => None,
    }
}

fn request(step: Step) -> DrainRequest {
    match step {
        Step::Ask(request) => *request,
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_a_proof_ends_it_well() {
    for (proof, ends) in [(Proof::Drained, Outcome::Proven), (Proof::Unregistered, Outcome::NothingLeft)] {
        let step = course(NoPeers::Proceed).hear(Ok(HookStanding { proof: Some(proof), ..seen() }), START_MS);
        assert_eq!(outcome(&step), Some(ends));
    }
    let stopping = HookStanding { is_stopping: true, work: Some(WorkCount::default()), ..seen() };
    assert_eq!(course(NoPeers::Proceed).hear(Ok(stopping), START_MS), Step::Wait);
    let outside = HookStanding { node_epoch: None, work: None, ..seen() };
    assert_eq!(course(NoPeers::Proceed).hear(Ok(outside), START_MS), Step::Wait);
}

#[test]
fn a_drain_is_started_with_what_is_known_of_pod_and_time() {
    let request = request(course(NoPeers::Proceed).hear(Ok(seen()), START_MS));
    assert_eq!((request.requester.as_str(), request.pod_uid.as_deref()), (OWN, Some("uid")));
    assert_eq!(request.node_epoch, Some(NodeEpoch(7)));
    assert_eq!(request.hook_deadline_ms, Some(UnixMillis(START_MS + 600_000)));
}

#[test]
fn it_joins_the_drain_that_is_on_and_waits_for_that_of_another() {
    let killed = START_MS + 600_000;
    let steps = |standing: HookStanding| course(NoPeers::Proceed).hear(Ok(standing), START_MS);
    assert!(matches!(steps(on(3, "b", &["anna"], Some(killed))), Step::Ask(_)), "unknown there");
    assert!(matches!(steps(on(3, "b", &[OWN], None)), Step::Ask(_)), "no time is known there");
    assert!(matches!(steps(on(3, "b", &[OWN], Some(killed + 1))), Step::Ask(_)), "a longer time is known there");
    assert_eq!(steps(on(3, "b", &[OWN], Some(killed))), Step::Wait);
    assert_eq!(steps(on(3, "c", &["anna"], None)), Step::Wait);
}

#[test]
fn whoever_knows_of_an_earlier_end_is_believed() {
    let mut of_record = course(NoPeers::Proceed);
    of_record.hear(Ok(on(3, "b", &[OWN], Some(START_MS + 60_000))), START_MS);
    let mut of_server = course(NoPeers::Proceed);
    of_server.hear(Ok(HookStanding { killed_at_ms: Some(START_MS + 60_000), ..seen() }), START_MS);
    for course in [of_record, of_server] {
        assert_eq!(course.deadline.at_ms(), START_MS + 50_000);
    }
    let mut of_another = course(NoPeers::Proceed);
    of_another.hear(Ok(on(3, "c", &["anna"], Some(START_MS + 60_000))), START_MS);
    assert_eq!(of_another.deadline.at_ms(), START_MS + 590_000, "the pod of another");
}

#[test]
fn a_drain_that_a_person_called_off_stays_so() {
    let cancelled = |epoch, requester: &str| HookStanding {
        withdrawn: Some((epoch, vec!["anna".to_owned(), requester.to_owned()])),
        ..seen()
    };
    let ends = |standing: HookStanding| {
        let mut course = course(NoPeers::Proceed);
        course.answered(Ok(Answer::Draining { epoch: DrainEpoch(3), current: None }), START_MS);
        outcome(&course.hear(Ok(standing), START_MS))
    };
    assert_eq!(ends(cancelled(3, OWN)), Some(Outcome::Withdrawn));
    assert_eq!(ends(cancelled(2, OWN)), None, "one from before");
    assert_eq!(ends(cancelled(3, "bert")), None, "called off before it was joined");
}

#[test]
fn nobody_else_counts_after_a_while_unless_the_pod_is_held() {
    let ends = |policy, seen: HookStanding, at_ms: u64| {
        let mut course = course(policy);
        course.hear(Ok(seen), START_MS);
        course.answered(no_peers(), START_MS);
        outcome(&course.answered(no_peers(), START_MS + at_ms))
    };
    assert_eq!(ends(NoPeers::Proceed, seen(), 9_999), None);
    assert_eq!(ends(NoPeers::Proceed, seen(), 10_000), Some(Outcome::NoPeers));
    assert_eq!(ends(NoPeers::Hold, seen(), 10_000), None);
    let idle = HookStanding { work: Some(WorkCount::default()), ..seen() };
    assert_eq!(ends(NoPeers::Hold, idle.clone(), 0), Some(Outcome::NothingLeft));
    let unknown = HookStanding { work: None, ..seen() };
    assert_eq!(ends(NoPeers::Proceed, unknown, 0), None, "what is not known is not nothing");
    let mut held = course(NoPeers::Hold);
    held.hear(Ok(seen()), START_MS);
    held.answered(no_peers(), START_MS);
    assert_eq!(outcome(&held.hear(Ok(seen()), START_MS + 590_000)), Some(Outcome::Stalled));
    let mut interrupted = course(NoPeers::Proceed);
    interrupted.hear(Ok(seen()), START_MS);
    interrupted.answered(no_peers(), START_MS);
    interrupted.answered(Ok(Answer::Draining { epoch: DrainEpoch(1), current: None }), START_MS + 5_000);
    assert_eq!(interrupted.answered(no_peers(), START_MS + 12_000), Step::Wait);
}

#[test]
fn what_is_transient_is_waited_out_until_time_is_up() {
    let late = START_MS + 590_000;
    for (answer, ends) in [
        (Err(silent()), Outcome::Unreachable),
        (Ok(seen()), Outcome::Deadline),
        (Ok(on(3, "b", &[OWN], Some(START_MS + 600_000))), Outcome::Deadline),
        (Ok(on(3, "c", &["anna"], None)), Outcome::Deadline),
    ] {
        let mut course = course(NoPeers::Proceed);
        assert_eq!(outcome(&course.hear(answer.clone(), late - 1)), None);
        assert_eq!(outcome(&course.hear(answer, late)), Some(ends));
    }
    let mut course = course(NoPeers::Proceed);
    for answer in [
        refused(Refusal::NotCoordinator { coordinator: None }),
        refused(Refusal::NotReady("why".to_owned())),
        refused(Refusal::OtherDrain { target: "c".parse().unwrap(), epoch: DrainEpoch(1) }),
        refused(Refusal::Mismatch("the registration is another".to_owned())),
        Err(silent()),
    ] {
        assert_eq!(course.answered(answer, START_MS), Step::Wait);
    }
}

#[test]
fn a_drain_whose_policy_lets_the_pod_go_is_not_waited_for() {
    let mut standing = on(3, "b", &[OWN], Some(START_MS + 600_000));
    standing.record.as_mut().unwrap().proceeds_at_ms = Some(START_MS + 5);
    let mut course = course(NoPeers::Proceed);
    assert_eq!(course.hear(Ok(standing.clone()), START_MS + 4), Step::Wait);
    assert_eq!(outcome(&course.hear(Ok(standing), START_MS + 5)), Some(Outcome::Deadline));
}

#[test]
fn another_pod_ends_it_at_once_and_distrust_after_a_while() {
    let other = Err(ClientError::Refused(Refusal::Mismatch("the pod UID is x, not uid".to_owned())));
    assert_eq!(outcome(&course(NoPeers::Proceed).hear(other, START_MS)), Some(Outcome::OtherPod));
    let distrust = || Err(ClientError::Unauthorised("no".to_owned()));
    let mut course = course(NoPeers::Proceed);
    assert_eq!(course.hear(distrust(), START_MS), Step::Wait);
    assert_eq!(course.hear(distrust(), START_MS + 9_999), Step::Wait);
    assert_eq!(outcome(&course.hear(distrust(), START_MS + 10_000)), Some(Outcome::Unauthorized));
}
