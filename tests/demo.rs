//! The tour as a person takes it, with few tables: what it prints and writes, and that it does not hide a failure.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

const PATIENCE: Duration = Duration::from_mins(2);
const SIZE: [&str; 4] = ["--changefeeds", "8", "--tables", "300"];

/// A demo that runs, ended when this goes.
struct Demo(Child);

impl Demo {
    fn start(args: &[&str], temporary: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_capturedrain"));
        command.arg("demo").args(args).env("TMPDIR", temporary).stdin(Stdio::null());
        Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Its exit code, and what it said on standard output and on standard error.
    fn end(mut self) -> (Option<i32>, String, String) {
        let mut stderr = self.0.stderr.take().unwrap();
        let told = thread::spawn(move || {
            let mut text = String::new();
            stderr.read_to_string(&mut text).unwrap();
            text
        });
        let mut stdout = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        (self.0.wait().unwrap().code(), stdout, told.join().unwrap())
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // It has ended, as a rule.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}

#[test]
fn one_screen_and_one_page_say_what_each_way_of_leaving_costs() {
    let (temporary, place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let page = place.path().join("demo.html");
    let args = [&SIZE[..], &["--seed", "7", "--report", page.to_str().unwrap()]].concat();
    let (code, screen, story) = Demo::start(&args, temporary.path()).end();
    assert_eq!(code, Some(0), "{screen}{story}");
    assert!(screen.lines().all(|line| line.chars().count() <= 80), "{screen}");
    let cells = |name: &str| {
        let line = screen.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}: {screen}"));
        line[name.len()..].split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect::<Vec<_>>()
    };
    let number = |cell: &str| cell.trim_end_matches(" ms").replace(',', "").parse::<u64>().unwrap();
    for name in ["time to leave", "calm again after", "highest lag added"] {
        assert_eq!(cells(name).len(), 3, "{screen}");
    }
    assert_eq!([cells("rows lost"), cells("rows doubled")], [["0"; 3]; 2], "{screen}");
    assert!(cells("rows at stake").iter().all(|rows| number(rows) > 0), "{screen}");
    // The lease of a capture that is killed has to run out.
    assert!(number(cells("highest lag added")[2]) > 1_000, "{screen}");
    assert!(screen.trim_end().lines().last().unwrap().starts_with("PROVEN"), "{screen}");
    for event in ["is proven empty", "the coordinator, is killed", "gets SIGTERM", "capture-0 comes back"] {
        assert!(story.contains(event), "{story}");
    }
    let page = fs::read_to_string(page).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n") && page.contains("PROVEN"));
    assert_eq!((page.matches("<svg ").count(), page.matches("class=\"highest\" points=").count()), (3, 3));
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    assert!(is_empty(temporary.path()));
}

/// The file of a writer that has been replaced, with rows in it.
fn a_replaced_file(sinks: &Path) -> Option<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(sinks.join("feed-0/t0")).ok()?.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.file_name().is_some_and(|name| name != "spans.jsonl"));
    files.sort_by_key(|path| fs::metadata(path).unwrap().created().unwrap());
    let first = files.first().filter(|path| fs::metadata(path).unwrap().len() > 0)?;
    (files.len() > 1).then(|| first.clone())
}

#[test]
fn a_damaged_sink_fails_the_proof() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("kept");
    let args = [&SIZE[..], &["-o", "json", "--keep", kept.to_str().unwrap()]].concat();
    let demo = Demo::start(&args, folder.path());
    let began = Instant::now();
    let victim = loop {
        if let Some(file) = a_replaced_file(&kept) {
            break file;
        }
        assert!(began.elapsed() < PATIENCE, "no dispatcher of feed-0/t0 has moved");
        thread::sleep(Duration::from_millis(20));
    };
    fs::remove_file(victim).unwrap();
    let (code, json, story) = demo.end();
    assert_eq!(code, Some(11), "{story}");
    let outcome: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(outcome["proven"], false, "{json}");
    assert!(outcome["proof"]["lost"].as_u64().unwrap() > 0, "{json}");
    let ways: Vec<_> = outcome["departures"].as_array().unwrap().iter().map(|d| d["way"].as_str().unwrap()).collect();
    assert_eq!(ways, ["drain", "shutdown", "kill"]);
    assert_eq!(outcome["departures"][0]["proven_empty"], true, "{json}");
    assert!(kept.join("feed-0/t0").is_dir());
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind() {
    let (temporary, place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let page = place.path().join("demo.html");
    let mut demo = Demo::start(&[&SIZE[..], &["--report", page.to_str().unwrap()]].concat(), temporary.path());
    let stderr = BufReader::new(demo.0.stderr.take().unwrap());
    // Once rows flow.
    assert!(stderr.lines().map_while(Result::ok).any(|line| line.contains("calm: ")));
    assert!(!is_empty(temporary.path()));
    let pid = demo.0.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert_eq!(demo.0.wait().unwrap().code(), Some(130));
    assert!(is_empty(temporary.path()) && is_empty(place.path()));
}

#[test]
fn what_cannot_be_done_is_said_before_it_starts() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().to_str().unwrap();
    for (args, code, sentence) in [
        (["--report", "/nonexistent/demo.html"], 12, "--report /nonexistent/demo.html cannot be written: "),
        (["--report", here], 12, "it is a folder"),
        (["--keep", here], 12, "cannot be made: "),
        (["--tables", "19"], 2, "--tables 19 is less than --changefeeds 20"),
        (["--captures", "2"], 2, "2 is not in 3..=9"),
    ] {
        let began = Instant::now();
        let (ended, screen, told) = Demo::start(&args, folder.path()).end();
        assert_eq!((ended, screen.as_str()), (Some(code), ""), "{args:?}: {told}");
        assert!(told.contains(sentence) && began.elapsed() < Duration::from_secs(5), "{args:?}: {told}");
    }
    assert!(is_empty(folder.path()));
}
