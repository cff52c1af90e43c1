//! Gathers what `check` judges: the API server, the CRD, the operator, rights, and each cluster with its pods.

use std::collections::{BTreeMap, BTreeSet};

use futures::future;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        authorization::v1::{
            ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectAccessReview,
            SubjectAccessReviewSpec,
        },
        coordination::v1::Lease,
        core::v1::{Pod, Secret, Service, ServiceAccount},
        discovery::v1::EndpointSlice,
        policy::v1::PodDisruptionBudget,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::version::Info,
};
use kube::{
    Api, Client, CustomResourceExt as _, ResourceExt as _,
    api::{ListParams, PostParams},
};

use super::{
    Trouble,
    hook::{self, HookFacts},
    scene::{behind, captures, keys, list},
};
use crate::{
    operator::{
        controller::{ClusterKey, Data, namespaced as api, pem, slices},
        observe::Unseen,
    },
    resource::{CaptureDrain, ClusterKind, ClusterRef},
    tls::Current,
    view::CaptureView,
};

/// The name of the Lease that operators share, unless they are told otherwise.
pub const LEASE_NAME: &str = "capturedrain-operator";
/// What the operator's `ServiceAccount` is labelled with by the chart, and its Lease by itself.
const OPERATOR_LABEL: &str = "app.kubernetes.io/name=capturedrain-operator";

/// What is asked about.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// The namespace of drains and captures.
    pub namespace: String,
    /// The Service; `None`: all that drains name.
    pub service: Option<String>,
    /// The Secret with which that Service is called; `None`: the one that drains of it name.
    pub tls_secret: Option<String>,
}

/// What is there.
#[derive(Debug, Clone)]
pub struct Facts {
    /// When.
    pub now: Timestamp,
    /// The namespace that is asked about.
    pub namespace: String,
    /// The version of the API server.
    pub version: Info,
    /// Whether it serves the version of `CaptureDrain` that this binary speaks.
    pub is_served: Result<bool, Trouble>,
    /// The CRD as it is installed.
    pub crd: Result<CustomResourceDefinition, Trouble>,
    /// Leases of operators that may look after the namespace.
    pub leases: Result<Vec<Lease>, Trouble>,
    /// What the caller may do.
    pub own: Vec<(Right, bool)>,
    /// What operators may do, by their account; nothing when none is found.
    pub operators: Result<BTreeMap<String, Vec<(Right, bool)>>, Trouble>,
    /// Clusters.
    pub services: Vec<ServiceFacts>,
    /// Budgets of the namespace.
    pub budgets: Result<Vec<PodDisruptionBudget>, Trouble>,
    /// The eviction webhook.
    pub hook: HookFacts,
}

/// A cluster.
#[derive(Debug, Clone)]
pub struct ServiceFacts {
    /// The name of its Service.
    pub name: String,
    /// The Service; `None` when there is none.
    pub service: Result<Option<Service>, Trouble>,
    /// Who is behind it.
    pub slices: Result<Vec<EndpointSlice>, Trouble>,
    /// The Secret that is needed.
    pub secret: Option<SecretFacts>,
    /// The captures, or why they are not seen from here.
    pub captures: Result<Vec<CaptureView>, Unseen>,
    /// The pods behind the Service.
    pub pods: Result<Vec<Pod>, Trouble>,
}

/// A Secret with a certificate.
#[derive(Debug, Clone)]
pub struct SecretFacts {
    /// Its name.
    pub name: String,
    /// What is in it; `None` when there is none.
    pub data: Result<Option<Data>, Trouble>,
    /// Why it cannot be used, when it cannot.
    pub complaint: Option<String>,
}

/// Something that one may do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    /// What for.
    pub purpose: Purpose,
    /// Whether nothing goes without it.
    pub is_vital: bool,
    /// API group; empty for the core.
    pub group: &'static str,
    /// `pods`, or `capturedrains/status`.
    pub resource: &'static str,
    /// The only object that is meant, by its name.
    pub object: Option<String>,
    /// One of Kubernetes' verbs.
    pub verb: &'static str,
}

/// What a right is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// To look.
    Status,
    /// To ask for drains.
    Apply,
    /// To be the operator.
    Operate,
}

const fn right(
    purpose: Purpose,
    is_vital: bool,
    group: &'static str,
    resource: &'static str,
    verb: &'static str,
) -> Right {
    Right { purpose, is_vital, group, resource, object: None, verb }
}

const OURS: &str = "capturedrain.io";
const SLICES: &str = "discovery.k8s.io";

/// What the caller needs.
const OWN: [Right; 10] = [
    right(Purpose::Status, true, OURS, "capturedrains", "list"),
    right(Purpose::Status, false, OURS, "capturedrains", "watch"),
    right(Purpose::Status, false, "", "pods", "list"),
    right(Purpose::Status, false, "", "nodes", "list"),
    right(Purpose::Status, false, "", "services", "get"),
    right(Purpose::Status, false, SLICES, "endpointslices", "list"),
    right(Purpose::Apply, true, OURS, "capturedrains", "get"),
    right(Purpose::Apply, true, OURS, "capturedrains", "create"),
    right(Purpose::Apply, false, OURS, "capturedrains", "patch"),
    right(Purpose::Apply, false, OURS, "capturedrains", "delete"),
];

