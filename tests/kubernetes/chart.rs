//! The operator's chart: what it renders is accepted by a real API server, its pods are restricted, and its rights are
//! enough for a whole drain and no more.

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::{Api, Client, api::PostParams};
use serde_json::{Value, json};
use tokio::{process::Command, time};

use crate::{
    api_server::{self, ApiServer, access::Access},
    gate::{Caller, Gate, configure, settle},
    helm::{assert_restricted, documents, helm, of_kind, template},
    shop::{PATIENCE, Shop, wait_for},
};

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/capturedrain-operator");
/// The release, and what its objects are called.
const NAME: &str = "operator";

/// The chart with values as `--set` takes them; `only` are templates, none means all.
async fn render(namespace: &str, values: &[&str], only: &[&str]) -> Result<String, String> {
    template((CHART, NAME), namespace, values, only).await
}

async fn documents_of(namespace: &str, values: &[&str]) -> Vec<Value> {
    documents(&render(namespace, values, &[]).await.unwrap())
}

/// Applies the `ServiceAccount` and the rights that the chart gives it, and lets in whoever has its token.
async fn account_with(api: &ApiServer, namespace: &str, values: &[&str]) -> Access {
    let rendered = render(namespace, values, &["serviceaccount", "rbac", "roles-for-people"]).await.unwrap();
    api.admin().kubectl_with(&["apply", "-f", "-"], &rendered).await.ok();
    let access = api.service_account(namespace, NAME).await;
    let client = access.client().await;
    wait_for("the rights to hold", async || {
        may(&client, namespace, "create coordination.k8s.io leases").await.then_some(())
    })
    .await;
    access
}

/// The operator's own account, with the rights that the chart gives an operator of one namespace.
pub(crate) async fn account(api: &ApiServer, namespace: &str) -> Access {
    account_with(api, namespace, &[&format!("watchNamespace={namespace}")]).await
}

/// Whether somebody may do this: verb, API group (`-` is the core's), resource with its subresource, and perhaps a name.
async fn may(client: &Client, namespace: &str, what: &str) -> bool {
    let words: Vec<_> = what.split(' ').collect();
    let (resource, subresource) = words[2].split_once('/').unwrap_or((words[2], ""));
    let given = |word: &str| (!word.is_empty() && word != "-").then(|| word.to_owned());
    let attributes = ResourceAttributes {
        verb: given(words[0]),
        group: given(words[1]),
        resource: given(resource),
        subresource: given(subresource),
        name: words.get(3).and_then(|name| given(name)),
        namespace: given(namespace),
        ..ResourceAttributes::default()
    };
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), non_resource_attributes: None };
    let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
    let answer = Api::all(client.clone()).create(&PostParams::default(), &review).await.unwrap();
    answer.status.is_some_and(|status| status.allowed)
}

async fn check_rights(access: &Access, namespace: &str, allowed: &[&str], denied: &[&str]) {
    let client = access.client().await;
    for what in allowed {
        assert!(may(&client, namespace, what).await, "{what} in {namespace:?} is not allowed");
    }
    for what in denied {
        assert!(!may(&client, namespace, what).await, "{what} in {namespace:?} is allowed");
    }
}

#[tokio::test]
async fn the_chart_is_clean() {
    helm(&["lint", "--strict", CHART]).await.unwrap();
}

#[tokio::test]
async fn bad_values_are_refused_with_their_place() {
    for (value, says) in [
        ("replicas=two", "'/replicas': got string, want integer"),
        ("replica=2", "additional properties 'replica' not allowed"),
        ("antiAffinity=always", "'/antiAffinity': value must be one of 'required', 'preferred', 'none'"),
        ("image.digest=latest", "'/image/digest': 'latest' does not match pattern"),
        ("watchNamespace=a/b", "'/watchNamespace': 'a/b' does not match pattern"),
        ("secretNames.shop=cdc-tls", "'/secretNames/shop': got string, want array"),
        ("lease.duration=15", "'/lease/duration'"),
        ("uninstall.timeoutSeconds=5", "'/uninstall/timeoutSeconds': minimum: got 5, want 10"),
        ("prometheusRule.runbooks=", "'/prometheusRule/runbooks': minLength: got 0, want 1"),
        ("dashboard=true", "'/dashboard': got boolean, want object"),
        ("webhook.failurePolicy=Maybe", "'/webhook/failurePolicy': value must be one of 'Ignore', 'Fail'"),
        ("webhook.podNames=it's", "'/webhook/podNames': 'it\\'s' does not match pattern"),
    ] {
        let said = render("shop", &[value], &[]).await.unwrap_err();
        assert!(said.contains(says), "{value}: {said}");
    }
}

