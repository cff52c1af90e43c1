//! What the tests of the operator look after: three captures in pods of a namespace, behind a Service. There is no kubelet:
//! a pod is an object, and its capture a process that is told the pod's name and UID.

#[path = "../support/wait.rs"]
mod wait;

use std::{collections::BTreeMap, net::TcpListener, path::Path, process::Stdio, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::{process::Command, time};

use crate::api_server::{
    self, ApiServer, SERVICE_ADDRESS,
    access::Access,
    etcd::{
        Etcd,
        guard::{Folder, Process},
    },
};

const BINARY: &str = env!("CARGO_BIN_EXE_capturedrain");
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);
/// The Service that every drain names.
const SERVICE: &str = "cdc";

/// Asks again and again until there is an answer.
pub(crate) async fn wait_for<T>(what: &str, ask: impl AsyncFnMut() -> Option<T>) -> T {
    wait::wait_for(PATIENCE, what, ask).await
}

fn free_port(host: &str) -> u16 {
    TcpListener::bind((host, 0)).unwrap().local_addr().unwrap().port()
}

/// A capture in a pod.
struct Capture {
    process: Option<Process>,
    uid: String,
    port: u16,
}

/// A cluster of captures in a namespace.
pub(crate) struct Shop {
    pub(crate) namespace: String,
    pub(crate) admin: Access,
    client: Client,
    etcd: Etcd,
    captures: BTreeMap<String, Capture>,
    folder: Folder,
    lease: &'static str,
}

impl Shop {
    /// A namespace without captures.
    pub(crate) async fn bare(api: &ApiServer, stem: &str) -> Self {
        assert!(api_server::has_service_address().await, "{SERVICE_ADDRESS} can be added to lo by root only");
        let namespace = api.namespace(stem).await;
        let (etcd, client) = (Etcd::start_with(&["--unsafe-no-fsync"]).await, api.admin().client().await);
        let (admin, captures, folder) = (api.admin().clone(), BTreeMap::new(), Folder::new());
        Self { namespace, admin, client, etcd, captures, folder, lease: "3s" }
    }

    /// Three captures, `cdc-0` to `cdc-2`, with a changefeed of so many tables, whose dispatchers move one by one.
    pub(crate) async fn open(api: &ApiServer, stem: &str, tables: usize) -> Self {
        Self::open_with(api, stem, tables, "3s").await
    }

    /// The same with another lease: a capture that is suspended for less than that stays registered.
    pub(crate) async fn open_with(api: &ApiServer, stem: &str, tables: usize, lease: &'static str) -> Self {
        let mut shop = Self { lease, ..Self::bare(api, stem).await };
        for pod in ["cdc-0", "cdc-1", "cdc-2"] {
            shop.start(pod).await;
        }
        shop.publish().await;
        shop.wait_for_captures(3).await;
        if tables > 0 {
            let source = format!("synthetic://?tables={tables}");
            shop.ok(&["changefeed", "create", "--id", "orders", "--source", &source, "--sink", "blackhole://"]).await;
            shop.wait_for_dispatchers(tables as u64).await;
        }
        shop
    }

    /// Makes a pod, and starts its capture.
    pub(crate) async fn start(&mut self, pod: &str) {
        let uid = self.make_pod(pod).await;
        let port = free_port(SERVICE_ADDRESS);
        self.captures.insert(pod.to_owned(), Capture { process: None, uid, port });
        self.run(pod);
    }

    /// Makes a pod without a capture. Its UID.
    pub(crate) async fn make_pod(&self, pod: &str) -> String {
        let object = json!({"metadata": {"name": pod}, "spec": {"containers": [{"name": "x", "image": "x"}]}});
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let made = pods.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
        made.metadata.uid.unwrap()
    }

    /// Puts a pod on a node, as the scheduler does.
    pub(crate) async fn bind(&self, pod: &str, node: &str) {
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        let path = format!("/api/v1/namespaces/{}/pods/{pod}/binding", self.namespace);
        let request = axum::http::Request::post(path).header("Content-Type", "application/json");
        let request = request.body(binding.to_string().into_bytes()).unwrap();
        self.client.request_text(request).await.unwrap();
    }

