//! The way to a cluster: a Service of the drain's namespace says where, Secrets of that namespace say as whom.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::{
    core::v1::{Secret, Service},
    discovery::v1::EndpointSlice,
};
use kube::{Api, Client, api::ListParams};

use super::{clusters::ClusterKey, error::category, metrics::Metrics};
use crate::{
    client,
    operator::{
        backend::{Backend, TiCdc, Timed},
        observe::Unseen,
    },
    resource::ClusterKind,
    tls::{Current, Dialer, Pem},
};

/// The label of an `EndpointSlice` that names its Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// What the port may be called, when there are several.
const PORTS: [&str; 4] = ["capturedrain", "grpc", "ticdc", "http"];
/// The keys of a TLS Secret.
pub(crate) const CA: &str = "ca.crt";
pub(crate) const CERTIFICATE: &str = "tls.crt";
pub(crate) const KEY: &str = "tls.key";

/// Finds the way.
pub(super) async fn resolve(
    client: &Client,
    key: &ClusterKey,
    metrics: &Arc<Metrics>,
) -> Result<Arc<dyn Backend>, Unseen> {
    let durations = metrics.backend.clone();
    Ok(match key.cluster.kind {
        ClusterKind::CaptureDrain => Arc::new(Timed::new(connect(client, key).await?, "CaptureDrain", durations)),
        ClusterKind::TiCdc => Arc::new(Timed::new(connect_ticdc(client, key).await?, "TiCDC", durations)),
    })
}

/// A client of the captures behind the Service. They are dialled by their addresses, and prove the Service's name.
pub(crate) async fn connect(client: &Client, key: &ClusterKey) -> Result<client::Client, Unseen> {
    let servers = servers(client, key).await?;
    let credentials = credentials_of(client, key).await?;
    client::Client::behind_name(&servers, credentials, &host(key)).map_err(Unseen::from)
}

/// The same for `TiCDC`.
async fn connect_ticdc(client: &Client, key: &ClusterKey) -> Result<TiCdc, Unseen> {
    let servers = servers(client, key).await?;
    let credentials = credentials_of(client, key).await?;
    let login = match &key.cluster.user_secret_name {
        Some(name) => Some(login(client, key, name).await?),
        None => None,
    };
    let dialer = Dialer::with(credentials).map_err(|error| Unseen::Unauthorized(error.to_string()))?;
    Ok(TiCdc::new(servers, dialer.behind(&host(key)), login))
}

fn host(key: &ClusterKey) -> String {
    format!("{}.{}.svc", key.cluster.service_name, key.namespace)
}

async fn credentials_of(client: &Client, key: &ClusterKey) -> Result<Option<Current>, Unseen> {
    match &key.cluster.tls_secret_name {
        Some(name) => credentials(client, key, name).await.map(Some),
        None => Ok(None),
    }
}

/// An error of Kubernetes, as what it makes of the cluster.
pub(super) fn unseen(what: &str, error: &kube::Error) -> Unseen {
    let why = match error {
        kube::Error::Api(status) => status.message.clone(),
        error => error.to_string(),
    };
    let sentence = format!("{what} cannot be read: {why}");
    match category(error) {
        "forbidden" | "unauthenticated" => Unseen::Unauthorized(sentence),
        _ => Unseen::Unreachable(sentence),
    }
}

/// `host:port` of every pod behind the Service, ready ones first.
async fn servers(client: &Client, key: &ClusterKey) -> Result<Vec<String>, Unseen> {
    let (namespace, name) = (&key.namespace, &key.cluster.service_name);
    let services = Api::<Service>::namespaced(client.clone(), namespace);
    let found = services.get_opt(name).await.map_err(|error| unseen(&format!("Service {namespace}/{name}"), &error))?;
    if found.is_none() {
        return Err(Unseen::Unreachable(format!("there is no Service {name} in namespace {namespace}")));
    }
    let slices = slices(client, key).await;
    let slices = slices.map_err(|error| unseen(&format!("EndpointSlices of Service {namespace}/{name}"), &error))?;
    let servers = addresses(&slices).map_err(|ports| {
        Unseen::Unreachable(format!("Service {name} has ports {ports}: name one of them capturedrain"))
    })?;
    if servers.is_empty() {
        return Err(Unseen::Unreachable(format!("no pod is behind Service {name} in namespace {namespace}")));
    }
    Ok(servers)
}

/// Who is behind the Service.
pub(crate) async fn slices(client: &Client, key: &ClusterKey) -> Result<Vec<EndpointSlice>, kube::Error> {
    let slices = Api::<EndpointSlice>::namespaced(client.clone(), &key.namespace);
    let of_service = ListParams::default().labels(&format!("{SERVICE_LABEL}={}", key.cluster.service_name));
    Ok(slices.list(&of_service).await?.items)
}

