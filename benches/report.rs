//! What a benchmark came to: a table for people, 80 columns wide, and a JSON file in `target/bench` for programs.

use std::{env, fs, path::Path};

use serde_json::{Value, json};

/// Whether it shall take minutes instead of a quarter of an hour.
pub(crate) fn is_quick() -> bool {
    env::var_os("QUICK").is_some_and(|value| !value.is_empty())
}

/// The cases of a benchmark. Each is printed as soon as it is known.
pub(crate) struct Report {
    name: &'static str,
    cases: Vec<Value>,
    over: usize,
}

impl Report {
    pub(crate) fn new(name: &'static str) -> Self {
        println!("{:<34} {:>6} {:>8} {:>8} {:>8} {:>8}", name, "ratio", "value", "bound", "min", "max");
        Self { name, cases: Vec::new(), over: 0 }
    }

    /// A case that is held to a bound.
    pub(crate) fn bound(&mut self, case: &str, unit: &str, values: &[f64], bound: f64) {
        self.over += usize::from(median(values) > bound);
        self.against(case, unit, values, bound);
    }

    /// A case that is seen against a bound that was not made for it.
    pub(crate) fn against(&mut self, case: &str, unit: &str, values: &[f64], bound: f64) {
        let ratio = median(values) / bound;
        let known = json!({ "bound": bound, "ratio": ratio, "ratio_to_bound": ratio });
        self.add(case, unit, values, &known);
    }

    /// A case that is compared with something else, of which this is the value in the same run.
    pub(crate) fn beside(&mut self, case: &str, unit: &str, values: &[f64], what: &str, others: &[f64]) {
        let (other, ratio) = (median(others), median(values) / median(others));
        let known = json!({ "beside": what, "beside_value": other, "ratio": ratio });
        self.add(case, unit, values, &known);
    }

    /// A case that is just told.
    pub(crate) fn tell(&mut self, case: &str, unit: &str, values: &[f64]) {
        self.add(case, unit, values, &json!({}));
    }

    fn add(&mut self, case: &str, unit: &str, values: &[f64], known: &Value) {
        let least = values.iter().copied().fold(f64::MAX, f64::min);
        let most = values.iter().copied().fold(f64::MIN, f64::max);
        let value = median(values);
        let mut all = json!({
            "case": case.trim_start(), "unit": unit, "value": value,
            "runs": { "min": least, "median": value, "max": most },
        });
        for (key, value) in known.as_object().into_iter().flatten() {
            all[key] = value.clone();
        }
        self.cases.push(all);
        let ratio = known["ratio"].as_f64().map_or_else(String::new, |ratio| format!("{ratio:.3}"));
        let bound = known["bound"].as_f64().map_or_else(String::new, short);
        let (value, least, most) = match values {
            [value] => (short(*value), String::new(), String::new()),
            _ => (short(value), short(least), short(most)),
        };
        println!("{case:<34} {ratio:>6} {value:>8} {bound:>8} {least:>8} {most:>8} {unit}");
    }

    /// Writes the file. Ends the process with an error when a case was over its bound.
    pub(crate) fn end(self) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().find(|path| path.join("Makefile").exists());
        let folder = folder.unwrap_or(Path::new(".")).join("target/bench");
        fs::create_dir_all(&folder).unwrap();
        let text = serde_json::to_string_pretty(&self.cases).unwrap();
        fs::write(folder.join(format!("{}.json", self.name)), text + "\n").unwrap();
        if self.over > 0 {
            eprintln!("{}: {} of {} cases are over their bounds", self.name, self.over, self.cases.len());
            std::process::exit(1);
        }
    }
}

/// Four digits, more or less.
fn short(value: f64) -> String {
    match value {
        value if value >= 1000.0 => format!("{value:.0}"),
        value if value >= 100.0 => format!("{value:.1}"),
        value => format!("{value:.3}"),
    }
}

/// The value that as many are below as are above; the lower one of two.
pub(crate) fn median(values: &[f64]) -> f64 {
    percentile(values, 50)
}

/// The least value below or at which so many of a hundred are.
pub(crate) fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}
