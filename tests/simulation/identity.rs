//! Who a simulated capture says it is.

use std::{collections::BTreeMap, sync::Arc};

use capturedrain_core::model::{CaptureId, NodeEpoch, PROTOCOL, Registration, VALUE_VERSION};

/// What a capture registers, until it has drawn its number.
pub(crate) fn identity(id: &CaptureId) -> Registration {
    Registration {
        version: VALUE_VERSION,
        id: id.clone(),
        node_epoch: NodeEpoch(0),
        advertise_addr: Arc::from(id.as_str()),
        pod_name: None,
        pod_uid: None,
        protocol: PROTOCOL,
        binary_version: Arc::from("simulated"),
        labels: BTreeMap::new(),
        unknown: BTreeMap::new(),
    }
}
