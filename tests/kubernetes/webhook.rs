//! Evictions on a real API server: what is denied, what is let go, and what each brings about.

use serde_json::{Value, json};

use crate::gate::scene;

#[tokio::test(flavor = "multi_thread")]
async fn an_eviction_is_denied_until_its_capture_is_drained() {
    let (shop, gate, caller) = scene("evict", 30).await;
    let target = shop.a_follower().await;
    let uid = shop.uid(&target);
    let first = caller.evict(&target).await;
    let told = (first.code, first.status["reason"].as_str());
    assert_eq!(told, (429, Some("TooManyRequests")), "{first:?}: {}", gate.operator.log());
    assert_eq!(first.cause(), "CaptureNotDrained");
    assert!(first.message().contains(&format!("pod {target} is not drained")), "{first:?}");
    let retry = first.status["details"]["retryAfterSeconds"].as_u64().unwrap_or(0);
    assert_eq!(retry, 0, "clients would retry by themselves: {first:?}");
    let name = format!("{uid}-1");
    shop.wait_for_condition(&name, "Drained", "True", "Proven").await;
    let made = &shop.drains_of(&uid).await[0];
    let expected = json!({
        "clusterRef": {"serviceName": "cdc", "kind": "CaptureDrain"}, "target": {"podName": target, "podUID": uid},
        "deadlineSeconds": 3600, "onDeadline": "Proceed", "noPeersPolicy": "Proceed", "releaseAfterSeconds": 300,
        "reason": "eviction by admin", "ttlSecondsAfterFinished": 3600,
    });
    assert_eq!(made["spec"], expected, "{made:#}");
    let last = caller.evict(&target).await;
    assert_eq!((last.code, &last.status), (201, &Value::Null), "{}", gate.operator.log());
}
