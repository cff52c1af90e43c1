//! The webhook in front of evictions: what it is asked for, and that it is always there.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{EvictParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    drain::{Begun, DRAIN_MAX, begin, is},
    image::BUSYBOX,
    nodes::{self, Nodes},
    operator,
    site::{SLOW, Site, sweep},
    wait::wait_for,
};

fn rehearsal() -> EvictParams {
    EvictParams { post_options: PostParams { dry_run: true, ..PostParams::default() }, ..EvictParams::default() }
}

/// How many evictions the webhook has decided, of both replicas.
async fn decided(nodes: &Nodes) -> u64 {
    let pods = ["get", "pods", "-n", operator::NAMESPACE, "-o", "jsonpath={.items[*].status.podIP}"];
    let mut sum = 0;
    for ip in nodes.admin().kubectl(&pods).await.ok().split_whitespace() {
        let text = reqwest::get(format!("http://{ip}:8081/metrics")).await.unwrap().text().await.unwrap();
        let lines = text.lines().filter(|line| line.starts_with("capturedrain_webhook_requests_total"));
        sum += lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum::<u64>();
    }
    sum
}

#[tokio::test]
#[ignore = "on nodes: `make e2e`"]
async fn evictions_of_others_do_not_come_here() {
    let nodes = nodes::shared().await;
    operator::install(&nodes, &[]).await;
    let admin = nodes.admin();
    admin.kubectl(&["create", "namespace", "bystanders"]).await.ok();
    // The one has the name of a capture in a namespace of Kubernetes itself, the other has no such name.
    let others = [("kube-system", "bystander-0"), ("bystanders", "bystander")];
    for (namespace, name) in others {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "x", "image": BUSYBOX}]}});
        admin.kubectl_with(&["apply", "-n", namespace, "-f", "-"], &pod.to_string()).await.ok();
    }
    let before = decided(&nodes).await;
    for (namespace, name) in others {
        let pods: Api<Pod> = Api::namespaced(admin.client().await, namespace);
        pods.evict(name, &EvictParams::default()).await.unwrap();
    }
    assert_eq!(decided(&nodes).await, before, "nobody asks about those");
    let site = Site::open(&nodes, &[]).await;
    let (code, said) = site.evict("nobody-7", &EvictParams::default()).await;
    assert_eq!(code, 404, "{said}");
    assert_eq!(decided(&nodes).await, before + 1, "about this one somebody does");
    sweep(admin, "bystanders");
    site.close().await;
}

#[tokio::test]
#[ignore = "on nodes: `make e2e`"]
async fn ten_evictions_at_once_make_one_drain() {
    let nodes = nodes::shared().await;
    operator::install(&nodes, &[]).await;
    let site = Site::open(&nodes, SLOW).await;
    site.fill().await;
    let evict = EvictParams::default();
    let answers = join_all((0..10).map(|_| site.evict("cdc-1", &evict))).await;
    assert!(answers.iter().all(|(code, _)| *code == 429), "{answers:?}");
    assert_eq!(site.drains().await.len(), 1, "{:?}", site.drains().await);
    site.close().await;
}

#[tokio::test]
#[ignore = "on nodes: `make e2e`"]
async fn what_a_person_withdrew_stays_withdrawn_until_the_glass_is_broken() {
    let nodes = nodes::shared().await;
    operator::install(&nodes, &[]).await;
    let site = Site::open(&nodes, SLOW).await;
    site.fill().await;
    let (uid, evict) = (site.uid("cdc-1").await, EvictParams::default());
    assert_eq!(site.evict("cdc-1", &evict).await.0, 429);
    let begun = site.drain_of(&uid, "a drain of it", |drain| drain["status"]["epoch"].is_u64()).await;
    site.run(&["cancel", "cdc-1"]).await.ok();
    site.drain_of(&uid, "its end", |drain| is(drain, "Finished", "True")).await;
    let (code, said) = site.evict("cdc-1", &evict).await;
    assert_eq!(code, 429);
    assert!(said.contains(begun["metadata"]["name"].as_str().unwrap()) && said.contains("withdrawn"), "{said}");
    site.kubectl(&["annotate", "pod", "cdc-1", "capturedrain.io/break-glass=true"]).await.ok();
    wait_for(DRAIN_MAX, "the glass to break", async || {
        let (code, _) = site.evict("cdc-1", &evict).await;
        (code == 201).then_some(())
    })
    .await;
    let told = async || site.kubectl(&["get", "events"]).await.stdout.contains("BreakGlassUsed").then_some(());
    wait_for(DRAIN_MAX, "an event", told).await;
    site.close().await;
}

