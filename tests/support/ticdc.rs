//! What tools do that were written for `TiCDC`: the loop of tidb-operator, which `TiUP` has in much the same way.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{self, Instant};

use crate::calls::Calls;

/// How long it waits between two steps. The tools wait a second.
const PAUSE: Duration = Duration::from_millis(200);

/// What one step came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// The capture was the owner, and was asked to resign.
    Resigned,
    /// Not yet: so many are left.
    Left(u64),
    /// Nobody is ready to answer, or nobody answers.
    Retry,
    /// The tool takes the capture for drained.
    Drained,
}

/// A tool that takes one capture away.
pub(crate) struct Tool<'a> {
    calls: &'a Calls,
    server: String,
    id: String,
    /// Everything it did.
    pub(crate) steps: Vec<Step>,
}

impl<'a> Tool<'a> {
    /// It asks the capture itself.
    pub(crate) fn new(calls: &'a Calls, server: &str, id: &str) -> Self {
        Self { calls, server: server.to_owned(), id: id.to_owned(), steps: Vec::new() }
    }

    pub(crate) async fn step(&mut self) -> Step {
        let step = self.ask().await;
        self.steps.push(step.clone());
        step
    }

    async fn ask(&self) -> Step {
        let captures = match self.calls.send(Method::GET, &self.server, "/api/v1/captures", None, None).await {
            Ok(answer) if answer.status == 200 => answer.json,
            _ => return Step::Retry,
        };
        let captures = captures.as_array().unwrap();
        if captures.len() == 1 {
            // "No way to drain a single node", so it is taken away as it is.
            return Step::Drained;
        }
        let Some(this) = captures.iter().find(|capture| self.server.ends_with(capture["address"].as_str().unwrap()))
        else {
            return Step::Retry;
        };
        assert_eq!(this["id"], self.id.as_str());
        if this["is_owner"] == true {
            let resigned = self.calls.send(Method::POST, &self.server, "/api/v1/owner/resign", None, None).await;
            let resigned = resigned.is_ok_and(|answer| answer.status == 202);
            return if resigned { Step::Resigned } else { Step::Retry };
        }
        let drain = json!({"capture_id": this["id"]}).to_string();
        match self.calls.send(Method::PUT, &self.server, "/api/v1/captures/drain", None, Some(drain)).await {
            Err(_) => Step::Retry,
            Ok(answer) if answer.status == 503 => Step::Retry,
            // As Go decodes it: what is not there is 0.
            Ok(answer) => match answer.json["current_table_count"].as_u64().unwrap_or(0) {
                0 => Step::Drained,
                left => Step::Left(left),
            },
        }
    }

    /// Goes on until it takes the capture for drained, and checks with version 2 that it is.
    pub(crate) async fn run(&mut self, limit: Duration) -> Result<(), String> {
        let until = Instant::now() + limit;
        while self.step().await != Step::Drained {
            if Instant::now() > until {
                return Err(format!("not drained in {limit:?}: {:?}", self.steps));
            }
            time::sleep(PAUSE).await;
        }
        let list: Value = self.calls.get(&self.server, "/api/v2/captures").await.json;
        let found = list["items"]
            .as_array()
            .and_then(|items| items.iter().find(|item| item["id"] == self.id.as_str()).cloned());
        match found {
            Some(capture) if capture["liveness"] == "Stopping" && capture["dispatcher_count"] == 0 => Ok(()),
            other => Err(format!("taken for drained after {:?}, and it is {other:?}", self.steps)),
        }
    }
}
