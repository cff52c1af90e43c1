//! Helm, and what it makes of a chart.

use std::{env, process::Stdio};

use serde_json::Value;
use tokio::{process::Command, time};

use crate::{api_server::ApiServer, shop::PATIENCE};

/// What helm prints, or complains of.
pub(crate) async fn helm(args: &[&str]) -> Result<String, String> {
    let mut command = Command::new(env::var("CAPTUREDRAIN_HELM").unwrap_or_else(|_| "helm".to_owned()));
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    let output =
        time::timeout(PATIENCE, command.output()).await.expect("helm ends").expect("`make tools` installs helm");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr) + &text(&output.stdout)) }
}

/// A chart with values as `--set` takes them; `only` are templates, none means all.
pub(crate) async fn template(
    (chart, name): (&str, &str),
    namespace: &str,
    values: &[&str],
    only: &[&str],
) -> Result<String, String> {
    let full = format!("fullnameOverride={name}");
    let only: Vec<_> = only.iter().map(|template| format!("templates/{template}.yaml")).collect();
    let mut args = vec!["template", name, chart, "--namespace", namespace, "--set", &full];
    args.extend(values.iter().flat_map(|value| ["--set", value]));
    args.extend(only.iter().flat_map(|template| ["--show-only", template.as_str()]));
    helm(&args).await
}

pub(crate) fn documents(rendered: &str) -> Vec<Value> {
    let all: Vec<Value> = serde_yaml::from_multiple(rendered).unwrap();
    all.into_iter().filter(|document| !document.is_null()).collect()
}

pub(crate) fn of_kind<'a>(documents: &'a [Value], kind: &str) -> Vec<&'a Value> {
    documents.iter().filter(|document| document["kind"] == kind).collect()
}

/// The document of this kind and name.
pub(crate) fn named<'a>(documents: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = documents.iter().find(|document| document["kind"] == kind && document["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("there is no {kind} {name}"))
}

/// Holds a template of pods to restricted pod security, as the API server enforces it.
pub(crate) async fn assert_restricted(api: &ApiServer, namespace: &str, template: &Value) {
    let admin = api.admin();
    let label = "pod-security.kubernetes.io/enforce=restricted";
    admin.kubectl(&["label", "--overwrite", "namespace", namespace, label]).await.ok();
    let mut pod = template.clone();
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    pod["metadata"]["name"] = "x".into();
    let create = ["create", "--dry-run=server", "-n", namespace, "-f", "-"];
    admin.kubectl_with(&create, &pod.to_string()).await.ok();
    for container in 0..pod["spec"]["containers"].as_array().unwrap().len() {
        assert_eq!(pod["spec"]["containers"][container]["securityContext"]["readOnlyRootFilesystem"], true);
        let mut worse = pod.clone();
        worse["spec"]["containers"][container]["securityContext"]["allowPrivilegeEscalation"] = true.into();
        let said = admin.kubectl_with(&create, &worse.to_string()).await.refused();
        assert!(said.contains("allowPrivilegeEscalation"), "{said}");
    }
}
