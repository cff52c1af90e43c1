//! Drains in virtual time against the bounds of the design, and what they cost: a table, and a JSON file of all cases.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_precision_loss,
    reason = "a measurement that cannot go on has failed, and what it counts is small"
)]

mod drains;
mod world;

use std::{env, fs, path::Path, time::Duration};

use drains::Drained;
use serde_json::{Value, json};
use world::Pace;

/// CPU time in which a million dispatchers are drained, of all captures together.
const CPU_MAX: Duration = Duration::from_secs(5);
/// The longest that one call of a process takes.
const CALL_MAX: Duration = Duration::from_millis(10);

/// All cases that were measured.
#[derive(Default)]
struct Cases(Vec<Value>);

impl Cases {
    fn add(&mut self, case: &str, unit: &str, value: f64, bound: f64) {
        let ratio = value / bound;
        let verdict = if ratio <= 1.0 { "" } else { "  over" };
        println!("{case:<42} {value:>10.3} {bound:>10.3} {unit:<3} {ratio:>6.3}{verdict}");
        let runs = json!({ "min": value, "median": value, "max": value });
        self.0.push(json!({
            "case": case, "unit": unit, "value": value, "bound": bound, "ratio": ratio, "ratio_to_bound": ratio,
            "runs": runs,
        }));
    }

    fn drain(&mut self, case: &str, drained: &Drained) {
        self.add(case, "s", drained.took.as_secs_f64(), drained.bound.as_secs_f64());
        debug_assert!(drained.ratio() >= 0.0);
    }

    fn cost(&mut self, case: &str, drained: &Drained) {
        self.add(&format!("{case}: CPU"), "s", drained.cost.spent.as_secs_f64(), CPU_MAX.as_secs_f64());
        self.add(&format!("{case}: longest call"), "ms", millis(drained.cost.longest), millis(CALL_MAX));
        let each = drained.cost.spent / u32::try_from(drained.cost.events).unwrap_or(u32::MAX);
        let (events, calls) = (drained.cost.events, drained.cost.calls);
        println!("    {events} events in {calls} calls, {each:?} each; before the drain {:?}", drained.setup);
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn main() {
    let quick = env::var_os("QUICK").is_some();
    println!("{:<42} {:>10} {:>10} {:<3} {:>6}", "case", "value", "bound", "", "ratio");
    let mut cases = Cases::default();
    for order in [0, 100, 1000] {
        let pace = Pace::of_orders(Duration::from_millis(order));
        for count in [10, 100, 1000] {
            let case = format!("{count} maintainers, L = {order} ms");
            let drained = drains::maintainers(count, pace);
            cases.drain(&case, &drained);
        }
        for count in [100, 1000, 10_000, 1_000_000].into_iter().filter(|count| !quick || *count < 1_000_000) {
            let case = format!("{count} dispatchers, L = {order} ms");
            let drained = drains::dispatchers(count, pace);
            cases.drain(&case, &drained);
            if count == 1_000_000 {
                cases.cost(&case, &drained);
            }
        }
        let drained = drains::mixed(100, 100, pace);
        cases.drain(&format!("100 changefeeds x 100 tables, L = {order} ms"), &drained);
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/bench");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("simulated.json"), serde_json::to_string_pretty(&cases.0).unwrap()).unwrap();
    let over = cases.0.iter().filter(|case| case["ratio"].as_f64() > Some(1.0)).count();
    if over > 0 {
        eprintln!("{over} of {} cases are over their bounds", cases.0.len());
        std::process::exit(1);
    }
}
