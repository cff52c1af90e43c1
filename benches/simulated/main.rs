//! Drains in virtual time against the bounds of the design, and what they cost.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a measurement that cannot go on has failed")]

mod drains;
#[path = "../../tests/simulation/identity.rs"]
mod identity;
#[path = "../report.rs"]
#[allow(dead_code, reason = "shared with other benchmarks")]
mod report;
#[path = "../../tests/simulation/size.rs"]
mod size;
mod world;

use std::time::Duration;

use drains::Drained;
use report::{Report, is_quick};
use size::{BYTES_MAX, CPU_MAX, EVENT_MAX, Size};
use world::Pace;

const MAINTAINERS: [u64; 3] = [10, 100, 1000];
const DISPATCHERS: [u64; 3] = [100, 1000, 10_000];
/// With so many the cost is held to its bounds, too.
const MANY: u64 = 1_000_000;
/// How long a stop or a start takes, in milliseconds.
const ORDERS_MS: [u64; 3] = [0, 100, 1000];

fn time(report: &mut Report, case: &str, drained: &Drained) {
    report.bound(case, "s", &[drained.took.as_secs_f64()], drained.bound.as_secs_f64());
}

fn cost(report: &mut Report, case: &str, drained: &Drained) {
    let cost = drained.cost;
    report.bound(&format!("{case}: CPU"), "s", &[cost.spent.as_secs_f64()], CPU_MAX.as_secs_f64());
    report.tell(&format!("{case}: CPU an event"), "µs", &[cost.spent.as_secs_f64() * 1e6 / f64::from(cost.events)]);
    report.bound(&format!("{case}: longest event"), "ms", &[millis(cost.longest)], millis(EVENT_MAX));
}

/// What a maintainer alone takes for so many dispatchers. First, while this process is small.
fn memory(report: &mut Report, size: &Size) {
    let bytes = |bytes: u64| f64::from(u32::try_from(bytes).unwrap());
    report.bound("10^6 planned: memory of each", "B", &[bytes(size.bytes_each)], bytes(BYTES_MAX));
    let longest = size.planned.longest.max(size.drained.longest);
    report.bound("10^6 planned: longest event", "ms", &[millis(longest)], millis(EVENT_MAX));
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn main() {
    let mut report = Report::new("simulated");
    memory(&mut report, &size::measure(usize::try_from(MANY).unwrap()));
    for order_ms in ORDERS_MS {
        let pace = Pace::of_orders(Duration::from_millis(order_ms));
        for count in MAINTAINERS {
            time(&mut report, &format!("{count} maintainers, L {order_ms} ms"), &drains::maintainers(count, pace));
        }
        for count in DISPATCHERS {
            time(&mut report, &format!("{count} dispatchers, L {order_ms} ms"), &drains::dispatchers(count, pace));
        }
        if !is_quick() || order_ms == ORDERS_MS[1] {
            let drained = drains::dispatchers(MANY, pace);
            time(&mut report, &format!("{MANY} dispatchers, L {order_ms} ms"), &drained);
            cost(&mut report, &format!("10^6, L {order_ms} ms"), &drained);
        }
        let (case, mixed) = (format!("100 feeds x 100 tables, L {order_ms} ms"), drains::mixed(100, 100, pace));
        report.against(&case, "s", &[mixed.took.as_secs_f64()], mixed.bound.as_secs_f64());
    }
    report.end();
}
