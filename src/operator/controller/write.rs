//! What is written to Kubernetes: status, finalizer, events, and the deletion of what has expired.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    runtime::events::{Event, EventType, Recorder},
};
use serde_json::{Value, json};

use super::{
    MANAGER,
    error::{Error, category, is_gone},
};
use crate::{
    operator::event::Note,
    resource::{CaptureDrain, CaptureDrainStatus},
};

/// Keeps a drain's object until the drain was called off.
pub(super) const FINALIZER: &str = "capturedrain.io/drain";
/// Who owns the finalizer: another than the status has, so that neither write touches the other's fields.
const FINALIZER_MANAGER: &str = "capturedrain-operator-finalizer";

fn api(client: &Client, drain: &CaptureDrain) -> Api<CaptureDrain> {
    Api::namespaced(client.clone(), drain.metadata.namespace.as_deref().unwrap_or_default())
}

fn name(drain: &CaptureDrain) -> String {
    format!("CaptureDrain {}/{}", drain.metadata.namespace.as_deref().unwrap_or_default(), drain.name_any())
}

/// The part of a drain that is applied.
fn part(drain: &CaptureDrain, mut rest: Value) -> Value {
    rest["apiVersion"] = CaptureDrain::api_version(&()).into();
    rest["kind"] = CaptureDrain::kind(&()).into();
    rest["metadata"]["name"] = drain.name_any().into();
    // Another of the same name is not meant.
    rest["metadata"]["uid"] = drain.uid().into();
    rest
}

/// Writes the status.
pub(super) async fn status(client: &Client, drain: &CaptureDrain, status: &CaptureDrainStatus) -> Result<(), Error> {
    let part = part(drain, json!({ "metadata": {}, "status": status }));
    let params = PatchParams::apply(MANAGER).force();
    let written = api(client, drain).patch_status(&drain.name_any(), &params, &Patch::Apply(part)).await;
    match written {
        Ok(_) => Ok(()),
        // It was deleted meanwhile.
        Err(error) if is_gone(&error) => Ok(()),
        Err(error) => Err(Error::new("write the status of", name(drain))(error)),
    }
}

pub(super) fn has_finalizer(drain: &CaptureDrain) -> bool {
    drain.finalizers().iter().any(|finalizer| finalizer == FINALIZER)
}

/// Puts the finalizer on, and says how the drain stands now; `None` when it is not there any more.
pub(super) async fn hold(client: &Client, drain: &CaptureDrain) -> Result<Option<CaptureDrain>, Error> {
    finalizer(client, drain, json!({ "metadata": { "finalizers": [FINALIZER] } })).await
}

/// Takes the finalizer away, if it is there.
pub(super) async fn let_go(client: &Client, drain: &CaptureDrain) -> Result<(), Error> {
    if has_finalizer(drain) {
        finalizer(client, drain, json!({ "metadata": {} })).await?;
    }
    Ok(())
}

async fn finalizer(client: &Client, drain: &CaptureDrain, rest: Value) -> Result<Option<CaptureDrain>, Error> {
    let params = PatchParams::apply(FINALIZER_MANAGER).force();
    match api(client, drain).patch(&drain.name_any(), &params, &Patch::Apply(part(drain, rest))).await {
        Ok(written) => Ok(Some(written)),
        // Deleted, and perhaps made anew: the UID does not fit, or there is too little in this part to make one.
        Err(error) if matches!(category(&error), "not_found" | "conflict" | "invalid") => Ok(None),
        Err(error) => Err(Error::new("write the finalizer of", name(drain))(error)),
    }
}

/// How the drain stands at this moment; `None` when it is not there any more.
pub(super) async fn read(client: &Client, drain: &CaptureDrain) -> Result<Option<CaptureDrain>, Error> {
    let found = api(client, drain).get_opt(&drain.name_any()).await;
    let found = found.map_err(Error::new("read", name(drain)))?;
    Ok(found.filter(|found| found.metadata.uid == drain.metadata.uid))
}

/// Writes one annotation.
pub(super) async fn annotate(client: &Client, drain: &CaptureDrain, key: &str, value: &str) -> Result<(), Error> {
    // Another of the same name is not meant.
    let patch = json!({ "metadata": { "uid": drain.uid(), "annotations": { key: value } } });
    match api(client, drain).patch(&drain.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(()),
        Err(error) if matches!(category(&error), "not_found" | "conflict") => Ok(()),
        Err(error) => Err(Error::new("annotate", name(drain))(error)),
    }
}

/// Deletes it, since its time is over.
pub(super) async fn delete(client: &Client, drain: &CaptureDrain) -> Result<(), Error> {
    let this = Preconditions { uid: drain.uid(), ..Preconditions::default() };
    match api(client, drain).delete(&drain.name_any(), &DeleteParams::background().preconditions(this)).await {
        Ok(_) => Ok(()),
        Err(error) if matches!(category(&error), "not_found" | "conflict") => Ok(()),
        Err(error) => Err(Error::new("delete", name(drain))(error)),
    }
}

/// Tells what happened. An event that is refused, as in a namespace that is going, holds nothing up.
pub(super) async fn tell(recorder: &Recorder, drain: &CaptureDrain, notes: Vec<Note>) {
    tell_about(recorder, &drain.object_ref(&()), notes).await;
}

/// The same about any object.
pub(super) async fn tell_about(recorder: &Recorder, object: &ObjectReference, notes: Vec<Note>) {
    for note in notes {
        let event = Event {
            type_: if note.is_warning { EventType::Warning } else { EventType::Normal },
            reason: note.reason.to_owned(),
            note: Some(note.sentence.chars().take(1000).collect()),
            action: "Drain".to_owned(),
            secondary: None,
        };
        if let Err(error) = recorder.publish(&event, object).await {
            let (namespace, category) = (object.namespace.as_deref().unwrap_or_default(), category(&error));
            let name = object.name.as_deref().unwrap_or_default();
            tracing::warn!(namespace, name, reason = note.reason, category, %error, "an event was refused");
        }
    }
}
