//! A store that is restored from a backup while a capture still runs: it starts anew, and drains go on.

use std::time::Duration;

use capturedrain_core::model::{DrainRequest, Instant, Request};

use crate::{truth, world::World};

pub(crate) fn run_until(world: &mut World, what: &str, mut holds: impl FnMut(&World) -> bool) {
    let limit = world.now + Duration::from_mins(1);
    while !holds(world) {
        assert!(world.now < limit, "waited a minute for {what}");
        world.step();
    }
}

pub(crate) fn coordinated(world: &World) -> bool {
    truth::coordinator(world).is_some() && truth::registrations(world).len() == world.procs.len()
}

/// Has a capture drained that does not coordinate, and waits for its end.
fn drain(world: &mut World) {
    run_until(world, "a coordinator of all", coordinated);
    let settled = world.now + Duration::from_secs(2);
    run_until(world, "reports", |world| world.now > settled);
    let office = truth::coordinator(world).unwrap();
    let asked = world.procs.iter().position(|proc| proc.id == office.capture).unwrap();
    let target = world.procs.iter().find(|proc| proc.id != office.capture).unwrap().id.clone();
    let ended = |world: &World| world.store.list("drain/history/", "drain/history0").entries.len();
    let before = ended(world);
    let answer = world.ask(asked, Request::Drain(DrainRequest::new(target, "test")));
    run_until(world, "an answer", |world| world.answers.contains_key(&answer));
    assert!(world.answers[&answer].contains("Draining"), "{}", world.answers[&answer]);
    run_until(world, "the end of the drain", |world| ended(world) > before);
}

#[test]
fn a_capture_that_sees_the_store_go_back_starts_anew() {
    let mut world = World::new(1, 3, None, false);
    run_until(&mut world, "a coordinator of all", coordinated);
    let mut backup = world.store.clone();
    drain(&mut world);
    let survivor = world.procs[0].process.as_ref().unwrap().snapshot().me.unwrap();
    // The backup is so young that the survivor's lease lives in it.
    let lease = backup.get("capture/c0").and_then(|entry| entry.lease).unwrap();
    assert!(backup.keep(lease, world.now));
    world.store = backup;
    for who in 1..world.procs.len() {
        world.crash(who);
        world.start(who);
    }
    let after = world.now + world.options.lease * 3;
    run_until(&mut world, "leases of the backup to run out", |world| world.now > after);
    run_until(&mut world, "a coordinator of all", coordinated);
    let anew = world.procs[0].process.as_ref().unwrap().snapshot().me.unwrap();
    assert_ne!(survivor.node_epoch, anew.node_epoch, "it goes on as if nothing had happened");
    assert!(world.now > Instant::default());
    drain(&mut world);
}