/// What the operator needs.
const OPERATORS: [Right; 13] = [
    right(Purpose::Operate, true, OURS, "capturedrains", "list"),
    right(Purpose::Operate, true, OURS, "capturedrains", "watch"),
    right(Purpose::Operate, true, OURS, "capturedrains", "patch"),
    right(Purpose::Operate, true, OURS, "capturedrains/status", "patch"),
    right(Purpose::Operate, true, "", "pods", "list"),
    right(Purpose::Operate, true, "", "pods", "watch"),
    right(Purpose::Operate, true, "", "services", "get"),
    right(Purpose::Operate, true, SLICES, "endpointslices", "list"),
    right(Purpose::Operate, false, "", "nodes", "get"),
    right(Purpose::Operate, false, "", "nodes", "list"),
    right(Purpose::Operate, false, "", "nodes", "watch"),
    right(Purpose::Operate, false, "events.k8s.io", "events", "create"),
    right(Purpose::Operate, false, "events.k8s.io", "events", "patch"),
];

impl Right {
    fn attributes(&self, namespace: &str) -> ResourceAttributes {
        let (resource, subresource) = self.resource.split_once('/').unwrap_or((self.resource, ""));
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        ResourceAttributes {
            // Nodes are in no namespace.
            namespace: some(if resource == "nodes" { "" } else { namespace }),
            group: some(self.group),
            resource: some(resource),
            subresource: some(subresource),
            name: self.object.clone(),
            verb: some(self.verb),
            ..ResourceAttributes::default()
        }
    }
}

/// Gathers what there is.
///
/// # Errors
/// When the API server does not answer, or does not know the caller.
pub async fn facts(client: &Client, wanted: &Wanted) -> Result<Facts, Trouble> {
    let version = client.apiserver_version().await.map_err(Trouble::reading("the version of the API server"))?;
    let own = future::try_join_all(OWN.map(|right| async move {
        let attributes = Some(right.attributes(&wanted.namespace));
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec { resource_attributes: attributes, ..Default::default() },
            ..Default::default()
        };
        let reviews = Api::<SelfSubjectAccessReview>::all(client.clone());
        let answer = reviews.create(&PostParams::default(), &review).await.map_err(Trouble::reading("own rights"))?;
        Ok((right, answer.status.is_some_and(|status| status.allowed)))
    }))
    .await?;
    let crds = Api::<CustomResourceDefinition>::all(client.clone());
    let name = CaptureDrain::crd_name();
    let budgets = api::<PodDisruptionBudget>(client, Some(&wanted.namespace));
    let clusters = clusters(client, wanted).await;
    let services = future::join_all(clusters.iter().map(|key| service(client, key))).await;
    Ok(Facts {
        now: Timestamp::now(),
        namespace: wanted.namespace.clone(),
        version,
        own,
        is_served: is_served(client).await,
        crd: crds.get(name).await.map_err(Trouble::reading("the CRD")),
        leases: leases(client, &wanted.namespace).await,
        operators: operators(client, &wanted.namespace, &clusters).await,
        hook: hook::facts(client, &wanted.namespace, &services).await,
        services,
        budgets: list(&budgets, "PodDisruptionBudgets").await,
    })
}

pub(super) async fn is_served(client: &Client) -> Result<bool, Trouble> {
    let found = client.list_api_group_resources("capturedrain.io/v1alpha1").await;
    match found.map_err(Trouble::reading("what the API server serves")) {
        Ok(found) => Ok(found.resources.iter().any(|resource| resource.name == "capturedrains")),
        Err(Trouble::NotFound(_)) => Ok(false),
        Err(trouble) => Err(trouble),
    }
}

/// Leases of operators: those of the namespace itself, or else of all, since an operator is usually elsewhere. They are
/// told by their label, whatever they are called, or by the usual name.
async fn leases(client: &Client, namespace: &str) -> Result<Vec<Lease>, Trouble> {
    let reading = || Trouble::reading("Leases");
    let labelled = ListParams::default().labels(OPERATOR_LABEL);
    let here = api::<Lease>(client, Some(namespace));
    // Who may see one of them may not see all.
    let named = here.get_opt(LEASE_NAME).await.ok().flatten();
    let mut found = here.list(&labelled).await.map_or_else(|_| Vec::new(), |list| list.items);
    found.extend(named.filter(|named| !found.iter().any(|lease| lease.name_any() == named.name_any())));
    if !found.is_empty() {
        return Ok(found);
    }
    let all = Api::<Lease>::all(client.clone());
    let named = ListParams::default().fields(&format!("metadata.name={LEASE_NAME}"));
    let mut found = all.list(&labelled).await.map_err(reading())?.items;
    let named = all.list(&named).await.map_err(reading())?.items;
    let is_new = |named: &Lease| !found.iter().any(|lease| lease.uid() == named.uid());
    let new: Vec<_> = named.into_iter().filter(is_new).collect();
    found.extend(new);
    Ok(found)
}

