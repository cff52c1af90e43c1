//! A real etcd, on free ports and a temporary folder, that goes with the test.

#[path = "guard.rs"]
#[allow(dead_code, reason = "shared with the tests on Kubernetes")]
pub(crate) mod guard;

use std::{env, fs, net::TcpListener, path::PathBuf, time::Duration};

use guard::{Folder, Process};
use tokio::time;

const PATIENCE: Duration = Duration::from_secs(30);

/// A running etcd.
pub(crate) struct Etcd {
    folder: Folder,
    /// The address that it listens on.
    host: &'static str,
    ports: (u16, u16),
    options: Vec<String>,
    process: Option<Process>,
    /// CA, certificate and key, when clients have to have a certificate.
    tls: Option<[PathBuf; 3]>,
}

fn free_ports(host: &str) -> (u16, u16) {
    let (one, two) = (TcpListener::bind((host, 0)).unwrap(), TcpListener::bind((host, 0)).unwrap());
    (one.local_addr().unwrap().port(), two.local_addr().unwrap().port())
}

impl Etcd {
    /// Starts one, and waits until it answers.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts one with more options.
    pub(crate) async fn start_with(options: &[&str]) -> Self {
        Self::start_at("127.0.0.1", options).await
    }

    /// Starts one at another address of this host.
    pub(crate) async fn start_at(host: &'static str, options: &[&str]) -> Self {
        Self::up(host, options.iter().map(|option| (*option).to_owned()).collect(), None).await
    }

    /// Starts one that speaks TLS and asks its clients for a certificate.
    #[allow(dead_code, reason = "for the tests of TLS")]
    pub(crate) async fn start_with_tls(ca: PathBuf, cert: PathBuf, key: PathBuf) -> Self {
        Self::up("127.0.0.1", Vec::new(), Some([ca, cert, key])).await
    }

    async fn up(host: &'static str, options: Vec<String>, tls: Option<[PathBuf; 3]>) -> Self {
        let mut etcd = Self { folder: Folder::new(), host, ports: free_ports(host), options, process: None, tls };
        etcd.launch();
        etcd.wait().await;
        etcd
    }

    fn launch(&mut self) {
        let binary = env::var("CAPTUREDRAIN_ETCD").unwrap_or_else(|_| "etcd".to_owned());
        let client = self.client_url();
        let peer = format!("http://{}:{}", self.host, self.ports.1);
        let mut command = vec![binary, "--data-dir".to_owned(), self.folder.path().display().to_string()];
        let urls = ["--listen-client-urls", &client, "--advertise-client-urls", &client];
        let peers = ["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer];
        let cluster = ["--initial-cluster", &format!("default={peer}"), "--log-level", "error"];
        command.extend([urls, peers, cluster].concat().into_iter().map(str::to_owned));
        if let Some(files) = &self.tls {
            let [ca, cert, key] = files.each_ref().map(|path| path.display().to_string());
            command.extend(["--trusted-ca-file".to_owned(), ca, "--cert-file".to_owned(), cert]);
            command.extend(["--key-file".to_owned(), key, "--client-cert-auth".to_owned()]);
        }
        command.extend(self.options.iter().cloned());
        self.process = Some(Process::start(&command, None));
    }

    async fn wait(&mut self) {
        let answers = async {
            loop {
                let options = self.client_options();
                let asked = async { etcd_client::Client::connect([self.client_url()], options).await?.status().await };
                if matches!(time::timeout(Duration::from_secs(1), asked).await, Ok(Ok(_))) {
                    return;
                }
                self.process.as_mut().expect("it was launched").assert_running();
                time::sleep(Duration::from_millis(50)).await;
            }
        };
        time::timeout(PATIENCE, answers).await.expect("etcd answers");
    }

    /// The address as capturedrain takes it.
    pub(crate) fn url(&self) -> String {
        format!("etcd://{}:{}", self.host, self.ports.0)
    }

    /// Where clients reach it.
    #[allow(dead_code, reason = "not every test stands in between")]
    pub(crate) fn client_port(&self) -> u16 {
        self.ports.0
    }

    /// The address as etcd's client takes it.
    pub(crate) fn client_url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}:{}", self.host, self.ports.0)
    }

    /// How etcd's client connects: with the certificate of the server itself.
    pub(crate) fn client_options(&self) -> Option<etcd_client::ConnectOptions> {
        let [ca, cert, key] = self.tls.as_ref()?.each_ref().map(|path| fs::read(path).unwrap());
        let identity = etcd_client::Identity::from_pem(cert, key);
        let tls = etcd_client::TlsOptions::new().ca_certificate(etcd_client::Certificate::from_pem(ca));
        Some(etcd_client::ConnectOptions::new().with_tls(tls.identity(identity)))
    }

    /// Its process, unless it was ended.
    #[allow(dead_code, reason = "for the tests that look for what is left over")]
    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again on the same data, and waits until it answers.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        self.launch();
        self.wait().await;
    }
}