    /// Starts the capture of a pod, again if it has been killed: the container restarts, the pod stays.
    pub(crate) fn run(&mut self, pod: &str) {
        let capture = self.captures.get_mut(pod).unwrap();
        capture.process = None;
        let addr = format!("{SERVICE_ADDRESS}:{}", capture.port);
        let command = [BINARY, "server", "--cluster", &self.namespace, "--store", &self.etcd.url(), "--id", pod];
        let place = ["--addr", &addr, "--insecure", "--pod-name", pod, "--pod-uid", &capture.uid];
        let tuning = [
            "--lease",
            self.lease,
            "--drain-dispatcher-batch-size",
            "1",
            "--heartbeat",
            "300ms",
            "--shutdown-timeout",
            "0s",
            "--log",
            "info",
        ];
        let command: Vec<_> = [&command[..], &place, &tuning].concat().into_iter().map(str::to_owned).collect();
        let log = self.folder.path().join(format!("{pod}.log"));
        capture.process = Some(Process::start(&command, Some(&log)));
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, pod: &str) {
        self.captures.get_mut(pod).unwrap().process = None;
    }

    /// SIGSTOP: nothing leaves it, and nothing is heard of it.
    pub(crate) fn suspend(&self, pod: &str) {
        self.captures[pod].process.as_ref().unwrap().signal("-STOP");
    }

    /// SIGCONT.
    pub(crate) fn resume(&self, pod: &str) {
        self.captures[pod].process.as_ref().unwrap().signal("-CONT");
    }

    /// Deletes a pod at once, its capture with it.
    pub(crate) async fn delete_pod(&mut self, pod: &str) {
        self.captures.remove(pod);
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        pods.delete(pod, &DeleteParams::default().grace_period(0)).await.unwrap();
    }