/// What operators may do in a namespace, and with the Secrets of these clusters.
async fn operators(
    client: &Client,
    namespace: &str,
    clusters: &BTreeSet<ClusterKey>,
) -> Result<BTreeMap<String, Vec<(Right, bool)>>, Trouble> {
    let secrets: BTreeSet<_> = clusters
        .iter()
        .flat_map(|key| [&key.cluster.tls_secret_name, &key.cluster.user_secret_name])
        .filter_map(Clone::clone)
        .collect();
    let of_secrets = secrets
        .into_iter()
        .map(|name| Right { object: Some(name), ..right(Purpose::Operate, false, "", "secrets", "get") });
    let wanted: Vec<_> = OPERATORS.into_iter().chain(of_secrets).collect();
    let wanted = &wanted;

    let labelled = ListParams::default().labels(OPERATOR_LABEL);
    let accounts = Api::<ServiceAccount>::all(client.clone()).list(&labelled).await;
    let accounts = accounts.map_err(Trouble::reading("ServiceAccounts"))?.items;
    let rights = accounts.iter().map(|account| async move {
        let user = format!("system:serviceaccount:{}:{}", account.namespace().unwrap_or_default(), account.name_any());
        let groups = vec![
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{}", account.namespace().unwrap_or_default()),
            "system:authenticated".to_owned(),
        ];
        let asked = wanted.iter().map(|right| may(client, right, namespace, &user, &groups));
        Ok((user.clone(), future::try_join_all(asked).await?))
    });
    Ok(future::try_join_all(rights).await?.into_iter().collect())
}

/// Whether an account may do something.
async fn may(
    client: &Client,
    right: &Right,
    namespace: &str,
    user: &str,
    groups: &[String],
) -> Result<(Right, bool), Trouble> {
    let spec = SubjectAccessReviewSpec {
        resource_attributes: Some(right.attributes(namespace)),
        user: Some(user.to_owned()),
        groups: Some(groups.to_vec()),
        ..Default::default()
    };
    let review = SubjectAccessReview { spec, ..Default::default() };
    let reviews = Api::<SubjectAccessReview>::all(client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await;
    let answer = answer.map_err(Trouble::reading("the operator's rights"))?;
    Ok((right.clone(), answer.status.is_some_and(|status| status.allowed)))
}

async fn clusters(client: &Client, wanted: &Wanted) -> BTreeSet<ClusterKey> {
    let namespace = &wanted.namespace;
    // Without the CRD, or the right to list drains or pods, others say so.
    let drains = list(&api::<CaptureDrain>(client, Some(namespace)), "CaptureDrains").await.unwrap_or_default();
    let pods = list(&api::<Pod>(client, Some(namespace)), "pods").await.unwrap_or_default();
    let mut keys = keys(&drains, &pods);
    if let Some(service) = &wanted.service {
        keys.retain(|key| key.cluster.service_name == *service);
        if keys.is_empty() || wanted.tls_secret.is_some() {
            let cluster = ClusterRef {
                service_name: service.clone(),
                kind: ClusterKind::CaptureDrain,
                tls_secret_name: wanted.tls_secret.clone(),
                user_secret_name: None,
            };
            keys = BTreeSet::from([ClusterKey { namespace: namespace.clone(), cluster }]);
        }
    }
    keys
}

async fn service(client: &Client, key: &ClusterKey) -> ServiceFacts {
    let name = key.cluster.service_name.clone();
    let what = format!("Service {name}");
    let service = api::<Service>(client, Some(&key.namespace)).get_opt(&name).await;
    let service = service.map_err(Trouble::reading(&what));
    let slices = slices(client, key).await.map_err(Trouble::reading(&format!("EndpointSlices of {what}")));
    let (captures, secret) = future::join(captures(client, key), secret(client, key)).await;
    let pods = list(&api::<Pod>(client, Some(&key.namespace)), "pods").await.map(|pods| {
        let known = service.as_ref().ok().and_then(Option::as_ref);
        let mut names = behind(known, slices.as_deref().unwrap_or_default(), &pods, &key.namespace);
        names.extend(captures.iter().flatten().filter_map(|capture| capture.pod_name.clone()));
        pods.into_iter().filter(|pod| names.contains(&pod.name_any())).collect()
    });
    ServiceFacts { name, service, slices, secret, captures, pods }
}

async fn secret(client: &Client, key: &ClusterKey) -> Option<SecretFacts> {
    let name = key.cluster.tls_secret_name.clone()?;
    let found = api::<Secret>(client, Some(&key.namespace)).get_opt(&name).await;
    let data = found.map_err(Trouble::reading(&format!("Secret {name}")));
    let data = data.map(|found| found.map(|secret| secret.data.unwrap_or_default()));
    let found = data.as_ref().ok().and_then(Option::as_ref);
    let complaint = found.and_then(|data| Current::of_pem(&name, pem(data)).err().map(|error| error.to_string()));
    Some(SecretFacts { name, data, complaint })
}
