//! Rows and columns for people.

/// Lays rows out below their headings, each column as wide as its widest cell.
pub(super) fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let width = |n: usize| {
        let cells = rows.iter().map(|row| row[n].chars().count());
        cells.chain([headings[n].chars().count()]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(headings);
    for row in rows {
        text.push_str(&line(std::array::from_fn(|n| row[n].as_str())));
    }
    text
}

/// A number, or a dash while it is unknown.
pub(super) fn known(number: Option<u64>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

/// A number of things, in the singular where it is one.
pub(super) fn count(number: u64, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}

/// A span of time in words that fit a column: `850ms`, `12.3s`, `4m 05s`.
pub(super) fn time(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms}ms"),
        1_000..60_000 => format!("{}.{}s", ms / 1_000, ms % 1_000 / 100),
        60_000..3_600_000 => format!("{}m {:02}s", ms / 60_000, ms % 60_000 / 1_000),
        _ => format!("{}h {:02}m", ms / 3_600_000, ms % 3_600_000 / 60_000),
    }
}

/// An estimate of a span of time: whole seconds, rounded up.
pub(super) fn roughly(ms: u64) -> String {
    match ms.div_ceil(1_000) {
        0..=1 => "a second".to_owned(),
        seconds @ 2..60 => format!("{seconds}s"),
        seconds => time(seconds.saturating_mul(1_000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["capture-10".to_owned(), "1".to_owned()], ["b".to_owned(), known(None)]];
        assert_eq!(table(["ID", "WORK"], &rows), "ID          WORK\ncapture-10  1\nb           -\n");
    }

    #[test]
    fn estimates_are_in_whole_seconds() {
        for (ms, text) in
            [(0, "a second"), (1_001, "2s"), (59_001, "1m 00s"), (u64::MAX, &time(u64::MAX / 1_000 * 1_000))]
        {
            assert_eq!(roughly(ms), text);
        }
    }

    #[test]
    fn times_fit_a_column() {
        for (ms, text) in [(850, "850ms"), (12_345, "12.3s"), (245_000, "4m 05s"), (3_700_000, "1h 01m")] {
            assert_eq!(time(ms), text);
        }
    }
}
