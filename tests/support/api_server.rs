//! A real Kubernetes API for tests: etcd, kube-apiserver, and kube-controller-manager where a test wants it. Ready in
//! seconds, with RBAC and this project's CRD, and gone with the tests, however they end.
//!
//! ```ignore
//! let api = api_server::shared().await;                 // one for all tests of this binary: a namespace for each
//! let namespace = api.namespace("crd").await;           // `crd-1`, with the ServiceAccount `default`
//! let client = api.admin().client().await;              // kube's
//! api.admin().kubectl(&["get", "cdrain", "-n", &namespace]).await.ok();
//! let operator = api.service_account(&namespace, "operator").await; // a real token: RBAC holds it to what is granted
//! let person = api.user("ann", "sre");            // name and group by certificate
//!
//! let mut own = ApiServer::start().await;               // for tests that stop it, or change what has no namespace
//! own.restart().await;                                  // the same port, the same objects
//! let whole = ApiServer::start_with(Setup { controllers: true, ..Setup::default() }).await;
//! ```
//!
//! A kubeconfig for a process under test is `access.kubeconfig()`. `CAPTUREDRAIN_KUBERNETES` and `CAPTUREDRAIN_ETCD` say
//! where the commands are.

#[path = "access.rs"]
pub(crate) mod access;
#[path = "etcd.rs"]
#[allow(dead_code, reason = "shared with the tests on etcd")]
pub(crate) mod etcd;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, TcpListener},
    process,
    sync::atomic::{AtomicU16, AtomicUsize, Ordering},
    time::Duration,
};

use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{Namespace, ServiceAccount},
};
use kube::{Api, Client, api::PostParams};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::json;
use tokio::{sync::OnceCell, time};

use access::{Access, Credential, kubernetes_command};
use etcd::{
    Etcd,
    guard::{Folder, Process},
};

/// How long a server may take until it answers.
const PATIENCE: Duration = Duration::from_mins(2);
/// How often a server is started on another port, when somebody else was faster.
const STARTS_MAX: usize = 5;
/// An address of this host that `EndpointSlices` may name, which they may not do with loopback addresses.
pub(crate) const SERVICE_ADDRESS: &str = "10.199.0.1";
/// The address of the Service `kubernetes` in [`SERVICE_RANGE`].
const KUBERNETES_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const SERVICE_RANGE: &str = "10.96.0.0/16";
const CRD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/crds/capturedrain.yaml");

/// What a test wants to have.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// Run the controller manager: garbage collection, namespaces that end, `StatefulSet`s, `EndpointSlices`.
    pub(crate) controllers: bool,
    /// Have the CRD.
    pub(crate) crd: bool,
    /// Have pods run: the API server reaches kubelets, and is reached from pods.
    pub(crate) nodes: bool,
    /// More flags of kube-apiserver; a flag that is there already is replaced.
    pub(crate) flags: Vec<String>,
}

impl Default for Setup {
    fn default() -> Self {
        Self { controllers: false, crd: true, nodes: false, flags: Vec::new() }
    }
}

/// A running API.
pub(crate) struct ApiServer {
    // In the order in which they end.
    controllers: Option<Process>,
    server: Option<Process>,
    etcd: Etcd,
    folder: Folder,
    authority: CertifiedIssuer<'static, KeyPair>,
    admin: Access,
    port: u16,
    setup: Setup,
    namespaces: AtomicUsize,
    accesses: AtomicUsize,
}

/// The one that the tests of this binary share. Nothing stops it before the last of them ends.
pub(crate) async fn shared() -> &'static ApiServer {
    static SHARED: OnceCell<ApiServer> = OnceCell::const_new();
    SHARED.get_or_init(ApiServer::start).await
}

/// Gives this host [`SERVICE_ADDRESS`], and says whether it has it.
pub(crate) async fn has_service_address() -> bool {
    let has = || TcpListener::bind((SERVICE_ADDRESS, 0)).is_ok();
    if !has() {
        let address = format!("{SERVICE_ADDRESS}/32");
        let _ = tokio::process::Command::new("ip").args(["addr", "add", &address, "dev", "lo"]).output().await;
    }
    has()
}

/// A port below those that the system gives to clients, so that it is still free after a restart.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(process::id().wrapping_mul(97) % 10_000).unwrap_or_default();
    let mut ports = std::iter::repeat_with(|| 20_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000);
    ports.find(|port| TcpListener::bind(("0.0.0.0", *port)).is_ok()).unwrap()
}

impl ApiServer {
    /// Starts one with the CRD and without controllers, and waits until it is ready.
    pub(crate) async fn start() -> Self {
        Self::start_with(Setup::default()).await
    }

