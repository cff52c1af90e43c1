//! The chart of captures: an API server accepts it, its pods are restricted, and what it starts is a capture, and an etcd.

use std::{collections::BTreeSet, net::TcpListener, time::Duration};

use serde_json::{Value, json};
use tokio::{process::Command, time};

use crate::{
    api_server::{
        self,
        etcd::{
            Etcd,
            guard::{Folder, Process},
        },
    },
    helm::{assert_restricted, documents, helm, named, of_kind, template},
    shop::{PATIENCE, wait_for},
};

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/capture-cluster");
const BINARY: &str = env!("CARGO_BIN_EXE_capturedrain");
const NAME: &str = "cdc";
/// An etcd of others.
const EXTERNAL: &str = "etcd.external={a:2379,b:2379}";

async fn render(namespace: &str, values: &[&str]) -> Result<String, String> {
    template((CHART, NAME), namespace, values, &[]).await
}

async fn documents_of(namespace: &str, values: &[&str]) -> Vec<Value> {
    documents(&render(namespace, values).await.unwrap())
}

fn pod_of(documents: &[Value], name: &str) -> Value {
    named(documents, "StatefulSet", name)["spec"]["template"].clone()
}

/// The command line of a container, with its own pod's name filled in.
fn args(template: &Value, pod: &str) -> Vec<String> {
    let args = template["spec"]["containers"][0]["args"].as_array().unwrap().iter();
    args.map(|arg| arg.as_str().unwrap().replace("$(POD_NAME)", pod)).collect()
}

