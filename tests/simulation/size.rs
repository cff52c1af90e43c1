//! What a million dispatchers cost their maintainer: `make size`.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant as Clock},
};

use capturedrain_core::{
    maintainer::{Input, Maintainer, Output},
    model::{
        CaptureId, ChangefeedConfig, ChangefeedEpoch, ChangefeedId, DispatcherFate, DispatcherNews, DrainEpoch,
        DrainNotice, DrainState, Heartbeat, Incarnation, Instant, Liveness, NodeEpoch, Now, Options, Order, Span,
        Stamp, Status, Term, UnixMillis,
    },
};

const DISPATCHERS: usize = 1_000_000;
/// How many dispatchers one message names.
const BATCH: usize = 4096;
const SHARE: u32 = 10_000;
/// The time from one event to the next.
const NEXT_EVENT: Duration = Duration::from_micros(10);
/// What a dispatcher may take in the process that plans it, its names included.
const BYTES_MAX: u64 = 300;

struct Bench {
    maintainer: Maintainer,
    now: Duration,
    slowest: Duration,
    spent: Duration,
    events: u64,
    waiting: Vec<(Incarnation, Order)>,
}

fn who(n: u64) -> Incarnation {
    Incarnation { capture: CaptureId::new(format!("c{n}")).unwrap(), node_epoch: NodeEpoch(n) }
}

fn heartbeat(version: u64, drain: bool) -> Heartbeat {
    let liveness = |n| if drain && n == 2 { Liveness::Draining } else { Liveness::Alive };
    let state = DrainState {
        stamp: Stamp { term: Term(1), version },
        last_epoch: DrainEpoch(u64::from(drain)),
        drain: drain.then(|| DrainNotice { epoch: DrainEpoch(1), target: who(2) }),
        captures: (0..3).map(|n| (who(n).capture, (NodeEpoch(n), liveness(n)))).collect(),
        avoid: Vec::new(),
    };
    let feed = ChangefeedId::new("f").unwrap();
    Heartbeat {
        destinations: (0..3).filter(|n| liveness(*n) == Liveness::Alive).map(who).collect(),
        state,
        shares: BTreeMap::from([(feed, SHARE)]),
        balance: false,
        beat: 0,
        newcomers: Vec::new(),
    }
}

impl Bench {
    fn give(&mut self, input: Input<'_>) {
        self.now += NEXT_EVENT;
        let now = Now { monotonic: Instant(self.now), wall: UnixMillis(0) };
        let began = Clock::now();
        let outputs = self.maintainer.handle(input, now);
        let took = began.elapsed();
        self.slowest = self.slowest.max(took);
        self.spent += took;
        self.events += 1;
        self.waiting.extend(outputs.into_iter().filter_map(|output| match output {
            Output::Order { to, order } => Some((to, order)),
            _ => None,
        }));
    }

    /// Hosts carry out at once what they are told, until nothing is left to do.
    fn settle(&mut self) {
        loop {
            // It wants the next event a moment after this one when it has more to do.
            while self.maintainer.wake_at().is_some_and(|at| at <= Instant(self.now + NEXT_EVENT)) {
                self.give(Input::Wake);
            }
            let Some((to, order)) = self.waiting.pop() else { return };
            let status = match order {
                Order::Bootstrap { after, .. } => Status::Inventory { after, dispatchers: Vec::new(), more: false },
                Order::Create { dispatchers, .. } => {
                    let news = dispatchers.into_iter().map(|new| DispatcherNews {
                        span: new.span.id(),
                        writer_epoch: new.writer_epoch,
                        what: DispatcherFate::Working { checkpoint_ts: new.start_ts, split_at: None },
                    });
                    Status::Progress(news.collect())
                }
                Order::Stop(stops) => {
                    let what = DispatcherFate::Stopped { checkpoint_ts: Some(5) };
                    let news = stops.into_iter().map(|(span, writer_epoch)| DispatcherNews {
                        span,
                        writer_epoch,
                        what: what.clone(),
                    });
                    Status::Progress(news.collect())
                }
            };
            self.give(Input::Status { from: to, status });
        }
    }

    fn phase(&mut self, name: &str) {
        let (spent, events, slowest) = (self.spent, self.events, self.slowest);
        println!("{name}: {spent:.2?} in {events} events, the slowest {slowest:.2?}");
        (self.spent, self.events, self.slowest) = (Duration::ZERO, 0, Duration::ZERO);
    }

    fn left(&self) -> u64 {
        self.maintainer.report().dispatchers.unwrap().get(&who(2).capture).copied().unwrap_or(0)
    }
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
#[ignore = "a measurement: make size"]
fn a_million_dispatchers_are_drained() {
    let config = ChangefeedConfig {
        source: "s".into(),
        sink: "t".into(),
        start_ts: 0,
        span_max_keys: 0,
        unknown: BTreeMap::new(),
    };
    let maintainer = Maintainer::new(
        who(0),
        ChangefeedId::new("f").unwrap(),
        ChangefeedEpoch(1),
        1,
        Arc::new(config),
        Options::default(),
    );
    let mut bench = Bench {
        maintainer,
        now: Duration::ZERO,
        slowest: Duration::ZERO,
        spent: Duration::ZERO,
        events: 0,
        waiting: Vec::new(),
    };
    bench.maintainer.start(Now::default());
    bench.give(Input::PositionRead(None));
    bench.give(Input::Heard(&heartbeat(1, false)));
    bench.settle();
    let before = resident();
    for batch in 0..DISPATCHERS.div_ceil(BATCH) {
        let tables = (batch * BATCH..((batch + 1) * BATCH).min(DISPATCHERS)).map(|n| {
            let name = format!("t{n:07}");
            let (start, end) = (format!("/{name}/").into_bytes(), format!("/{name}0").into_bytes());
            (Span { table: name.into(), start: start.into(), end: end.into() }, 1)
        });
        let born = tables.collect();
        bench.give(Input::Tables { born, ended: Vec::new(), resolved_ts: 5, resolved_at_ms: 5 });
        bench.settle();
    }
    let bytes = resident().saturating_sub(before) / DISPATCHERS as u64;
    println!("{bytes} bytes a dispatcher");
    assert!(bytes <= BYTES_MAX, "{bytes} bytes a dispatcher");
    bench.phase("planned and placed");
    let moves = bench.left();
    assert_eq!(moves, DISPATCHERS as u64 / 3, "all were placed, evenly");
    bench.give(Input::Heard(&heartbeat(2, true)));
    bench.settle();
    while bench.left() > 0 {
        bench.give(Input::Wake);
        bench.settle();
    }
    bench.phase(&format!("{moves} drained"));
}
