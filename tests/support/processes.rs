//! Captures as real processes, and the command line as a person would use it.

#[path = "wait.rs"]
mod wait;

use std::{
    collections::BTreeMap,
    fs::File,
    net::TcpListener,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::{Child, ChildStderr, Command},
    sync::oneshot,
    task::JoinHandle,
    time,
};

pub(crate) use wait::wait_for;

const BINARY: &str = env!("CARGO_BIN_EXE_capturedrain");
const PATIENCE: Duration = Duration::from_mins(1);

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Runs a command to its end: its exit code, and what it says on standard error.
pub(crate) async fn run(args: &[&str], servers: &str) -> (i32, String) {
    let output = output(args, servers, &[]).await;
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

async fn output(args: &[&str], servers: &str, options: &[String]) -> std::process::Output {
    let mut command = Command::new(BINARY);
    command.args(args).args(options).env("CAPTUREDRAIN_SERVER", servers).stdin(Stdio::null()).kill_on_drop(true);
    time::timeout(Duration::from_mins(2), command.output()).await.expect("a command that ends").unwrap()
}

async fn send(pid: u32, signal: &str) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().await.unwrap().success());
}

/// Captures of one cluster, each a process; killed when this goes.
pub(crate) struct Cluster {
    name: String,
    store: String,
    shutdown_timeout: String,
    lease: &'static str,
    heartbeat: &'static str,
    more: Vec<String>,
    captures: BTreeMap<String, (u16, Child)>,
    options: Options,
}

/// What the commands of a cluster are given besides; nothing by default.
#[derive(Default)]
pub(crate) struct Options {
    /// To servers.
    pub(crate) server: Vec<String>,
    /// To those who ask them.
    pub(crate) client: Vec<String>,
    /// Whether servers are asked over TLS.
    pub(crate) secure: bool,
}

impl Cluster {
    pub(crate) fn new(name: &str, store: &str) -> Self {
        Self::with(name, store, Options::default())
    }

    pub(crate) fn with(name: &str, store: &str, options: Options) -> Self {
        let (name, store, shutdown_timeout) = (name.to_owned(), store.to_owned(), "60s".to_owned());
        let (lease, heartbeat, more, captures) = ("3s", "300ms", Vec::new(), BTreeMap::new());
        Self { name, store, shutdown_timeout, lease, heartbeat, more, captures, options }
    }

    /// How long SIGTERM waits, of captures that are started from now on.
    pub(crate) fn shutdown_timeout(&mut self, timeout: &str) {
        timeout.clone_into(&mut self.shutdown_timeout);
    }

    /// With another lease than 3 s, and more options for every server.
    pub(crate) fn with_lease(mut self, lease: &'static str, more: &[&str]) -> Self {
        self.lease = lease;
        self.more = more.iter().map(ToString::to_string).collect();
        self
    }

    /// With another heartbeat than 300 ms.
    pub(crate) fn with_heartbeat(mut self, heartbeat: &'static str) -> Self {
        self.heartbeat = heartbeat;
        self
    }

    pub(crate) fn start(&mut self, id: &str) {
        let port = free_port();
        let child = self.spawn(id, port, 1);
        self.captures.insert(id.to_owned(), (port, child));
    }

    /// Starts a capture with more options, its log in a file; the port, so that it can be started there again.
    pub(crate) fn start_logged(&mut self, id: &str, port: Option<u16>, more: &[&str], log: &Path) -> u16 {
        let port = port.unwrap_or_else(free_port);
        let log = File::options().create(true).append(true).open(log).unwrap();
        let child = self.command(id, port, 1).args(more).args(["--log", "info"]).stderr(log).spawn().unwrap();
        self.captures.insert(id.to_owned(), (port, child));
        port
    }

