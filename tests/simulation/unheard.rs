//! A capture that keeps its lease and is not heard: its registration is ended, and what waits for it goes on.

use std::{sync::Arc, time::Duration};

use capturedrain_core::{
    model::{DrainRequest, Request},
    mutant::Mutant,
};

use crate::{scenario::config, truth, world::World};

fn run_for(world: &mut World, seconds: u64) {
    let until = world.now + Duration::from_secs(seconds);
    while world.now < until {
        world.step();
    }
}

/// Cuts a follower off from all others and has another one drained. Whether the drain ends.
fn drain_ends(mutant: Option<Mutant>) -> bool {
    let mut world = World::new(3, 4, mutant, false);
    run_for(&mut world, 5);
    let office = truth::coordinator(&world).unwrap();
    let asked = world.procs.iter().position(|proc| proc.id == office.capture).unwrap();
    for n in 0..4 {
        // One maintainer on each capture.
        let config = Arc::new(config(false));
        world.ask(asked, Request::CreateChangefeed { id: format!("f{n}").parse().unwrap(), config });
    }
    run_for(&mut world, 10);
    let mut others: Vec<_> =
        world.procs.iter().map(|proc| proc.id.clone()).filter(|id| *id != office.capture).collect();
    let silent = others.pop().unwrap();
    for id in others.iter().chain([&office.capture]) {
        world.faults.cuts.insert((silent.clone(), id.clone()));
        world.faults.cuts.insert((id.clone(), silent.clone()));
    }
    world.ask(asked, Request::Drain(DrainRequest::new(others[0].clone(), "test")));
    let limit = world.now + Duration::from_mins(2);
    while world.now < limit {
        world.step();
        if !world.store.list("drain/history/", "drain/history0").entries.is_empty() {
            return true;
        }
    }
    false
}

#[test]
fn a_drain_goes_on_without_a_capture_that_is_not_heard() {
    assert!(drain_ends(None));
    assert!(!drain_ends(Some(Mutant::EvictsNobody)), "without an eviction it would wait for ever");
}
