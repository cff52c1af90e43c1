//! `status`: all drains of a namespace, captures by node, and why a cordoned node does not empty.

use std::{collections::BTreeMap, fmt::Write as _, io::IsTerminal as _, pin::pin, time::Duration};

use clap::Args;
use futures::StreamExt as _;
use jiff::Timestamp;
use kube::Client;
use tokio::time;

use super::Way;
use crate::{
    cli::{
        Format, Printing,
        exit::{Exit, Failure},
        print, say,
        signals::Signals,
        table::{known, table},
    },
    plugin::{
        Report, Trouble, report,
        report::{CaptureRow, ClusterRow, DrainRow, NodeRow},
        scene,
    },
};

/// How long changes are gathered before they are looked at together.
const PACE: Duration = Duration::from_millis(300);
/// How long without a change it is looked again: not everything may be watched by everybody.
const REFRESH: Duration = Duration::from_secs(10);
/// Clears a terminal and goes to its first line.
const CLEAR: &str = "\u{1b}[2J\u{1b}[H";

/// Show all drains of a namespace, captures by node, and why a cordoned node does not empty
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kubectl capturedrain status
  kubectl capturedrain status -A --watch
  kubectl capturedrain status -o json | jq -r '.clusters[].nodes[].why'

With --watch a terminal is drawn anew after each change. Elsewhere there is a line for each thing that has changed, with \
-o json a whole document a line. Ctrl-C ends it with 130.")]
pub(super) struct StatusArgs {
    /// All namespaces
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// Go on, and show each change
    #[arg(long, short, env = "CAPTUREDRAIN_WATCH")]
    watch: bool,
}

pub(super) async fn run(args: StatusArgs, way: &Way, printing: &Printing) -> Result<Exit, Failure> {
    let mut signals = Signals::listen()?;
    let show = async {
        let (client, namespace) = way.open().await?;
        let namespace = (!args.all_namespaces).then_some(namespace);
        let first = report(&scene(&client, namespace.as_deref()).await?);
        if args.watch {
            return watch(&client, namespace.as_deref(), printing, first).await;
        }
        printing.print(&first, |report| text(report, args.all_namespaces))?;
        Ok(Exit::Done)
    };
    tokio::select! {
        ended = show => ended,
        exit = signals.next() => Ok(exit),
    }
}

/// Shows each change until it is stopped.
async fn watch(client: &Client, namespace: Option<&str>, printing: &Printing, first: Report) -> Result<Exit, Failure> {
    let mut changes = pin!(scene::changes(client, namespace));
    let mut screen = Screen::of(printing, namespace.is_none());
    let mut complaint = None;
    screen.show(&first)?;
    loop {
        // Whatever ends the wait, it is looked again.
        let _ = time::timeout(REFRESH, changes.next()).await;
        time::sleep(PACE).await;
        while let Ok(Some(())) = time::timeout(Duration::ZERO, changes.next()).await {}
        match scene(client, namespace).await {
            Ok(scene) => {
                complaint = None;
                screen.show(&report(&scene))?;
            }
            Err(trouble @ Trouble::Unreachable(_)) => {
                // It may come back; said once, not at each attempt.
                if complaint.as_ref() != Some(&trouble) {
                    say(&format!("kubectl capturedrain: {trouble}"));
                    complaint = Some(trouble);
                }
            }
            Err(trouble) => return Err(trouble.into()),
        }
    }
}

/// What was shown last, and how the next is.
struct Screen {
    kind: Kind,
    all_namespaces: bool,
    shown: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Terminal,
    Lines,
    Json,
}

impl Screen {
    fn of(printing: &Printing, all_namespaces: bool) -> Self {
        let kind = match printing.output {
            Format::Json => Kind::Json,
            Format::Table if std::io::stdout().is_terminal() => Kind::Terminal,
            Format::Table => Kind::Lines,
        };
        Self { kind, all_namespaces, shown: BTreeMap::new() }
    }

    fn show(&mut self, report: &Report) -> Result<(), Failure> {
        let mut told = self.told(report, Timestamp::now())?;
        if told.is_empty() {
            return Ok(());
        }
        if self.kind == Kind::Terminal {
            told = format!("{CLEAR}{told}");
        }
        print(&told)
    }

