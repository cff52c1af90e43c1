//! The operator and a cluster of `TiCDC`, which is played, in the pods of tidb-operator: rollouts of somebody else's, TLS, a
//! login, and the end that only `TiCDC` has.

use axum_server::tls_rustls::RustlsConfig;
use jiff::Timestamp;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use serde_json::{Value, json};

use crate::{
    api_server::{self, ApiServer, SERVICE_ADDRESS, access::Access},
    authority::{Authority, Subject},
    fake::{Fake, Stage, left},
    gate,
    shop::{Operator, Shop, condition, wait_for},
    trouble::grant,
};

const GOOD: [&str; 3] = ["v7.5.6"; 3];
const PUT: &str = "PUT /api/v1/captures/drain";
const BEGAN_AT: &str = "tidb.pingcap.com/ticdc-graceful-shutdown-begin-time";
/// The Service through which the captures are reached.
const PEER: &str = "db-ticdc-peer";

/// Pods of tidb-operator, version 1 or 2, in which a cluster is played.
struct Played {
    shop: Shop,
    fake: Fake,
}

impl Played {
    async fn open(api: &ApiServer, stem: &str, labels: &[&str], tls: Option<(&Authority, &str)>) -> Self {
        let shop = Shop::bare(api, stem).await;
        let tls = tls.map(|(authority, service)| mutual(authority, &format!("{service}.{}.svc", shop.namespace)));
        let host = |n: usize| format!("db-ticdc-{n}.{PEER}.{}.svc", shop.namespace);
        let stage = Stage { host: SERVICE_ADDRESS, advertised: Some(&host), tls };
        let fake = Fake::start_on(&stage, GOOD, [left(3)]);
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": PEER},
            "spec": {"clusterIP": "None", "ports": [{"name": "ticdc", "port": 8301}]},
        });
        shop.apply(&service.to_string()).await;
        for (n, server) in fake.servers().iter().enumerate() {
            let pod = format!("db-ticdc-{n}");
            shop.make_pod(&pod).await;
            shop.kubectl(&[&["label", "pod", &pod], labels].concat()).await;
            let port: u16 = server.rsplit(':').next().unwrap().parse().unwrap();
            let slice = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": pod, "labels": {"kubernetes.io/service-name": PEER}},
                "ports": [{"name": "ticdc", "port": port}],
                "endpoints": [{"addresses": [SERVICE_ADDRESS], "conditions": {"ready": true}}],
            });
            shop.apply(&slice.to_string()).await;
        }
        Self { shop, fake }
    }

    async fn v1(api: &ApiServer, stem: &str) -> Self {
        Self::open(api, stem, &V1, None).await
    }

    async fn operate(&self, access: &Access) -> Operator {
        let operator = Operator::start(access, &self.shop.namespace, &[]);
        operator.wait_until_leading().await;
        operator
    }

    /// Asks for a drain of the second pod; `more` are fields of `clusterRef`.
    async fn drain(&self, name: &str, more: Value, spec: Value) {
        let (mut cluster, mut spec) = (json!({"serviceName": PEER, "kind": "TiCDC"}), spec);
        cluster.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec["clusterRef"] = cluster;
        self.shop.drain(name, "db-ticdc-1", spec).await;
    }

    /// Waits until a drain waits for somebody's rollout, and is sure that nothing was asked for.
    async fn wait_until_blocked(&self, name: &str, kind: &str, of: &str) {
        let status = self.shop.wait_for_condition(name, "Reconciling", "True", "BlockedByExternalDrain").await;
        assert_eq!((&status["blockedBy"][0]["kind"], &status["blockedBy"][0]["name"]), (&json!(kind), &json!(of)));
        assert_eq!((&status["phase"], condition(&status, "Accepted").1.as_str()), (&json!("Queued"), "Queued"));
        assert_eq!(self.fake.play().count(PUT), 0, "{status:#}");
    }

    /// Lets go of what is left, until it is proven.
    async fn prove(&self, name: &str) {
        self.fake.play().drain = [left(3), left(0)].into();
        self.shop.wait_for_condition(name, "Drained", "True", "Proven").await;
    }

    async fn patch(&self, resource: &str, patch: &Value) {
        self.shop.kubectl(&["patch", resource, "--type=merge", "-p", &patch.to_string()]).await;
    }
}

