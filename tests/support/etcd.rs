//! A real etcd, on free ports and a temporary folder, that goes with the test.

use std::{
    env,
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tokio::time;

const PATIENCE: Duration = Duration::from_secs(30);

/// A running etcd.
pub(crate) struct Etcd {
    folder: TempDir,
    ports: (u16, u16),
    options: Vec<String>,
    process: Option<Child>,
}

fn free_ports() -> (u16, u16) {
    let (one, two) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    (one.local_addr().unwrap().port(), two.local_addr().unwrap().port())
}

impl Etcd {
    /// Starts one, and waits until it answers.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts one with more options.
    pub(crate) async fn start_with(options: &[&str]) -> Self {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut etcd = Self { folder: tempfile::tempdir().unwrap(), ports: free_ports(), options, process: None };
        etcd.launch();
        etcd.wait().await;
        etcd
    }

    fn launch(&mut self) {
        let binary = env::var("CAPTUREDRAIN_ETCD").unwrap_or_else(|_| "etcd".to_owned());
        let client = format!("http://127.0.0.1:{}", self.ports.0);
        let peer = format!("http://127.0.0.1:{}", self.ports.1);
        let process = Command::new(&binary)
            .arg("--data-dir")
            .arg(self.folder.path())
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--log-level", "error"])
            .args(&self.options)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let missing =
            |error| panic!("{binary} cannot be started ({error}): `make tools` installs it, `make test` names it");
        self.process = Some(process.unwrap_or_else(missing));
    }

    async fn wait(&self) {
        let answers = async {
            loop {
                let asked = async { etcd_client::Client::connect([self.client_url()], None).await?.status().await };
                if matches!(time::timeout(Duration::from_secs(1), asked).await, Ok(Ok(_))) {
                    return;
                }
                time::sleep(Duration::from_millis(50)).await;
            }
        };
        time::timeout(PATIENCE, answers).await.expect("etcd answers");
    }

    /// The address as capturedrain takes it.
    pub(crate) fn url(&self) -> String {
        format!("etcd://127.0.0.1:{}", self.ports.0)
    }

    /// Where clients reach it.
    #[allow(dead_code, reason = "not every test stands in between")]
    pub(crate) fn client_port(&self) -> u16 {
        self.ports.0
    }

    /// The address as etcd's client takes it.
    pub(crate) fn client_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.0)
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Starts it again on the same data, and waits until it answers.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        self.launch();
        self.wait().await;
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}
