//! The operator, installed by its chart, with its webhook in front of every eviction.

use crate::{image::CAPTUREDRAIN, nodes::Nodes, site::helm};

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/capturedrain-operator");
/// Its namespace and its release.
pub(crate) const NAMESPACE: &str = "capturedrain";
pub(crate) const RELEASE: &str = "op";

/// Installs it, or changes it, and waits until it is ready.
pub(crate) async fn install(nodes: &Nodes, values: &[&str]) {
    let image = [format!("image.repository={}", CAPTUREDRAIN.0), format!("image.tag={}", CAPTUREDRAIN.1)];
    let mut args = vec!["upgrade", "--install", RELEASE, CHART, "-n", NAMESPACE, "--create-namespace"];
    args.extend(["--wait", "--timeout", "2m", "--set", "lease.duration=5s", "--set", &image[0], "--set", &image[1]]);
    args.extend(values.iter().flat_map(|value| ["--set", value]));
    let said = helm(nodes.admin(), &args).await;
    assert!(said.code == 0, "{}{}\n{}", said.stdout, said.stderr, trouble(nodes).await);
}

/// Its pod on a node, as `pod/NAME`.
pub(crate) async fn on(nodes: &Nodes, node: &str) -> String {
    let field = format!("spec.nodeName={node}");
    let pods = ["get", "pods", "-n", NAMESPACE, "--field-selector", &field, "-o", "name"];
    let said = nodes.admin().kubectl(&pods).await.ok();
    said.lines().next().unwrap_or_else(|| panic!("no operator is on {node}")).to_owned()
}

/// Takes the last change of it back.
pub(crate) async fn rollback(nodes: &Nodes) {
    let said = helm(nodes.admin(), &["rollback", RELEASE, "-n", NAMESPACE, "--wait", "--timeout", "2m"]).await;
    assert!(said.code == 0, "{}{}\n{}", said.stdout, said.stderr, trouble(nodes).await);
}

/// Runs `helm test` of it: its exit code, and what it says.
pub(crate) async fn test(nodes: &Nodes) -> (i32, String) {
    let said = helm(nodes.admin(), &["test", RELEASE, "-n", NAMESPACE, "--timeout", "1m"]).await;
    (said.code, said.stdout + &said.stderr)
}

/// Uninstalls it.
pub(crate) async fn uninstall(nodes: &Nodes) {
    let said = helm(nodes.admin(), &["uninstall", RELEASE, "-n", NAMESPACE, "--wait", "--timeout", "3m"]).await;
    assert!(said.code == 0, "{}{}\n{}", said.stdout, said.stderr, trouble(nodes).await);
}

/// What a person would look at.
pub(crate) async fn trouble(nodes: &Nodes) -> String {
    let mut text = String::new();
    let selector = ["logs", "-l", "app.kubernetes.io/name=capturedrain-operator", "--tail=15", "--prefix"];
    for args in [&["get", "pods", "-o", "wide"][..], &["get", "events", "--sort-by=.lastTimestamp"], &selector] {
        let said = nodes.admin().kubectl(&[&["-n", NAMESPACE], args].concat()).await;
        text += &(said.stdout + &said.stderr);
    }
    text
}
