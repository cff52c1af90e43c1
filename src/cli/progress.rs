//! How far a drain is: bars on a terminal, a line a change elsewhere.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use capturedrain_core::model::CaptureId;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{
    say, show,
    table::{known, time},
};
use crate::{client::ClusterView, clock::wall};

/// How often the time on a bar is drawn.
const TICK: Duration = Duration::from_millis(250);

/// Two bars: maintainers and dispatchers that have left.
struct Bars {
    all: MultiProgress,
    maintainers: ProgressBar,
    dispatchers: ProgressBar,
}

/// Shows a drain on standard error.
pub(super) struct Progress {
    capture: CaptureId,
    bars: Option<Bars>,
    last: String,
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::new();
        let style = |template| ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar =
            |name: &'static str, template| all.add(ProgressBar::new(0).with_style(style(template)).with_prefix(name));
        let maintainers = bar("maintainers", "{prefix:12} [{bar:24}] {pos}/{len}");
        let dispatchers = bar("dispatchers", "{prefix:12} [{bar:24}] {pos}/{len} {elapsed} {msg}");
        dispatchers.enable_steady_tick(TICK);
        Self { all, maintainers, dispatchers }
    }
}

impl Progress {
    pub(super) fn new(capture: &CaptureId) -> Self {
        let bars = io::stderr().is_terminal().then(Bars::new);
        Self { capture: capture.clone(), bars, last: String::new() }
    }

    /// What the drain has come to.
    pub(super) fn show(&mut self, view: &ClusterView) {
        let drain = &view.drain;
        let initial = drain.initial.unwrap_or_default();
        let left = |eta: u64| format!("about {} left", time(eta * 1000));
        let eta = view.eta_seconds(wall()).map(left).unwrap_or_default();
        let blocked = show::blocked(drain);
        if let Some(bars) = &self.bars {
            let gone = |initial: u64, left: Option<u64>| initial.saturating_sub(left.unwrap_or(initial));
            bars.maintainers.set_length(initial.maintainers);
            bars.maintainers.set_position(gone(initial.maintainers, drain.remaining_maintainer_count));
            bars.dispatchers.set_length(initial.dispatchers);
            bars.dispatchers.set_position(gone(initial.dispatchers, drain.remaining_dispatcher_count));
            bars.dispatchers.set_message(if blocked == "-" { eta } else { format!("blocked: {blocked}") });
            return;
        }
        let (maintainers, dispatchers) =
            (known(drain.remaining_maintainer_count), known(drain.remaining_dispatcher_count));
        let phase = drain.phase.as_deref().unwrap_or_default();
        let blocked = if blocked == "-" { String::new() } else { format!("; blocked: {blocked}") };
        let capture = &self.capture;
        let line = format!("{capture}: {phase}, {maintainers} maintainers and {dispatchers} dispatchers left{blocked}");
        self.say(&line);
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

    /// Takes the bars away.
    pub(super) fn finish(&mut self) {
        if let Some(bars) = self.bars.take() {
            bars.maintainers.finish_and_clear();
            bars.dispatchers.finish_and_clear();
        }
    }
}
