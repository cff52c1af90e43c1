//! Somebody's way into an API server: a kubeconfig, with what clients and kubectl make of it.

use std::{
    env,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, process::Command, time};

/// The longest that a call of kubectl may take, unless a test says so itself.
const KUBECTL_TIMEOUT: Duration = Duration::from_mins(2);

/// How somebody shows who they are.
#[derive(Debug)]
pub(crate) enum Credential {
    /// A certificate and its key, PEM.
    Certificate(String, String),
    /// A bearer token.
    Token(String),
}

/// Somebody's way in.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    kubeconfig: PathBuf,
}

/// What kubectl said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    /// What it printed, once it is sure that it went well.
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "kubectl: {}{}", self.stdout, self.stderr);
        self.stdout
    }

    /// What it complained of, once it is sure that it did.
    pub(crate) fn refused(self) -> String {
        assert_ne!(self.code, 0, "kubectl had no complaint: {}", self.stdout);
        self.stderr
    }
}

/// One of Kubernetes' commands, as a path: of the folder that `make test` names, or on `PATH`.
pub(crate) fn kubernetes_command(name: &str) -> String {
    let at = |folder: String| Path::new(&folder).join(name).display().to_string();
    env::var("CAPTUREDRAIN_KUBERNETES").map_or_else(|_| name.to_owned(), at)
}

impl Access {
    /// Writes the kubeconfig of somebody, `server` being a URL and `ca` the PEM of whom to believe.
    pub(crate) fn write(kubeconfig: PathBuf, server: &str, ca: &str, credential: &Credential) -> Self {
        let base64 = |text: &str| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
        let user = match credential {
            Credential::Certificate(certificate, key) => {
                json!({"client-certificate-data": base64(certificate), "client-key-data": base64(key)})
            }
            Credential::Token(token) => json!({ "token": token }),
        };
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": server, "certificate-authority-data": base64(ca)}}],
            "users": [{"name": "test", "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        });
        std::fs::write(&kubeconfig, config.to_string()).unwrap();
        Self { kubeconfig }
    }

    /// The file, as `KUBECONFIG` and `--kubeconfig` take it.
    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// What a client is made of, for tests that change it. Answers of 429 and 503 are shown, not retried.
    pub(crate) async fn config(&self) -> Config {
        // Fails when another test was first, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let kubeconfig = Kubeconfig::read_from(&self.kubeconfig).unwrap();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        config.default_retry = false;
        config
    }

    /// A client, which belongs to the runtime of the test that asks.
    pub(crate) async fn client(&self) -> Client {
        Client::try_from(self.config().await).unwrap()
    }

    /// A command of kubectl, for tests that start it themselves.
    pub(crate) fn kubectl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(kubernetes_command("kubectl"));
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        command.arg("--cache-dir").arg(self.kubeconfig.with_extension("cache"));
        command.args(args).kill_on_drop(true);
        command
    }

    /// Runs kubectl to its end.
    pub(crate) async fn kubectl(&self, args: &[&str]) -> Said {
        self.kubectl_with(args, "").await
    }

    /// The same, with something on its standard input.
    pub(crate) async fn kubectl_with(&self, args: &[&str], input: &str) -> Said {
        let mut command = self.kubectl_command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("kubectl cannot be started: `make tools` installs it");
        let mut stdin = child.stdin.take().unwrap();
        let ended = async {
            // Who does not read all of it has a reason, which it will tell.
            let _ = stdin.write_all(input.as_bytes()).await;
            drop(stdin);
            child.wait_with_output().await.unwrap()
        };
        let output = time::timeout(KUBECTL_TIMEOUT, ended).await.unwrap_or_else(|_| panic!("kubectl {args:?} ends"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().unwrap_or(-1);
        Said { code, stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    /// What kubectl prints with `-o json`.
    pub(crate) async fn kubectl_json(&self, args: &[&str]) -> Value {
        let said = self.kubectl(&[args, &["-o", "json"]].concat()).await;
        serde_json::from_str(&said.ok()).unwrap()
    }
}
