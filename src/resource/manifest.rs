//! Manifests as people write them: YAML, any number of documents; what is wrong is named with its place.

use serde_json::{Value, json};

use super::CaptureDrain;

/// The apiVersion and kind of the resource.
const API_VERSION: &str = "capturedrain.io/v1alpha1";
const KIND: &str = "CaptureDrain";

/// A manifest that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It is not YAML of the right form.
    #[error("{file}: {reason}")]
    Malformed {
        /// Which file.
        file: String,
        /// What the parser says, with line and field.
        reason: String,
    },
    /// It is something else.
    #[error("{file}, document {document}: this is {found}, not a {KIND} of {API_VERSION}")]
    Kind {
        /// Which file.
        file: String,
        /// Counted from 1.
        document: usize,
        /// What it says it is.
        found: String,
    },
    /// Its values make no sense together.
    #[error("{file}, document {document}: {rule}")]
    Rule {
        /// Which file.
        file: String,
        /// Counted from 1.
        document: usize,
        /// What to write.
        rule: String,
    },
    /// There is nothing in it.
    #[error("{file} holds no {KIND}")]
    Empty {
        /// Which file.
        file: String,
    },
}

/// Reads all `CaptureDrain`s of a text that came from `file`.
///
/// # Errors
/// What is wrong, and where.
pub fn parse(text: &str, file: &str) -> Result<Vec<CaptureDrain>, ManifestError> {
    let malformed = |error: serde_yaml::Error| ManifestError::Malformed {
        file: file.to_owned(),
        reason: error.to_string().lines().next().unwrap_or_default().to_owned(),
    };
    let kinds: Vec<Value> = serde_yaml::from_multiple(text).map_err(malformed)?;
    for (kind, document) in kinds.iter().zip(1..) {
        let (version, found) = (kind["apiVersion"].as_str().unwrap_or("?"), kind["kind"].as_str().unwrap_or("?"));
        if (version, found) != (API_VERSION, KIND) {
            let found = format!("{found} of {version}");
            return Err(ManifestError::Kind { file: file.to_owned(), document, found });
        }
    }
    let drains: Vec<CaptureDrain> = serde_yaml::from_multiple(text).map_err(malformed)?;
    for ((drain, written), document) in drains.iter().zip(&kinds).zip(1..) {
        let unknown = serde_json::to_value(drain).ok().and_then(|read| unread(written, &read));
        let unknown = unknown.map(|field| format!("unknown field `{field}`"));
        if let Some(rule) = unknown.or_else(|| broken_rule(drain).map(str::to_owned)) {
            return Err(ManifestError::Rule { file: file.to_owned(), document, rule });
        }
    }
    if drains.is_empty() {
        return Err(ManifestError::Empty { file: file.to_owned() });
    }
    Ok(drains)
}

/// The first field that is written and was not read, by its path: an API server would drop it, a person misspelt it.
fn unread(written: &Value, read: &Value) -> Option<String> {
    let below = |name: String, written: &Value, read: Option<&Value>| match read {
        Some(read) => unread(written, read).map(|rest| format!("{name}.{rest}")),
        // What is empty may be left out.
        None if matches!(written, Value::Null) || *written == json!([]) || *written == json!({}) => None,
        None => Some(name),
    };
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => {
            written.iter().find_map(|(name, value)| below(name.clone(), value, read.get(name)))
        }
        (Value::Array(written), Value::Array(read)) => {
            written.iter().zip(0..).find_map(|(value, n)| below(n.to_string(), value, read.get(n)))
        }
        _ => None,
    }
}

/// The rules that an API server checks, for manifests that never see one.
fn broken_rule(drain: &CaptureDrain) -> Option<&'static str> {
    let spec = &drain.spec;
    let reason_max = capturedrain_core::model::REASON_MAX_CHARS;
    let positive = |seconds: Option<i64>| seconds.is_none_or(|seconds| seconds > 0);
    [
        (drain.metadata.name.is_some(), "metadata.name is missing"),
        (!spec.cluster_ref.service_name.is_empty(), "spec.clusterRef.serviceName is empty"),
        (
            spec.target.pod_name.is_some() != spec.target.capture_id.is_some(),
            "write exactly one of spec.target.podName and spec.target.captureID",
        ),
        (positive(spec.deadline_seconds), "spec.deadlineSeconds has to be above 0"),
        (positive(spec.progress_deadline_seconds), "spec.progressDeadlineSeconds has to be above 0"),
        (
            spec.reason.as_ref().is_none_or(|reason| reason.chars().count() <= reason_max),
            "spec.reason is longer than 1024 characters",
        ),
        (positive(spec.release_after_seconds), "spec.releaseAfterSeconds has to be above 0"),
    ]
    .into_iter()
    .find_map(|(holds, rule)| (!holds).then_some(rule))
}

/// Writes a resource as YAML.
///
/// # Errors
/// When it cannot be written, which only a bug can bring about.
pub fn to_yaml(drain: &CaptureDrain) -> Result<String, serde_yaml::ser::Error> {
    serde_yaml::to_string(drain)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    const GOOD: &str = "apiVersion: capturedrain.io/v1alpha1\nkind: CaptureDrain\nmetadata: {name: x}\nspec:\n  \
                        clusterRef: {serviceName: cdc}\n  target: {captureID: b}\n";

    fn check(text: &str, says: &str) {
        let sentence = parse(text, "drain.yaml").unwrap_err().to_string();
        assert!(sentence.starts_with("drain.yaml") && sentence.contains(says), "{sentence}");
        assert!(!sentence.contains('\n'), "{sentence}");
    }

    #[test]
    fn several_documents_are_read() {
        let drains = parse(&format!("{GOOD}---\n{GOOD}"), "drain.yaml").unwrap();
        assert_eq!(drains.len(), 2);
        assert_eq!(drains[0].spec.target.capture_id.as_deref(), Some("b"));
        assert_eq!(parse(&to_yaml(&drains[0]).unwrap(), "again").unwrap(), drains[..1]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        check(&GOOD.replace("target:", "traget:"), "traget");
        check(&GOOD.replace("{name: x}", "{name: x, lables: {a: b}}"), "document 1: unknown field `metadata.lables`");
        check(&format!("{GOOD}spce: {{}}\nstats: 1\n"), "document 1: unknown field `stats`");
        check(&format!("{GOOD}status: {{phase: Draining, colour: red}}\n"), "unknown field `status.colour`");
        let second = GOOD
            .replace("metadata: {", "metadata: {ownerReferences: [{apiVersion: v1, kind: A, name: b, uid: c, x: y}], ");
        check(&format!("{GOOD}---\n{second}"), "document 2: unknown field `metadata.ownerReferences.0.x`");
        check(&GOOD.replace("{captureID: b}", "{captureID: b, podName: p}"), "exactly one");
        check(&GOOD.replace("{captureID: b}", "{}"), "exactly one");
        check(&GOOD.replace("kind: CaptureDrain", "kind: Pod"), "Pod");
        check(&format!("{GOOD}  deadlineSeconds: 0\n"), "deadlineSeconds");
        check(&format!("{GOOD}  deadlineSeconds: soon\n"), "drain.yaml");
        check(&format!("{GOOD}  reason: {}\n", "r".repeat(1025)), "spec.reason is longer than 1024");
        check("", "holds no");
        check("a: [", "drain.yaml");
    }
}