const V1: [&str; 3] = [
    "app.kubernetes.io/managed-by=tidb-operator",
    "app.kubernetes.io/component=ticdc",
    "app.kubernetes.io/instance=db",
];
const V2: [&str; 3] = ["pingcap.com/managed-by=tidb-operator", "pingcap.com/component=ticdc", "pingcap.com/group=cdc"];

/// Installs what tidb-operator brings along, as far as it is looked at.
async fn install(api: &ApiServer, group: &str, kind: &str, plural: &str) {
    let name = format!("{plural}.{group}");
    let schema = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    let crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": name},
        "spec": {
            "group": group, "scope": "Namespaced", "names": {"kind": kind, "plural": plural},
            "versions": [{"name": "v1alpha1", "served": true, "storage": true, "schema": schema}],
        },
    });
    api.admin().kubectl_with(&["apply", "-f", "-"], &crd.to_string()).await.ok();
    let established = ["wait", "--for=condition=Established", "--timeout=60s", &format!("crd/{name}")];
    api.admin().kubectl(&established).await.ok();
}

/// A `TidbCluster` whose pods of `TiCDC` are replaced one by one.
fn upgrading() -> Value {
    json!({
        "apiVersion": "pingcap.com/v1alpha1", "kind": "TidbCluster", "metadata": {"name": "db"},
        "spec": {"ticdc": {"replicas": 3, "gracefulShutdownTimeout": "1h0m0s"}},
        "status": {"ticdc": {"phase": "Upgrade", "statefulSet": {"replicas": 3}}},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_of_a_tidbcluster_is_waited_for() {
    let api = ApiServer::start().await;
    install(&api, "pingcap.com", "TidbCluster", "tidbclusters").await;
    let played = Played::v1(&api, "rollout").await;
    played.shop.apply(&upgrading().to_string()).await;
    // Another of its pods is on its way out, as its own annotation says.
    let began = format!("{BEGAN_AT}={}", Timestamp::now());
    played.shop.kubectl(&["annotate", "pod", "db-ticdc-2", &began]).await;
    let _operator = played.operate(api.admin()).await;
    played.drain("x", json!({}), json!({})).await;
    played.wait_until_blocked("x", "TidbCluster", "db").await;
    played.patch("tidbcluster/db", &json!({"status": {"ticdc": {"phase": "Normal"}}})).await;
    played.drain("y", json!({}), json!({})).await;
    // The annotation is left, and its time is not over.
    played.wait_until_blocked("y", "TidbCluster", "db").await;
    played.patch("tidbcluster/db", &json!({"spec": {"ticdc": {"gracefulShutdownTimeout": "1s"}}})).await;
    played.prove("x").await;
    let told = played.shop.events("x").await;
    assert_eq!(told[..2], ["DrainQueued", "DrainStarted"], "{told:?}");
    // One that begins afterwards is tidb-operator's to look after: the drain goes on.
    played.shop.apply(&upgrading().to_string()).await;
    played.shop.wait_for_condition("x", "Drained", "True", "Proven").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_of_a_ticdcgroup_is_waited_for() {
    let api = ApiServer::start().await;
    install(&api, "core.pingcap.com", "TiCDCGroup", "ticdcgroups").await;
    let played = Played::open(&api, "group", &V2, None).await;
    let group = json!({
        "apiVersion": "core.pingcap.com/v1alpha1", "kind": "TiCDCGroup", "metadata": {"name": "cdc"},
        "spec": {"replicas": 3}, "status": {"currentRevision": "cdc-1", "updateRevision": "cdc-2", "replicas": 3},
    });
    played.shop.apply(&group.to_string()).await;
    let _operator = played.operate(api.admin()).await;
    played.drain("x", json!({}), json!({})).await;
    played.wait_until_blocked("x", "TiCDCGroup", "cdc").await;
    played.patch("ticdcgroup/cdc", &json!({"status": {"currentRevision": "cdc-2"}})).await;
    played.prove("x").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_tidb_operator_are_drained_where_its_objects_are_not() {
    let played = Played::v1(api_server::shared().await, "no-crd").await;
    let _operator = played.operate(&played.shop.admin).await;
    played.drain("x", json!({}), json!({})).await;
    played.prove("x").await;
    // By the annotation alone a rollout is seen, too.
    let began = format!("{BEGAN_AT}={}", Timestamp::now());
    played.shop.kubectl(&["annotate", "pod", "db-ticdc-2", &began]).await;
    played.shop.kubectl(&["delete", "cdrain", "x", "--timeout=60s"]).await;
    played.fake.play().seen.clear();
    played.drain("y", json!({}), json!({})).await;
    let status = played.shop.wait_for_condition("y", "Reconciling", "True", "BlockedByExternalDrain").await;
    assert_eq!(status["blockedBy"][0]["kind"], "TidbCluster", "{status:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_may_not_see_rollouts_says_so_and_begins_nothing() {
    let api = ApiServer::start().await;
    install(&api, "pingcap.com", "TidbCluster", "tidbclusters").await;
    let played = Played::v1(&api, "blind").await;
    let (shop, account) = (&played.shop, "blind");
    let access = api.service_account(&shop.namespace, account).await;
    grant(shop, account, None).await;
    let _operator = played.operate(&access).await;
    played.drain("x", json!({}), json!({})).await;
    let status = shop.wait_for_condition("x", "Stalled", "True", "Unauthorized").await;
    let conditions = status["conditions"].as_array().unwrap();
    let said = conditions.iter().find(|is| is["type"] == "Stalled").unwrap()["message"].as_str().unwrap();
    let what = format!("TidbCluster {}/db cannot be read: ", shop.namespace);
    assert!(said.starts_with(&what) && said.contains("cannot get resource \"tidbclusters\""), "{said}");
    assert_eq!(played.fake.play().count(PUT), 0);
    let role = ["create", "role", "rollouts", "--verb=get", "--resource=tidbclusters.pingcap.com"];
    shop.kubectl(&role).await;
    let subject = format!("--serviceaccount={}:{account}", shop.namespace);
    shop.kubectl(&["create", "rolebinding", "rollouts", "--role=rollouts", &subject]).await;
    played.prove("x").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_of_ticdc_cannot_be_called_off_and_ends_as_that() {
    let played = Played::v1(api_server::shared().await, "no-way-back").await;
    let _operator = played.operate(&played.shop.admin).await;
    played.drain("x", json!({}), json!({"releaseAfterSeconds": 2})).await;
    let status = played.shop.wait_for_end("x", "CancelUnsupported").await;
    assert_eq!((condition(&status, "Succeeded").0, condition(&status, "Drained").0), ("False".into(), "False".into()));
    assert!(played.fake.play().count(PUT) > 0);
}

/// Nobody has withdrawn its drain, although that could not be called off.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_ticdc_whose_eviction_was_given_up_is_drained_again_by_the_next() {
    let played = Played::v1(api_server::shared().await, "evicted").await;
    let shop = &played.shop;
    for n in 0..3 {
        gate::run(shop, &format!("db-ticdc-{n}")).await;
    }
    let (_gate, caller) = gate::open(shop, &[]).await;
    assert_eq!(caller.evict("db-ticdc-1").await.cause(), "CaptureNotDrained");
    let pod = shop.admin.kubectl_json(&["get", "pod", "db-ticdc-1", "-n", &shop.namespace]).await;
    let name = |number: usize| format!("{}-{number}", pod["metadata"]["uid"].as_str().unwrap());
    wait_for("a beginning", async || shop.status(&name(1)).await["epoch"].as_i64()).await;
    let made = shop.object(&name(1)).await.unwrap();
    assert_eq!((&made["spec"]["deadlineSeconds"], &made["spec"]["clusterRef"]["kind"]), (&json!(540), &json!("TiCDC")));
    shop.kubectl(&["patch", "cdrain", &name(1), "--type=merge", "-p", r#"{"spec":{"releaseAfterSeconds":1}}"#]).await;
    shop.wait_for_end(&name(1), "CancelUnsupported").await;
    wait_for("what is told of it", async || {
        shop.events(&name(1)).await.contains(&"EvictionAbandoned".to_owned()).then_some(())
    })
    .await;
    let again = caller.evict("db-ticdc-1").await;
    assert_eq!(again.cause(), "CaptureNotDrained", "{again:?}");
    assert!(again.message().contains(&name(2)), "{again:?}");
    played.prove(&name(2)).await;
    caller.evict_until("db-ticdc-1", 201).await;
}

/// How captures speak TLS that want to see a certificate of the same authority. Their own are made out to the Service and
/// to the pods behind it, as tidb-operator has it; to none of their addresses.
fn mutual(authority: &Authority, service: &str) -> RustlsConfig {
    capturedrain::tls::install_provider();
    let pods = format!("*.{service}");
    let (cert, key) = authority.sign(&Subject { hosts: &[service, &pods], ..Subject::new("ticdc", "") });
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
    let clients = WebPkiClientVerifier::builder(roots.into()).build().unwrap();
    let (cert, key) = (CertificateDer::from_pem_slice(cert.as_bytes()), PrivateKeyDer::from_pem_slice(key.as_bytes()));
    let config = ServerConfig::builder().with_client_cert_verifier(clients);
    let config = config.with_single_cert(vec![cert.unwrap()], key.unwrap()).unwrap();
    RustlsConfig::from_config(config.into())
}

fn base64(text: &str) -> String {
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text)
}

/// A Secret with a certificate of an authority, and another to believe.
async fn secret(shop: &Shop, name: &str, believed: &Authority, issuer: &Authority) {
    let (cert, key) = issuer.sign(&Subject::new("capturedrain", ""));
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": "kubernetes.io/tls",
        "stringData": {"ca.crt": believed.pem(), "tls.crt": cert, "tls.key": key},
    });
    shop.apply(&secret.to_string()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn captures_behind_mutual_tls_and_a_login_are_drained() {
    let (authority, stranger) = (Authority::new("tidb"), Authority::new("stranger"));
    let played = Played::open(api_server::shared().await, "tls", &V1, Some((&authority, PEER))).await;
    played.fake.play().login = Some(format!("Basic {}", base64("drainer:s3cret")));
    let shop = &played.shop;
    secret(shop, "good", &authority, &authority).await;
    secret(shop, "not-believed", &authority, &stranger).await;
    secret(shop, "believes-others", &stranger, &authority).await;
    for (name, password) in [("login", "s3cret"), ("wrong", "guess")] {
        let data = json!({"username": "drainer", "password": password});
        let meta = json!({ "name": name });
        shop.apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": data}).to_string())
            .await;
    }
    let operator = played.operate(&shop.admin).await;
    for (name, cluster, words) in [
        ("a", json!({"tlsSecretName": "not-believed", "userSecretName": "login"}), "certificate"),
        ("b", json!({"tlsSecretName": "believes-others", "userSecretName": "login"}), "certificate"),
        ("c", json!({"tlsSecretName": "good", "userSecretName": "wrong"}), "user is required"),
        ("d", json!({"tlsSecretName": "good"}), "user is required"),
    ] {
        played.drain(name, cluster, json!({})).await;
        let status = shop.wait_for_condition(name, "Stalled", "True", "Unauthorized").await;
        let said = status["conditions"].to_string();
        assert!(said.contains(words) && !said.contains("s3cret"), "{name}: {said}");
    }
    assert_eq!(played.fake.play().count(PUT), 0);
    played.drain("x", json!({"tlsSecretName": "good", "userSecretName": "login"}), json!({})).await;
    shop.wait_for_condition("x", "Drained", "False", "InProgress").await;
    played.prove("x").await;
    assert!(!operator.log().contains("s3cret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn captures_of_another_service_are_not_believed() {
    let authority = Authority::new("tidb");
    let played =
        Played::open(api_server::shared().await, "impostor", &V1, Some((&authority, "other-ticdc-peer"))).await;
    secret(&played.shop, "good", &authority, &authority).await;
    let _operator = played.operate(&played.shop.admin).await;
    played.drain("x", json!({"tlsSecretName": "good"}), json!({})).await;
    let status = played.shop.wait_for_condition("x", "Stalled", "True", "Unauthorized").await;
    assert!(status["conditions"].to_string().contains("certificate"), "{status:#}");
    assert!(played.fake.play().seen.is_empty(), "nothing is said to strangers");
}
