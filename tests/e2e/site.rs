//! A cluster of captures on the nodes, installed by its chart, that replicates from one etcd to another.

use std::{
    collections::BTreeMap,
    env,
    process::Stdio,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::EvictParams};
use serde_json::{Value, json};
use tokio::{process::Command, time};

use crate::{
    api_server::{
        access::{Access, Said},
        etcd::Etcd,
    },
    image::{CAPTUREDRAIN, ETCD},
    nodes::{HOST, NODES, Nodes, PATIENCE},
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
    /// The captures' own etcd, when it is on this host.
    store: Option<Etcd>,
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
    /// Three captures on an etcd of this host, or as `values` say, and waits until rows flow.
    pub(crate) async fn open(nodes: &Nodes, values: &[&str]) -> Self {
        let store = Etcd::start_at(HOST, FAST).await;
        let external = format!("etcd.external={{{HOST}:{}}}", store.client_port());
        Self::open_on(nodes, Some(store), &[&[external.as_str()], values].concat()).await
    }

    /// The same on the etcd that the chart brings, whose members are lost with their pods here.
    pub(crate) async fn open_whole(nodes: &Nodes) -> Self {
        let image = [
            format!("etcd.bundled.image.repository={}", ETCD.0),
            format!("etcd.bundled.image.tag={}", ETCD.1),
            "etcd.bundled.storage.kind=emptyDir".to_owned(),
            "etcd.bundled.antiAffinity=none".to_owned(),
        ];
        Self::open_on(nodes, None, &image.each_ref().map(String::as_str)).await
    }

    async fn open_on(nodes: &Nodes, store: Option<Etcd>, values: &[&str]) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(1);
        let namespace = format!("site-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let traffic = Traffic::start().await;
        let own = [
            format!("image.repository={}", CAPTUREDRAIN.0),
            format!("image.tag={}", CAPTUREDRAIN.1),
            "minReadySeconds=1".to_owned(),
            "config.CAPTUREDRAIN_LEASE=8s".to_owned(),
            "config.CAPTUREDRAIN_HEARTBEAT=300ms".to_owned(),
        ];
        let values = own.into_iter().chain(values.iter().map(|value| (*value).to_owned())).collect();
        let site = Self { namespace, admin: nodes.admin().clone(), traffic, store, values };
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

    /// A pod, once it is there.
    pub(crate) async fn pod(&self, name: &str) -> Value {
        wait_for(PATIENCE, name, async || {
            let said = self.kubectl(&["get", "pod", name, "-o", "json"]).await;
            serde_json::from_str(&said.stdout).ok()
        })
        .await
    }

    pub(crate) async fn uid(&self, pod: &str) -> String {
        self.pod(pod).await["metadata"]["uid"].as_str().unwrap().to_owned()
    }

    /// The captures that are on a node.
    pub(crate) async fn on(&self, node: &str) -> Vec<String> {
        let pods = self.pods().await;
        let there = pods.iter().filter(|pod| pod["spec"]["nodeName"] == node);
        there.map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    }

    /// A node with so many captures.
    pub(crate) async fn node_with(&self, count: usize) -> &'static str {
        for node in NODES {
            if self.on(node).await.len() == count {
                return node;
            }
        }
        panic!("no node has {count} captures: {}", self.trouble().await)
    }

    /// Waits until so many captures are ready.
    pub(crate) async fn wait_until_ready(&self, count: usize) {
        let ready = |pod: &Value| {
            pod["status"]["containerStatuses"][0]["ready"] == true && pod["metadata"]["deletionTimestamp"].is_null()
        };
        wait_for(PATIENCE, "captures that are ready", async || {
            (self.pods().await.iter().filter(|pod| ready(pod)).count() == count).then_some(())
        })
        .await;
    }

    /// Waits until this pod is being deleted, or is gone.
    pub(crate) async fn wait_until_deleted(&self, pod: &str, uid: &str) {
        wait_for(PATIENCE, "the deletion of a pod", async || {
            let now = self.pod(pod).await;
            (now["metadata"]["uid"] != uid || now["metadata"]["deletionTimestamp"].is_string()).then_some(())
        })
        .await;
    }

    /// Waits until a pod is another than this, and ready.
    pub(crate) async fn wait_until_anew(&self, pod: &str, uid: &str) {
        wait_for(PATIENCE, "a pod that is made anew", async || {
            let now = self.pod(pod).await;
            let ready = now["status"]["containerStatuses"][0]["ready"] == true;
            (now["metadata"]["uid"] != uid && ready).then_some(())
        })
        .await;
    }

    /// Where the captures are for clients.
    pub(crate) async fn server(&self) -> String {
        let said = self.kubectl(&["get", "service", NAME, "-o", "jsonpath={.spec.clusterIP}"]).await;
        format!("http://{}:8300", said.ok())
    }

    /// Runs a command of this project's command line against it.
    pub(crate) async fn run(&self, args: &[&str]) -> Said {
        run_at(&self.server().await, args).await
    }

    /// Takes the last `helm upgrade` back.
    pub(crate) async fn rollback(&self) {
        let said = helm(&self.admin, &["rollback", NAME, "-n", &self.namespace, "--wait", "--timeout", "3m"]).await;
        assert!(said.code == 0, "{said:?}\n{}", self.trouble().await);
    }

    /// Uninstalls it, and waits until nothing of it is left in its namespace.
    pub(crate) async fn uninstall(&self) {
        let said = helm(&self.admin, &["uninstall", NAME, "-n", &self.namespace, "--wait", "--timeout", "3m"]).await;
        assert!(said.code == 0, "{said:?}\n{}", self.trouble().await);
        wait_until_empty(&self.admin, &self.namespace).await;
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

    /// Adds a changefeed of made-up tables, so that a capture takes about ten seconds to be drained, one by one.
    pub(crate) async fn fill(&self) {
        let create = ["changefeed", "create", "--id", "ballast", "--sink", "blackhole://?latency_ms=60"];
        self.run(&[&create[..], &["--source", "synthetic://?tables=360&rate=20"]].concat()).await.ok();
        wait_for(PATIENCE, "ballast on every capture", async || {
            let counts: Vec<_> =
                self.captures().await.iter().map(|at| at["dispatcher_count"].as_u64().unwrap_or(0)).collect();
            (counts.iter().sum::<u64>() >= 360 && counts.iter().all(|count| *count > 100)).then_some(())
        })
        .await;
    }

    /// How many maintainers and dispatchers each capture has.
    pub(crate) async fn work(&self) -> BTreeMap<String, (u64, u64)> {
        let captures = self.captures().await;
        let count = |at: &Value, what: &str| at[what].as_u64().unwrap_or(0);
        let work = |at: &Value| (count(at, "maintainer_count"), count(at, "dispatcher_count"));
        captures.iter().map(|at| (at["id"].as_str().unwrap().to_owned(), work(at))).collect()
    }

    /// What has become of drains, the latest first: their targets, ends and requesters.
    pub(crate) async fn history(&self) -> Vec<Value> {
        let said = self.run(&["history", "-o", "json"]).await;
        serde_json::from_str::<Value>(&said.ok()).unwrap().as_array().cloned().unwrap_or_default()
    }

    /// How the last drain of a capture ended.
    pub(crate) async fn end_of(&self, capture: &str) -> String {
        wait_for(PATIENCE, "the end of its drain", async || {
            let history = self.history().await;
            let ends = history.iter().filter(|end| end["target"] == capture);
            ends.max_by_key(|end| end["drain_epoch"].as_u64()).map(|end| end["outcome"].as_str().unwrap().to_owned())
        })
        .await
    }

    /// Waits for the end of a capture's drain without the API server's help.
    pub(crate) async fn wait_for_end_at(&self, server: &str, capture: &str, outcome: &str) {
        wait_for(PATIENCE, "the end of its drain", async || {
            let said = run_at(server, &["history", "-o", "json"]).await;
            let history: Value = serde_json::from_str(&said.stdout).ok()?;
            let history = history.as_array()?;
            history.iter().any(|end| end["target"] == capture && end["outcome"] == outcome).then_some(())
        })
        .await;
    }

    /// When the hook of the pod that is drained gives up, or that of the last one did: as the store has it.
    pub(crate) async fn hook_deadline(&self) -> u64 {
        let mut client = etcd_client::Client::connect([self.store.as_ref().unwrap().client_url()], None).await.unwrap();
        let options = etcd_client::GetOptions::new().with_prefix();
        let found = client.get("/capturedrain/", Some(options)).await.unwrap();
        let records = found.kvs().iter().filter(|kv| kv.key_str().unwrap_or_default().contains("/drain/"));
        let values = records.filter_map(|kv| serde_json::from_slice::<Value>(kv.value()).ok());
        let deadline =
            |value: Value| value["hook_deadline_ms"].as_u64().or_else(|| value["record"]["hook_deadline_ms"].as_u64());
        values.filter_map(deadline).max().expect("a hook has said how long it waits")
    }

    /// The `CaptureDrain`s of this namespace.
    pub(crate) async fn drains(&self) -> Vec<Value> {
        let list = self.admin.kubectl_json(&["-n", &self.namespace, "get", "cdrain"]).await;
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// Makes a `CaptureDrain` as a person does.
    pub(crate) async fn ask_for_drain(&self, pod: &str) {
        let drain = json!({
            "apiVersion": "capturedrain.io/v1alpha1", "kind": "CaptureDrain", "metadata": {"name": "mine"},
            "spec": {"clusterRef": {"serviceName": NAME, "kind": "CaptureDrain"}, "target": {"podName": pod}},
        });
        self.admin.kubectl_with(&["apply", "-n", &self.namespace, "-f", "-"], &drain.to_string()).await.ok();
    }

    /// Waits until some `CaptureDrain` of a pod is as it should be.
    pub(crate) async fn drain_of(&self, uid: &str, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        wait_for(PATIENCE, what, async || {
            let drains = self.drains().await;
            drains.into_iter().find(|drain| drain["status"]["podUID"] == uid && is(drain))
        })
        .await
    }

    /// Waits until a capture is as it should be.
    pub(crate) async fn wait_for_liveness(&self, capture: &str, liveness: &str) {
        wait_for(PATIENCE, &format!("{capture} to be {liveness}"), async || {
            let captures = self.captures().await;
            captures.iter().any(|at| at["id"] == capture && at["liveness"] == liveness).then_some(())
        })
        .await;
    }

    /// Asks for the eviction of a pod, once: the code, and what is said.
    pub(crate) async fn evict(&self, pod: &str, params: &EvictParams) -> (u16, String) {
        let pods: Api<Pod> = Api::namespaced(self.admin.client().await, &self.namespace);
        match pods.evict(pod, params).await {
            Ok(status) => (201, status.message),
            Err(kube::Error::Api(status)) => (status.code, status.message.clone()),
            Err(error) => panic!("{error}"),
        }
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

    /// The same when nobody can wait any more.
    fn tell_trouble(&self) {
        for args in [
            &["get", "pods,cdrain", "-o", "wide"][..],
            &["get", "events", "--sort-by=.lastTimestamp"],
            &["logs", "-l", "capturedrain.io/service=cdc", "--prefix", "--tail=40"],
        ] {
            let mut command = self.admin.kubectl_command(&[&["-n", &self.namespace], args].concat()).into_std();
            let Ok(output) = command.output() else { continue };
            eprintln!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        }
    }

    /// The end: source and sink are compared.
    pub(crate) async fn close(mut self) {
        self.traffic.prove().await;
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell_trouble();
        }
        sweep(&self.admin, &self.namespace);
    }
}

/// Waits until a namespace has nothing but what every namespace has.
pub(crate) async fn wait_until_empty(admin: &Access, namespace: &str) {
    let kinds = "all,secrets,configmaps,serviceaccounts,roles,rolebindings,leases,poddisruptionbudgets,jobs,\
                 persistentvolumeclaims,networkpolicies";
    let own = |line: &&str| !line.ends_with("/kube-root-ca.crt") && !line.ends_with("/default");
    let mut rest = String::new();
    let gone = async || {
        rest = admin.kubectl(&["get", kinds, "-n", namespace, "-o", "name"]).await.ok();
        (rest.lines().filter(own).count() == 0).then_some(())
    };
    let gone = time::timeout(PATIENCE, wait_for(PATIENCE * 2, "all of it to go", gone)).await;
    assert!(gone.is_ok(), "{rest}");
}

async fn run_at(server: &str, args: &[&str]) -> Said {
    let mut command = Command::new(BINARY);
    command.args(args).env("CAPTUREDRAIN_SERVER", server).stdin(Stdio::null()).kill_on_drop(true);
    let output = time::timeout(PATIENCE, command.output()).await.expect("a command that ends").unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { code: output.status.code().unwrap_or(-1), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

/// Removes a namespace without waiting for what its pods would like to do.
pub(crate) fn sweep(admin: &Access, namespace: &str) {
    for args in [
        &["delete", "statefulsets,deployments,daemonsets", "--all", "--wait=false"][..],
        &["delete", "pods", "--all", "--force", "--grace-period=0", "--wait=false"],
        &["delete", "namespace", namespace, "--wait=false"],
    ] {
        let mut command = admin.kubectl_command(&[&["-n", namespace], args].concat()).into_std();
        // Whoever drops something cannot wait asynchronously; what kubectl says is of no interest.
        let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

/// Values with which dispatchers move one by one.
pub(crate) const SLOW: &[&str] = &["config.CAPTUREDRAIN_DRAIN_DISPATCHER_BATCH_SIZE=1"];