/// A variable of the container.
fn variable(template: &Value, name: &str) -> Option<String> {
    let all = template["spec"]["containers"][0]["env"].as_array().unwrap();
    Some(all.iter().find(|variable| variable["name"] == name)?["value"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn the_chart_is_clean() {
    helm(&["lint", "--strict", CHART]).await.unwrap();
}

#[tokio::test]
async fn bad_values_are_refused_with_their_place() {
    for (values, says) in [
        (&["replicas=0"][..], "'/replicas': minimum: got 0, want 1"),
        (&["replica=2"], "additional properties 'replica' not allowed"),
        (&["cluster=a/b"], "'/cluster': 'a/b' does not match pattern"),
        (&["fullnameOverride=1a"], "'/fullnameOverride': '1a' does not match pattern"),
        (&["etcd.external=a:1"], "'/etcd/external': got string, want array"),
        (&["etcd.external={http://a:1}"], "'/etcd/external/0': 'http://a:1' does not match pattern"),
        (&["etcd.external={a}"], "'/etcd/external/0': 'a' does not match pattern"),
        (&["etcd.bundled.replicas=1"], "additional properties 'replicas' not allowed"),
        (
            &["etcd.bundled.storage.kind=disk"],
            "'/etcd/bundled/storage/kind': value must be one of 'volume', 'emptyDir'",
        ),
        (&["etcd.tls.secretName=a"], "etcd.bundled.tlsSecretName (the members' certificates) and etcd.tls.secretName"),
        (&["tls.clientSecretName=a"], "'/tls/secretName': minLength: got 0, want 1"),
        (&["config.CAPTUREDRAIN_LEASES=1s"], "invalid propertyName 'CAPTUREDRAIN_LEASES'"),
        (&["config.CAPTUREDRAIN_ADDR=1"], "invalid propertyName 'CAPTUREDRAIN_ADDR'"),
        (&["terminationGracePeriodSeconds=30"], "'/terminationGracePeriodSeconds': minimum: got 30, want 60"),
        (&["hook=true"], "'/hook': got boolean, want object"),
    ] {
        let said = render("shop", values).await.unwrap_err();
        assert!(said.contains(says), "{values:?}: {said}");
    }
}

#[tokio::test]
async fn whatever_the_values_an_api_server_accepts_it() {
    let api = api_server::shared().await;
    let namespace = api.namespace("captures").await;
    let digest = format!("image.digest=sha256:{}", "0".repeat(64));
    let peer = "networkPolicy.from[0].namespaceSelector.matchLabels.a=b";
    let bundled = ["etcd.bundled.antiAffinity=none", "etcd.bundled.storage.className=fast"];
    for values in [
        &[][..],
        &[EXTERNAL, "hook.enabled=false", "podDisruptionBudget.enabled=false", "replicas=1"],
        &[EXTERNAL, "etcd.tls.secretName=a", "etcd.tls.mutual=false", "tls.secretName=b", "tls.clientSecretName=c"],
        &["etcd.tls.secretName=a", "etcd.bundled.tlsSecretName=b", "etcd.bundled.storage.kind=emptyDir"],
        &["networkPolicy.enabled=true", peer, bundled[0], bundled[1], &digest, "podLabels.a=b", "podAnnotations.a=b"],
        &["config.CAPTUREDRAIN_LEASE=20s", "config.CAPTUREDRAIN_HISTORY=9", "nodeSelector.a=b", "serviceAccountName=x"],
        &["priorityClassName=system-cluster-critical", "tolerations[0].operator=Exists", "image.pullSecrets[0].name=a"],
        &["volumes[0].name=sink", "volumeMounts[0].name=sink", "volumeMounts[0].mountPath=/sink", "cluster=shop"],
    ] {
        let rendered = render(&namespace, values).await.unwrap();
        let said = api.admin().kubectl_with(&["apply", "--dry-run=server", "-f", "-"], &rendered).await;
        assert_eq!(said.code, 0, "{values:?}: {}", said.stderr);
    }
}

#[tokio::test]
async fn its_pods_are_restricted() {
    let api = api_server::shared().await;
    let namespace = api.namespace("restricted").await;
    let secrets = ["tls.secretName=a", "etcd.tls.secretName=b", "etcd.bundled.tlsSecretName=c"];
    for values in
        [&["etcd.bundled.storage.kind=emptyDir"][..], &[&secrets[..], &["etcd.bundled.storage.kind=emptyDir"]].concat()]
    {
        let documents = documents_of(&namespace, values).await;
        for name in ["cdc", "cdc-etcd"] {
            let pod = pod_of(&documents, name);
            assert_eq!(pod["spec"]["automountServiceAccountToken"], false);
            assert_restricted(api, &namespace, &pod).await;
        }
    }
}

#[tokio::test]
async fn a_rollout_takes_one_capture_after_another_and_is_not_blocked() {
    let all = ["serviceMonitor.enabled=true", "networkPolicy.enabled=true", EXTERNAL];
    let documents = documents_of("shop", &all).await;
    let set = &named(&documents, "StatefulSet", NAME)["spec"];
    assert_eq!(set["podManagementPolicy"], "Parallel");
    assert_eq!(set["updateStrategy"]["rollingUpdate"], json!({"maxUnavailable": 1}));
    assert_eq!((&set["serviceName"], &set["minReadySeconds"]), (&json!("cdc-peer"), &json!(10)));
    let pod = &set["template"];
    assert_eq!(pod["metadata"]["labels"]["capturedrain.io/service"], NAME);
    assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 600);
    assert_eq!(pod["spec"]["topologySpreadConstraints"][0]["whenUnsatisfiable"], "ScheduleAnyway");
    let container = &pod["spec"]["containers"][0];
    assert_eq!(container["livenessProbe"]["terminationGracePeriodSeconds"], 30);
    assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/readyz");
    assert!(container["startupProbe"].is_object());
    let (clients, peers) = (named(&documents, "Service", "cdc"), named(&documents, "Service", "cdc-peer"));
    assert!(clients["spec"]["clusterIP"].is_null() && clients["spec"]["publishNotReadyAddresses"].is_null());
    assert_eq!(
        (&peers["spec"]["clusterIP"], &peers["spec"]["publishNotReadyAddresses"]),
        (&json!("None"), &json!(true))
    );
    let selector = &set["selector"]["matchLabels"];
    for (kind, at) in [("PodDisruptionBudget", "/spec/selector"), ("NetworkPolicy", "/spec/podSelector")] {
        let found = of_kind(&documents, kind);
        assert_eq!((found.len(), &found[0].pointer(at).unwrap()["matchLabels"]), (1, selector), "{kind}");
    }
    for service in [clients, peers] {
        assert_eq!(&service["spec"]["selector"], selector);
        assert_eq!(service["spec"]["ports"][0]["name"], "capturedrain");
    }
    // Prometheus reads each capture once.
    let monitored = named(&documents, "ServiceMonitor", NAME)["spec"]["selector"]["matchLabels"].as_object().unwrap();
    let is_monitored =
        |service: &Value| monitored.iter().all(|(key, value)| service["metadata"]["labels"][key] == *value);
    assert!(is_monitored(peers) && !is_monitored(clients));
}

#[tokio::test]
async fn the_bundled_store_is_three_members_with_volumes_and_a_budget() {
    let documents = documents_of("shop", &[]).await;
    let set = &named(&documents, "StatefulSet", "cdc-etcd")["spec"];
    assert_eq!((&set["replicas"], &set["podManagementPolicy"]), (&json!(3), &json!("Parallel")));
    let (claim, mount) =
        (&set["volumeClaimTemplates"][0], &set["template"]["spec"]["containers"][0]["volumeMounts"][0]);
    assert_eq!((&claim["metadata"]["name"], &mount["name"]), (&json!("data"), &json!("data")));
    assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "8Gi");
    let budget = &named(&documents, "PodDisruptionBudget", "cdc-etcd")["spec"];
    assert_eq!((&budget["maxUnavailable"], &budget["selector"]), (&json!(1), &set["selector"]));
    let store =
        format!("--store=etcd://{}", [0, 1, 2].map(|n| format!("cdc-etcd-{n}.cdc-etcd.shop.svc:2379")).join(","));
    assert!(args(&pod_of(&documents, NAME), "cdc-0").contains(&store), "{documents:#?}");
    let documents = documents_of("shop", &[EXTERNAL]).await;
    assert_eq!(of_kind(&documents, "StatefulSet").len(), 1);
    assert!(args(&pod_of(&documents, NAME), "cdc-0").contains(&"--store=etcd://a:2379,b:2379".to_owned()));
}

#[tokio::test]
async fn notes_warn_of_what_hurts_later() {
    let api = api_server::shared().await;
    let namespace = api.namespace("notes").await;
    let kubeconfig = api.admin().kubeconfig().display().to_string();
    for (values, says) in [
        ("etcd.bundled.storage.kind=emptyDir", "etcd has no volumes"),
        ("replicas=1", "leaves without a drain"),
        ("hook.enabled=false", "without the hook"),
        ("cluster=x", "nothing is encrypted"),
    ] {
        let install = ["install", NAME, CHART, "--namespace", &namespace, "--kubeconfig", &kubeconfig];
        let said = helm(&[&install[..], &["--dry-run=server", "--set", values]].concat()).await.unwrap();
        assert!(said.contains(says), "{values}: {said}");
    }
}

#[tokio::test]
async fn tuning_is_what_the_server_takes() {
    let schema: Value = serde_json::from_str(include_str!("../../charts/capture-cluster/values.schema.json")).unwrap();
    let known = schema["properties"]["config"]["propertyNames"]["enum"].as_array().unwrap();
    let known: BTreeSet<_> = known.iter().map(|name| name.as_str().unwrap().to_owned()).collect();
    let help = Command::new(BINARY).args(["server", "--help"]).output().await.unwrap();
    let help = String::from_utf8(help.stdout).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    let tuning = &help[help.find("Tuning (").unwrap()..help.find("Common options:").unwrap()];
    let named = tuning.split("[env: ").skip(1).map(|rest| rest.split(']').next().unwrap().to_owned());
    assert_eq!(known, named.collect());
}

/// Seconds of an option such as `--shutdown-timeout=585s`.
fn seconds(args: &[String], option: &str) -> u64 {
    let value = args.iter().find_map(|arg| arg.strip_prefix(option)).unwrap();
    value.trim_end_matches('s').parse().unwrap()
}

#[tokio::test]
async fn the_hook_and_the_server_share_the_grace_period() {
    let grace = "terminationGracePeriodSeconds=120";
    let documents = documents_of("shop", &[grace]).await;
    let pod = pod_of(&documents, NAME);
    let hook = &pod["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"];
    assert_eq!(hook, &json!(["/capturedrain", "prestop"]));
    assert_eq!(variable(&pod, "CAPTUREDRAIN_GRACE_PERIOD").unwrap(), "120s");
    assert_eq!(variable(&pod, "CAPTUREDRAIN_PRESTOP_MARGIN").unwrap(), "15s", "above the server's time-out");
    let server = variable(&pod, "CAPTUREDRAIN_SERVER").unwrap();
    assert_eq!(server, "http://127.0.0.1:8300", "names go with the Service when all is uninstalled");
    assert_eq!(seconds(&args(&pod, "x"), "--shutdown-timeout="), 10);
    let documents = documents_of("shop", &[grace, "hook.enabled=false", "tls.secretName=a"]).await;
    let pod = pod_of(&documents, NAME);
    assert!(pod["spec"]["containers"][0]["lifecycle"].is_null());
    assert_eq!(variable(&pod, "CAPTUREDRAIN_GRACE_PERIOD"), None);
    assert_eq!(variable(&pod, "CAPTUREDRAIN_SERVER").unwrap(), "https://127.0.0.1:8300");
    let name = variable(&pod, "CAPTUREDRAIN_TLS_SERVER_NAME").unwrap();
    assert_eq!(name, "$(POD_NAME).cdc-peer.shop.svc", "the name that its certificate has");
    assert_eq!(seconds(&args(&pod, "x"), "--shutdown-timeout="), 105);
    assert!(!args(&pod, "x").contains(&"--insecure".to_owned()));
    assert_eq!(pod["metadata"]["annotations"]["capturedrain.io/tls-secret-name"], "a");
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_chart_starts_is_a_capture() {
    let etcd = Etcd::start().await;
    let store = etcd.url().trim_start_matches("etcd://").to_owned();
    let values = [format!("etcd.external={{{store}}}"), "config.CAPTUREDRAIN_LEASE=4s".to_owned()];
    let documents = documents_of("shop", &[&values[0], &values[1]]).await;
    let pod = pod_of(&documents, NAME);
    let port = free_port();
    let addr = format!("--addr=127.0.0.1:{port}");
    // Everything but where it listens, which is taken here.
    let args = args(&pod, "cdc-7").into_iter().map(|arg| if arg.starts_with("--addr=") { addr.clone() } else { arg });
    let lease = variable(&pod, "CAPTUREDRAIN_LEASE").unwrap();
    let own = ["env", &format!("CAPTUREDRAIN_LEASE={lease}"), "POD_NAME=cdc-7", "POD_UID=u-7", BINARY];
    let command: Vec<_> = own.into_iter().map(str::to_owned).chain(args).collect();
    let _capture = Process::start(&command, None);
    let server = format!("127.0.0.1:{port}");
    let captures = wait_for("the capture to be heard", async || {
        let output = Command::new(BINARY).args(["captures", "-o", "json", "--server", &server]).output().await.unwrap();
        let captures: Value = serde_json::from_slice(&output.stdout).ok()?;
        (captures[0]["heard"] == true).then_some(captures)
    })
    .await;
    let said = (&captures[0]["id"], &captures[0]["pod_uid"], &captures[0]["address"]);
    assert_eq!(said, (&json!("cdc-7"), &json!("u-7"), &json!("cdc-7.cdc-peer.shop.svc:8300")), "{captures:#}");
    // Clusters of the same name in other namespaces have other keys.
    let mut client = etcd_client::Client::connect([&store], None).await.unwrap();
    let all = etcd_client::GetOptions::new().with_prefix();
    assert!(client.get("/capturedrain/shop.cdc/capture/", Some(all)).await.unwrap().count() == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bundled_members_become_a_store() {
    // The first caller chooses the TLS library's implementation, which the client wants even without TLS.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let documents = documents_of("shop", &[]).await;
    let pod = pod_of(&documents, "cdc-etcd");
    let folder = Folder::new();
    let ports: Vec<[u16; 3]> = (0..3).map(|_| [free_port(), free_port(), free_port()]).collect();
    let etcd = std::env::var("CAPTUREDRAIN_ETCD").unwrap_or_else(|_| "etcd".to_owned());
    let member = |n: usize| {
        let name = format!("cdc-etcd-{n}");
        let local = |arg: String| {
            // All pods are on this machine, each at ports of its own.
            let mut arg = arg.replace("/var/lib/etcd", &folder.path().join(&name).display().to_string());
            for (of, ports) in ports.iter().enumerate() {
                for (port, local) in [2379, 2380, 2381].iter().zip(ports) {
                    arg =
                        arg.replace(&format!("cdc-etcd-{of}.cdc-etcd.shop.svc:{port}"), &format!("127.0.0.1:{local}"));
                    if of == n {
                        arg = arg.replace(&format!("0.0.0.0:{port}"), &format!("127.0.0.1:{local}"));
                    }
                }
            }
            arg
        };
        let command = std::iter::once(etcd.clone()).chain(args(&pod, &name).into_iter().map(local));
        Process::start(&command.collect::<Vec<_>>(), Some(&folder.path().join(format!("{name}.log"))))
    };
    let mut members: Vec<_> = (0..3).map(|n| Some(member(n))).collect();
    let get = async |n: usize, path: &str| {
        let answer =
            time::timeout(Duration::from_secs(2), reqwest::get(format!("http://127.0.0.1:{}{path}", ports[n][2])));
        Some(answer.await.ok()?.ok()?.status().as_u16())
    };
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let path = pod["spec"]["containers"][0][probe]["httpGet"]["path"].as_str().unwrap();
        for n in 0..3 {
            wait_for(&format!("member {n} to be well"), async || (get(n, path).await? == 200).then_some(())).await;
        }
    }
    // Two are enough.
    members[1] = None;
    let left = format!("127.0.0.1:{}", ports[2][0]);
    wait_for("a write to two members", async || {
        let mut client = etcd_client::Client::connect([&left], None).await.ok()?;
        time::timeout(PATIENCE, client.put("k", "v", None)).await.ok()?.ok()
    })
    .await;
}
