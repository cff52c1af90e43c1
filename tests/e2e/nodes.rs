//! Two real nodes on this host: two kubelets with a containerd each, a scheduler, the controllers, a kube-proxy and DNS
//! beside the API server. `tools/alone` gives them a host of their own, so that nothing of it outlives the tests.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

use crate::{
    api_server::{
        ApiServer, Setup,
        access::Access,
        etcd::guard::{Folder, Process},
    },
    image,
    wait::wait_for,
};

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);
/// What the nodes are called.
pub(crate) const NODES: [&str; 2] = ["node-a", "node-b"];
/// Where DNS answers, and where this host is for pods.
pub(crate) const HOST: &str = "10.199.0.1";
/// The controllers of cgroup v1.
const CGROUPS: &str = "/sys/fs/cgroup";

/// One node.
pub(crate) struct Node {
    pub(crate) name: &'static str,
    address: &'static str,
    folder: PathBuf,
    kubelet: Option<Process>,
    _containerd: Process,
}

/// A cluster with its nodes.
pub(crate) struct Nodes {
    pub(crate) both: [Node; 2],
    _others: Vec<Process>,
    pub(crate) api: ApiServer,
    _folder: Folder,
}

/// The one that all tests share, for the test that has it now.
pub(crate) async fn shared() -> MutexGuard<'static, Nodes> {
    static SHARED: OnceCell<Mutex<Nodes>> = OnceCell::const_new();
    let nodes = SHARED.get_or_init(async || Mutex::new(Nodes::start().await)).await.lock().await;
    for node in NODES {
        nodes.uncordon(node).await;
    }
    nodes
}

/// The cgroups of this run's nodes: the kernel keeps them by name, and runs may overlap.
fn cgroup(node: &str) -> String {
    let born = fs::metadata("/proc/self").and_then(|own| own.modified()).ok();
    let nanos = born.and_then(|born| born.duration_since(std::time::UNIX_EPOCH).ok()).unwrap_or_default().as_nanos();
    format!("/capturedrain-{nanos:x}-{node}")
}

/// Makes a cgroup under every controller; `cpuset` wants to be told what it has.
fn make_cgroup(name: &str) {
    for controller in fs::read_dir(CGROUPS).unwrap().flatten() {
        let folder = controller.path().join(name.trim_start_matches('/'));
        // Some are links, and of some nothing can be made.
        if fs::create_dir_all(&folder).is_err() {
            continue;
        }
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(all) = fs::read(controller.path().join(file)) {
                let _ = fs::write(folder.join(file), all);
            }
        }
    }
}

impl Node {
    async fn start(api: &ApiServer, folder: &Path, index: u8) -> Self {
        let (name, address) = (NODES[usize::from(index)], [HOST, "10.199.0.2"][usize::from(index)]);
        let folder = folder.join(name);
        for sub in ["cni", "kubelet", "logs", "plugins"] {
            fs::create_dir_all(folder.join(sub)).unwrap();
        }
        make_cgroup(&cgroup(name));
        let containerd = start_containerd(&folder, address, index);
        let socket = folder.join("containerd.sock");
        wait_for(PATIENCE, "containerd", async || socket.exists().then_some(())).await;
        let (certificate, key) = api.sign_for(name, "", address);
        fs::write(folder.join("kubelet.pem"), certificate).unwrap();
        fs::write(folder.join("kubelet-key.pem"), key).unwrap();
        let mut node = Self { name, address, folder, kubelet: None, _containerd: containerd };
        node.start_kubelet(api);
        node
    }

