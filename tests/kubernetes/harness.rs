//! The servers of these tests: RBAC is real, a restart keeps what was there, and nothing outlives the tests.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use serde_json::json;
use tokio::time;

use crate::api_server::{self, ApiServer, Setup};

const PATIENCE: Duration = Duration::from_mins(1);

#[tokio::test]
async fn somebody_may_do_what_was_granted_and_nothing_else() {
    let api = api_server::shared().await;
    let namespace = api.namespace("rbac").await;
    let reader = api.service_account(&namespace, "reader").await;
    let list = ["get", "configmaps", "-n", &namespace];
    let refusal = reader.kubectl(&list).await.refused();
    assert!(refusal.contains(&format!("system:serviceaccount:{namespace}:reader")), "{refusal}");
    let admin = api.admin();
    let role = ["create", "role", "reader", "--verb=list", "--resource=configmaps", "-n", &namespace];
    admin.kubectl(&role).await.ok();
    let account = format!("--serviceaccount={namespace}:reader");
    admin.kubectl(&["create", "rolebinding", "reader", "--role=reader", &account, "-n", &namespace]).await.ok();
    let configs: Api<ConfigMap> = Api::namespaced(reader.client().await, &namespace);
    time::timeout(PATIENCE, async {
        while configs.list(&ListParams::default()).await.is_err() {
            time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("RBAC learns of the binding");
    let config = serde_json::from_value(json!({"metadata": {"name": "x"}})).unwrap();
    let refusal = configs.create(&PostParams::default(), &config).await.unwrap_err();
    assert!(matches!(&refusal, kube::Error::Api(status) if status.code == 403), "{refusal}");
    let person = api.user("ann", "sre").kubectl(&["auth", "whoami"]).await.ok();
    assert!(person.contains("ann") && person.contains("sre"), "{person}");
}

#[tokio::test]
async fn a_restarted_server_has_the_same_objects_at_the_same_place() {
    let mut api = ApiServer::start_with(Setup { controllers: true, ..Setup::default() }).await;
    let namespace = api.namespace("restart").await;
    let client = api.admin().client().await;
    let pods: Api<Pod> = Api::namespaced(client, &namespace);
    let pod = json!({"metadata": {"name": "x"}, "spec": {"containers": [{"name": "x", "image": "x"}]}});
    let made = pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    api.stop();
    pods.get("x").await.unwrap_err();
    api.start_again().await;
    assert_eq!(pods.get("x").await.unwrap().metadata.uid, made.metadata.uid);
    // The controllers have found it again, too.
    api.namespace("after").await;
}

/// Whether a process runs. One that has ended and was not waited for does not.
fn runs(pid: u32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Not a test by itself: the test below starts it, and kills it.
#[tokio::test]
#[ignore = "started by another test"]
async fn holds_servers_until_it_is_killed() {
    let api = ApiServer::start_with(Setup { controllers: true, ..Setup::default() }).await;
    let folder = api.file("");
    println!("\nheld {folder} {}", api.pids().iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn nothing_outlives_a_test_that_is_killed() {
    let mut test = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "harness::holds_servers_until_it_is_killed", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = BufReader::new(test.stdout.take().unwrap());
    let held = stdout.lines().map_while(Result::ok).find_map(|line| Some(line.strip_prefix("held ")?.to_owned()));
    test.kill().unwrap();
    test.wait().unwrap();
    let held = held.expect("servers that run");
    let mut words = held.split(' ');
    let folder = Path::new(words.next().unwrap());
    let pids: Vec<u32> = words.map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(pids.len(), 3, "{held}");
    time::timeout(PATIENCE, async {
        while pids.iter().any(|pid| runs(*pid)) || folder.exists() {
            time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("left over: {held}"));
}
