//! What a drain is counted as: by one capture, whoever coordinates, and each move once.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use capturedrain_core::{
    measure::{Measurement, MoveKind, MoveOutcome},
    model::{CaptureId, ChangefeedId, DrainEpoch, DrainOutcome, DrainRequest, Request, WorkCount},
    mutant::Mutant,
};

use crate::{
    restore::{coordinated, run_until},
    scenario::config,
    truth,
    world::World,
};

/// Three captures, of which each has a maintainer and some dispatchers; the coordinator, and another one.
pub(crate) fn at_work() -> (World, usize, usize) {
    at_work_with(None)
}

/// The same with a broken rule.
pub(crate) fn at_work_with(mutant: Option<Mutant>) -> (World, usize, usize) {
    let mut world = World::new(1, 3, mutant, false);
    run_until(&mut world, "a coordinator of all", |world| coordinated(world));
    let office = truth::coordinator(&world).unwrap();
    let coordinator = world.procs.iter().position(|proc| proc.id == office.capture).unwrap();
    let target = world.procs.iter().position(|proc| proc.id != office.capture).unwrap();
    run_until(&mut world, "it to know", |world| {
        world.procs[coordinator].process.as_ref().is_some_and(|process| process.snapshot().is_coordinator)
    });
    for n in 0..3 {
        let id = feed(n);
        world.ask(coordinator, Request::CreateChangefeed { id, config: Arc::new(config(false)) });
    }
    let rested = world.now + world.options.balance_cooldown * 2;
    run_until(&mut world, "work to be spread", |world| {
        world.now > rested
            && (0..3).all(|who| work(world, coordinator, who).is_some_and(|w| w.maintainers > 0 && w.dispatchers > 0))
    });
    world.measured.clear();
    (world, coordinator, target)
}

fn feed(n: u64) -> ChangefeedId {
    ChangefeedId::new(format!("f{n}")).unwrap()
}

/// What the coordinator says that a capture has.
pub(crate) fn work(world: &World, coordinator: usize, who: usize) -> Option<WorkCount> {
    let snapshot = world.procs[coordinator].process.as_ref()?.snapshot();
    let in_flight = snapshot.changefeeds.values().any(|feed| feed.in_flight != WorkCount::default());
    snapshot.captures.get(&world.procs[who].id)?.work.filter(|_| !in_flight)
}

fn drain(world: &mut World, asked: usize, target: &CaptureId) {
    let answer = world.ask(asked, Request::Drain(DrainRequest::new(target.clone(), "test")));
    run_until(world, "an answer", |world| world.answers.contains_key(&answer));
    assert!(world.answers[&answer].contains("Draining"), "{}", world.answers[&answer]);
}

fn moves(world: &World, of: MoveKind) -> Vec<(MoveOutcome, Duration)> {
    let ended = world.measured.iter().filter_map(|measured| match measured {
        Measurement::MoveEnded { kind, outcome, took } if *kind == of => Some((*outcome, *took)),
        _ => None,
    });
    ended.collect()
}

fn acknowledged(world: &World) -> Vec<Duration> {
    let heard = world.measured.iter().filter_map(|measured| match measured {
        Measurement::DrainAcknowledged { took } => Some(*took),
        _ => None,
    });
    heard.collect()
}

#[test]
fn a_drain_its_echo_and_its_moves_are_measured_once() {
    let (mut world, coordinator, target) = at_work();
    let before = work(&world, coordinator, target).unwrap();
    let (began, id) = (world.now, world.procs[target].id.clone());
    drain(&mut world, coordinator, &id);
    run_until(&mut world, "the end to be counted", |world| !world.ends_counted.is_empty());
    let whole = world.now.since(began);
    let ends = world.measured.iter().filter_map(|measured| match measured {
        Measurement::DrainEnded { epoch, outcome, took } => Some((*epoch, *outcome, *took <= whole)),
        _ => None,
    });
    assert_eq!(ends.collect::<Vec<_>>(), [(DrainEpoch(1), DrainOutcome::Drained, true)]);
    for (kind, count) in [(MoveKind::Maintainer, before.maintainers), (MoveKind::Dispatcher, before.dispatchers)] {
        let moves = moves(&world, kind);
        assert_eq!(moves.len() as u64, count, "{kind:?}: {moves:?}");
        let plausible = |(outcome, took): &(MoveOutcome, Duration)| {
            *outcome == MoveOutcome::Done && *took > Duration::ZERO && *took < whole
        };
        assert!(moves.iter().all(plausible), "{kind:?}: {moves:?}");
    }
    let echoes = acknowledged(&world);
    assert_eq!(echoes.len(), 1, "{echoes:?}");
    assert!(echoes[0] > Duration::ZERO && echoes[0] < world.options.heartbeat, "{echoes:?}");
}

