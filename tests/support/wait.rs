//! Waits for conditions, and never for a time.

use std::time::Duration;

use tokio::time;

/// Asks again and again until there is an answer.
pub(crate) async fn wait_for<T>(limit: Duration, what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            time::sleep(Duration::from_millis(50)).await;
        }
    };
    time::timeout(limit, asking).await.unwrap_or_else(|_| panic!("waited {limit:?} for {what}"))
}
