//! Manifests as people write them: YAML, any number of documents; what is wrong is named with its place.

use serde_json::{Value, json};

use super::{CaptureDrain, rules::broken_rule};

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
        if let Some(rule) = unknown.or_else(|| refused(drain)) {
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

/// What an API server would refuse.
fn refused(drain: &CaptureDrain) -> Option<String> {
    if drain.metadata.name.is_none() {
        return Some("metadata.name is missing".to_owned());
    }
    broken_rule(&drain.spec)
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
        check(&format!("{GOOD}  reason: {}\n", "r".repeat(1025)), "spec.reason is too long: may not be more than 1024");
        check("", "holds no");
        check("a: [", "drain.yaml");
    }
}
