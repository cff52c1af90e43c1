//! What a hook is told of a capture that has lost its registration.

use capturedrain_core::{
    model::{DrainRequest, Incarnation, KeyName, Liveness, Request, RequestId},
    mutant::Mutant,
    process::{Event, Process},
};

use crate::{
    faults::Faults,
    measured::{at_work, at_work_with},
    restore::run_until,
    world::World,
};

/// The number under which a hook asks.
const ASKED: RequestId = RequestId(1_000_000);

/// The life that a process knows it is registered in.
fn life(world: &World, who: usize) -> Option<Incarnation> {
    world.procs[who].process.as_ref().and_then(Process::me)
}

/// Asks for a hook, and says whether it hears that nothing is left.
fn is_promised(world: &mut World, who: usize) -> bool {
    world.tell(who, Event::Prove(ASKED));
    world.answers.get(&ASKED.0).is_some_and(|answer| answer.contains("Done"))
}

#[test]
fn a_write_of_unknown_outcome_does_not_hold_a_pod_while_the_store_is_away() {
    let (mut world, coordinator, target) = at_work();
    let drained = world.procs[target].id.clone();
    world.ask(coordinator, Request::Drain(DrainRequest::new(drained, "test")));
    run_until(&mut world, "the drain", |world| {
        world.member(target).is_some_and(|(_, liveness)| liveness == Liveness::Draining)
    });
    // Hearing of it, the target withdraws from the election: nobody says what becomes of that write.
    world.faults.write_unknown = 1000;
    run_until(&mut world, "the target to hear of it", |world| {
        let snapshot = world.procs[target].process.as_ref().map(Process::snapshot);
        snapshot.is_some_and(|snapshot| snapshot.liveness == Some(Liveness::Draining))
    });
    world.faults.store_is_away = true;
    run_until(&mut world, "the end of the registration", |world| life(world, target).is_none());
    run_until(&mut world, "the promise that nothing is left", |world| is_promised(world, target));
    world.faults = Faults::none();
    let settled = world.now + world.options.lease * 3;
    run_until(&mut world, "the store's return", |world| world.now > settled);
    assert_eq!(life(&world, target), None, "it is back although it promised");
}

/// A hook asks when the registration is written, and the capture does not know that yet. Whether it is there after all.
fn is_back(mutant: Option<Mutant>) -> bool {
    let (mut world, _, target) = at_work_with(mutant);
    let key = KeyName::Capture(world.procs[target].id.clone()).key();
    world.crash(target);
    run_until(&mut world, "the end of the former registration", |world| world.store.get(&key).is_none());
    world.start(target);
    run_until(&mut world, "the registration", |world| world.store.get(&key).is_some());
    assert_eq!(life(&world, target), None);
    assert!(is_promised(&mut world, target));
    let settled = world.now + world.options.lease * 3;
    let mut back = false;
    run_until(&mut world, "what comes of it", |world| {
        back |= life(world, target).is_some();
        world.now > settled
    });
    back
}

#[test]
fn a_registration_that_is_being_written_is_given_up_for_a_promise() {
    assert!(!is_back(None));
    assert!(is_back(Some(Mutant::RegistersAfterPromise)));
}
