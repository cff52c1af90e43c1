//! `helm test`, as it is run: against an operator, and a webhook that is played and goes wrong in every way.

use std::{process::Stdio, sync::Arc};

use axum::{Json, Router};
use axum_server::tls_rustls::RustlsConfig;
use serde_json::{Value, json};
use tokio::{process::Command, time};

use crate::{
    api_server::{self, ApiServer, Setup, access::Access},
    authority::{Authority, Subject},
    helm::{documents, template},
    shop::{Operator, PATIENCE, wait_for},
};

const CHART: (&str, &str) = (concat!(env!("CARGO_MANIFEST_DIR"), "/charts/capturedrain-operator"), "operator");

/// The first failure's code, and what was found.
async fn selftest(access: &Access, args: &[&str], timeout: &str) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_capturedrain"));
    command.arg("operator-selftest").args(args).args(["--kubeconfig", &access.kubeconfig().display().to_string()]);
    command.args(["--timeout", timeout]).stdin(Stdio::null()).kill_on_drop(true);
    let output = time::timeout(PATIENCE, command.output()).await.expect("a command that ends").unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.code().unwrap(), said)
}

/// Plays a webhook whose answers are made so; its port.
async fn play(authority: &Authority, answer: impl Fn(&Value) -> Value + Clone + Send + Sync + 'static) -> u16 {
    let (certificate, key) = authority.sign(&Subject::new("webhook", ""));
    let tls = RustlsConfig::from_pem(certificate.into_bytes(), key.into_bytes()).await.unwrap();
    let answer = Arc::new(answer);
    let app = Router::new()
        .route("/evict", axum::routing::post(move |Json(review): Json<Value>| async move { Json(answer(&review)) }));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(axum_server::from_tcp_rustls(listener, tls).unwrap().serve(app.into_make_service()));
    port
}

/// Has evictions of nowhere asked about at a port of this machine.
async fn configure(access: &Access, name: &str, port: u16, bundle: &str) {
    let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bundle);
    let config = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [{
            "name": "evictions.capturedrain.io", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": format!("https://127.0.0.1:{port}/evict"), "caBundle": encoded},
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "nowhere"}},
            "rules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods/eviction"],
            }],
        }],
    });
    access.kubectl_with(&["apply", "-f", "-"], &config.to_string()).await.ok();
}

fn allow(review: &Value) -> Value {
    let request = &review["request"];
    let is_for_show = request["dryRun"] == true && request["subResource"] == "eviction";
    json!({"response": {"uid": request["uid"], "allowed": is_for_show}})
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_works_passes_and_each_thing_that_is_wrong_has_its_code() {
    // The webhook's name is one of the whole cluster.
    let api = ApiServer::start().await;
    let namespace = api.namespace("selftest").await;
    let rendered =
        documents(&template(CHART, &namespace, &["webhook.enabled=true"], &["tests/selftest"]).await.unwrap());
    let (pods, rights): (Vec<_>, Vec<_>) = rendered.iter().partition(|document| document["kind"] == "Pod");
    for document in rights {
        api.admin().kubectl_with(&["apply", "-f", "-"], &document.to_string()).await.ok();
    }
    let access = api.service_account(&namespace, "operator-selftest").await;
    let args = pods[0]["spec"]["containers"][0]["args"].as_array().unwrap();
    let args: Vec<_> = args.iter().map(|arg| arg.as_str().unwrap()).collect();
    assert_eq!(args[0], "operator-selftest");
    let args: Vec<_> = args.into_iter().skip(1).filter(|arg| !arg.starts_with("--timeout")).collect();
    let check = async |code: i32, words: &str| {
        let said = wait_for(words, async || {
            // Rights take a moment to hold.
            Some(selftest(&access, &args, "0s").await).filter(|(_, said)| !said.contains("forbidden"))
        })
        .await;
        assert_eq!((said.0, said.1.contains(words)), (code, true), "{}", said.1);
    };
    check(3, "there is no Lease").await;
    let mut operator = Operator::start(api.admin(), &namespace, &["--lease-name", "capturedrain-operator"]);
    operator.wait_until_leading().await;
    let webhook = format!("{namespace}.operator");
    check(3, &format!("MutatingWebhookConfiguration {webhook} cannot be read")).await;
    let (own, other) = (Authority::new("own"), Authority::new("other"));
    let port = play(&own, allow).await;
    for (port, bundle, code, words) in [
        (port, String::new(), 12, "has no caBundle"),
        (1, own.pem(), 5, "does not answer"),
        (port, other.pem(), 10, "is not believed by the caBundle"),
        (play(&own, |_| json!("what?")).await, own.pem(), 12, "not as a webhook does"),
        (play(&own, |asked| json!({"response": {"uid": asked["request"]["uid"]}})).await, own.pem(), 12, "denies"),
        (port, own.pem() + &other.pem(), 0, "evictions.capturedrain.io answers"),
    ] {
        configure(api.admin(), &webhook, port, &bundle).await;
        check(code, words).await;
    }
    operator.terminate().await;
    check(3, "nobody holds Lease").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_waits_for_an_operator_that_is_about_to_lead() {
    let api = api_server::shared().await;
    let namespace = api.namespace("soon").await;
    let args = ["--lease-namespace", &namespace];
    let (said, operator) = tokio::join!(selftest(api.admin(), &args, "50s"), async {
        let operator = Operator::start(api.admin(), &namespace, &[]);
        operator.wait_until_leading().await;
        operator
    });
    assert_eq!(said.0, 0, "{}{}", said.1, operator.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_seen_fails_and_so_does_a_crd_that_is_missing() {
    let bare = ApiServer::start_with(Setup { crd: false, ..Setup::default() }).await;
    let namespace = bare.namespace("bare").await;
    let args = ["--lease-namespace", &namespace];
    let (code, said) = selftest(bare.admin(), &args, "0s").await;
    assert!(code == 3 && said.contains("the CRD is not installed"), "{code}: {said}");
    let nobody = bare.service_account(&namespace, "nobody").await;
    bare.install_crd().await;
    let (code, said) = selftest(&nobody, &args, "0s").await;
    assert!(code == 10 && said.contains("forbidden"), "{code}: {said}");
}
