//! The webhook's certificates on a real API server: made once, rotated and changed without one failed eviction.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};
use tokio::{task::JoinHandle, time};

use crate::{
    api_server::{self, SERVICE_ADDRESS},
    gate::{Answer, Caller, Gate, configure, scene_with},
    shop::{Shop, wait_for},
};

const SECRET: &str = "capturedrain-operator-webhook";

async fn secret(shop: &Shop) -> Value {
    shop.admin.kubectl_json(&["get", "secret", SECRET, "-n", &shop.namespace]).await
}

fn part(secret: &Value, key: &str) -> String {
    String::from_utf8(STANDARD.decode(secret["data"][key].as_str().unwrap_or_default()).unwrap()).unwrap()
}

/// Whom the API server believes.
async fn believed(shop: &Shop) -> String {
    let configuration = shop.admin.kubectl_json(&["get", "mutatingwebhookconfiguration", &shop.namespace]).await;
    let bundle = configuration["webhooks"][0]["clientConfig"]["caBundle"].as_str().unwrap_or_default().to_owned();
    String::from_utf8(STANDARD.decode(bundle).unwrap()).unwrap()
}

/// Somebody who evicts again and again, and whatever was no good answer.
struct Loop {
    over: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    task: JoinHandle<Vec<Answer>>,
}

impl Loop {
    /// Every answer has to be a denial.
    fn start(caller: Caller, pod: String) -> Self {
        let (over, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (is_over, counted) = (over.clone(), count.clone());
        let task = tokio::spawn(async move {
            let mut bad = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let answer = caller.evict(&pod).await;
                if answer.code != 429 {
                    bad.push(answer);
                }
                counted.fetch_add(1, Ordering::Relaxed);
                time::sleep(Duration::from_millis(5)).await;
            }
            bad
        });
        Self { over, count, task }
    }

