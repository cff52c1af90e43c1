//! What an eviction brings about: a drain that begins, one that is kept up, and what is told of it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{
    super::{MANAGER, error::category},
    observe::{Trouble, in_time},
};
use crate::{
    operator::webhook::{
        asked::Asked,
        decide::{Denial, Pass},
        facts::{BREAK_GLASS, Facts, PodFacts, Seen},
        make::{attempt, caller, callers, make, next_number},
    },
    resource::{CaptureDrain, ClusterRef, is_finished},
};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
    runtime::events::{Event, EventType, Recorder},
};
use serde_json::json;

/// How often an attempt of the same caller is written down.
const RENEWAL: Duration = Duration::from_secs(10);
/// How often something is told of a pod.
const TELLING: Duration = Duration::from_mins(1);
/// How many recent things are remembered.
const RECENT_MAX: usize = 4096;

/// What was done lately, so that it is not done again so soon.
#[derive(Debug, Default)]
struct Recent(Mutex<BTreeMap<(String, String), Instant>>);

impl Recent {
    /// Whether this is the first time within so long.
    fn is_first(&self, of: String, what: String, within: Duration) -> bool {
        let (mut done, now) = (self.0.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        if done.len() >= RECENT_MAX {
            done.retain(|_, at| now.duration_since(*at) < within);
        }
        match done.get(&(of.clone(), what.clone())) {
            Some(at) if now.duration_since(*at) < within => false,
            _ => {
                done.insert((of, what), now);
                true
            }
        }
    }
}

/// Who acts.
pub(super) struct Effects {
    client: Client,
    recorder: Recorder,
    renewed: Recent,
    told: Recent,
}

impl Effects {
    pub(super) fn new(client: Client, recorder: Recorder) -> Self {
        Self { client, recorder, renewed: Recent::default(), told: Recent::default() }
    }

    /// Has a drain begin, if none has begun meanwhile.
    pub(super) async fn begin(&self, facts: &Facts, pod: &PodFacts, cluster: ClusterRef) -> Result<Denial, Trouble> {
        let asked = &facts.asked;
        let number = next_number(&pod.pod.uid, facts.drains.iter().map(|drain| &**drain));
        let drain = make(asked, pod, cluster, number, facts.now);
        let name = drain.name_any();
        let drains = Api::<CaptureDrain>::namespaced(self.client.clone(), &asked.namespace);
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        match in_time("make", &format!("CaptureDrain {name}"), drains.create(&params, &drain)).await {
            Ok(_) => {
                let (namespace, pod) = (&asked.namespace, &asked.name);
                tracing::info!(namespace, pod, name, requester = asked.user, "an eviction begins a drain");
            }
            // Somebody else was faster, who asks for the same.
            Err(trouble) if trouble.category == "conflict" => {}
            Err(trouble) => return Err(trouble),
        }
        let message = format!("pod {} is not drained, its drain is about to begin (CaptureDrain {name})", asked.name);
        Ok(Denial::not_drained("NotDrained", message, None))
    }

    /// It may not go yet.
    pub(super) fn denied(self: &Arc<Self>, facts: &Facts, denial: &Denial) {
        tracing::debug!(
            namespace = facts.asked.namespace,
            pod = facts.asked.name,
            requester = facts.asked.user,
            decision = denial.decision,
            message = denial.message,
            "eviction denied"
        );
        if let Some(drain) = &denial.drain {
            self.renew(facts, drain);
        }
        let sentence = format!("{}: {}", caller(&facts.asked.user), denial.message);
        self.tell(facts, "EvictionDenied", EventType::Normal, &sentence);
    }

    /// It may go.
    pub(super) fn passed(self: &Arc<Self>, facts: &Facts, why: Pass, drain: Option<&str>) {
        if let Some(drain) = drain {
            // Budgets are asked after this, and may keep it.
            self.renew(facts, drain);
        }
        let user = caller(&facts.asked.user);
        let sentence = match why {
            Pass::NotOurs | Pass::NoPod | Pass::OtherPod | Pass::NotRunning => return,
            Pass::BreakGlass => {
                let sentence = format!("{user} may evict it undrained: it is annotated with {BREAK_GLASS}");
                return self.allow(facts, why, "BreakGlassUsed", EventType::Warning, &sentence);
            }
            Pass::Drained => format!("{user} may evict it: its capture is proven empty"),
            Pass::NothingToDrain => format!("{user} may evict it: no capture is in it"),
            Pass::NoPeers => format!("{user} may evict it undrained: no other capture could take its work"),
            Pass::Proceeded => format!("{user} may evict it with work left: the deadline of its drain has passed"),
        };
        let is_loss = matches!(why, Pass::NoPeers | Pass::Proceeded);
        let kind = if is_loss { EventType::Warning } else { EventType::Normal };
        self.allow(facts, why, "EvictionAllowed", kind, &sentence);
    }

    fn allow(self: &Arc<Self>, facts: &Facts, why: Pass, reason: &'static str, kind: EventType, sentence: &str) {
        let (namespace, pod, requester) = (&facts.asked.namespace, &facts.asked.name, &facts.asked.user);
        tracing::info!(namespace, pod, requester, decision = why.name(), "eviction allowed");
        self.tell(facts, reason, kind, sentence);
    }

    /// Writes the attempt down, so that the drain is not given up. Nobody waits for it.
    fn renew(self: &Arc<Self>, facts: &Facts, name: &str) {
        let Some(drain) = facts.drains.iter().find(|drain| drain.name_any() == name && !is_finished(drain)) else {
            return;
        };
        let (before, uid) = (callers(drain), drain.uid().unwrap_or_default());
        if !self.renewed.is_first(uid.clone(), caller(&facts.asked.user), RENEWAL) {
            return;
        }
        let annotations = attempt(&before, &facts.asked.user, facts.now);
        // Another of the same name is not meant.
        let patch = json!({ "metadata": { "uid": uid, "annotations": annotations } });
        let drains = Api::<CaptureDrain>::namespaced(self.client.clone(), &facts.asked.namespace);
        let name = name.to_owned();
        tokio::spawn(async move {
            let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
            if let Err(error) = drains.patch(&name, &params, &Patch::Merge(patch)).await {
                let category = category(&error);
                tracing::warn!(name, category, %error, "an attempt to evict could not be written down");
            }
        });
    }

    /// Tells it of the pod, not too often. Nobody waits for it.
    fn tell(self: &Arc<Self>, facts: &Facts, reason: &'static str, kind: EventType, sentence: &str) {
        let (Seen::Live(Some(pod)) | Seen::Cached(Some(pod))) = &facts.pod else { return };
        if !self.told.is_first(pod.pod.uid.clone(), reason.to_owned(), TELLING) {
            return;
        }
        let of = reference(&facts.asked, pod);
        let event = Event {
            type_: kind,
            reason: reason.to_owned(),
            note: Some(sentence.chars().take(1000).collect()),
            action: "Evict".to_owned(),
            secondary: None,
        };
        let own = self.clone();
        tokio::spawn(async move {
            if let Err(error) = own.recorder.publish(&event, &of).await {
                let category = category(&error);
                tracing::warn!(pod = of.name, reason, category, %error, "an event was refused");
            }
        });
    }
}

fn reference(asked: &Asked, pod: &PodFacts) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(asked.name.clone()),
        namespace: Some(asked.namespace.clone()),
        uid: Some(pod.pod.uid.clone()),
        ..ObjectReference::default()
    }
}