/// The port that is meant: one with a name that is known, or the only one.
fn the_port(ports: &[(Option<&str>, i32)]) -> Option<i32> {
    let named = PORTS.iter().find_map(|name| ports.iter().find(|port| port.0 == Some(name)));
    match (named, ports) {
        (Some(port), _) | (None, [port]) => Some(port.1),
        _ => None,
    }
}

/// The addresses of all slices; the names of the ports when it is not clear which is meant.
pub(crate) fn addresses(slices: &[EndpointSlice]) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    for slice in slices {
        let ports: Vec<_> =
            slice.ports.iter().flatten().filter_map(|port| Some((port.name.as_deref(), port.port?))).collect();
        if ports.is_empty() {
            continue;
        }
        let names = || ports.iter().map(|port| port.0.unwrap_or("?")).collect::<Vec<_>>().join(", ");
        let port = the_port(&ports).ok_or_else(names)?;
        for endpoint in &slice.endpoints {
            let is_ready = endpoint.conditions.as_ref().and_then(|are| are.ready) != Some(false);
            let host = endpoint.addresses.first().filter(|host| !host.is_empty());
            let host = host.map(|host| if host.contains(':') { format!("[{host}]") } else { host.clone() });
            found.extend(host.map(|host| (!is_ready, format!("{host}:{port}"))));
        }
    }
    found.sort();
    found.dedup();
    Ok(found.into_iter().map(|(_, server)| server).collect())
}

/// The credentials of a Secret of type `kubernetes.io/tls`, with `ca.crt`.
async fn credentials(client: &Client, key: &ClusterKey, name: &str) -> Result<Current, Unseen> {
    let what = format!("Secret {}/{name}", key.namespace);
    let data = secret(client, key, name, &what).await?;
    let useless = |why: String| Err(Unseen::Unauthorized(format!("{what} {why}")));
    if data.contains_key(CERTIFICATE) != data.contains_key(KEY) {
        return useless(format!("has one of {CERTIFICATE} and {KEY} and not the other"));
    }
    if !data.contains_key(CA) {
        return useless(format!("has no {CA}: the CA of the cluster belongs there"));
    }
    Current::of_pem(&what, pem(&data)).map_err(|error| Unseen::Unauthorized(error.to_string()))
}

/// The credentials that the data of a Secret hold.
pub(crate) fn pem(data: &Data) -> Pem {
    let part = |at: &str| data.get(at).map(|bytes| bytes.0.clone());
    Pem { ca: part(CA), identity: part(CERTIFICATE).zip(part(KEY)) }
}

/// User and password of a Secret of type `kubernetes.io/basic-auth`.
async fn login(client: &Client, key: &ClusterKey, name: &str) -> Result<(String, String), Unseen> {
    let what = format!("Secret {}/{name}", key.namespace);
    let data = secret(client, key, name, &what).await?;
    let text = |at: &str| {
        let found = data.get(at).and_then(|bytes| String::from_utf8(bytes.0.clone()).ok());
        found.ok_or_else(|| Unseen::Unauthorized(format!("{what} has no {at}")))
    };
    Ok((text("username")?, text("password")?))
}

/// What a Secret holds.
pub(crate) type Data = BTreeMap<String, k8s_openapi::ByteString>;

async fn secret(client: &Client, key: &ClusterKey, name: &str, what: &str) -> Result<Data, Unseen> {
    let secrets = Api::<Secret>::namespaced(client.clone(), &key.namespace);
    let found = secrets.get_opt(name).await.map_err(|error| unseen(what, &error))?;
    let found = found.ok_or_else(|| Unseen::Unauthorized(format!("there is no {what}")))?;
    Ok(found.data.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use serde_json::json;

    use super::*;

    fn check(ports: &serde_json::Value, endpoints: &serde_json::Value, expected: Result<&[&str], &str>) {
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {}, "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
        }))
        .unwrap();
        let found = addresses(&[slice]);
        assert_eq!(
            found.as_ref().map(|all| all.iter().map(String::as_str).collect()).map_err(String::as_str),
            expected.map(<[_]>::to_vec)
        );
    }

    #[test]
    fn ready_pods_come_first_and_the_port_has_to_be_clear() {
        let pods = json!([
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
            {"addresses": ["10.0.0.3"], "conditions": {}},
            {"addresses": ["fd00::1"], "conditions": {"ready": true}},
        ]);
        let port = |name: &str, port: u16| json!({"name": name, "port": port});
        let all: &[&str] = &["10.0.0.3:1", "[fd00::1]:1", "10.0.0.2:1"];
        check(&json!([port("anything", 1)]), &pods, Ok(all));
        check(&json!([port("metrics", 2), port("capturedrain", 1)]), &pods, Ok(all));
        check(&json!([port("metrics", 2), port("api", 1)]), &pods, Err("metrics, api"));
        check(&json!([]), &pods, Ok(&[]));
        check(&json!([port("x", 1)]), &json!([]), Ok(&[]));
    }
}
