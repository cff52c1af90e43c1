//! A cluster of captures on the nodes, installed by its chart, that replicates from one etcd to another.

use std::{
    env,
    process::Stdio,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{process::Command, time};

use crate::{
    api_server::{
        access::{Access, Said},
        etcd::Etcd,
    },
    image::CAPTUREDRAIN,
    nodes::{HOST, Nodes, PATIENCE},
    traffic::{FAST, Traffic},
    wait::wait_for,
};

const BINARY: &str = env!("CARGO_BIN_EXE_capturedrain");
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/capture-cluster");
/// The release, and so the `StatefulSet` and the Service.
pub(crate) const NAME: &str = "cdc";

/// A release in a namespace of its own.
pub(crate) struct Site {
    pub(crate) namespace: String,
    pub(crate) admin: Access,
    pub(crate) traffic: Traffic,
    _store: Etcd,
    values: Vec<String>,
}

/// Runs helm to its end.
pub(crate) async fn helm(access: &Access, args: &[&str]) -> Said {
    let mut command = Command::new(env::var("CAPTUREDRAIN_HELM").unwrap_or_else(|_| "helm".to_owned()));
    command.arg("--kubeconfig").arg(access.kubeconfig()).args(args).stdin(Stdio::null()).kill_on_drop(true);
    command.env("HELM_CACHE_HOME", "/tmp/helm").env("HELM_CONFIG_HOME", "/tmp/helm").env("HELM_DATA_HOME", "/tmp/helm");
    let output = time::timeout(PATIENCE * 2, command.output()).await.unwrap_or_else(|_| panic!("helm {args:?} ends"));
    let output = output.expect("`make tools` installs helm");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { code: output.status.code().unwrap_or(-1), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

impl Site {
    /// Three captures, or as `values` say, and waits until rows flow.
    pub(crate) async fn open(nodes: &Nodes, values: &[&str]) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(1);
        let namespace = format!("site-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let (store, traffic) = (Etcd::start_at(HOST, FAST).await, Traffic::start().await);
        let own = [
            format!("image.repository={}", CAPTUREDRAIN.0),
            format!("image.tag={}", CAPTUREDRAIN.1),
            format!("etcd.external={{{HOST}:{}}}", store.client_port()),
            format!("fullnameOverride={NAME}"),
            "minReadySeconds=1".to_owned(),
            "config.CAPTUREDRAIN_LEASE=3s".to_owned(),
            "config.CAPTUREDRAIN_HEARTBEAT=300ms".to_owned(),
        ];
        let values = own.into_iter().chain(values.iter().map(|value| (*value).to_owned())).collect();
        let site = Self { namespace, admin: nodes.admin().clone(), traffic, _store: store, values };
        let label = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": site.namespace, "labels": {
            "pod-security.kubernetes.io/enforce": "restricted"}}});
        site.admin.kubectl_with(&["apply", "-f", "-"], &label.to_string()).await.ok();
        site.helm("install", &[]).await;
        site.create_changefeed().await;
        if time::timeout(PATIENCE / 2, site.traffic.wait_until_it_flows()).await.is_err() {
            let changefeed = site.run(&["changefeed", "get", "shop"]).await;
            panic!("no rows come: {changefeed:?}\n{}", site.trouble().await);
        }
        site
    }

    /// `helm install` or `helm upgrade` of it, with more values, until all is ready.
    pub(crate) async fn helm(&self, verb: &str, more: &[&str]) {
        let mut args = vec![verb, NAME, CHART, "-n", &self.namespace, "--wait", "--timeout", "3m"];
        args.extend(
            self.values.iter().map(String::as_str).chain(more.iter().copied()).flat_map(|value| ["--set", value]),
        );
        let said = helm(&self.admin, &args).await;
        assert!(said.code == 0, "helm {verb}: {}{}\n{}", said.stdout, said.stderr, self.trouble().await);
    }

    /// What a person would look at.
    pub(crate) async fn trouble(&self) -> String {
        let mut text = String::new();
        for args in [&["get", "pods,cdrain", "-o", "wide"][..], &["get", "events", "--sort-by=.lastTimestamp"]] {
            let said = self.kubectl(args).await;
            text += &(said.stdout + &said.stderr);
        }
        for pod in self.pods().await {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let said = self.kubectl(&["logs", &name, "--tail=8"]).await;
            text += &(name + ": " + &said.stdout + &said.stderr);
        }
        text
    }

    /// Runs kubectl in this namespace.
    pub(crate) async fn kubectl(&self, args: &[&str]) -> Said {
        self.admin.kubectl(&[&["-n", &self.namespace], args].concat()).await
    }

    /// The pods of captures.
    pub(crate) async fn pods(&self) -> Vec<Value> {
        let said = self.kubectl(&["get", "pods", "-l", "capturedrain.io/service=cdc", "-o", "json"]).await;
        let list: Value = serde_json::from_str(&said.ok()).unwrap();
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// Where the captures are for clients.
    pub(crate) async fn server(&self) -> String {
        let said = self.kubectl(&["get", "service", NAME, "-o", "jsonpath={.spec.clusterIP}"]).await;
        format!("http://{}:8300", said.ok())
    }

    /// Runs a command of this project's command line against it.
    pub(crate) async fn run(&self, args: &[&str]) -> Said {
        let mut command = Command::new(BINARY);
        command.args(args).env("CAPTUREDRAIN_SERVER", self.server().await).stdin(Stdio::null()).kill_on_drop(true);
        let output = time::timeout(PATIENCE, command.output()).await.expect("a command that ends").unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said { code: output.status.code().unwrap_or(-1), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    async fn create_changefeed(&self) {
        let [source, sink] = self.traffic.urls();
        let create = ["changefeed", "create", "--id", "shop", "--source", &source, "--sink", &sink];
        let mut last = String::new();
        let created = async {
            loop {
                let said = self.run(&create).await;
                if said.code == 0 {
                    return;
                }
                last = said.stderr;
                time::sleep(Duration::from_millis(200)).await;
            }
        };
        let created = time::timeout(Duration::from_mins(1), created).await;
        assert!(created.is_ok(), "{last}\n{}", self.trouble().await);
    }

    /// The captures as the cluster tells of them.
    pub(crate) async fn captures(&self) -> Vec<Value> {
        let said = self.run(&["captures", "-o", "json"]).await;
        let captures: Value = serde_json::from_str(&said.ok()).unwrap();
        captures.as_array().cloned().unwrap_or_default()
    }

    /// Which capture coordinates.
    pub(crate) async fn coordinator(&self) -> String {
        wait_for(PATIENCE, "a coordinator", async || {
            let captures = self.captures().await;
            let one = captures.iter().find(|capture| capture["is_coordinator"] == true)?;
            Some(one["id"].as_str()?.to_owned())
        })
        .await
    }

    /// The end: source and sink are compared, and nothing of it stays.
    pub(crate) async fn close(self) {
        let Self { namespace, admin, traffic, .. } = self;
        traffic.prove().await;
        sweep(&admin, &namespace).await;
    }
}

/// Removes a namespace without waiting for what its pods would like to do.
pub(crate) async fn sweep(admin: &Access, namespace: &str) {
    let pods = ["delete", "pods", "--all", "-n", namespace, "--force", "--grace-period=0", "--wait=false"];
    let sets = ["delete", "statefulsets,deployments,daemonsets", "--all", "-n", namespace, "--wait=false"];
    admin.kubectl(&sets).await;
    admin.kubectl(&pods).await;
    admin.kubectl(&["delete", "namespace", namespace, "--wait=false"]).await;
}