    /// Starts one process with several captures; it goes by the name that theirs begin with.
    pub(crate) fn start_several(&mut self, id: &str, captures: u16) {
        let port = loop {
            let port = free_port();
            if (port..port + captures).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
                break port;
            }
        };
        let child = self.spawn(id, port, captures);
        self.captures.insert(id.to_owned(), (port, child));
    }

    fn spawn(&self, id: &str, port: u16, captures: u16) -> Child {
        self.command(id, port, captures).args(["--log", "warn"]).spawn().unwrap()
    }

    fn command(&self, id: &str, port: u16, captures: u16) -> Command {
        let mut command = Command::new(BINARY);
        command
            .args(["server", "--cluster", &self.name, "--store", &self.store, "--id", id])
            .args(["--addr", &format!("127.0.0.1:{port}"), "--lease", self.lease])
            .args(["--heartbeat", self.heartbeat])
            .args(&self.more)
            .args(["--captures", &captures.to_string(), "--shutdown-timeout", &self.shutdown_timeout])
            .args(&self.options.server)
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .kill_on_drop(true);
        command
    }

    /// The process of a capture.
    pub(crate) fn pid(&self, id: &str) -> u32 {
        self.captures[id].1.id().unwrap()
    }

    /// Where a process listens; with several captures, the first of them.
    pub(crate) fn url(&self, id: &str) -> String {
        format!("http://127.0.0.1:{}", self.captures[id].0)
    }

    pub(crate) fn servers(&self) -> String {
        let scheme = if self.options.secure { "https" } else { "http" };
        let urls: Vec<_> = self.captures.values().map(|(port, _)| format!("{scheme}://127.0.0.1:{port}")).collect();
        urls.join(",")
    }

    pub(crate) async fn run(&self, args: &[&str]) -> (i32, String) {
        self.run_with(args, &self.options.client).await
    }

    /// The same with other options for TLS.
    pub(crate) async fn run_with(&self, args: &[&str], options: &[String]) -> (i32, String) {
        let output = output(args, &self.servers(), options).await;
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// `host:port` of a process.
    pub(crate) fn addr(&self, id: &str) -> String {
        format!("127.0.0.1:{}", self.captures[id].0)
    }

    /// Starts a command that follows a drain, and waits until it does.
    pub(crate) async fn waiter(&self, args: &[&str]) -> Waiter {
        self.waiter_at(args, &self.servers()).await
    }

    /// The same, which knows only these servers.
    pub(crate) async fn waiter_at(&self, args: &[&str], servers: &str) -> Waiter {
        let mut command = Command::new(BINARY);
        command
            .args(args)
            .args(&self.options.client)
            .env("CAPTUREDRAIN_SERVER", servers)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        // The second line follows the first look at the drain, when signals are listened for.
        let following = async {
            stderr.read_line(&mut said).await.unwrap();
            stderr.read_line(&mut said).await.unwrap();
        };
        time::timeout(PATIENCE, following).await.expect("a command that follows");
        Waiter { child, stderr, said }
    }

    /// The address of one, as `--server` takes it.
    pub(crate) fn server(&self, id: &str) -> String {
        format!("http://127.0.0.1:{}", self.captures[id].0)
    }

    pub(crate) async fn ok(&self, args: &[&str]) {
        let (code, error) = self.run(args).await;
        assert_eq!(code, 0, "{args:?}: {error}");
    }

    pub(crate) async fn try_json(&self, args: &[&str]) -> Option<Value> {
        let output = output(&[args, &["-o", "json"]].concat(), &self.servers(), &self.options.client).await;
        output.status.success().then(|| serde_json::from_slice(&output.stdout).expect("JSON"))
    }

    pub(crate) async fn json(&self, args: &[&str]) -> Value {
        wait_for(PATIENCE, &format!("{args:?}"), || self.try_json(args)).await
    }

    pub(crate) async fn wait_for_captures(&self, count: usize) {
        wait_for(PATIENCE, "the captures to be heard", || async {
            let captures = self.try_json(&["captures"]).await?;
            let heard = captures.as_array()?.iter().filter(|c| c["heard"] == true).count();
            (heard == count && captures.as_array()?.len() == count).then_some(())
        })
        .await;
    }

    pub(crate) async fn wait_for_dispatchers(&self, changefeed: &str, count: u64) {
        wait_for(PATIENCE, "the dispatchers", || async {
            let feed = self.try_json(&["changefeed", "get", changefeed]).await?;
            let running: u64 = feed["dispatchers"].as_object()?.values().filter_map(Value::as_u64).sum();
            (running >= count).then_some(())
        })
        .await;
    }

    pub(crate) async fn wait_for_checkpoint(&self, changefeed: &str, ts: u64) {
        wait_for(PATIENCE, "the checkpoint", || async {
            let feed = self.try_json(&["changefeed", "get", changefeed]).await?;
            (feed["checkpoint_ts"].as_u64()? >= ts).then_some(())
        })
        .await;
    }

    pub(crate) async fn coordinator(&self) -> String {
        wait_for(PATIENCE, "a coordinator", || async {
            let captures = self.try_json(&["captures"]).await?;
            let found = captures.as_array()?.iter().find(|c| c["is_coordinator"] == true)?;
            Some(found["id"].as_str()?.to_owned())
        })
        .await
    }

    /// One that does not coordinate, of all that are registered.
    pub(crate) async fn a_follower_of_all(&self) -> String {
        self.a_follower_with(&self.options.client).await
    }

    /// The same, asked with other options for TLS.
    pub(crate) async fn a_follower_with(&self, options: &[String]) -> String {
        let args = ["captures", "-o", "json"];
        let captures = wait_for(PATIENCE, "the captures", || async {
            let output = output(&args, &self.servers(), options).await;
            serde_json::from_slice::<Value>(&output.stdout).ok()
        })
        .await;
        let follower = captures.as_array().unwrap().iter().find(|capture| capture["is_coordinator"] == false);
        follower.unwrap()["id"].as_str().unwrap().to_owned()
    }

    /// One of the processes that does not coordinate.
    pub(crate) async fn a_follower(&self) -> String {
        let coordinator = self.coordinator().await;
        // The last, since clients ask the first first, and tests let their target stand still.
        self.captures.keys().rfind(|id| **id != coordinator).unwrap().clone()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, id: &str) {
        let (_, mut child) = self.captures.remove(id).unwrap();
        child.start_kill().unwrap();
    }

    async fn signal(&self, id: &str, signal: &str) {
        send(self.captures[id].1.id().unwrap(), signal).await;
    }

    /// SIGSTOP.
    pub(crate) async fn suspend(&self, id: &str) {
        self.signal(id, "-STOP").await;
    }

    /// SIGCONT.
    pub(crate) async fn resume(&self, id: &str) {
        self.signal(id, "-CONT").await;
    }

    /// Signals until it ends: what somebody does who does not want to wait.
    pub(crate) async fn insist(&mut self, id: &str, signal: &str) -> ExitStatus {
        let (_, mut child) = self.captures.remove(id).unwrap();
        wait_for(PATIENCE, "an end after signals", || {
            let ended = child.try_wait().unwrap();
            let pid = child.id();
            async move {
                if ended.is_none() {
                    send(pid.unwrap(), signal).await;
                }
                ended
            }
        })
        .await
    }

    /// SIGTERM, and waits for the end.
    pub(crate) async fn terminate(&mut self, id: &str) -> ExitStatus {
        self.signal(id, "-TERM").await;
        let (_, mut child) = self.captures.remove(id).unwrap();
        time::timeout(Duration::from_secs(90), child.wait()).await.expect("an end after SIGTERM").unwrap()
    }
}