    /// What is to be printed: nothing when nothing has changed.
    fn told(&mut self, report: &Report, now: Timestamp) -> Result<String, Failure> {
        let now_shown = match self.kind {
            Kind::Terminal => BTreeMap::from([(String::new(), text(report, self.all_namespaces))]),
            Kind::Lines => lines(report),
            Kind::Json => {
                // Age alone is no change.
                let mut ageless = report.clone();
                for drain in &mut ageless.drains {
                    drain.age_seconds = 0;
                }
                let json = |report: &Report| {
                    serde_json::to_string(report).map_err(|error| Failure::new(Exit::Internal, error))
                };
                let is_news = self.shown.insert(String::new(), json(&ageless)?) != Some(json(&ageless)?);
                return Ok(if is_news { json(report)? + "\n" } else { String::new() });
            }
        };
        let at = now.strftime("%H:%M:%SZ");
        let mut told = String::new();
        for (subject, words) in &now_shown {
            if self.shown.get(subject) != Some(words) {
                // Writing to a string cannot fail.
                let _ = match self.kind {
                    Kind::Lines => writeln!(told, "{at} {subject} {words}"),
                    Kind::Terminal | Kind::Json => write!(told, "{words}"),
                };
            }
        }
        if self.kind == Kind::Lines {
            for subject in self.shown.keys().filter(|subject| !now_shown.contains_key(*subject)) {
                let _ = writeln!(told, "{at} {subject} is gone");
            }
        }
        self.shown = now_shown;
        Ok(told)
    }
}

/// A line for each drain, each capture and each node that waits, by what it is about.
fn lines(report: &Report) -> BTreeMap<String, String> {
    let mut lines = BTreeMap::new();
    for drain in &report.drains {
        let phase = drain.phase.as_deref().unwrap_or("-");
        let words = format!("of {}: {phase}, {} dispatchers, {}", drain.target, dispatchers(drain), drain.why);
        lines.insert(format!("drain {}/{}", drain.namespace, drain.name), words);
    }
    for cluster in &report.clusters {
        let place = format!("{}/{}", cluster.namespace, cluster.service);
        if let Some(why) = &cluster.unseen {
            lines.insert(format!("cluster {place}"), why.clone());
        }
        for node in &cluster.nodes {
            let name = node.node.as_deref().unwrap_or("-");
            for capture in &node.captures {
                let liveness = capture.liveness.as_deref().unwrap_or("-");
                let words = format!("on {name}: {liveness}, {}", role(capture));
                lines.insert(format!("capture {place} {}", capture.capture), words);
            }
            if let Some(why) = &node.why {
                lines.insert(format!("node {name}"), format!("does not empty: {why}"));
            }
        }
    }
    lines
}

fn text(report: &Report, all_namespaces: bool) -> String {
    let mut text = if report.drains.is_empty() {
        "there are no CaptureDrains\n".to_owned()
    } else {
        drains(&report.drains, all_namespaces)
    };
    for cluster in &report.clusters {
        text.push_str(&cluster_text(cluster, all_namespaces));
    }
    for unknown in &report.unknown {
        let _ = writeln!(text, "\n{unknown}");
    }
    text
}

fn drains(drains: &[DrainRow], all_namespaces: bool) -> String {
    let row = |drain: &DrainRow| {
        let dash = || "-".to_owned();
        [
            drain.namespace.clone(),
            drain.name.clone(),
            drain.target.clone(),
            drain.phase.clone().unwrap_or_else(dash),
            drain.liveness.clone().unwrap_or_else(dash),
            drain.maintainers.map_or_else(dash, |left| left.to_string()),
            dispatchers(drain),
            age(drain.age_seconds),
            drain.why.clone(),
        ]
    };
    let headings = ["NAMESPACE", "DRAIN", "TARGET", "PHASE", "LIVENESS", "MAINTAINERS", "DISPATCHERS", "AGE", "WHY"];
    if all_namespaces {
        return table(headings, &drains.iter().map(row).collect::<Vec<_>>());
    }
    let [_, headings @ ..] = headings;
    let rows = drains.iter().map(|drain| {
        let [_, rest @ ..] = row(drain);
        rest
    });
    table(headings, &rows.collect::<Vec<_>>())
}

/// Those that are left, of those that it began with.
fn dispatchers(drain: &DrainRow) -> String {
    match (drain.dispatchers, drain.initial_dispatchers) {
        (Some(left), Some(initial)) => format!("{left} of {initial}"),
        (Some(left), None) => left.to_string(),
        (None, _) => "-".to_owned(),
    }
}