    /// Writes the Service and who is behind it.
    pub(crate) async fn publish(&self) {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": SERVICE},
            "spec": {"clusterIP": "None", "ports": [{"name": "capturedrain", "port": 8300}]},
        });
        self.apply(&service.to_string()).await;
        for (pod, capture) in &self.captures {
            let slice = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": pod, "labels": {"kubernetes.io/service-name": SERVICE}},
                "ports": [{"name": "capturedrain", "port": capture.port}],
                "endpoints": [{"addresses": [SERVICE_ADDRESS], "conditions": {"ready": true}}],
            });
            self.apply(&slice.to_string()).await;
        }
    }

    pub(crate) fn uid(&self, pod: &str) -> String {
        self.captures[pod].uid.clone()
    }

    pub(crate) fn log(&self, pod: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(format!("{pod}.log"))).unwrap_or_default()
    }

    /// Every capture, as `--server` takes them.
    pub(crate) fn servers(&self) -> String {
        let urls: Vec<_> =
            self.captures.values().map(|capture| format!("http://{SERVICE_ADDRESS}:{}", capture.port)).collect();
        urls.join(",")
    }

    async fn output(&self, args: &[&str]) -> std::process::Output {
        let mut command = Command::new(BINARY);
        command.args(args).env("CAPTUREDRAIN_SERVER", self.servers()).stdin(Stdio::null()).kill_on_drop(true);
        time::timeout(PATIENCE, command.output()).await.expect("a command that ends").unwrap()
    }

    /// Runs a command of the command line that works.
    pub(crate) async fn ok(&self, args: &[&str]) {
        let output = self.output(args).await;
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    pub(crate) async fn try_json(&self, args: &[&str]) -> Option<Value> {
        let output = self.output(&[args, &["-o", "json"]].concat()).await;
        output.status.success().then(|| serde_json::from_slice(&output.stdout).expect("JSON"))
    }

    pub(crate) async fn json(&self, args: &[&str]) -> Value {
        wait_for(&format!("{args:?}"), async || self.try_json(args).await).await
    }

    pub(crate) async fn wait_for_captures(&self, count: usize) {
        wait_for("the captures to be heard", async || {
            let captures = self.try_json(&["captures"]).await?;
            let heard = captures.as_array()?.iter().filter(|capture| capture["heard"] == true).count();
            (heard == count && captures.as_array()?.len() == count).then_some(())
        })
        .await;
    }

    async fn wait_for_dispatchers(&self, count: u64) {
        wait_for("the dispatchers", async || {
            let feed = self.try_json(&["changefeed", "get", "orders"]).await?;
            let running: u64 = feed["dispatchers"].as_object()?.values().filter_map(Value::as_u64).sum();
            (running >= count).then_some(())
        })
        .await;
    }

    /// The record of the drain that is on, as the store has it.
    pub(crate) async fn record(&self) -> Option<Value> {
        let mut store = etcd_client::Client::connect([self.etcd.client_url()], None).await.unwrap();
        let key = format!("/capturedrain/{}/drain/record", self.namespace);
        let found = store.get(key, None).await.unwrap();
        Some(serde_json::from_slice(found.kvs().first()?.value()).unwrap())
    }

    /// Runs the hook of a pod to its end: its exit code.
    pub(crate) async fn hook(&self, pod: &str, args: &[&str]) -> Option<i32> {
        let capture = &self.captures[pod];
        let server = format!("http://{SERVICE_ADDRESS}:{}", capture.port);
        let place = ["--server", &server, "--pod-name", pod, "--pod-uid", &capture.uid];
        self.output(&[&["prestop"][..], &place, args].concat()).await.status.code()
    }

    /// A capture as the cluster has it.
    pub(crate) async fn capture(&self, pod: &str) -> Option<Value> {
        let captures = self.json(&["captures"]).await;
        captures.as_array().unwrap().iter().find(|capture| capture["id"] == pod).cloned()
    }

    pub(crate) async fn coordinator(&self) -> String {
        wait_for("a coordinator", async || {
            let captures = self.try_json(&["captures"]).await?;
            let found = captures.as_array()?.iter().find(|capture| capture["is_coordinator"] == true)?;
            Some(found["id"].as_str()?.to_owned())
        })
        .await
    }

    pub(crate) async fn a_follower(&self) -> String {
        let coordinator = self.coordinator().await;
        self.captures.keys().rfind(|pod| **pod != coordinator).unwrap().clone()
    }

    /// `kubectl` in this namespace.
    pub(crate) async fn kubectl(&self, args: &[&str]) -> String {
        self.admin.kubectl(&[args, &["-n", &self.namespace]].concat()).await.ok()
    }

    /// `kubectl apply -f -`
    pub(crate) async fn apply(&self, manifest: &str) -> String {
        self.admin.kubectl_with(&["apply", "-n", &self.namespace, "-f", "-"], manifest).await.ok()
    }

    /// Applies a drain of a pod; `more` are fields of the spec.
    pub(crate) async fn drain(&self, name: &str, pod: &str, more: Value) {
        self.drain_of(name, json!({ "podName": pod }), more).await;
    }

    /// Applies a drain of any target.
    pub(crate) async fn drain_of(&self, name: &str, target: Value, more: Value) {
        self.apply(&self.manifest(name, &target, &more).to_string()).await;
    }

    /// A drain of any target.
    pub(crate) fn manifest(&self, name: &str, target: &Value, more: &Value) -> Value {
        let mut spec = json!({"clusterRef": {"serviceName": SERVICE}, "target": target});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let metadata = json!({"name": name, "namespace": self.namespace});
        json!({"apiVersion": "capturedrain.io/v1alpha1", "kind": "CaptureDrain", "metadata": metadata, "spec": spec})
    }

    /// Makes so many drains of nobody, which end at once.
    pub(crate) async fn reject(&self, count: usize) {
        let names: Vec<_> = (0..count).map(|n| format!("nobody-{n}")).collect();
        for names in names.chunks(50) {
            let objects = names.iter().map(|name| self.manifest(name, &json!({"captureID": "nobody"}), &json!({})));
            let list = json!({"apiVersion": "v1", "kind": "List", "items": objects.collect::<Vec<_>>()});
            let create = ["create", "-n", &self.namespace, "-f", "-"];
            self.admin.kubectl_with(&create, &list.to_string()).await.ok();
        }
    }

    /// The status of a drain; `Null` while there is none.
    pub(crate) async fn status(&self, name: &str) -> Value {
        self.object(name).await.map_or(Value::Null, |drain| drain["status"].clone())
    }

    /// A drain as the API server has it.
    pub(crate) async fn object(&self, name: &str) -> Option<Value> {
        let args = ["get", "cdrain", name, "-n", &self.namespace, "-o", "json", "--ignore-not-found"];
        serde_json::from_str(&self.admin.kubectl(&args).await.ok()).ok()
    }

    /// Waits until a condition has a status and a reason.
    pub(crate) async fn wait_for_condition(&self, name: &str, kind: &str, is: &str, reason: &str) -> Value {
        let mut last = Value::Null;
        let wait = async {
            loop {
                last = self.status(name).await;
                if condition(&last, kind) == (is.to_owned(), reason.to_owned()) {
                    return;
                }
                time::sleep(Duration::from_millis(50)).await;
            }
        };
        let met = time::timeout(PATIENCE, wait).await;
        assert!(met.is_ok(), "{name} is not {kind}={is} ({reason}): {last:#}");
        last
    }

    /// Waits until a drain has ended for a reason.
    pub(crate) async fn wait_for_end(&self, name: &str, reason: &str) -> Value {
        self.wait_for_condition(name, "Finished", "True", reason).await
    }

    /// The reasons of the events of an object, oldest first.
    pub(crate) async fn events(&self, name: &str) -> Vec<String> {
        let field = format!("regarding.name={name}");
        let args = ["get", "events.events.k8s.io", "-n", &self.namespace, "--field-selector", &field];
        let list = self.admin.kubectl_json(&args).await;
        let mut events: Vec<_> = list["items"].as_array().unwrap().clone();
        events.sort_by_key(|event| event["eventTime"].as_str().unwrap_or_default().to_owned());
        events.iter().map(|event| event["reason"].as_str().unwrap().to_owned()).collect()
    }

    /// Changes an object by a merge patch, as somebody else would.
    pub(crate) async fn patch_status(&self, name: &str, patch: &Value) {
        let drains: Api<capturedrain::resource::CaptureDrain> = Api::namespaced(self.client.clone(), &self.namespace);
        drains.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }
}

