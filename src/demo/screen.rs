//! The last screen: a column for each way of leaving, and the proof. It fits 80 columns.

use std::fmt::Write as _;

use super::{Departure, Outcome};

/// How wide the names of the lines are.
const NAME_WIDTH: usize = 29;
/// How wide a column is.
const COLUMN_WIDTH: usize = 17;

/// A line of the table: its name, and what it says of each departure.
pub(super) type Line = (&'static str, fn(&Departure) -> String);

/// What is said of each departure, in this order, on the screen and in the report.
pub(super) const LINES: [Line; 8] = [
    ("time to leave", |departure| seconds(departure.time_to_leave_ms)),
    ("calm again after", |departure| seconds(departure.calm_again_ms)),
    ("highest lag right before", |departure| millis(departure.calm_lag_ms)),
    ("highest lag added", |departure| millis(departure.lag_added_ms)),
    ("  by the coordinator's death", |departure| {
        departure.coordinator.as_ref().map_or_else(|| "-".to_owned(), |loss| millis(loss.lag_added_ms))
    }),
    ("rows at stake", |departure| thousands(departure.rows)),
    ("rows lost", |departure| thousands(departure.rows_lost)),
    ("rows doubled", |departure| thousands(departure.rows_doubled)),
];

/// What the demo came to, for people: lines of at most 80 characters.
pub fn screen(outcome: &Outcome) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let mut put = |line: &str| {
        let _ = writeln!(text, "{}", line.trim_end());
    };
    put("");
    put(&setting(outcome));
    put("");
    let columns = |of: &dyn Fn(&Departure) -> String| {
        let cells = outcome.departures.iter().map(|departure| format!("{:>COLUMN_WIDTH$}", of(departure)));
        cells.collect::<String>()
    };
    put(&format!("{:NAME_WIDTH$}{}", "", columns(&|departure| departure.way.title().to_owned())));
    for (name, of) in LINES {
        put(&format!("{name:NAME_WIDTH$}{}", columns(&of)));
    }
    put("");
    for line in notes(outcome) {
        put(&line);
    }
    put("");
    put(&proof(outcome));
    put(verdict(outcome));
    text
}

/// What was set up.
pub(super) fn setting(outcome: &Outcome) -> String {
    let count = |number: u64, thing: &str| {
        let plural = if number == 1 { "" } else { "s" };
        format!("{} {thing}{plural}", thousands(number))
    };
    format!(
        "{}, {}, {}, {} a second; {} in all",
        count(outcome.captures.into(), "capture"),
        count(outcome.changefeeds.into(), "changefeed"),
        count(outcome.tables.into(), "table"),
        count(outcome.rows_per_second, "row"),
        seconds(outcome.took_ms)
    )
}

/// How the numbers are meant.
pub(super) fn notes(outcome: &Outcome) -> Vec<String> {
    let mut notes = vec![
        "Lag: of the changefeed that is furthest behind, by what its sink has not yet.".to_owned(),
        "Added: from the order to leave until all work runs elsewhere, as calm.".to_owned(),
    ];
    if outcome.departures.iter().any(|departure| departure.coordinator.is_some()) {
        notes.push("The coordinator was killed in the middle of the drain; its own line says".to_owned());
        notes.push("what that did until the lag was calm, and the line above it the rest.".to_owned());
    }
    notes
}

/// The comparison over the whole run.
pub(super) fn proof(outcome: &Outcome) -> String {
    let proof = &outcome.proof;
    let first = proof.first.as_ref().map(|first| format!("\nfirst: {first}")).unwrap_or_default();
    format!(
        "proof: {} rows, {} lost, {} doubled, {} out of order, {} foreign{first}",
        thousands(proof.rows),
        thousands(proof.lost),
        thousands(proof.doubled),
        thousands(proof.out_of_order),
        thousands(proof.foreign)
    )
}

/// One sentence.
pub(super) fn verdict(outcome: &Outcome) -> &'static str {
    let unproven = outcome.departures.iter().any(|departure| departure.proven_empty == Some(false));
    match (outcome.proven, unproven) {
        (true, _) => "PROVEN: the sinks are equal to the sources.",
        (false, true) => "FAILED: the drained capture was not proven empty.",
        (false, false) => "FAILED: the sinks are not equal to the sources.",
    }
}

/// `12.34 s`
pub(super) fn seconds(ms: u64) -> String {
    format!("{}.{:02} s", ms / 1_000, ms % 1_000 / 10)
}

/// `1,234 ms`
fn millis(ms: u64) -> String {
    format!("{} ms", thousands(ms))
}

/// `12,345`
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::outcome::tests::outcome;

    #[test]
    fn the_screen_fits_eighty_columns() {
        let mut outcome = outcome();
        for departure in &mut outcome.departures {
            (departure.rows, departure.lag_added_ms) = (9_999_999, 39_999);
        }
        let text = screen(&outcome);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("drained") && text.contains("39,999 ms") && text.ends_with("sources.\n"), "{text}");
    }

    #[test]
    fn the_verdict_says_what_failed() {
        let mut outcome = outcome();
        assert!(verdict(&outcome).starts_with("PROVEN"));
        outcome.proven = false;
        assert!(verdict(&outcome).contains("not equal"));
        outcome.departures[0].proven_empty = Some(false);
        assert!(verdict(&outcome).contains("not proven empty"));
    }

    #[test]
    fn numbers_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(thousands(number), text);
        }
        assert_eq!(seconds(61_239), "61.23 s");
    }
}
