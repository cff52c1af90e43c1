//! Several operators, and many drains.

use std::time::Instant;

use serde_json::json;
use tokio::time::{self, Duration};

use crate::{
    api_server,
    operator::scene,
    shop::{Operator, Shop, wait_for},
};

async fn leads(operator: &Operator) -> bool {
    operator.metric("capturedrain_operator_leader ").await == Some(1.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn another_replica_takes_over_when_the_leader_dies_or_ends() {
    let shop = Shop::open_with(api_server::shared().await, "replicas", 30, "30s").await;
    let mut first = Operator::start(&shop.admin, &shop.namespace, &["--identity", "first"]);
    first.wait_until_leading().await;
    let mut second = Operator::start(&shop.admin, &shop.namespace, &["--identity", "second"]);
    wait_for("both to serve", async || second.get("/readyz").await.filter(|(code, _)| *code == 200)).await;
    assert!(!leads(&second).await, "one at a time");
    let target = shop.a_follower().await;
    shop.suspend(&target);
    shop.drain("x", &target, json!({})).await;
    wait_for("a beginning", async || shop.status("x").await["epoch"].as_i64()).await;
    first.kill();
    second.wait_until_leading().await;
    shop.resume(&target);
    shop.wait_for_condition("x", "Drained", "True", "Proven").await;
    // One that is told to end gives the lease back: nobody waits for it to expire.
    first.run();
    wait_for("the first to be back", async || first.get("/readyz").await.filter(|(code, _)| *code == 200)).await;
    second.terminate().await;
    first.wait_until_leading().await;
    let args = ["get", "lease", "capturedrain-operator", "-o", "jsonpath={.spec.holderIdentity}"];
    assert_eq!(shop.kubectl(&args).await, "first");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_drains_at_once_run_one_after_the_other() {
    let (mut shop, operator) = scene("ten", 30).await;
    for n in 0..10 {
        let pod = format!("cdc-{}", n % 3);
        shop.drain(&format!("x-{n}"), &pod, json!({})).await;
    }
    // Pods that are proven empty go and come back, until all have.
    let ended = async {
        let mut gone = Vec::new();
        while gone.len() < 3 {
            for pod in ["cdc-0", "cdc-1", "cdc-2"] {
                let drained = shop.status(&format!("x-{}", &pod[4..])).await["phase"] == "Drained";
                if drained && !gone.contains(&pod) {
                    shop.delete_pod(pod).await;
                    shop.start(pod).await;
                    shop.publish().await;
                    gone.push(pod);
                }
            }
            time::sleep(Duration::from_millis(100)).await;
        }
        for n in 0..10 {
            shop.wait_for_end(&format!("x-{n}"), "PodGone").await;
        }
    };
    let done = time::timeout(Duration::from_secs(150), ended).await;
    assert!(done.is_ok(), "{}", operator.log());
    let history = shop.json(&["history"]).await;
    assert!(history.as_array().unwrap().iter().all(|end| end["outcome"] == "Drained"), "{history:#}");
    assert_eq!(history.as_array().unwrap().len(), 3, "{history:#}");
}

/// How many requests of one client, by its user agent, the API server has had; watches that are open count once.
async fn requests(shop: &Shop) -> f64 {
    let page = shop.admin.kubectl(&["get", "--raw", "/metrics"]).await.ok();
    let counts = page.lines().filter(|line| {
        line.starts_with("apiserver_request_total") && line.contains("capturedrain.io") && !line.contains("WATCH")
    });
    counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_finished_drains_cost_next_to_nothing() {
    let api = api_server::ApiServer::start().await;
    let shop = Shop::open(&api, "thousand", 0).await;
    let operator = Operator::start(&shop.admin, &shop.namespace, &[]);
    operator.wait_until_leading().await;
    shop.reject(1000).await;
    wait_for("all to end", async || {
        (operator.metric("capturedrain_operator_drains{phase=\"Failed\"} ").await? >= 1000.0).then_some(())
    })
    .await;
    let (before, began) = (requests(&shop).await, Instant::now());
    let rounds =
        operator.metric("capturedrain_operator_reconciles_total{outcome=\"done\",category=\"\"} ").await.unwrap();
    // Idle is what happens when nothing is waited for, so some time has to pass.
    time::sleep(Duration::from_secs(10)).await;
    let (after, minutes) = (requests(&shop).await, began.elapsed().as_secs_f64() / 60.0);
    let more =
        operator.metric("capturedrain_operator_reconciles_total{outcome=\"done\",category=\"\"} ").await.unwrap();
    assert!((after - before) / minutes < 1.0, "{} requests in {minutes} min", after - before);
    assert!(more - rounds < 5.0, "{} rounds", more - rounds);
    let resident = operator.resident_mb();
    println!("{resident} MB with 1,000 drains");
    assert!(resident < 80, "{resident} MB, in a build that is not optimised");
}