#[tokio::test]
async fn whatever_the_values_an_api_server_accepts_it() {
    let api = api_server::shared().await;
    let (namespace, watched) = (api.namespace("release").await, api.namespace("watched").await);
    let watch = format!("watchNamespace={watched}");
    let secrets = format!("secretNames.{watched}={{a,b.c}}");
    let digest = format!("image.digest=sha256:{}", "0".repeat(64));
    let peer = "networkPolicy.from[0].namespaceSelector.matchLabels.a=b";
    for values in [
        &[][..],
        &[&watch, &secrets, "rbac.nodes=false", "rbac.ticdc=false", "rbac.aggregate=false"],
        &["crds.install=false", "antiAffinity=preferred", "podDisruptionBudget.enabled=false", "replicas=1"],
        &["networkPolicy.enabled=true", peer, "antiAffinity=none", &digest, "podLabels.a=b", "podAnnotations.a=b"],
        &["serviceAccount.create=false", "serviceAccount.name=default", "rbac.create=false", "nodeSelector.a=b"],
        &["webhook.enabled=false"],
        &["webhook.failurePolicy=Fail", "webhook.namespaceSelector.matchLabels.a=b", "webhook.podNames=^cdc-"],
        &["priorityClassName=system-cluster-critical", "tolerations[0].operator=Exists", "image.pullSecrets[0].name=a"],
        &["dashboard.enabled=true", "dashboard.annotations.folder=a", "uninstall.enabled=false"],
    ] {
        let rendered = render(&namespace, values, &[]).await.unwrap();
        // A pod of `helm test` is refused without its account.
        let rendered_documents = documents(&rendered);
        for account in of_kind(&rendered_documents, "ServiceAccount") {
            api.admin().kubectl_with(&["apply", "-f", "-"], &account.to_string()).await.ok();
        }
        let said = api.admin().kubectl_with(&["apply", "--dry-run=server", "-f", "-"], &rendered).await;
        assert_eq!(said.code, 0, "{values:?}: {}", said.stderr);
    }
}