#[test]
fn a_drain_that_outlives_its_coordinator_is_counted_once() {
    let (mut world, coordinator, target) = at_work();
    let id = world.procs[target].id.clone();
    drain(&mut world, coordinator, &id);
    world.crash(coordinator);
    world.start(coordinator);
    run_until(&mut world, "the end to be counted", |world| !world.ends_counted.is_empty());
    run_until(&mut world, "a coordinator of all", |world| coordinated(world));
    assert_eq!(world.ends_counted, BTreeMap::from([(DrainEpoch(1), 1)]));
    // Whoever takes office later does not count it again.
    let office = truth::coordinator(&world).unwrap();
    let second = world.procs.iter().position(|proc| proc.id == office.capture).unwrap();
    world.crash(second);
    run_until(&mut world, "another coordinator", |world| {
        truth::coordinator(world).is_some_and(|now| now.capture != office.capture)
    });
    assert_eq!(world.ends_counted, BTreeMap::from([(DrainEpoch(1), 1)]));
}

#[test]
fn a_move_whose_order_was_lost_is_told_apart_from_one_that_is_not_wanted_any_more() {
    let (mut world, coordinator, target) = at_work();
    let id = world.procs[target].id.clone();
    let others: Vec<_> = world.procs.iter().map(|proc| proc.id.clone()).filter(|other| *other != id).collect();
    world.faults.cuts.extend(others.iter().map(|other| (other.clone(), id.clone())));
    let began = world.now;
    drain(&mut world, coordinator, &id);
    let moving = |world: &World| {
        let snapshot = world.procs[coordinator].process.as_ref().unwrap().snapshot();
        snapshot.changefeeds.iter().find(|(_, feed)| feed.in_flight.maintainers > 0).map(|(feed, _)| feed.clone())
    };
    let healed = began + world.options.move_timeout + Duration::from_millis(100);
    run_until(&mut world, "the first time-out", |world| world.now > healed);
    assert!(moving(&world).is_some(), "the stop was not lost");
    world.faults.cuts.clear();
    run_until(&mut world, "the moves to end", |world| !moves(world, MoveKind::Maintainer).is_empty());
    let ended = moves(&world, MoveKind::Maintainer);
    assert!(
        ended.iter().all(|(outcome, took)| *outcome == MoveOutcome::Retried && *took > healed.since(began)),
        "{ended:?}"
    );
    run_until(&mut world, "the end to be counted", |world| !world.ends_counted.is_empty());
    let slow = |(outcome, took): &(MoveOutcome, Duration)| {
        *outcome == MoveOutcome::Retried && *took >= world.options.move_timeout
    };
    assert!(moves(&world, MoveKind::Dispatcher).iter().any(slow), "{:?}", moves(&world, MoveKind::Dispatcher));
    let echoes = acknowledged(&world);
    assert!(echoes.len() == 1 && echoes[0] > world.options.move_timeout, "{echoes:?}");
}

#[test]
fn a_move_of_what_rests_is_dropped() {
    let (mut world, coordinator, target) = at_work();
    let id = world.procs[target].id.clone();
    let others: Vec<_> = world.procs.iter().map(|proc| proc.id.clone()).filter(|other| *other != id).collect();
    world.faults.cuts.extend(others.iter().map(|other| (other.clone(), id.clone())));
    drain(&mut world, coordinator, &id);
    for n in 0..3 {
        world.ask(coordinator, Request::PauseChangefeed(feed(n)));
    }
    run_until(&mut world, "the move to be dropped", |world| !moves(world, MoveKind::Maintainer).is_empty());
    let ended = moves(&world, MoveKind::Maintainer);
    assert!(ended.iter().all(|(outcome, _)| *outcome == MoveOutcome::Dropped), "{ended:?}");
}
