//! One departure's lag over time, as HTML around an inline SVG. The SVG is stretched to the width of the page; what has to
//! be read is text beside it, so that it stays readable on a phone.

use std::fmt::Write as _;

use super::{Departure, outcome::Point, report::escape, screen::seconds};

/// The SVG's own coordinates.
const WIDTH: f64 = 1_000.0;
const HEIGHT: f64 = 240.0;
/// Most labels of the two axes.
const LABELS_MAX_X: u64 = 9;
const LABELS_MAX_Y: u64 = 6;
/// How close two marks of a row may be, as a part of the width: a phone's numbers do not touch.
const MARK_WIDTH: f64 = 0.062;
/// How high a row of marks is, in pixels.
const MARK_HEIGHT_PX: usize = 22;
/// Steps between labels, times a power of ten.
const STEPS: [u64; 3] = [1, 2, 5];

/// What the charts share, so that they can be compared at a glance.
#[allow(clippy::struct_field_names, reason = "units are named")]
pub(super) struct Scale {
    begin_ms: i64,
    end_ms: i64,
    step_x_ms: u64,
    highest_ms: u64,
    step_y_ms: u64,
}

impl Scale {
    pub(super) fn of(departures: &[Departure]) -> Self {
        let points = || departures.iter().flat_map(|departure| &departure.curve);
        let begin_ms = points().map(|point| point.at_ms).min().unwrap_or(0).min(0);
        let end_ms = points().map(|point| point.at_ms).max().unwrap_or(0).max(1_000);
        let highest_ms = points().map(|point| point.highest_ms).max().unwrap_or(0).max(100);
        let step_y_ms = step(highest_ms, LABELS_MAX_Y);
        Self {
            begin_ms,
            end_ms,
            step_x_ms: step(end_ms.abs_diff(begin_ms), LABELS_MAX_X),
            highest_ms: highest_ms.div_ceil(step_y_ms) * step_y_ms,
            step_y_ms,
        }
    }

    /// Where a time is, as a part of the width.
    fn across(&self, at_ms: i64) -> f64 {
        part(at_ms.abs_diff(self.begin_ms), self.end_ms.abs_diff(self.begin_ms))
    }

    /// Where a lag is, as a part of the height, from above.
    fn down(&self, lag_ms: u64) -> f64 {
        1.0 - part(lag_ms, self.highest_ms)
    }

    fn x(&self, at_ms: i64) -> f64 {
        self.across(at_ms) * WIDTH
    }

    fn y(&self, lag_ms: u64) -> f64 {
        self.down(lag_ms) * HEIGHT
    }

    fn labels_x(&self) -> impl Iterator<Item = i64> {
        let step = i64::try_from(self.step_x_ms).unwrap_or(i64::MAX).max(1);
        (self.begin_ms.div_euclid(step)..=self.end_ms.div_euclid(step))
            .map(move |n| n * step)
            .filter(|at| *at >= self.begin_ms)
    }

    fn labels_y(&self) -> impl Iterator<Item = u64> {
        (0..=self.highest_ms / self.step_y_ms).map(|n| n * self.step_y_ms)
    }
}

fn part(of: u64, whole: u64) -> f64 {
    let number = |ms: u64| f64::from(u32::try_from(ms).unwrap_or(u32::MAX));
    (number(of) / number(whole.max(1))).clamp(0.0, 1.0)
}

/// The least of 1, 2, 5, 10, 20 … with which so many labels are enough.
fn step(range: u64, labels_max: u64) -> u64 {
    let mut power = 1;
    loop {
        if let Some(step) = STEPS.iter().map(|step| step * power).find(|step| range / step < labels_max) {
            return step;
        }
        power *= 10;
    }
}

/// A label of the lag's axis.
fn lag_label(ms: u64) -> String {
    match ms {
        0 => "0".to_owned(),
        1..1_000 => format!("{ms} ms"),
        _ if ms.is_multiple_of(1_000) => format!("{} s", ms / 1_000),
        _ => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
    }
}

fn time_label(ms: i64) -> String {
    let sign = if ms < 0 { "\u{2212}" } else { "" };
    let ms = ms.unsigned_abs();
    let tenths = if ms.is_multiple_of(1_000) { String::new() } else { format!(".{}", ms % 1_000 / 100) };
    format!("{sign}{}{tenths} s", ms / 1_000)
}

/// A departure's chart with its heading and the list of what happened.
pub(super) fn chart(departure: &Departure, scale: &Scale) -> String {
    let mut html = String::new();
    // Writing to a string cannot fail.
    let mut put = |piece: String| html.push_str(&piece);
    let title = escape(departure.way.title());
    let (capture, dispatchers) = (escape(departure.capture.as_str()), departure.dispatchers);
    put(format!("<section>\n<h2>{title} <small>{capture}, {dispatchers} dispatchers</small></h2>\n"));
    let (strip, rows) = marks(departure, scale);
    put(format!("<div class=\"plot\" style=\"padding-top:{}px\">\n{strip}", rows * MARK_HEIGHT_PX));
    put("<div class=\"area\">\n".to_owned());
    put(svg(departure, scale));
    for lag in scale.labels_y() {
        put(format!("<span class=\"y\" style=\"top:{:.2}%\">{}</span>\n", scale.down(lag) * 100.0, lag_label(lag)));
    }
    for at in scale.labels_x() {
        put(format!("<span class=\"x\" style=\"left:{:.2}%\">{}</span>\n", scale.across(at) * 100.0, time_label(at)));
    }
    put("</div>\n</div>\n<ol>\n".to_owned());
    for mark in &departure.marks {
        put(format!("<li><b>{}</b> {}</li>\n", seconds(mark.at_ms), escape(&mark.what)));
    }
    put("</ol>\n</section>\n".to_owned());
    html
}

