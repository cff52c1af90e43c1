//! A store that is restored from a backup while a capture still runs: it starts anew, and drains go on.

use std::{sync::Arc, time::Duration};

use capturedrain_core::model::{
    ChangefeedEpoch, ChangefeedId, DrainRequest, Instant, KeyName, Position, Request, decode,
};

use crate::{scenario::config, truth, world::World};

pub(crate) fn run_until(world: &mut World, what: &str, mut holds: impl FnMut(&mut World) -> bool) {
    let limit = world.now + Duration::from_mins(1);
    while !holds(world) {
        assert!(world.now < limit, "waited a minute for {what}");
        world.step();
    }
}

pub(crate) fn coordinated(world: &World) -> bool {
    truth::coordinator(world).is_some() && truth::registrations(world).len() == world.procs.len()
}

/// Waits until registrations of former lives are gone, and all captures are there.
fn leases_run_out(world: &mut World) {
    let after = world.now + world.options.lease * 3;
    run_until(world, "leases to run out", |world| world.now > after);
    run_until(world, "a coordinator of all", |world| coordinated(world));
}

fn create(world: &mut World, feed: &ChangefeedId) {
    run_until(world, "the changefeed", |world| {
        if truth::runs(world, feed) {
            return true;
        }
        let office = truth::coordinator(world);
        let asked = world.procs.iter().position(|proc| Some(&proc.id) == office.as_ref().map(|at| &at.capture));
        world.ask(asked.unwrap_or(0), Request::CreateChangefeed { id: feed.clone(), config: Arc::new(config(false)) });
        false
    });
}

/// Has a capture drained that does not coordinate, and waits for its end.
fn drain(world: &mut World) {
    run_until(world, "a coordinator of all", |world| coordinated(world));
    let settled = world.now + Duration::from_secs(2);
    run_until(world, "reports", |world| world.now > settled);
    let office = truth::coordinator(world).unwrap();
    let asked = world.procs.iter().position(|proc| proc.id == office.capture).unwrap();
    let target = world.procs.iter().find(|proc| proc.id != office.capture).unwrap().id.clone();
    let ended = |world: &World| {
        let ends = world.store.list("drain/history/", "drain/history0").entries;
        ends.last().map(|end| end.key.clone())
    };
    let before = ended(world);
    let answer = world.ask(asked, Request::Drain(DrainRequest::new(target, "test")));
    run_until(world, "an answer", |world| world.answers.contains_key(&answer));
    assert!(world.answers[&answer].contains("Draining"), "{}", world.answers[&answer]);
    run_until(world, "the end of the drain", |world| ended(world) > before);
}

#[test]
fn a_capture_that_sees_the_store_go_back_starts_anew() {
    let mut world = World::new(1, 3, None, false);
    run_until(&mut world, "a coordinator of all", |world| coordinated(world));
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
    leases_run_out(&mut world);
    let anew = world.procs[0].process.as_ref().unwrap().snapshot().me.unwrap();
    assert_ne!(survivor.node_epoch, anew.node_epoch, "it goes on as if nothing had happened");
    assert!(world.now > Instant::default());
    drain(&mut world);
}

#[test]
fn a_changefeed_goes_on_above_what_its_sink_knows_when_the_store_was_restored() {
    let mut world = World::new(2, 3, None, false);
    run_until(&mut world, "a coordinator of all", |world| coordinated(world));
    let feed: ChangefeedId = "f0".parse().unwrap();
    let backup = world.store.clone();
    create(&mut world, &feed);
    // The store goes on for a while, and with it the numbers of placements.
    let far = ChangefeedEpoch(backup.revision() + 30);
    while world.truth.highest_writer(&feed) < far {
        drain(&mut world);
        for who in 0..world.procs.len() {
            world.crash(who);
            world.start(who);
        }
        leases_run_out(&mut world);
    }
    for who in 0..world.procs.len() {
        world.crash(who);
    }
    world.store = backup;
    for who in 0..world.procs.len() {
        world.start(who);
    }
    leases_run_out(&mut world);
    let since = world.source_ts();
    create(&mut world, &feed);
    let key = KeyName::Position(feed).key();
    run_until(&mut world, "the checkpoint to go on", |world| {
        let position = world.store.get(&key).map(|entry| decode::<Position>(&key, &entry.value).unwrap());
        position.is_some_and(|position| position.checkpoint_ts > since)
    });
}
