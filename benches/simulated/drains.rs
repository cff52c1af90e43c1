//! Whole drains in virtual time, and what they may take.

use std::time::Duration;

use capturedrain_core::model::{
    Answer, Body, ChangefeedId, DrainRequest, Envelope, MESSAGE_MAX_DISPATCHERS, NewDispatcher, Options, Order,
    Request, WriterEpoch,
};

use crate::{
    size::Cost,
    world::{FORMER, Pace, RESOLVED_TS, World, config, table},
};

/// How many maintainers may be on the move at once.
const MAINTAINERS_AT_ONCE: u64 = 10;
/// How many captures there are. The first coordinates, the second is drained.
const CAPTURES: usize = 4;
const TARGET: usize = 1;

/// What a drain took and cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drained {
    /// In virtual time, from the call to its persisted end.
    pub(crate) took: Duration,
    pub(crate) bound: Duration,
    /// Of all captures together, from the call to the end.
    pub(crate) cost: Cost,
}

fn limit_of_dispatchers(dispatchers: u64) -> u64 {
    (dispatchers / 100).max(10)
}

/// The least time of that many moves, so many at once, of which each takes two orders and so many writes, and a twentieth.
fn moves(count: u64, at_once: u64, pace: Pace, writes: u32) -> Duration {
    let rounds = u32::try_from(count.div_ceil(at_once)).unwrap();
    ((pace.order * 2 + pace.write * writes) * rounds).mul_f64(1.05)
}

/// What is added to the time of moves: telling and proving, and the writes of the drain's start and end.
fn around(pace: Pace) -> Duration {
    pace.round_trip * 4 + pace.write * 2
}

fn feed(n: u64) -> ChangefeedId {
    ChangefeedId::new(format!("f{n:05}")).unwrap()
}

fn cluster(pace: Pace) -> World {
    // Nothing moves but for the drain, and no order is repeated.
    let options = Options {
        balance_cooldown: Duration::from_hours(24),
        move_timeout: Duration::from_hours(1),
        drain_maintainer_batch_size: usize::try_from(MAINTAINERS_AT_ONCE).unwrap(),
        ..Options::default()
    };
    let mut world = World::new(pace, options);
    world.join();
    world.run_until("a coordinator", |world| world.snapshot().is_coordinator);
    world.join();
    heard(&mut world, 2);
    world
}

fn heard(world: &mut World, captures: usize) {
    world.run_until("all captures", |world| {
        let snapshot = world.snapshot();
        snapshot.captures.values().filter(|capture| capture.heard).count() == captures
    });
    world.run_for(Duration::from_millis(10));
}

fn join_others(world: &mut World) {
    for _ in 2..CAPTURES {
        world.join();
    }
    heard(world, CAPTURES);
}

/// Waits until every maintainer runs and every dispatcher works, and for the reports that say so.
fn settle(world: &mut World, feeds: u64, dispatchers: u64) {
    let limit = world.now + Duration::from_hours(24);
    loop {
        world.run_for(Duration::from_secs(1));
        let shown = world.snapshot().changefeeds;
        let running = shown.values().filter(|feed| feed.checkpoint_ts >= Some(RESOLVED_TS)).count() as u64;
        let working: u64 = shown.values().flat_map(|feed| feed.dispatchers.values()).sum();
        if (running, working) == (feeds, dispatchers) {
            return;
        }
        assert!(world.now < limit, "{running} of {feeds} maintainers, {working} of {dispatchers} dispatchers");
    }
}

fn drain(mut world: World, bound: Duration) -> Drained {
    // Between two heartbeats, as a call would come.
    world.run_for(Duration::from_millis(300));
    world.cost = Cost::default();
    let (began, ended) = (world.now, world.drains_ended());
    let target = world.capture(TARGET).clone();
    let asked = world.ask(Request::Drain(DrainRequest::new(target, "bench")));
    world.run_until("the drain to end", |world| world.drains_ended() > ended);
    assert!(matches!(world.answer(asked), Some(Ok(Answer::Draining { .. }))), "{:?}", world.answer(asked));
    Drained { took: world.now.since(began), bound, cost: world.cost }
}

/// As many maintainers as said leave the target; they have nothing else.
pub(crate) fn maintainers(count: u64, pace: Pace) -> Drained {
    let mut world = cluster(pace);
    // They are spread over both captures.
    for n in 0..count * 2 {
        world.create(&feed(n), Vec::new());
    }
    settle(&mut world, count * 2, 0);
    join_others(&mut world);
    drain(world, moves(count, MAINTAINERS_AT_ONCE, pace, 1) + around(pace))
}

/// As many dispatchers as said leave the target; their maintainer is elsewhere.
pub(crate) fn dispatchers(count: u64, pace: Pace) -> Drained {
    let mut world = cluster(pace);
    let tables: Vec<_> = (0..usize::try_from(count).unwrap()).map(table).collect();
    // A maintainer that is no more has put them all there.
    let (from, to) = (world.life(0).unwrap(), world.life(TARGET).unwrap());
    for (part, tables) in tables.chunks(MESSAGE_MAX_DISPATCHERS).enumerate() {
        let first = (part * MESSAGE_MAX_DISPATCHERS) as u64;
        let dispatchers = tables.iter().zip(first + 1..).map(|(span, counter)| NewDispatcher {
            span: span.clone(),
            writer_epoch: WriterEpoch { changefeed: FORMER, counter },
            start_ts: 0,
        });
        let order = Order::Create { config: config(), dispatchers: dispatchers.collect() };
        let body = Body::Order { changefeed: feed(0), epoch: FORMER, order };
        world.deliver(TARGET, Envelope { from: from.clone(), to: to.clone(), body });
    }
    world.create(&feed(0), tables);
    settle(&mut world, 1, count);
    join_others(&mut world);
    drain(world, moves(count, limit_of_dispatchers(count), pace, 0) + around(pace))
}

/// A cluster in which everything is everywhere: so many changefeeds with so many tables each. The bound is the sum of both
/// kinds', although maintainers that arrive on several captures do so at different moments, and wait for each other's writes.
pub(crate) fn mixed(feeds: u64, tables_each: u64, pace: Pace) -> Drained {
    let mut world = cluster(pace);
    join_others(&mut world);
    for n in 0..feeds {
        let first = usize::try_from(n * tables_each).unwrap();
        world.create(&feed(n), (first..first + usize::try_from(tables_each).unwrap()).map(table).collect());
    }
    settle(&mut world, feeds, feeds * tables_each);
    let target = world.capture(TARGET).clone();
    let work = world.snapshot().captures[&target].work.unwrap();
    let bound = moves(work.maintainers, MAINTAINERS_AT_ONCE, pace, 1)
        + moves(work.dispatchers, limit_of_dispatchers(work.dispatchers), pace, 0)
        + around(pace);
    drain(world, bound)
}
