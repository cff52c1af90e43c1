//! Captures as processes that are hurt in every way, and started again when they end by themselves.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::Write as _,
    net::TcpListener,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use tokio::process::{Child, Command};

use crate::wires::Wires;

const BINARY: &str = env!("CARGO_BIN_EXE_capturedrain");
/// How long SIGTERM waits for its drain.
const SHUTDOWN: &str = "8s";
/// How long a process may take to end after SIGTERM, pauses left out: its time for the drain, and patience.
const END_MAX: Duration = Duration::from_mins(1);
/// How long a process that ended by itself stays away.
const RESTART_DELAY: Duration = Duration::from_millis(500);

/// What a process is meant to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Run,
    /// It had SIGTERM: it ends by itself, and is started again.
    Leave {
        since: Instant,
    },
    /// It was killed and stays away for a while.
    Rest,
}

struct Capture {
    /// Where others reach it.
    wire: u16,
    port: u16,
    wish: Wish,
    child: Option<Child>,
    paused: bool,
    not_before: Instant,
}

/// All captures of the cluster, killed when this goes.
pub(crate) struct Fleet {
    args: Vec<String>,
    folder: PathBuf,
    captures: BTreeMap<&'static str, Capture>,
    /// How processes ended that nobody killed.
    pub(crate) ends: BTreeMap<i32, usize>,
}

impl Fleet {
    /// Captures that are not started yet; `args` are the servers' options, logs go into the folder.
    pub(crate) async fn new(names: &[&'static str], args: Vec<String>, folder: PathBuf, wires: &mut Wires) -> Self {
        let mut captures = BTreeMap::new();
        for name in names {
            let wire = wires.before(name).await;
            let not_before = Instant::now();
            let capture = Capture { wire, port: 0, wish: Wish::Rest, child: None, paused: false, not_before };
            captures.insert(*name, capture);
        }
        Self { args, folder, captures, ends: BTreeMap::new() }
    }

    pub(crate) fn log(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.log"))
    }

    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.captures.keys().copied().collect()
    }

    /// `host:port` of each process that runs, where nothing stands in between.
    pub(crate) fn addresses(&self) -> BTreeMap<&'static str, String> {
        let running = self.captures.iter().filter(|(_, capture)| capture.child.is_some());
        running.map(|(id, capture)| (*id, format!("127.0.0.1:{}", capture.port))).collect()
    }

    /// The process of each capture that runs.
    pub(crate) fn pids(&self) -> BTreeMap<&'static str, u32> {
        let pid = |capture: &Capture| capture.child.as_ref().and_then(Child::id);
        self.captures.iter().filter_map(|(id, capture)| Some((*id, pid(capture)?))).collect()
    }

    /// Where callers reach the captures, whether they run or not.
    pub(crate) fn servers(&self) -> Vec<String> {
        self.captures.values().map(|capture| format!("https://127.0.0.1:{}", capture.wire)).collect()
    }

    fn get(&mut self, id: &str) -> &mut Capture {
        self.captures.get_mut(id).unwrap()
    }

    /// Wishes a capture to run; `tend` starts it.
    pub(crate) fn start(&mut self, id: &str) {
        self.get(id).wish = Wish::Run;
    }

    /// SIGKILL.
    pub(crate) async fn kill(&mut self, id: &str) {
        let capture = self.get(id);
        (capture.wish, capture.paused) = (Wish::Rest, false);
        if let Some(mut child) = capture.child.take() {
            child.kill().await.unwrap();
        }
    }

    /// Sends a signal, if there is a process.
    async fn signal(&mut self, id: &str, signal: &str) -> bool {
        let Some(pid) = self.get(id).child.as_ref().and_then(Child::id) else { return false };
        Command::new("kill").args([signal, &pid.to_string()]).status().await.unwrap().success()
    }

    /// SIGSTOP.
    pub(crate) async fn pause(&mut self, id: &str) {
        self.get(id).paused = self.signal(id, "-STOP").await;
    }

    /// SIGCONT.
    pub(crate) async fn resume(&mut self, id: &str) {
        self.signal(id, "-CONT").await;
        let capture = self.get(id);
        capture.paused = false;
        if let Wish::Leave { since } = &mut capture.wish {
            *since = Instant::now();
        }
    }

    /// SIGTERM.
    pub(crate) async fn leave(&mut self, id: &str) {
        if self.get(id).wish == Wish::Run && self.signal(id, "-TERM").await {
            self.get(id).wish = Wish::Leave { since: Instant::now() };
        }
    }

    /// Looks after all: starts who should run and does not. An end that should not be is an error.
    pub(crate) fn tend(&mut self, wires: &Wires) -> Result<(), String> {
        for id in self.names() {
            let capture = self.get(id);
            let ended = capture.child.as_mut().and_then(|child| child.try_wait().unwrap());
            if let Some(status) = ended {
                (capture.child, capture.not_before) = (None, Instant::now() + RESTART_DELAY);
                let wish = std::mem::replace(&mut capture.wish, Wish::Run);
                println!("           {id} ended: {status}");
                *self.ends.entry(status.code().unwrap_or(-1)).or_default() += 1;
                judge_end(wish, status).map_err(|why| format!("{id} ended: {why}"))?;
            }
            let capture = self.get(id);
            if let (Wish::Leave { since }, false) = (capture.wish, capture.paused)
                && since.elapsed() > END_MAX
            {
                return Err(format!(
                    "{id} has not ended {END_MAX:?} after SIGTERM, and --shutdown-timeout is {SHUTDOWN}"
                ));
            }
            if capture.wish == Wish::Run && capture.child.is_none() && capture.not_before <= Instant::now() {
                self.spawn(id, wires);
            }
        }
        Ok(())
    }

    fn spawn(&mut self, id: &'static str, wires: &Wires) {
        // A port of its own each time: somebody else may have taken the last one meanwhile.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut log: File = OpenOptions::new().create(true).append(true).open(self.log(id)).unwrap();
        writeln!(log, "-- started on port {port}").unwrap();
        let capture = &self.captures[id];
        let child = Command::new(BINARY)
            .args(["server", "--id", id, "--addr", &format!("127.0.0.1:{port}"), "--shutdown-timeout", SHUTDOWN])
            .args(["--advertise-addr", &format!("127.0.0.1:{}", capture.wire)])
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        wires.listens(id, port);
        wires.runs_as(id, child.id().unwrap());
        let capture = self.get(id);
        (capture.port, capture.child, capture.paused) = (port, Some(child), false);
    }
}

/// Whether a process may end so that nobody killed.
fn judge_end(wish: Wish, status: ExitStatus) -> Result<(), String> {
    let code = status.code();
    match (wish, code) {
        // Drained or alone, or out of time; and, whatever it should do, started while the store was away.
        (Wish::Leave { .. }, Some(0 | 6)) | (_, Some(5)) => Ok(()),
        _ => Err(format!("{status}, although it should {wish:?}")),
    }
}
