//! What a real API server makes of the CRD: what it refuses and in which words, what it explains, and who may write what.

use kube::{
    Api,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::api_server::{self, access::Access};

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/examples");

async fn drains(access: &Access, namespace: &str) -> Api<DynamicObject> {
    let kind = ApiResource::erase::<capturedrain::resource::CaptureDrain>(&());
    Api::namespaced_with(access.client().await, namespace, &kind)
}

fn object(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "capturedrain.io/v1alpha1", "kind": "CaptureDrain", "metadata": {"name": name}, "spec": spec})
}

fn drain(spec: &Value) -> DynamicObject {
    serde_json::from_value(object("x", spec)).unwrap()
}

fn good() -> Value {
    json!({"clusterRef": {"serviceName": "cdc"}, "target": {"podName": "cdc-0"}})
}

/// What the server says against it.
fn refusal<T>(answer: Result<T, kube::Error>) -> Option<String> {
    match answer {
        Ok(_) => None,
        Err(kube::Error::Api(status)) if status.code == 422 => Some(status.message),
        Err(error) => panic!("{error}"),
    }
}

/// Words as they are, whatever the lines.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn specs_are_judged_as_apply_judges_them() {
    let api = api_server::shared().await;
    let namespace = api.namespace("specs").await;
    let drains = drains(api.admin(), &namespace).await;
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let cases: Vec<Value> = serde_yaml::from_str(include_str!("../support/specs.yaml")).unwrap();
    let mut wrong = Vec::new();
    for case in &cases {
        let said = refusal(drains.create(&dry, &drain(&case["spec"])).await);
        match (&said, case["says"].as_str()) {
            (None, None) => {}
            (Some(said), Some(says)) if said.contains(says) => {}
            _ => wrong.push(format!("{case}: {said:?}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn who_is_drained_cannot_be_changed_and_how_long_it_takes_can() {
    let api = api_server::shared().await;
    let namespace = api.namespace("change").await;
    let drains = drains(api.admin(), &namespace).await;
    drains.create(&PostParams::default(), &drain(&good())).await.unwrap();
    let change = async |spec: Value| {
        refusal(drains.patch("x", &PatchParams::default(), &Patch::Merge(json!({ "spec": spec }))).await)
    };
    for (spec, says) in [
        (json!({"target": {"podName": "cdc-1"}}), "target cannot be changed: make a new CaptureDrain"),
        (json!({"target": {"podUID": "1"}}), "target cannot be changed: make a new CaptureDrain"),
        (json!({"target": {"podName": null, "captureID": "a"}}), "target cannot be changed: make a new CaptureDrain"),
        (json!({"clusterRef": {"serviceName": "other"}}), "clusterRef cannot be changed: make a new CaptureDrain"),
        (json!({"clusterRef": {"kind": "TiCDC"}}), "clusterRef cannot be changed: make a new CaptureDrain"),
        (json!({"onDeadline": "Proceed"}), "onDeadline Proceed needs a deadline"),
    ] {
        let said = change(spec.clone()).await.unwrap_or_default();
        assert!(said.contains(says), "{spec}: {said}");
    }
    assert_eq!(change(json!({"deadlineSeconds": 60, "onDeadline": "Proceed", "reason": "haste"})).await, None);
}

#[tokio::test]
async fn kubectl_explains_what_to_write() {
    let admin = api_server::shared().await.admin();
    for (field, says) in [
        ("", "Empties a capture of a change-data-capture cluster before its pod goes away"),
        (".spec.onDeadline", "ENUM: Hold Proceed"),
        (".spec.onDeadline", "Hold keeps the pod"),
        (".spec.onDeadline", "Proceed lets the pod go with work left"),
        (".spec.clusterRef.kind", "TiCDC is TiCDC's open API"),
        (".spec.target", "write one of podName and captureID"),
        (".spec.deadlineSeconds", "in seconds from its start: 1 to 31536000"),
        (".status.progress", "An unknown number is absent, never 0"),
    ] {
        let told = admin.kubectl(&["explain", &format!("capturedrain{field}")]).await.ok();
        assert!(words(&told).contains(says), "{field}: {told}");
    }
    // Nothing goes without a word.
    let whole = admin.kubectl(&["explain", "capturedrain", "--recursive"]).await.ok();
    assert!(!whole.contains("Auto-generated"), "{whole}");
    let spec = admin.kubectl(&["explain", "capturedrain.spec"]).await.ok();
    assert!(!spec.contains("<no description>"), "{spec}");
}

#[tokio::test]
async fn kubectl_shows_how_drains_stand() {
    let api = api_server::shared().await;
    let namespace = api.namespace("columns").await;
    let admin = api.admin();
    let drains = drains(admin, &namespace).await;
    drains.create(&PostParams::default(), &drain(&good())).await.unwrap();
    let get = async |what: &[&str]| admin.kubectl(&[&["get", "-n", &namespace], what].concat()).await.ok();
    // What is unknown is not shown as 0.
    let shown = get(&["cdrain"]).await;
    let lines: Vec<_> = shown.lines().map(words).collect();
    assert_eq!(lines[0], "NAME POD PHASE LIVENESS MAINTAINERS DISPATCHERS AGE");
    assert!(lines[1].starts_with("x cdc-0 ") && lines[1].split(' ').count() == 3, "{shown}");
    let remaining = json!({"maintainers": 0, "dispatchers": 17});
    let status = json!({"captureID": "a-capture", "phase": "Draining", "liveness": "Draining",
        "progress": {"remaining": remaining}});
    drains.patch_status("x", &PatchParams::default(), &Patch::Merge(json!({ "status": status }))).await.unwrap();
    let shown = get(&["cdrain"]).await;
    assert!(words(&shown).contains("x cdc-0 Draining Draining 0 17 "), "{shown}");
    let shown = get(&["capturedrains", "-o", "wide"]).await;
    assert!(words(&shown).contains("NAME POD CAPTURE PHASE "), "{shown}");
    assert!(words(&shown).contains("x cdc-0 a-capture Draining "), "{shown}");
    // By the category, and by the singular that is called alike.
    for what in [&["capturedrain"][..], &["capturedrain", "x"], &["capturedrain/x"]] {
        assert!(get(what).await.contains("cdc-0"), "{what:?}");
    }
}

#[tokio::test]
async fn status_and_spec_are_written_apart() {
    let api = api_server::shared().await;
    let namespace = api.namespace("status").await;
    let drains = drains(api.admin(), &namespace).await;
    let made = drains.create(&PostParams::default(), &drain(&good())).await.unwrap();
    let both = json!({"spec": {"reason": "other"}, "status": {"phase": "Draining"}});
    let by_status = drains.patch_status("x", &PatchParams::default(), &Patch::Merge(&both)).await.unwrap();
    assert_eq!(
        (&by_status.data["spec"]["reason"], &by_status.data["status"]["phase"]),
        (&Value::Null, &json!("Draining"))
    );
    assert_eq!(by_status.metadata.generation, made.metadata.generation);
    let both = json!({"spec": {"reason": "other"}, "status": {"phase": "Drained"}});
    let by_spec = drains.patch("x", &PatchParams::default(), &Patch::Merge(&both)).await.unwrap();
    assert_eq!(
        (&by_spec.data["spec"]["reason"], &by_spec.data["status"]["phase"]),
        (&json!("other"), &json!("Draining"))
    );
    assert_eq!(by_spec.metadata.generation, made.metadata.generation.map(|generation| generation + 1));
    let twice = json!({"status": {"requesters": ["ann", "ann"]}});
    let said = refusal(drains.patch_status("x", &PatchParams::default(), &Patch::Merge(&twice)).await);
    assert!(said.is_some_and(|said| said.contains("requesters")));
}

#[tokio::test]
async fn misspelt_fields_are_refused() {
    let api = api_server::shared().await;
    let namespace = api.namespace("strict").await;
    for (field, says) in [("deadlineSecond", "spec.deadlineSecond"), ("ttl", "spec.ttl")] {
        let mut spec = good();
        spec[field] = json!(1);
        let apply = ["apply", "-n", &namespace, "-f", "-"];
        let said = api.admin().kubectl_with(&apply, &object("x", &spec).to_string()).await.refused();
        assert!(said.contains(&format!("unknown field \"{says}\"")), "{said}");
    }
}

#[tokio::test]
async fn two_writers_keep_conditions_of_their_own() {
    let api = api_server::shared().await;
    let namespace = api.namespace("conditions").await;
    let drains = drains(api.admin(), &namespace).await;
    drains.create(&PostParams::default(), &drain(&good())).await.unwrap();
    let condition = |kind: &str, status: &str| {
        json!({"type": kind, "status": status, "reason": "Test", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    let write = async |manager: &str, conditions: &[Value]| {
        let part = json!({"apiVersion": "capturedrain.io/v1alpha1", "kind": "CaptureDrain",
            "status": {"conditions": conditions}});
        let written = drains.patch_status("x", &PatchParams::apply(manager), &Patch::Apply(part)).await.unwrap();
        let conditions = written.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let mut all: Vec<_> = conditions.iter().map(|is| format!("{}={}", is["type"], is["status"])).collect();
        all.sort();
        all.join(" ").replace('"', "")
    };
    assert_eq!(write("one", &[condition("Drained", "False")]).await, "Drained=False");
    assert_eq!(write("other", &[condition("Noticed", "True")]).await, "Drained=False Noticed=True");
    assert_eq!(write("one", &[condition("Drained", "True")]).await, "Drained=True Noticed=True");
    assert_eq!(write("other", &[]).await, "Drained=True");
}

#[tokio::test]
async fn examples_are_accepted() {
    let api = api_server::shared().await;
    let namespace = api.namespace("examples").await;
    let files: Vec<_> = std::fs::read_dir(EXAMPLES).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 3);
    for path in files {
        let file = path.display().to_string();
        api.admin().kubectl(&["apply", "--dry-run=server", "-n", &namespace, "-f", &file]).await.ok();
        capturedrain::resource::parse(&std::fs::read_to_string(&path).unwrap(), &file).unwrap();
    }
}