    /// Starts the kubelet that was stopped.
    pub(crate) fn start_kubelet(&mut self, api: &ApiServer) {
        let at = |file: &str| self.folder.join(file).display().to_string();
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.address,
            "port": 10250,
            "readOnlyPort": 0,
            "healthzPort": 0,
            "tlsCertFile": at("kubelet.pem"),
            "tlsPrivateKeyFile": at("kubelet-key.pem"),
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": api.file("ca.pem")},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": cgroup(self.name),
            "clusterDNS": [HOST],
            "clusterDomain": "cluster.local",
            "containerRuntimeEndpoint": format!("unix://{}", at("containerd.sock")),
            "enforceNodeAllocatable": [],
            "failSwapOn": false,
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "localStorageCapacityIsolation": false,
            "podLogsDir": at("logs"),
            "volumePluginDir": at("plugins"),
            "maxPods": 40,
            "nodeStatusUpdateFrequency": "5s",
            "syncFrequency": "10s",
            "registerNode": true,
        });
        fs::write(self.folder.join("kubelet.json"), config.to_string()).unwrap();
        let access = api.user(&format!("system:node:{}", self.name), "system:nodes");
        let command = [
            kubelet_command("kubelet"),
            format!("--config={}", at("kubelet.json")),
            format!("--kubeconfig={}", access.kubeconfig().display()),
            format!("--root-dir={}", at("kubelet")),
            format!("--cert-dir={}", at("kubelet")),
            format!("--hostname-override={}", self.name),
            format!("--node-ip={}", self.address),
        ];
        self.kubelet = Some(Process::start(&command, Some(&self.folder.join("kubelet.log"))));
    }

    /// Ends the kubelet as a crash does; its pods go on.
    pub(crate) fn stop_kubelet(&mut self) {
        self.kubelet = None;
    }

    /// What the container of this node's pods logged last, for complaints.
    pub(crate) fn log(&self, name: &str) -> String {
        let text = fs::read_to_string(self.folder.join(name)).unwrap_or_default();
        text.lines().rev().take(15).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Kills the container of a pod, as running out of memory does: the kubelet starts it again.
    pub(crate) fn kill_container(&self, pod: &Value) {
        let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap();
        self.ctr(&["tasks", "kill", "--signal", "SIGKILL", id.trim_start_matches("containerd://")]);
    }

    /// Runs `ctr` on this node's containerd.
    pub(crate) fn ctr(&self, args: &[&str]) -> String {
        let socket = self.folder.join("containerd.sock");
        let mut command = std::process::Command::new("ctr");
        command.arg("-a").arg(socket).args(["-n", "k8s.io"]).args(args);
        let output = command.output().expect("ctr cannot be started: `make tools` installs it");
        assert!(output.status.success(), "ctr {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

/// One of the commands that only nodes need.
fn kubelet_command(name: &str) -> String {
    let at = |folder: String| Path::new(&folder).join(name).display().to_string();
    std::env::var("CAPTUREDRAIN_KUBERNETES_NODES").map_or_else(|_| name.to_owned(), at)
}

fn start_containerd(folder: &Path, address: &str, index: u8) -> Process {
    let at = |file: &str| folder.join(file).display().to_string();
    let network = json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": format!("pods-{index}"),
                "isGateway": true,
                "ipMasq": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": at("addresses"),
                    "ranges": [[{"subnet": format!("10.200.{index}.0/24")}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    fs::write(folder.join("cni/pods.conflist"), network.to_string()).unwrap();
    let config = format!(
        r#"
version = 2
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  sandbox_image = "{pause}"
  stream_server_address = "{address}"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{cni}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
"#,
        root = at("containerd"),
        state = at("state"),
        socket = at("containerd.sock"),
        cni = at("cni"),
        pause = image::BUSYBOX,
    );
    fs::write(folder.join("containerd.toml"), config).unwrap();
    let command = ["containerd".to_owned(), "--config".to_owned(), at("containerd.toml")];
    Process::start(&command, Some(&folder.join("containerd.log")))
}

impl Nodes {
    /// Starts all of it, with the images on both nodes, and waits until both nodes are ready.
    pub(crate) async fn start() -> Self {
        let flags = [
            "bind-address=0.0.0.0",
            "advertise-address=10.199.0.1",
            "endpoint-reconciler-type=master-count",
            "authorization-mode=Node,RBAC",
            "enable-admission-plugins=NodeRestriction",
            "kubelet-preferred-address-types=InternalIP",
            "allow-privileged=true",
        ];
        let flags = flags.map(str::to_owned).to_vec();
        let api = ApiServer::start_with(Setup { controllers: true, crd: false, flags, nodes: true }).await;
        let folder = Folder::new();
        let others = vec![scheduler(&api, &folder), proxy(&api, &folder), dns(&api, &folder)];
        let nodes = [Node::start(&api, folder.path(), 0).await, Node::start(&api, folder.path(), 1).await];
        for archive in image::archives() {
            for node in &nodes {
                node.ctr(&["images", "import", archive.to_str().unwrap()]);
            }
        }
        let nodes = Self { both: nodes, _others: others, api, _folder: folder };
        wait_for(PATIENCE, &format!("nodes: {}", nodes.both[0].log("kubelet.log")), async || {
            let list = nodes.admin().kubectl(&["get", "nodes", "-o", "json"]).await;
            let list: Value = serde_json::from_str(&list.stdout).unwrap_or_default();
            let ready = |node: &Value| {
                let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
                conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
            };
            let items = list["items"].as_array().cloned().unwrap_or_default();
            (items.len() == 2 && items.iter().all(ready)).then_some(())
        })
        .await;
        nodes
    }

    /// Who may do everything.
    pub(crate) fn admin(&self) -> &Access {
        self.api.admin()
    }

    /// Has pods come to a node again, and waits until they do.
    pub(crate) async fn uncordon(&self, node: &str) {
        self.admin().kubectl(&["uncordon", node]).await.ok();
        wait_for(PATIENCE, "a node without taints", async || {
            let taints = self.admin().kubectl(&["get", "node", node, "-o", "jsonpath={.spec.taints}"]).await;
            taints.stdout.is_empty().then_some(())
        })
        .await;
    }

    /// A node by its name.
    pub(crate) fn node(&self, name: &str) -> &Node {
        self.both.iter().find(|node| node.name == name).unwrap()
    }
}

fn log_of(folder: &Folder, name: &str) -> PathBuf {
    folder.path().join(format!("{name}.log"))
}

fn scheduler(api: &ApiServer, folder: &Folder) -> Process {
    let access = api.user("system:kube-scheduler", "");
    let command = [
        kubelet_command("kube-scheduler"),
        format!("--kubeconfig={}", access.kubeconfig().display()),
        "--leader-elect=false".to_owned(),
        "--secure-port=0".to_owned(),
    ];
    Process::start(&command, Some(&log_of(folder, "kube-scheduler")))
}

/// One serves both nodes, which share this host's network.
fn proxy(api: &ApiServer, folder: &Folder) -> Process {
    let access = api.user("system:kube-proxy", "");
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clientConnection": {"kubeconfig": access.kubeconfig()},
        "hostnameOverride": "node-a",
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        // Pods of one bridge would otherwise answer each other past the translation.
        "iptables": {"masqueradeAll": true, "minSyncPeriod": "100ms", "syncPeriod": "30s"},
    });
    let file = folder.write("kube-proxy.json", &config.to_string());
    let command = [kubelet_command("kube-proxy"), format!("--config={}", file.display())];
    Process::start(&command, Some(&log_of(folder, "kube-proxy")))
}

fn dns(api: &ApiServer, folder: &Folder) -> Process {
    let kubeconfig = api.admin().kubeconfig().display().to_string();
    let corefile = format!(
        ".:53 {{\n    bind {HOST}\n    errors\n    kubernetes cluster.local {{\n        kubeconfig {kubeconfig} test\n        \
         ttl 1\n    }}\n}}\n"
    );
    let file = folder.write("Corefile", &corefile);
    let coredns = std::env::var("CAPTUREDRAIN_COREDNS").unwrap_or_else(|_| "coredns".to_owned());
    let command = [coredns, "-conf".to_owned(), file.display().to_string()];
    Process::start(&command, Some(&log_of(folder, "coredns")))
}