    /// Starts one as told, and waits until it is ready.
    pub(crate) async fn start_with(setup: Setup) -> Self {
        let (folder, etcd) = (Folder::new(), Etcd::start_with(&["--unsafe-no-fsync"]).await);
        let authority = authority();
        let admin =
            Access::write(folder.path().join("unready"), "https://127.0.0.1:1", "", &Credential::Token(String::new()));
        let (namespaces, accesses) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (controllers, server, port) = (None, None, 0);
        let mut api = Self { controllers, server, etcd, folder, authority, admin, port, setup, namespaces, accesses };
        api.write_papers();
        for _ in 0..STARTS_MAX {
            api.port = free_port();
            api.admin = api.user("admin", "system:masters");
            api.launch();
            if api.is_ready().await {
                break;
            }
        }
        assert!(api.server.is_some(), "kube-apiserver does not start: {}", api.log("kube-apiserver"));
        if api.setup.controllers {
            api.launch_controllers();
        }
        if api.setup.crd {
            api.install_crd().await;
        }
        api
    }

    /// What the server and the controllers show to others.
    fn write_papers(&self) {
        self.folder.write("ca.pem", &self.authority.pem());
        let (certificate, key) = self.sign("kube-apiserver", "");
        self.folder.write("server.pem", &certificate);
        self.folder.write("server-key.pem", &key);
        let tokens = KeyPair::generate().unwrap();
        self.folder.write("tokens.pem", &tokens.public_key_pem());
        self.folder.write("tokens-key.pem", &tokens.serialize_pem());
    }

    /// A certificate of this cluster's CA and its key, PEM. It is good for servers on this host and for clients.
    pub(crate) fn sign(&self, name: &str, group: &str) -> (String, String) {
        self.sign_for(name, group, SERVICE_ADDRESS)
    }