#[tokio::test]
#[ignore = "on nodes: `make e2e`"]
async fn a_container_that_restarts_after_the_proof_is_drained_again() {
    let nodes = nodes::shared().await;
    operator::install(&nodes, &[]).await;
    let site = Site::open(&nodes, &[]).await;
    let (uid, evict) = (site.uid("cdc-1").await, EvictParams::default());
    site.ask_for_drain("cdc-1").await;
    site.drain_of(&uid, "the proof", |drain| is(drain, "Drained", "True")).await;
    let pod = site.pod("cdc-1").await;
    nodes.node(pod["spec"]["nodeName"].as_str().unwrap()).kill_container(&pod);
    site.wait_for_liveness("cdc-1", "Alive").await;
    let (code, said) = site.evict("cdc-1", &evict).await;
    assert_eq!(code, 429, "{said}");
    wait_for(DRAIN_MAX, "the eviction", async || (site.evict("cdc-1", &evict).await.0 == 201).then_some(())).await;
    site.close().await;
}

/// Ends all replicas of the operator at once, without a word.
async fn kill(nodes: &Nodes) {
    let own = ["-n", operator::NAMESPACE];
    nodes.admin().kubectl(&[&["scale", "deployment", "--all", "--replicas=0"], &own[..]].concat()).await.ok();
    let pods = ["delete", "pods", "--all", "--force", "--grace-period=0"];
    nodes.admin().kubectl(&[&pods, &own[..]].concat()).await.ok();
}

#[tokio::test]
#[ignore = "on nodes: `make e2e`"]
async fn a_dead_operator_blocks_nothing_unless_that_is_wanted() {
    let nodes = nodes::shared().await;
    for policy in ["Ignore", "Fail"] {
        operator::install(&nodes, &[&format!("webhook.failurePolicy={policy}")]).await;
        let site = Site::open(&nodes, SLOW).await;
        let Begun { node, capture, uid, drain, .. } = begin(&site).await;
        kill(&nodes).await;
        let (code, said) = drain.end(DRAIN_MAX).await;
        if policy == "Ignore" {
            assert_eq!(code, 0, "{said}\n{}", site.trouble().await);
            assert_eq!(site.end_of(&capture).await, "Drained", "by its hook");
        } else {
            assert_ne!(code, 0, "{said}");
            assert_eq!(site.uid(&capture).await, uid, "{said}");
        }
        nodes.uncordon(node).await;
        operator::install(&nodes, &[]).await;
        site.close().await;
    }
}

#[tokio::test]
#[ignore = "on nodes: `make e2e`"]
async fn no_call_fails_while_certificates_change() {
    let nodes = nodes::shared().await;
    let values = ["webhook.certificateLife=30s", "webhook.caWait=5s", "webhook.failurePolicy=Fail"];
    operator::install(&nodes, &values).await;
    let site = Site::open(&nodes, &[]).await;
    let (stop, calls, client) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), site.admin.client().await);
    let pods: Api<Pod> = Api::namespaced(client, &site.namespace);
    let evictions = tokio::spawn({
        let (stop, calls) = (Arc::clone(&stop), Arc::clone(&calls));
        async move {
            while !stop.load(Ordering::Relaxed) {
                match pods.evict("cdc-1", &rehearsal()).await {
                    Ok(_) => calls.fetch_add(1, Ordering::Relaxed),
                    Err(error) => panic!("{error}"),
                };
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    let configuration = ["get", "mutatingwebhookconfigurations", "-o", "json"];
    let bundle = async || {
        let said = site.admin.kubectl(&configuration).await.ok();
        let list: Value = serde_json::from_str(&said).unwrap();
        list["items"][0]["webhooks"][0]["clientConfig"]["caBundle"].as_str().unwrap_or_default().to_owned()
    };
    let before = bundle().await;
    let secret = site.admin.kubectl(&["get", "secrets", "-n", operator::NAMESPACE, "-o", "name"]).await.ok();
    let secret = secret.lines().find(|name| name.contains("webhook")).unwrap_or_else(|| panic!("{secret}")).to_owned();
    let annotate = ["annotate", "-n", operator::NAMESPACE, &secret, "capturedrain.io/rotate-ca=now"];
    site.admin.kubectl(&annotate).await.ok();
    wait_for(DRAIN_MAX, "both CAs", async || (bundle().await.len() > before.len()).then_some(())).await;
    wait_for(DRAIN_MAX, "the new CA alone", async || {
        let now = bundle().await;
        (now != before && now.len() <= before.len() + 8).then_some(())
    })
    .await;
    // Certificates live for half a minute here, and are replaced whether somebody asks or not.
    let leaf = async || {
        site.admin.kubectl(&["get", "-n", operator::NAMESPACE, &secret, "-o", "jsonpath={.data.tls\\.crt}"]).await.ok()
    };
    for which in ["another certificate", "and another one"] {
        let before = leaf().await;
        wait_for(DRAIN_MAX, which, async || (leaf().await != before).then_some(())).await;
    }
    stop.store(true, Ordering::Relaxed);
    evictions.await.unwrap();
    println!("{} calls", calls.load(Ordering::Relaxed));
    assert!(calls.load(Ordering::Relaxed) > 50);
    site.close().await;
}
