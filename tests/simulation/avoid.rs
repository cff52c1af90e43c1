//! Captures that are to be avoided: they get work only when no other takes it in time.

use capturedrain_core::{
    model::{CaptureId, DrainRequest, Request, WorkCount},
    mutant::Mutant,
};

use crate::{
    measured::{at_work_with, work},
    restore::run_until,
    world::World,
};

/// Drains a capture, the coordinator being one to avoid, and says what the coordinator had before and has then. The third
/// one hears nothing for so many heartbeats.
fn drain(deaf_heartbeats: u32, mutant: Option<Mutant>) -> (WorkCount, WorkCount) {
    let (mut world, coordinator, target) = at_work_with(mutant);
    let before = work(&world, coordinator, coordinator).unwrap();
    let id = |world: &World, who: usize| -> CaptureId { world.procs[who].id.clone() };
    let (avoided, drained) = (id(&world, coordinator), id(&world, target));
    let other = world.procs.iter().map(|proc| proc.id.clone()).find(|id| *id != avoided && *id != drained).unwrap();
    world.faults.cuts.insert((avoided.clone(), other));
    let healed = world.now + world.options.heartbeat * deaf_heartbeats;
    let mut request = DrainRequest::new(drained, "test");
    request.avoid = vec![avoided];
    world.ask(coordinator, Request::Drain(request));
    run_until(&mut world, "the cut to heal", |world| world.now > healed);
    world.faults.cuts.clear();
    run_until(&mut world, "the end", |world| !world.ends_counted.is_empty());
    let after = work(&world, coordinator, coordinator).unwrap();
    (before, after)
}

#[test]
fn the_first_to_hear_of_a_drain_gets_nothing_when_it_is_to_be_avoided() {
    // The coordinator hears of it before all others.
    for deaf_heartbeats in [0, 1] {
        let (before, after) = drain(deaf_heartbeats, None);
        assert_eq!(before, after, "deaf for {deaf_heartbeats} heartbeats");
    }
}

#[test]
fn without_the_wait_the_first_to_hear_would_get_work() {
    let (before, after) = drain(1, Some(Mutant::HurriesToTheAvoided));
    assert!(after.maintainers + after.dispatchers > before.maintainers + before.dispatchers, "{before:?} {after:?}");
}

#[test]
fn who_is_to_be_avoided_gets_what_nobody_else_takes_in_time() {
    let (before, after) = drain(5, None);
    assert!(after.maintainers > before.maintainers, "{before:?} {after:?}");
}