    async fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        let count = self.count.load(Ordering::Relaxed);
        let bad = self.task.await.unwrap();
        assert!(bad.is_empty(), "{} of {count} failed: {:?}", bad.len(), &bad[..bad.len().min(3)]);
        assert!(count > 20, "{count} evictions are too few to say something");
        println!("{count} evictions, none failed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_and_their_ca_change_without_a_failed_eviction() {
    let options = ["--webhook-cert-life", "12s", "--webhook-ca-wait", "3s"];
    let (shop, gate, caller) = scene_with("rotation", 30, "30s", &options).await;
    let target = shop.a_follower().await;
    // Nothing leaves a capture that is suspended, so that all evictions are denied.
    shop.suspend(&target);
    let evictions = Loop::start(caller, target.clone());
    let (first, ca) = (secret(&shop).await, believed(&shop).await);
    assert_eq!(part(&first, "ca.crt"), ca);
    let renewed = wait_for("another certificate of the same CA", async || {
        let now = secret(&shop).await;
        (part(&now, "tls.crt") != part(&first, "tls.crt")).then_some(now)
    })
    .await;
    assert_eq!(part(&renewed, "signer.crt"), part(&first, "signer.crt"));
    assert_eq!(believed(&shop).await, ca);
    shop.kubectl(&["annotate", "secret", SECRET, "capturedrain.io/rotate-ca=now"]).await;
    let both = wait_for("both CAs to be believed", async || {
        let bundle = believed(&shop).await;
        (bundle.starts_with(&ca) && bundle != ca).then_some(bundle)
    })
    .await;
    assert_eq!(both.matches("BEGIN CERTIFICATE").count(), 2);
    let after = wait_for("the new CA alone to be believed", async || {
        let bundle = believed(&shop).await;
        (bundle.matches("BEGIN CERTIFICATE").count() == 1 && bundle != ca).then_some(bundle)
    })
    .await;
    assert!(both.ends_with(&after), "it was announced before");
    let last = secret(&shop).await;
    assert_eq!(part(&last, "signer.crt"), after);
    assert!(last["metadata"]["annotations"]["capturedrain.io/rotate-ca"].is_null(), "asked for once");
    let until = gate.operator.metric("capturedrain_webhook_certificate_expiry_timestamp_seconds ").await.unwrap();
    assert!(until > 1e9, "{until}");
    evictions.end().await;
    assert_eq!(gate.operator.get("/readyz").await.unwrap().0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_have_one_secret_and_both_are_believed() {
    let (shop, first, _caller) = scene_with("two-replicas", 0, "3s", &["--identity", "first"]).await;
    shop.kubectl(&["delete", "secret", SECRET]).await;
    // Made anew by the one that is there, and by one that starts at the same time.
    let second = Gate::start(&shop.admin, &shop.namespace, &shop.namespace, &["--identity", "second"]);
    second.wait_until_ready().await;
    first.wait_until_ready().await;
    let made = wait_for("a Secret", async || {
        let made = secret(&shop).await;
        (believed(&shop).await == part(&made, "ca.crt")).then_some(made)
    })
    .await;
    let shown = "capturedrain_webhook_certificate_expiry_timestamp_seconds ";
    wait_for("both to show the same", async || {
        let (one, other) = (first.operator.metric(shown).await?, second.operator.metric(shown).await?);
        (one > 0.0 && (one - other).abs() < 1.0).then_some(())
    })
    .await;
    // The second one answers, too.
    configure(&shop, &shop.namespace, second.port, "Fail").await;
    let caller = Caller::new(&shop.admin, &shop.namespace).await;
    wait_for("an answer of the second", async || {
        caller.evict("cdc-9").await;
        (second.operator.metric("capturedrain_webhook_requests_total{decision=\"NoPod\"} ").await? > 0.0).then_some(())
    })
    .await;
    assert_eq!(secret(&shop).await["data"], made["data"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_ready_when_the_api_server_believes_it() {
    let api = api_server::shared().await;
    let shop = Shop::open(api, "belief", 0).await;
    let gate = Gate::start(&shop.admin, &shop.namespace, &shop.namespace, &[]);
    let unready = async |says: &str| {
        wait_for(says, async || {
            gate.operator.get("/readyz").await.filter(|(code, why)| *code == 503 && why.contains(says))
        })
        .await
    };
    unready("there is no MutatingWebhookConfiguration").await;
    configure(&shop, &shop.namespace, gate.port, "Fail").await;
    gate.wait_until_ready().await;
    // Somebody else writes another CA: it is put right.
    let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let stranger = params.self_signed(&key).unwrap().pem();
    let patch =
        json!([{"op": "replace", "path": "/webhooks/0/clientConfig/caBundle", "value": STANDARD.encode(&stranger)}]);
    let args = ["patch", "mutatingwebhookconfiguration", &shop.namespace, "--type=json", "-p", &patch.to_string()];
    shop.admin.kubectl(&args).await.ok();
    wait_for("the own CA to be believed again", async || (believed(&shop).await != stranger).then_some(())).await;
    gate.wait_until_ready().await;
    // Garbage in the Secret is replaced, too.
    let garbage = json!({"data": {"signer.key": STANDARD.encode("x")}}).to_string();
    let before = believed(&shop).await;
    shop.kubectl(&["patch", "secret", SECRET, "--type=merge", "-p", &garbage]).await;
    wait_for("another CA", async || (believed(&shop).await != before).then_some(())).await;
    gate.wait_until_ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_of_somebody_else_is_served_and_not_touched() {
    let api = api_server::shared().await;
    let shop = Shop::open(api, "given", 0).await;
    let mode = ["--webhook-cert-mode", "secret", "--webhook-service", "hook"];
    let gate = Gate::start(&shop.admin, &shop.namespace, &shop.namespace, &mode);
    configure(&shop, &shop.namespace, gate.port, "Fail").await;
    // As cert-manager does: the Secret first, then who is believed.
    let give = async || {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let names = vec![format!("hook.{}.svc", shop.namespace), SERVICE_ADDRESS.to_owned()];
        let own = CertificateParams::new(names).unwrap().signed_by(&key, &authority).unwrap().pem();
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "type": "kubernetes.io/tls",
            "stringData": {"tls.crt": own, "tls.key": key.serialize_pem()},
        });
        shop.apply(&secret.to_string()).await;
        let bundle = STANDARD.encode(authority.pem());
        let patch = json!([{"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": bundle}]);
        let args = ["patch", "mutatingwebhookconfiguration", &shop.namespace, "--type=json", "-p", &patch.to_string()];
        shop.admin.kubectl(&args).await.ok();
        (own, authority.pem())
    };
    let caller = Caller::new(&shop.admin, &shop.namespace).await;
    for _ in 0..2 {
        let (own, authority) = give().await;
        gate.wait_until_ready().await;
        let asked = "capturedrain_webhook_requests_total{decision=\"NoPod\"} ";
        let before = gate.operator.metric(asked).await.unwrap_or_default();
        wait_for("an answer", async || {
            caller.evict("cdc-9").await;
            (gate.operator.metric(asked).await? > before).then_some(())
        })
        .await;
        assert_eq!(part(&secret(&shop).await, "tls.crt"), own);
        assert_eq!(believed(&shop).await, authority);
    }
}
