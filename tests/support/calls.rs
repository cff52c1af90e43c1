//! Calls of the HTTP API, each held to the document that the API serves of itself.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use reqwest::{Method, header};
use serde_json::Value;

/// The longest that a call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// What came back.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) allow: String,
    /// `Null` when the body is empty or no JSON.
    pub(crate) json: Value,
    pub(crate) text: String,
}

impl Answer {
    /// The code of an error, once it is sure that it is one, with a sentence.
    pub(crate) fn code(&self) -> &str {
        let sentence = self.json["error_msg"].as_str().unwrap_or_default();
        assert!(sentence.len() > 10 && !sentence.contains('\n'), "{}: {}", self.status, self.text);
        let code = self.json["error_code"].as_str().unwrap_or_default();
        assert!(code.starts_with("CDC:Err"), "{}: {}", self.status, self.text);
        code
    }
}

/// A way to ask captures, that remembers what it has seen.
#[derive(Clone)]
pub(crate) struct Calls {
    http: reqwest::Client,
    document: Arc<Value>,
    seen: Arc<Mutex<BTreeSet<(String, String, u16)>>>,
}

impl Calls {
    /// Reads the document of a capture.
    pub(crate) async fn of(server: &str) -> Self {
        // Fails when another test was first, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().timeout(CALL_TIMEOUT).build().unwrap();
        let answer = http.get(format!("{server}/api/openapi.json")).send().await.unwrap();
        assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/json");
        let document: Value = answer.json().await.unwrap();
        assert_eq!(document["openapi"], "3.1.0");
        Self { http, document: Arc::new(document), seen: Arc::default() }
    }

    pub(crate) async fn get(&self, server: &str, path: &str) -> Answer {
        self.send(Method::GET, server, path, None, None).await.unwrap()
    }

    pub(crate) async fn put(&self, server: &str, path: &str) -> Answer {
        self.send(Method::PUT, server, path, None, None).await.unwrap()
    }

    pub(crate) async fn delete(&self, server: &str, path: &str) -> Answer {
        self.send(Method::DELETE, server, path, None, None).await.unwrap()
    }

    pub(crate) async fn post(&self, server: &str, path: &str) -> Answer {
        self.send(Method::POST, server, path, None, None).await.unwrap()
    }

    /// Sends a body without saying what it is, as Go's `http.NewRequest` does.
    pub(crate) async fn send_json(&self, method: Method, server: &str, path: &str, body: &Value) -> Answer {
        self.send(method, server, path, None, Some(body.to_string())).await.unwrap()
    }

    /// Sends anything; an error is that nobody answered.
    pub(crate) async fn send(
        &self,
        method: Method,
        server: &str,
        path: &str,
        kind: Option<&str>,
        body: Option<String>,
    ) -> Result<Answer, reqwest::Error> {
        let mut call = self.http.request(method.clone(), format!("{server}{path}"));
        if let Some(kind) = kind {
            call = call.header(header::CONTENT_TYPE, kind);
        }
        if let Some(body) = body {
            call = call.body(body);
        }
        let answer = call.send().await?;
        let status = answer.status().as_u16();
        let allow = answer.headers().get(header::ALLOW).map_or("", |allow| allow.to_str().unwrap()).to_owned();
        let text = answer.text().await?;
        let json = serde_json::from_str(&text).unwrap_or_default();
        let answer = Answer { status, allow, json, text };
        self.hold_to_document(&method, path, &answer);
        Ok(answer)
    }

    /// An answer that the document does not know, or a body of another shape, fails the test.
    fn hold_to_document(&self, method: &Method, path: &str, answer: &Answer) {
        let method = method.as_str().to_lowercase();
        let Some((template, operation)) = self.operation(&method, path) else {
            assert!(matches!(answer.status, 404 | 405), "{method} {path} is answered and not documented");
            return;
        };
        self.seen.lock().unwrap().insert((method.clone(), template, answer.status));
        let response = &operation["responses"][answer.status.to_string()];
        assert!(response.is_object(), "{method} {path}: {} is not documented: {}", answer.status, answer.text);
        match response["content"].as_object() {
            None => assert_eq!(answer.text, "", "{method} {path}: {} has a body that is not documented", answer.status),
            Some(content) => {
                if let Some(media) = content.get("application/json") {
                    let wrong = self.misfit(&media["schema"], &answer.json, "$");
                    assert_eq!(wrong, None, "{method} {path}: {}", answer.text);
                }
            }
        }
    }

