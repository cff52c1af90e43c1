//! How the API server is told: the `AdmissionReview` that is sent back.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{
    asked::{Asked, Given},
    decide::{Decision, Denial},
};

/// Longest warning, in characters: more may be cut by others, in the middle.
const WARNING_MAX_CHARS: usize = 250;

/// The answer to a request. A drain that is to begin has begun, or been refused, before.
pub fn answer(uid: &str, asked: &Asked, decision: &Decision) -> Value {
    let mut response = json!({ "uid": uid, "allowed": true });
    match decision {
        Decision::Pass { uid: meant, .. } => {
            if let Some(patch) = meant.as_deref().and_then(|meant| pin(asked, meant)) {
                response["patchType"] = "JSONPatch".into();
                response["patch"] = STANDARD.encode(patch.to_string()).into();
            }
        }
        Decision::Rehearsed(Some(warning)) => {
            let warning: String = warning.chars().take(WARNING_MAX_CHARS).collect();
            response["warnings"] = json!([warning]);
        }
        Decision::Rehearsed(None) => {}
        Decision::Deny(denial) => {
            response["allowed"] = false.into();
            response["status"] = status(429, "TooManyRequests", asked, denial);
        }
        Decision::Begin { .. } => {
            let message = format!("pod {} is not drained, its drain is about to begin", asked.name);
            let denial = Denial::not_drained("NotDrained", message, None);
            response["allowed"] = false.into();
            response["status"] = status(429, "TooManyRequests", asked, &denial);
        }
        Decision::Gone => {
            let message =
                format!("pods \"{}\" not found: the one that was to go is gone, this is its successor", asked.name);
            response["allowed"] = false.into();
            response["status"] = json!({
                "status": "Failure", "code": 404, "reason": "NotFound", "message": message,
                "details": { "name": asked.name, "kind": "pods" },
            });
        }
    }
    json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response })
}

/// No `retryAfterSeconds`: with it, clients retry by themselves, and whoever waits sees nothing of this.
fn status(code: u16, reason: &str, asked: &Asked, denial: &Denial) -> Value {
    json!({
        "status": "Failure", "code": code, "reason": reason, "message": denial.message,
        "details": {
            "name": asked.name, "kind": "pods",
            "causes": [{ "reason": denial.cause, "message": denial.message }],
        },
    })
}

/// The patch by which exactly this pod is meant, where the caller has not said which.
fn pin(asked: &Asked, uid: &str) -> Option<Value> {
    if asked.uid.is_some() {
        return None;
    }
    let (path, value) = match asked.given {
        Given::Nothing => ("/deleteOptions", json!({ "preconditions": { "uid": uid } })),
        Given::Options => ("/deleteOptions/preconditions", json!({ "uid": uid })),
        Given::Preconditions => ("/deleteOptions/preconditions/uid", json!(uid)),
    };
    Some(json!([{ "op": "add", "path": path, "value": value }]))
}