/// Numbers above the chart, in as many rows as it takes for them not to touch.
fn marks(departure: &Departure, scale: &Scale) -> (String, usize) {
    let mut html = String::new();
    let mut ends: Vec<f64> = Vec::new();
    for (n, mark) in departure.marks.iter().enumerate() {
        let across = scale.across(i64::try_from(mark.at_ms).unwrap_or(i64::MAX));
        let row = ends.iter().position(|end| across >= *end).unwrap_or(ends.len());
        ends.resize(ends.len().max(row + 1), 0.0);
        ends[row] = across + MARK_WIDTH;
        let top = row * MARK_HEIGHT_PX;
        let _ = writeln!(
            html,
            "<span class=\"mark\" style=\"left:{:.2}%;top:{top}px\" title=\"{}\">{}</span>",
            across * 100.0,
            escape(&mark.what),
            n + 1
        );
    }
    let strip = format!("<div class=\"marks\">\n{html}</div>\n");
    (strip, ends.len())
}

fn svg(departure: &Departure, scale: &Scale) -> String {
    let mut svg = String::new();
    let mut put = |piece: String| {
        svg.push_str(&piece);
        svg.push('\n');
    };
    put(format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\">",
        escape(&format!("Lag over time while {} leaves: {}", departure.capture, departure.way.title()))
    ));
    let until = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    let mut shade = |class: &str, from: i64, to: i64| {
        let (x, width) = (scale.x(from), scale.x(to) - scale.x(from));
        put(format!("<rect class=\"{class}\" x=\"{x:.1}\" y=\"0\" width=\"{width:.1}\" height=\"{HEIGHT}\"/>"));
    };
    shade("window", 0, until(departure.calm_again_ms));
    if let Some(loss) = &departure.coordinator {
        shade("loss", until(loss.killed_at_ms), until(loss.calm_at_ms));
    }
    let mut line = |class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)| {
        put(format!("<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"));
    };
    for lag in scale.labels_y() {
        line("grid", (0.0, scale.y(lag)), (WIDTH, scale.y(lag)));
    }
    for at in scale.labels_x() {
        line("grid", (scale.x(at), 0.0), (scale.x(at), HEIGHT));
    }
    for mark in &departure.marks {
        let x = scale.x(until(mark.at_ms));
        line("at", (x, 0.0), (x, HEIGHT));
    }
    line("calm", (0.0, scale.y(departure.calm_lag_ms)), (WIDTH, scale.y(departure.calm_lag_ms)));
    put(curve("median", &departure.curve, scale, |point| point.median_ms));
    put(curve("highest", &departure.curve, scale, |point| point.highest_ms));
    put("</svg>".to_owned());
    svg
}

fn curve(class: &str, points: &[Point], scale: &Scale, lag: fn(&Point) -> u64) -> String {
    let at = |point: &Point| format!("{:.1},{:.1}", scale.x(point.at_ms), scale.y(lag(point)));
    let points: Vec<_> = points.iter().map(at).collect();
    format!("<polyline class=\"{class}\" points=\"{}\"/>", points.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::outcome::tests::outcome;

    #[test]
    fn labels_are_round_and_few() {
        for (range, most, expected) in [(2_310, 6, 500), (999, 6, 200), (12_345, 9, 2_000), (0, 6, 1), (60, 6, 20)] {
            assert_eq!(step(range, most), expected, "{range}");
        }
        assert_eq!([lag_label(0), lag_label(250), lag_label(1_500), lag_label(3_000)], ["0", "250 ms", "1.5 s", "3 s"]);
        assert_eq!([time_label(-1_500), time_label(2_000)], ["\u{2212}1.5 s", "2 s"]);
    }

    #[test]
    fn everything_is_inside_the_chart() {
        let outcome = outcome();
        let scale = Scale::of(&outcome.departures);
        for point in outcome.departures.iter().flat_map(|departure| &departure.curve) {
            assert!(
                (0.0..=WIDTH).contains(&scale.x(point.at_ms)) && (0.0..=HEIGHT).contains(&scale.y(point.highest_ms))
            );
        }
        assert!(scale.labels_x().all(|at| (-500..=5_000).contains(&at)));
        assert_eq!(scale.labels_y().max(), Some(2_500));
    }

    #[test]
    fn marks_that_are_close_get_rows_of_their_own() {
        let mut departure = outcome().departures.remove(0);
        let at = |at_ms| crate::demo::Mark { at_ms, what: String::new() };
        departure.marks = vec![at(0), at(10), at(20), at(4_000)];
        assert_eq!(marks(&departure, &Scale::of(&[departure.clone()])).1, 3);
    }
}
