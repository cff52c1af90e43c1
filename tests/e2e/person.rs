//! A person at a terminal, whose command goes on while the test looks elsewhere.

use std::{
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::{Child, Command},
    time,
};

use crate::{api_server::access::Access, wait::wait_for};

/// A command that runs.
pub(crate) struct Running {
    child: Child,
    said: Arc<Mutex<String>>,
}

/// Notes each line as it comes.
fn listen(pipe: impl AsyncRead + Unpin + Send + 'static, said: Arc<Mutex<String>>) {
    tokio::spawn(async move {
        let mut lines = BufReader::new(pipe).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let mut said = said.lock().unwrap();
            said.push_str(&line);
            said.push('\n');
        }
    });
}

impl Running {
    pub(crate) fn start(what: &Command) -> Self {
        // What a shell starts in the background does not hear Ctrl-C, nor does what that starts.
        let mut command = Command::new("env");
        command.arg("--default-signal=INT").arg(what.as_std().get_program()).args(what.as_std().get_args());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("a command that starts");
        let said = Arc::default();
        listen(child.stdout.take().unwrap(), Arc::clone(&said));
        listen(child.stderr.take().unwrap(), Arc::clone(&said));
        Self { child, said }
    }

    /// `kubectl drain NODE` as everybody types it, with more options.
    pub(crate) fn drain(person: &Access, node: &str, more: &[&str]) -> Self {
        let args = [&["drain", node, "--ignore-daemonsets", "--delete-emptydir-data"], more].concat();
        Self::start(&person.kubectl_command(&args))
    }

    /// What it has said so far.
    pub(crate) fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// Waits until it says something.
    pub(crate) async fn until(&self, limit: Duration, text: &str) {
        let there = async || self.said().contains(text).then_some(());
        let waited = time::timeout(limit, wait_for(limit * 2, text, there)).await;
        assert!(waited.is_ok(), "{text:?} is not said within {limit:?}: {}", self.said());
    }

    /// Ctrl-C.
    pub(crate) async fn interrupt(mut self) -> String {
        let pid = self.child.id().expect("it runs").to_string();
        Command::new("kill").args(["-INT", &pid]).status().await.unwrap();
        self.child.wait().await.unwrap();
        self.said()
    }

    /// Waits for its end: its exit code, and what it has said.
    pub(crate) async fn end(mut self, limit: Duration) -> (i32, String) {
        let ended = time::timeout(limit, self.child.wait()).await;
        let status = ended.unwrap_or_else(|_| panic!("it does not end within {limit:?}: {}", self.said())).unwrap();
        (status.code().unwrap_or(-1), self.said())
    }
}