/// As kubectl has it.
fn age(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn cluster_text(cluster: &ClusterRow, all_namespaces: bool) -> String {
    let name =
        if all_namespaces { format!("{}/{}", cluster.namespace, cluster.service) } else { cluster.service.clone() };
    let mut text = match &cluster.unseen {
        Some(why) => format!("\ncluster {name}: {why}\n"),
        None => format!("\ncluster {name}\n"),
    };
    let rows: Vec<_> = cluster.nodes.iter().flat_map(|node| node.captures.iter().map(|at| capture(node, at))).collect();
    if !rows.is_empty() {
        let headings = ["NODE", "CORDONED", "CAPTURE", "LIVENESS", "ROLE", "MAINTAINERS", "DISPATCHERS"];
        text.push_str(&table(headings, &rows));
    }
    for node in &cluster.nodes {
        if let (Some(name), Some(why)) = (&node.node, &node.why) {
            let _ = writeln!(text, "\n{name} does not empty: it {why}");
        }
    }
    text
}

fn capture(node: &NodeRow, capture: &CaptureRow) -> [String; 7] {
    let cordoned = match node.cordoned {
        Some(true) => "yes",
        Some(false) => "no",
        None => "-",
    };
    [
        node.node.clone().unwrap_or_else(|| "-".to_owned()),
        cordoned.to_owned(),
        capture.capture.clone(),
        capture.liveness.clone().unwrap_or_else(|| "-".to_owned()),
        role(capture).to_owned(),
        known(capture.maintainers),
        known(capture.dispatchers),
    ]
}

fn role(capture: &CaptureRow) -> &'static str {
    match (capture.is_coordinator, capture.heard) {
        (true, _) => "coordinator",
        (false, Some(true)) => "follower",
        (false, Some(false)) => "unheard",
        (false, None) => "-",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    fn sample() -> Report {
        let capture = CaptureRow {
            capture: "cdc-1".to_owned(),
            pod: Some("cdc-1".to_owned()),
            liveness: Some("Draining".to_owned()),
            is_coordinator: false,
            heard: Some(true),
            maintainers: Some(0),
            dispatchers: Some(4),
        };
        let node = NodeRow {
            node: Some("b".to_owned()),
            cordoned: Some(true),
            captures: vec![capture],
            why: Some("waits for cdc-1".to_owned()),
        };
        let drain = DrainRow {
            namespace: "n".to_owned(),
            name: "x".to_owned(),
            target: "cdc-1".to_owned(),
            phase: Some("Draining".to_owned()),
            liveness: Some("Draining".to_owned()),
            maintainers: Some(0),
            dispatchers: Some(4),
            initial_dispatchers: Some(9),
            age_seconds: 90,
            why: "MovingDispatchers".to_owned(),
        };
        let cluster = ClusterRow {
            namespace: "n".to_owned(),
            service: "cdc".to_owned(),
            coordinator: None,
            unseen: None,
            nodes: vec![node],
        };
        Report { drains: vec![drain], clusters: vec![cluster], unknown: Vec::new() }
    }

    #[test]
    fn tables_and_sentences() {
        let expected = "\
DRAIN  TARGET  PHASE     LIVENESS  MAINTAINERS  DISPATCHERS  AGE  WHY
x      cdc-1   Draining  Draining  0            4 of 9       90s  MovingDispatchers

cluster cdc
NODE  CORDONED  CAPTURE  LIVENESS  ROLE      MAINTAINERS  DISPATCHERS
b     yes       cdc-1    Draining  follower  0            4

b does not empty: it waits for cdc-1
";
        assert_eq!(text(&sample(), false), expected);
        assert!(text(&sample(), true).starts_with("NAMESPACE  DRAIN"));
    }

    #[test]
    fn only_what_has_changed_is_told() {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut screen = Screen { kind: Kind::Lines, all_namespaces: false, shown: BTreeMap::new() };
        let mut report = sample();
        let first = screen.told(&report, now).unwrap();
        assert_eq!(first.lines().count(), 3, "{first}");
        assert!(first.contains("00:00:00Z node b does not empty: waits for cdc-1\n"), "{first}");
        report.drains[0].age_seconds = 91;
        assert_eq!(screen.told(&report, now).unwrap(), "");
        report.drains[0].dispatchers = Some(3);
        let line = "00:00:00Z drain n/x of cdc-1: Draining, 3 of 9 dispatchers, MovingDispatchers\n";
        assert_eq!(screen.told(&report, now).unwrap(), line);
        report.drains.clear();
        assert_eq!(screen.told(&report, now).unwrap(), "00:00:00Z drain n/x is gone\n");
        let mut screen = Screen { kind: Kind::Json, all_namespaces: false, shown: BTreeMap::new() };
        assert_eq!(screen.told(&sample(), now).unwrap().lines().count(), 1);
        report = sample();
        report.drains[0].age_seconds = 91;
        assert_eq!(screen.told(&report, now).unwrap(), "");
    }

    #[test]
    fn ages_are_short() {
        for (seconds, text) in [(0, "0s"), (119, "119s"), (120, "2m"), (7_200, "2h"), (172_800, "2d")] {
            assert_eq!(age(seconds), text);
        }
    }
}