/// Status and reason of a condition; both empty when it is not there.
pub(crate) fn condition(status: &Value, kind: &str) -> (String, String) {
    let conditions = status["conditions"].as_array();
    let found = conditions.and_then(|all| all.iter().find(|condition| condition["type"] == kind));
    let word = |key: &str| found.and_then(|found| found[key].as_str()).unwrap_or_default().to_owned();
    (word("status"), word("reason"))
}

/// An operator of one namespace, as a process.
pub(crate) struct Operator {
    process: Option<Process>,
    command: Vec<String>,
    port: u16,
    folder: Folder,
}

impl Operator {
    /// Starts one, whose Lease is in the namespace, too.
    pub(crate) fn start(access: &Access, namespace: &str, more: &[&str]) -> Self {
        Self::start_elsewhere(access, namespace, namespace, more)
    }

    /// Starts one with its Lease in another namespace.
    pub(crate) fn start_elsewhere(access: &Access, namespace: &str, of_lease: &str, more: &[&str]) -> Self {
        let port = free_port("127.0.0.1");
        let addr = format!("127.0.0.1:{port}");
        let kubeconfig = access.kubeconfig().display().to_string();
        let way = [BINARY, "operator", "--kubeconfig", &kubeconfig, "--namespace", namespace, "--addr", &addr];
        let lease = ["--lease-namespace", of_lease, "--lease-duration", "3s", "--log", "info,capturedrain=debug"];
        let command = [&way[..], &lease, more].concat().into_iter().map(str::to_owned).collect();
        let mut operator = Self { process: None, command, port, folder: Folder::new() };
        operator.run();
        operator
    }

    /// Starts it again, after SIGKILL if it still runs.
    pub(crate) fn run(&mut self) {
        self.process = None;
        self.process = Some(Process::start(&self.command, Some(&self.log_file())));
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// SIGTERM, and waits for the end.
    pub(crate) async fn terminate(&mut self) {
        let mut process = self.process.take().unwrap();
        process.signal("-TERM");
        wait_for("the operator to end", async || process.has_ended().then_some(())).await;
    }

    pub(crate) fn signal(&self, signal: &str) {
        self.process.as_ref().unwrap().signal(signal);
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.process.as_mut().is_none_or(Process::has_ended)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().unwrap().pid()
    }

    /// Megabytes that it has in memory.
    pub(crate) fn resident_mb(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    }

    fn log_file(&self) -> std::path::PathBuf {
        Path::new(self.folder.path()).join("operator.log")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// What it answers at a path; `None` when it does not.
    pub(crate) async fn get(&self, path: &str) -> Option<(u16, String)> {
        let answer = reqwest::get(format!("http://127.0.0.1:{}{path}", self.port)).await.ok()?;
        Some((answer.status().as_u16(), answer.text().await.ok()?))
    }

    /// The value of a series.
    pub(crate) async fn metric(&self, series: &str) -> Option<f64> {
        let (_, page) = self.get("/metrics").await?;
        page.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
    }

    pub(crate) async fn wait_until_leading(&self) {
        wait_for("the operator to lead", async || {
            (self.metric("capturedrain_operator_leader ").await? > 0.0).then_some(())
        })
        .await;
    }
}
