//! How far a drain is: bars on a terminal, a line now and then elsewhere.

use std::{
    io::{self, IsTerminal as _},
    time::{Duration, Instant},
};

use capturedrain_core::model::CaptureId;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{
    pace::Pace,
    say, show,
    table::{count, roughly},
};
use crate::{client::ClusterView, view::DrainView};

/// How often a bar is drawn while nothing happens.
const TICK: Duration = Duration::from_millis(250);
/// How far apart lines are that say nothing but less.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// Two bars, of maintainers and dispatchers that have left, and a line on what is going on.
struct Bars {
    all: MultiProgress,
    maintainers: ProgressBar,
    dispatchers: ProgressBar,
    below: ProgressBar,
}

/// Shows a drain on standard error.
pub(super) struct Progress {
    capture: CaptureId,
    bars: Option<Bars>,
    began: Instant,
    pace: Pace,
    latest: DrainView,
    last: String,
    /// Phase and blockers of the last line, and when it was said.
    told: Option<(String, Instant)>,
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::new();
        let bar = |template| {
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            all.add(ProgressBar::new(0).with_style(style.progress_chars("=> ")))
        };
        let maintainers = bar("maintainers [{bar:40}] {pos} of {len} have left");
        let dispatchers = bar("dispatchers [{bar:40}] {pos} of {len} have left");
        let below = bar("{elapsed:>11} {wide_msg}");
        below.enable_steady_tick(TICK);
        Self { all, maintainers, dispatchers, below }
    }

    fn show(&self, drain: &DrainView, below: String) {
        let initial = drain.initial.unwrap_or_default();
        for (bar, initial, left) in [
            (&self.maintainers, initial.maintainers, drain.remaining_maintainer_count),
            (&self.dispatchers, initial.dispatchers, drain.remaining_dispatcher_count),
        ] {
            let all = initial.max(left.unwrap_or(initial));
            bar.set_length(all);
            bar.set_position(all - left.unwrap_or(all));
        }
        self.below.set_message(below);
    }
}

impl Progress {
    pub(super) fn new(capture: &CaptureId) -> Self {
        Self {
            capture: capture.clone(),
            bars: io::stderr().is_terminal().then(Bars::new),
            began: Instant::now(),
            pace: Pace::default(),
            latest: DrainView::default(),
            last: String::new(),
            told: None,
        }
    }

    /// What the drain has come to.
    pub(super) fn show(&mut self, view: &ClusterView) {
        self.latest = view.drain.clone();
        let left = self.latest.remaining_maintainer_count.zip(self.latest.remaining_dispatcher_count);
        self.pace.see(self.began.elapsed(), left.map(|(maintainers, dispatchers)| maintainers + dispatchers));
        let going_on = self.going_on();
        if let Some(bars) = &self.bars {
            return bars.show(&self.latest, going_on + &self.estimate());
        }
        let news = self.told.as_ref().is_none_or(|(told, at)| *told != going_on || at.elapsed() >= LINE_INTERVAL);
        if news {
            let left = left.map_or("what is left is not known yet".to_owned(), |(maintainers, dispatchers)| {
                format!("{} and {} left", count(maintainers, "maintainer"), count(dispatchers, "dispatcher"))
            });
            self.say(&format!("{}: {going_on}, {left}{}", self.capture, self.estimate()));
            self.told = Some((going_on, Instant::now()));
        }
    }

    /// Some time has passed.
    pub(super) fn tick(&self) {
        if let Some(bars) = &self.bars {
            bars.below.set_message(self.going_on() + &self.estimate());
        }
    }

    /// Phase, and what holds it up.
    fn going_on(&self) -> String {
        let phase = match self.latest.phase.as_deref() {
            Some("MovingMaintainers") => "moving maintainers",
            Some("MovingDispatchers") => "moving dispatchers",
            Some("Proving") => "proving that nothing is left",
            Some(other) => other,
            None => "looking",
        };
        match show::blocked(&self.latest) {
            Some(blocked) => format!("{phase}, held up: {blocked}"),
            None => phase.to_owned(),
        }
    }

    fn estimate(&self) -> String {
        let left = self.pace.time_left(self.began.elapsed()).filter(|_| self.latest.blocked_by.is_empty());
        left.filter(|left| !left.is_zero()).map_or(String::new(), |left| {
            format!(", about {} left", roughly(u64::try_from(left.as_millis()).unwrap_or(u64::MAX)))
        })
    }

    /// A sentence that is not said twice in a row.
    pub(super) fn say(&mut self, sentence: &str) {
        if self.last == sentence {
            return;
        }
        sentence.clone_into(&mut self.last);
        match &self.bars {
            // A terminal that is gone cannot be told.
            Some(bars) => drop(bars.all.println(sentence)),
            None => say(sentence),
        }
    }

    /// Leaves the bars as they are, since Ctrl-C has written below them.
    pub(super) fn leave(&mut self) {
        if let Some(bars) = self.bars.take() {
            bars.below.disable_steady_tick();
            bars.all.set_draw_target(ProgressDrawTarget::hidden());
            say("");
        }
    }

    /// Takes the bars away.
    pub(super) fn finish(&mut self) {
        if let Some(bars) = self.bars.take() {
            bars.below.disable_steady_tick();
            // A terminal that is gone cannot be cleared.
            let _ = bars.all.clear();
            bars.all.set_draw_target(ProgressDrawTarget::hidden());
        }
    }
}