    /// The same for one that is at an address of its own.
    pub(crate) fn sign_for(&self, name: &str, group: &str, address: &str) -> (String, String) {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        if !group.is_empty() {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        let addresses = [Ipv4Addr::LOCALHOST, address.parse().unwrap(), KUBERNETES_ADDRESS];
        let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
        params.subject_alt_names = addresses.map(|address| SanType::IpAddress(address.into())).to_vec();
        params.subject_alt_names.extend(names.map(|name| SanType::DnsName(name.try_into().unwrap())));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.authority).unwrap().pem(), key.serialize_pem())
    }

    /// A file of this cluster: `ca.pem`, `tokens-key.pem`, or the log `kube-apiserver.log`.
    pub(crate) fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// The end of what a server has logged.
    pub(crate) fn log(&self, server: &str) -> String {
        let text = std::fs::read_to_string(self.file(&format!("{server}.log"))).unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    fn start_process(&self, name: &str, flags: &BTreeMap<String, String>) -> Process {
        let mut command = vec![kubernetes_command(name)];
        command.extend(flags.iter().map(|(flag, value)| format!("--{flag}={value}")));
        Process::start(&command, Some(&self.folder.path().join(format!("{name}.log"))))
    }

    fn launch(&mut self) {
        let own = [
            ("etcd-servers", self.etcd.client_url()),
            ("secure-port", self.port.to_string()),
            ("bind-address", "127.0.0.1".to_owned()),
            ("advertise-address", "127.0.0.1".to_owned()),
            ("endpoint-reconciler-type", "none".to_owned()), // it would fail: no Service may name a loopback address
            ("service-cluster-ip-range", SERVICE_RANGE.to_owned()),
            ("authorization-mode", "RBAC".to_owned()),
            ("cert-dir", self.file("certificates")),
            ("tls-cert-file", self.file("server.pem")),
            ("tls-private-key-file", self.file("server-key.pem")),
            ("client-ca-file", self.file("ca.pem")),
            ("service-account-issuer", "https://kubernetes.default.svc".to_owned()),
            ("service-account-key-file", self.file("tokens.pem")),
            ("service-account-signing-key-file", self.file("tokens-key.pem")),
            ("profiling", "false".to_owned()),
        ];
        let mut flags: BTreeMap<_, _> = own.into_iter().map(|(flag, value)| (flag.to_owned(), value)).collect();
        if self.setup.nodes {
            let kubelets = self.certificate_files("kube-apiserver-kubelet", "system:masters");
            let [certificate, key] = kubelets;
            flags.insert("kubelet-client-certificate".to_owned(), certificate);
            flags.insert("kubelet-client-key".to_owned(), key);
        }
        for flag in &self.setup.flags {
            let (flag, value) = flag.trim_start_matches('-').split_once('=').unwrap_or((flag, "true"));
            flags.insert(flag.to_owned(), value.to_owned());
        }
        self.server = Some(self.start_process("kube-apiserver", &flags));
    }

    fn launch_controllers(&mut self) {
        let kubeconfig = self.access("controllers", &self.certificate("system:kube-controller-manager", ""));
        let flags = [
            ("kubeconfig", kubeconfig.kubeconfig().display().to_string()),
            ("secure-port", "0".to_owned()),
            ("leader-elect", "false".to_owned()),
            // Each controller has rights of its own; all of them together have few.
            ("use-service-account-credentials", "true".to_owned()),
            ("root-ca-file", self.file("ca.pem")),
            ("service-account-private-key-file", self.file("tokens-key.pem")),
        ];
        let flags = flags.into_iter().map(|(flag, value)| (flag.to_owned(), value)).collect();
        self.controllers = Some(self.start_process("kube-controller-manager", &flags));
    }

    /// Waits until the server is ready; `false` when it ends instead.
    async fn is_ready(&mut self) -> bool {
        let client = self.admin.client().await;
        let ready = async {
            loop {
                let Some(server) = &mut self.server else { return false };
                if server.has_ended() {
                    self.server = None;
                    return false;
                }
                let ask = axum::http::Request::get("/readyz").body(Vec::new()).unwrap();
                if let Ok(Ok(_)) = time::timeout(Duration::from_secs(2), client.request_text(ask)).await {
                    return true;
                }
                time::sleep(Duration::from_millis(50)).await;
            }
        };
        match time::timeout(PATIENCE, ready).await {
            Ok(ready) => ready,
            Err(time::error::Elapsed { .. }) => {
                panic!("kube-apiserver is not ready after {PATIENCE:?}: {}", self.log("kube-apiserver"))
            }
        }
    }

    /// Installs the CRD, and waits until it is served.
    pub(crate) async fn install_crd(&self) {
        let admin = self.admin();
        admin.kubectl(&["apply", "--server-side", "-f", CRD]).await.ok();
        let wait = ["wait", "--for=condition=Established", "--timeout=60s", "-f", CRD];
        admin.kubectl(&wait).await.ok();
    }

    /// Ends the server at once, as a crash does.
    pub(crate) fn stop(&mut self) {
        self.server = None;
    }

    /// Starts the server that was stopped, at the same port, and waits until it is ready.
    pub(crate) async fn start_again(&mut self) {
        self.launch();
        assert!(self.is_ready().await, "kube-apiserver does not start again: {}", self.log("kube-apiserver"));
    }

    /// Ends the server and starts it again.
    pub(crate) async fn restart(&mut self) {
        self.stop();
        self.start_again().await;
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Who may do everything.
    pub(crate) fn admin(&self) -> &Access {
        &self.admin
    }

    fn certificate(&self, name: &str, group: &str) -> Credential {
        let (certificate, key) = self.sign(name, group);
        Credential::Certificate(certificate, key)
    }

    /// A certificate and its key as files.
    fn certificate_files(&self, name: &str, group: &str) -> [String; 2] {
        let (certificate, key) = self.sign(name, group);
        let write = |file: String, text: &str| self.folder.write(&file, text).display().to_string();
        [write(format!("{name}.pem"), &certificate), write(format!("{name}-key.pem"), &key)]
    }

    fn access(&self, name: &str, credential: &Credential) -> Access {
        let number = self.accesses.fetch_add(1, Ordering::Relaxed);
        let file = self.folder.path().join(format!("{}-{number}.kubeconfig", name.replace([':', '/'], "-")));
        Access::write(file, &self.url(), &self.authority.pem(), credential)
    }

    /// A person, or a node, by certificate; an empty group is none.
    pub(crate) fn user(&self, name: &str, group: &str) -> Access {
        self.access(name, &self.certificate(name, group))
    }

    /// A `ServiceAccount`, made where it is missing, with a token that the API server gave out.
    pub(crate) async fn service_account(&self, namespace: &str, name: &str) -> Access {
        let api: Api<ServiceAccount> = Api::namespaced(self.admin.client().await, namespace);
        let account = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        match api.create(&PostParams::default(), &account).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            created => drop(created.unwrap()),
        }
        let spec = TokenRequestSpec { expiration_seconds: Some(3600), ..TokenRequestSpec::default() };
        let request = TokenRequest { spec, ..TokenRequest::default() };
        let answer = api.create_token_request(name, &PostParams::default(), &request).await.unwrap();
        self.access(name, &Credential::Token(answer.status.unwrap().token))
    }

    /// A new namespace, in which pods can be made at once: its name begins so.
    pub(crate) async fn namespace(&self, stem: &str) -> String {
        let name = format!("{stem}-{}", self.namespaces.fetch_add(1, Ordering::Relaxed) + 1);
        let client = self.admin.client().await;
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        Api::all(client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
        self.default_service_account(client, &name).await;
        name
    }

    /// Pods want it, and a controller makes it, unless there are no controllers.
    async fn default_service_account(&self, client: Client, namespace: &str) {
        let api: Api<ServiceAccount> = Api::namespaced(client, namespace);
        if !self.setup.controllers {
            let account = serde_json::from_value(json!({"metadata": {"name": "default"}})).unwrap();
            api.create(&PostParams::default(), &account).await.unwrap();
            return;
        }
        let there = async {
            while api.get_opt("default").await.unwrap().is_none() {
                time::sleep(Duration::from_millis(50)).await;
            }
        };
        let made = time::timeout(PATIENCE, there).await;
        assert!(made.is_ok(), "no ServiceAccount: {}", self.log("kube-controller-manager"));
    }

    /// The processes that it consists of.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let own = self.server.iter().chain(&self.controllers).map(Process::pid);
        own.chain(self.etcd.pid()).collect()
    }
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "capturedrain-tests");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}