/// A command that follows a drain.
pub(crate) struct Waiter {
    child: Child,
    stderr: BufReader<ChildStderr>,
    said: String,
}

impl Waiter {
    /// Its exit code, and what it said on standard error.
    pub(crate) async fn end(mut self) -> (i32, String) {
        let ended = async {
            self.stderr.read_to_string(&mut self.said).await.unwrap();
            self.child.wait().await.unwrap().code().unwrap_or(-1)
        };
        let code = time::timeout(Duration::from_mins(2), ended).await.expect("a waiter that ends");
        (code, self.said)
    }

    /// The same, after a signal.
    pub(crate) async fn end_by(self, signal: &str) -> (i32, String) {
        send(self.child.id().unwrap(), signal).await;
        self.end().await
    }
}

/// Writes rows into a key range until it is stopped.
pub(crate) struct Writer {
    stop: oneshot::Sender<()>,
    task: JoinHandle<u64>,
}

impl Writer {
    /// Puts a first row into every table, then goes on in the background.
    pub(crate) async fn start(etcd: &str, prefix: &'static str, tables: usize) -> Self {
        let mut client = etcd_client::Client::connect([etcd], None).await.unwrap();
        for table in 0..tables {
            client.put(format!("{prefix}t{table}/0"), "first", None).await.unwrap();
        }
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut revision = 0;
            for n in 0_u64.. {
                let key = format!("{prefix}t{}/{}", n % tables as u64, n % 97);
                let header = if n % 11 == 10 {
                    client.delete(key, None).await.unwrap().header().cloned()
                } else {
                    client.put(key, n.to_string(), None).await.unwrap().header().cloned()
                };
                revision = header.map_or(revision, |header| u64::try_from(header.revision()).unwrap());
                if time::timeout(Duration::from_millis(5), &mut stopped).await.is_ok() {
                    break;
                }
            }
            revision
        });
        Self { stop, task }
    }

    /// The last revision that it wrote.
    pub(crate) async fn stop(self) -> u64 {
        let _ = self.stop.send(());
        self.task.await.unwrap()
    }
}
