//! What many dispatchers cost their maintainer, from their planning to the end of a drain of all of them. `make size` has a
//! million.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use capturedrain_core::{
    maintainer::{Input, Maintainer, Output},
    model::{
        CaptureId, ChangefeedConfig, ChangefeedEpoch, ChangefeedId, DispatcherFate, DispatcherNews, DrainEpoch,
        DrainNotice, DrainState, Heartbeat, Incarnation, Instant, Liveness, NodeEpoch, Now, Options, Order, Span,
        Stamp, Status, Term, UnixMillis,
    },
};
use rustix::time::{ClockId, clock_gettime};

/// How many dispatchers one message names.
const BATCH: usize = 4096;
/// The time from one event to the next.
const NEXT_EVENT: Duration = Duration::from_micros(10);
/// CPU time in which a million dispatchers are drained.
pub(crate) const CPU_MAX: Duration = Duration::from_secs(5);
/// The longest that one event takes.
pub(crate) const EVENT_MAX: Duration = Duration::from_millis(10);
/// What a dispatcher may take in the process that plans it, its names included.
pub(crate) const BYTES_MAX: u64 = 300;

/// What some events cost.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) spent: Duration,
    pub(crate) longest: Duration,
    pub(crate) events: u32,
}

/// What all of it cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) bytes_each: u64,
    /// Until all dispatchers are where they should be.
    pub(crate) planned: Cost,
    /// Until all of them are elsewhere.
    pub(crate) drained: Cost,
}

struct Bench {
    maintainer: Maintainer,
    now: Duration,
    cost: Cost,
    waiting: Vec<(Incarnation, Order)>,
}

fn who(n: u64) -> Incarnation {
    Incarnation { capture: CaptureId::new(format!("c{n}")).unwrap(), node_epoch: NodeEpoch(n) }
}

/// CPU time of this thread, which others on the machine do not add to.
pub(crate) fn cpu() -> Duration {
    let spent = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(spent.tv_sec).unwrap(), u32::try_from(spent.tv_nsec).unwrap())
}

/// At first the target alone may get work, then it has to give all of it away, `share` dispatchers at once.
fn heartbeat(version: u64, drain: bool, share: u32) -> Heartbeat {
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
        destinations: (0..3).filter(|n| (*n == 2) != drain).map(who).collect(),
        state,
        shares: BTreeMap::from([(feed, share)]),
        balance: false,
        beat: 0,
        newcomers: Vec::new(),
    }
}

impl Bench {
    fn give(&mut self, input: Input<'_>) {
        self.now += NEXT_EVENT;
        let now = Now { monotonic: Instant(self.now), wall: UnixMillis(0) };
        let began = cpu();
        let outputs = self.maintainer.handle(input, now);
        let took = cpu().saturating_sub(began);
        self.cost.longest = self.cost.longest.max(took);
        self.cost.spent += took;
        self.cost.events += 1;
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

    /// Tables appear, so many at once.
    fn appear(&mut self, tables: std::ops::Range<usize>) {
        let born = tables.map(|n| {
            let name = format!("t{n:07}");
            let (start, end) = (format!("/{name}/").into_bytes(), format!("/{name}0").into_bytes());
            (Span { table: name.into(), start: start.into(), end: end.into() }, 1)
        });
        let born = born.collect();
        self.give(Input::Tables { born, ended: Vec::new(), resolved_ts: 5, resolved_at_ms: 5 });
        self.settle();
    }

    fn on_target(&self) -> u64 {
        self.maintainer.report().dispatchers.unwrap().get(&who(2).capture).copied().unwrap_or(0)
    }
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Plans so many dispatchers, all on one capture, and drains that one.
pub(crate) fn measure(dispatchers: usize) -> Size {
    let unknown = BTreeMap::new();
    let config = ChangefeedConfig { source: "s".into(), sink: "t".into(), start_ts: 0, span_max_keys: 0, unknown };
    let (feed, epoch) = (ChangefeedId::new("f").unwrap(), ChangefeedEpoch(1));
    let maintainer = Maintainer::new(who(0), feed, epoch, 1, Arc::new(config), Options::default());
    let share = u32::try_from(dispatchers / 100).unwrap().max(10);
    let (now, cost, waiting) = (Duration::ZERO, Cost::default(), Vec::new());
    let mut bench = Bench { maintainer, now, cost, waiting };
    bench.maintainer.start(Now::default());
    bench.give(Input::PositionRead(None));
    bench.give(Input::Heard(&heartbeat(1, false, share)));
    bench.settle();
    let before = resident();
    for first in (0..dispatchers).step_by(BATCH) {
        bench.appear(first..(first + BATCH).min(dispatchers));
    }
    let bytes_each = resident().saturating_sub(before) / dispatchers as u64;
    let planned = std::mem::take(&mut bench.cost);
    assert_eq!(bench.on_target(), dispatchers as u64, "all are on the target");
    bench.give(Input::Heard(&heartbeat(2, true, share)));
    bench.settle();
    while bench.on_target() > 0 {
        bench.give(Input::Wake);
        bench.settle();
    }
    Size { bytes_each, planned, drained: bench.cost }
}

#[test]
#[ignore = "a measurement: make size"]
fn a_million_dispatchers_are_drained() {
    let size = measure(1_000_000);
    println!("{size:#?}");
    assert!(size.bytes_each <= BYTES_MAX, "{} bytes a dispatcher", size.bytes_each);
    assert!(size.drained.spent <= CPU_MAX, "{:?} of CPU time", size.drained.spent);
    let longest = size.planned.longest.max(size.drained.longest);
    assert!(longest <= EVENT_MAX, "{longest:?} for one event");
}

/// A dispatcher may cost a logarithm more when there are eight times as many, never eight times as much. That says nothing
/// about how fast the machine is.
#[test]
fn what_a_dispatcher_costs_hardly_grows_with_their_number() {
    let least = |dispatchers: usize| {
        let each = |size: Size| (size.planned.spent + size.drained.spent) / u32::try_from(dispatchers).unwrap();
        (0..3).map(|_| each(measure(dispatchers))).min().unwrap()
    };
    let (few, many) = (least(2_500), least(20_000));
    println!("{few:?} and {many:?} a dispatcher");
    assert!(many <= few * 3, "{few:?} of CPU time a dispatcher of 2,500, {many:?} of 20,000");
}