#[tokio::test]
async fn what_is_asked_for_is_there() {
    let documents = documents_of("shop", &["serviceMonitor.enabled=true", "networkPolicy.enabled=true"]).await;
    let crd = of_kind(&documents, "CustomResourceDefinition")[0];
    assert_eq!(crd["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
    let original: Value =
        serde_yaml::from_str(include_str!("../../crds/capturedrain.yaml")).expect("the CRD of this project");
    assert_eq!(crd["spec"], original["spec"], "the template changes the CRD");
    let deployment = of_kind(&documents, "Deployment")[0];
    assert_eq!(deployment["spec"]["replicas"], 2);
    assert_eq!(deployment["spec"]["strategy"]["rollingUpdate"], json!({"maxSurge": 0, "maxUnavailable": 1}));
    let apart = &deployment["spec"]["template"]["spec"]["affinity"]["podAntiAffinity"];
    let selector = &deployment["spec"]["selector"]["matchLabels"];
    let required = &apart["requiredDuringSchedulingIgnoredDuringExecution"][0];
    assert_eq!(&required["labelSelector"]["matchLabels"], selector);
    for (kind, at) in [
        ("PodDisruptionBudget", "/spec/selector"),
        ("NetworkPolicy", "/spec/podSelector"),
        ("ServiceMonitor", "/spec/selector"),
    ] {
        let found = of_kind(&documents, kind)[0];
        assert_eq!(&found.pointer(at).unwrap()["matchLabels"], selector, "{kind}");
    }
    let service = of_kind(&documents, "Service")[0];
    assert_eq!((&service["spec"]["selector"], &service["metadata"]["namespace"]), (selector, &json!("shop")));
    let without = [
        "crds.install=false",
        "podDisruptionBudget.enabled=false",
        "rbac.create=false",
        "rbac.aggregate=false",
        "webhook.enabled=false",
        "uninstall.enabled=false",
    ];
    let left = documents_of("shop", &without).await;
    let left = left.iter().filter(|document| document["metadata"]["annotations"]["helm.sh/hook"] != "test");
    let kinds: Vec<_> = left.map(|document| document["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["ServiceAccount", "Service", "Deployment", "Lease"]);
}

#[tokio::test]
async fn the_command_line_of_the_chart_is_one_that_the_operator_takes() {
    let documents = documents_of("shop", &["watchNamespace=shop"]).await;
    let container = &of_kind(&documents, "Deployment")[0]["spec"]["template"]["spec"]["containers"][0];
    let args: Vec<_> = container["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()).collect();
    assert!(args.contains(&"--namespace=shop"), "{args:?}");
    // Options are read before the kubeconfig is, which is missing here.
    let mut command = Command::new(env!("CARGO_BIN_EXE_capturedrain"));
    command.args(&args).args(["--kubeconfig", "/nonexistent"]).env("POD_NAME", "x").kill_on_drop(true);
    let output = time::timeout(PATIENCE, command.output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(12), "{said}");
    assert!(said.contains("/nonexistent"), "{said}");
}

#[tokio::test]
async fn its_pods_are_restricted() {
    let api = api_server::shared().await;
    let namespace = api.namespace("restricted").await;
    let account = render(&namespace, &[], &["serviceaccount"]).await.unwrap();
    api.admin().kubectl_with(&["apply", "-f", "-"], &account).await.ok();
    let documents = documents_of(&namespace, &[]).await;
    assert_restricted(api, &namespace, &of_kind(&documents, "Deployment")[0]["spec"]["template"]).await;
}

#[tokio::test]
async fn no_role_takes_more_than_it_names() {
    for values in [&["secretNames.shop={a}"][..], &["secretNames.shop={a}", "watchNamespace=shop"]] {
        let documents = documents_of("shop", values).await;
        let each = documents.iter().filter(|document| document["kind"].as_str().unwrap().ends_with("Role"));
        let rules: Vec<_> = each.flat_map(|role| role["rules"].as_array().unwrap().clone()).collect();
        assert!(rules.len() > 8, "{rules:?}");
        for rule in rules {
            assert!(!rule.to_string().contains('*'), "{rule}");
            if rule["resources"].to_string().contains("secrets") {
                let of_webhook = json!(["get", "list", "watch", "update"]);
                let (names, verbs) = (&rule["resourceNames"], &rule["verbs"]);
                let is_named = *names == json!(["a"]) && *verbs == json!(["get"])
                    || *names == json!(["operator-webhook"]) && *verbs == of_webhook;
                assert!(is_named || *verbs == json!(["create"]), "{rule}");
            }
        }
    }
}

/// What an operator may do where it looks after drains, and what it may not do anywhere.
const ITS_WORK: &[&str] = &[
    "list capturedrain.io capturedrains",
    "watch capturedrain.io capturedrains",
    "patch capturedrain.io capturedrains",
    "delete capturedrain.io capturedrains",
    "patch capturedrain.io capturedrains/status",
    "create capturedrain.io capturedrains",
    "watch - pods",
    "get - pods",
    "list policy poddisruptionbudgets",
    "get - services",
    "list discovery.k8s.io endpointslices",
    "create events.k8s.io events",
    "patch events.k8s.io events",
    "get pingcap.com tidbclusters",
    "list core.pingcap.com ticdcgroups",
];
const NEVER: &[&str] = &[
    "patch admissionregistration.k8s.io mutatingwebhookconfigurations other",
    "create admissionregistration.k8s.io mutatingwebhookconfigurations",
    "patch policy poddisruptionbudgets",
    "delete - pods",
    "create - pods",
    "create - pods/eviction",
    "create - pods/exec",
    "patch - pods",
    "list - secrets",
    "get - secrets other",
    "get - configmaps",
    "update - services",
    "patch - nodes",
    "delete coordination.k8s.io leases capturedrain-operator",
    "patch coordination.k8s.io leases other",
    "create rbac.authorization.k8s.io rolebindings",
    "create - serviceaccounts/token",
    "patch apiextensions.k8s.io customresourcedefinitions",
];

#[tokio::test]
async fn an_operator_of_one_namespace_has_rights_in_that_one() {
    let api = api_server::shared().await;
    let (namespace, own, other) = (api.namespace("one").await, api.namespace("one").await, api.namespace("one").await);
    let values = [format!("watchNamespace={own}"), format!("secretNames.{own}={{cdc-tls}}")];
    let access = account_with(api, &namespace, &[&values[0], &values[1]]).await;
    check_rights(&access, &own, ITS_WORK, NEVER).await;
    check_rights(&access, &own, &["get - secrets cdc-tls"], &["create coordination.k8s.io leases"]).await;
    check_rights(&access, "", &["list - nodes", "watch - nodes"], ITS_WORK).await;
    check_rights(&access, &other, &[], &[ITS_WORK, NEVER, &["get - secrets cdc-tls"]].concat()).await;
    let lease = ["create coordination.k8s.io leases", "patch coordination.k8s.io leases capturedrain-operator"];
    check_rights(&access, &namespace, &lease, &[ITS_WORK, NEVER].concat()).await;
    let hook = format!("patch admissionregistration.k8s.io mutatingwebhookconfigurations {namespace}.{NAME}");
    check_rights(&access, "", &[&hook], &[]).await;
    let secret = ["create - secrets", "update - secrets operator-webhook", "watch - secrets operator-webhook"];
    check_rights(&access, &namespace, &secret, &["update - secrets other", "delete - secrets operator-webhook"]).await;
    check_rights(&access, &own, &[], &["create - secrets", "get - secrets operator-webhook"]).await;
}

#[tokio::test]
async fn an_operator_of_all_namespaces_has_its_rights_everywhere_and_the_lease_in_its_own() {
    let api = api_server::shared().await;
    let (namespace, other) = (api.namespace("all").await, api.namespace("all").await);
    let access = account_with(api, &namespace, &[]).await;
    check_rights(&access, &other, ITS_WORK, &[NEVER, &["create coordination.k8s.io leases"]].concat()).await;
    check_rights(&access, "", &["list - nodes", "watch capturedrain.io capturedrains"], NEVER).await;
}

#[tokio::test]
async fn people_see_drains_or_make_them_and_never_write_the_status() {
    let api = api_server::shared().await;
    let namespace = api.namespace("people").await;
    account(api, &namespace).await;
    for (name, allowed, denied) in [
        ("view", &["list capturedrain.io capturedrains"][..], &["create capturedrain.io capturedrains"][..]),
        ("edit", &["create capturedrain.io capturedrains"], &["patch capturedrain.io capturedrains/status"]),
    ] {
        let role = format!("--clusterrole={namespace}:{NAME}-{name}");
        let user = format!("--user={name}");
        api.admin().kubectl(&["create", "rolebinding", name, &role, &user, "-n", &namespace]).await.ok();
        let access = api.user(name, "");
        let client = access.client().await;
        wait_for("the role to hold", async || may(&client, &namespace, allowed[0]).await.then_some(())).await;
        check_rights(&access, &namespace, allowed, denied).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn its_rights_are_enough_for_a_whole_drain() {
    let api = api_server::shared().await;
    let mut shop = Shop::open(api, "rights", 40).await;
    let access = account(api, &shop.namespace).await;
    // The webhook of the chart, at an address instead of a Service.
    let (name, secret) = (format!("{}.{NAME}", shop.namespace), format!("{NAME}-webhook"));
    let gate = Gate::start(&access, &shop.namespace, &name, &["--webhook-secret", &secret]);
    configure(&shop, &name, gate.port, "Fail").await;
    gate.wait_until_ready().await;
    let operator = &gate.operator;
    operator.wait_until_leading().await;
    let target = shop.a_follower().await;
    settle(&shop, &target).await;
    let caller = Caller::new(&shop.admin, &shop.namespace).await;
    caller.evict_until(&target, 429).await;
    shop.kubectl(&["wait", "--for=condition=Drained", "--timeout=60s", "cdrain", "--all"]).await;
    shop.kubectl(&["delete", "cdrain", "--all"]).await;
    wait_for("the capture to be back at work", async || {
        (shop.capture(&target).await?["liveness"] == "Alive").then_some(())
    })
    .await;
    shop.drain("x", &target, json!({"ttlSecondsAfterFinished": 0})).await;
    shop.kubectl(&["wait", "--for=condition=Drained", "--timeout=60s", "cdrain/x"]).await;
    shop.delete_pod(&target).await;
    wait_for("the drain to end and be deleted", async || shop.object("x").await.is_none().then_some(())).await;
    let told = wait_for("the last event", async || {
        Some(shop.events("x").await).filter(|events| events.iter().any(|reason| reason == "DrainSucceeded"))
    })
    .await;
    assert_eq!(told, ["DrainStarted", "Drained", "DrainSucceeded"], "{}", operator.log());
    let log = operator.log();
    assert!(!log.to_lowercase().contains("forbidden"), "{log}");
}