    /// The operation that a call is one of.
    fn operation(&self, method: &str, path: &str) -> Option<(String, &Value)> {
        let path = path.split('?').next().unwrap_or_default();
        let fits = |template: &str| {
            let (mut one, mut other) = (template.split('/'), path.split('/'));
            let alike = one.by_ref().zip(other.by_ref()).all(|(a, b)| a == b || a.starts_with('{'));
            alike && template.split('/').count() == path.split('/').count()
        };
        let paths = self.document["paths"].as_object()?;
        let (template, item) = paths.get_key_value(path).or_else(|| paths.iter().find(|(key, _)| fits(key)))?;
        item.get(method).map(|operation| (template.clone(), operation))
    }

    /// What does not fit a schema, by its place; `None` when all does. An object may have documented fields only.
    fn misfit(&self, schema: &Value, value: &Value, at: &str) -> Option<String> {
        let mut properties = serde_json::Map::new();
        let mut open = false;
        if let Some(wrong) = self.collect(schema, value, at, &mut properties, &mut open) {
            return Some(wrong);
        }
        let fields = value.as_object().filter(|_| !properties.is_empty() && !open)?;
        fields.keys().find(|name| !properties.contains_key(*name)).map(|name| format!("{at}.{name} is not documented"))
    }

    fn collect(
        &self,
        schema: &Value,
        value: &Value,
        at: &str,
        properties: &mut serde_json::Map<String, Value>,
        open: &mut bool,
    ) -> Option<String> {
        if let Some(name) = schema["$ref"].as_str() {
            let target = name.strip_prefix('#').and_then(|pointer| self.document.pointer(pointer));
            return self.collect(target.expect("a reference that leads somewhere"), value, at, properties, open);
        }
        for part in schema["allOf"].as_array().into_iter().flatten() {
            if let Some(wrong) = self.collect(part, value, at, properties, open) {
                return Some(wrong);
            }
        }
        if let Some(choices) = schema["oneOf"].as_array() {
            let fits = choices.iter().any(|choice| self.misfit(choice, value, at).is_none());
            return (!fits).then(|| format!("{at} is none of its choices: {value}"));
        }
        if !has_type(&schema["type"], value) {
            return Some(format!("{at} is not {}: {value}", schema["type"]));
        }
        if let Some(items) = value.as_array().filter(|_| schema["items"].is_object()) {
            return items
                .iter()
                .enumerate()
                .find_map(|(n, item)| self.misfit(&schema["items"], item, &format!("{at}[{n}]")));
        }
        let fields = value.as_object()?;
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !fields.contains_key(name) {
                return Some(format!("{at}.{name} is missing"));
            }
        }
        *open |= schema["additionalProperties"].is_object();
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            properties.insert(name.clone(), property.clone());
            if let Some(wrong) =
                fields.get(name).and_then(|field| self.misfit(property, field, &format!("{at}.{name}")))
            {
                return Some(wrong);
            }
        }
        None
    }

    /// The documented answers that were seen, and those that were not, as `method path status`.
    pub(crate) fn coverage(&self) -> (BTreeSet<String>, BTreeSet<String>) {
        let name = |method: &str, path: &str, status: &str| format!("{method} {path} {status}");
        let seen =
            self.seen.lock().unwrap().iter().map(|(m, p, s)| name(m, p, &s.to_string())).collect::<BTreeSet<_>>();
        let mut unseen = BTreeSet::new();
        for (path, item) in self.document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let statuses = operation["responses"].as_object().unwrap().keys();
                unseen.extend(statuses.map(|status| name(method, path, status)).filter(|one| !seen.contains(one)));
            }
        }
        (seen, unseen)
    }
}

fn has_type(kinds: &Value, value: &Value) -> bool {
    let is = |kind: &str| match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    };
    match kinds {
        Value::String(kind) => is(kind),
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).any(is),
        _ => true,
    }
}
