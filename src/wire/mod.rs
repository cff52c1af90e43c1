//! The gRPC door, and the way to other captures: decode → hand over → encode.

mod answer;
mod drain;
mod envelope;
mod hook;
mod peers;
pub(crate) mod refusal;
mod report;

use axum::Router;
use tonic::service::Routes;
use tonic_health::ServingStatus;

pub use self::peers::Peers;
pub(crate) use self::{
    answer::{decode_answer, encode_drain},
    hook::encode_report,
};
use self::{drain::DrainDoor, hook::HookDoor, peers::CaptureDoor};
use crate::door::Door;

/// The protocol as compiled from `proto/`.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    reason = "generated from proto/"
)]
pub mod pb {
    tonic::include_proto!("capturedrain.v1");
}

/// The protocol's descriptor, for reflection.
const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));

/// Longest message of either direction, in bytes: gRPC's own default.
pub(crate) const MESSAGE_MAX_BYTES: usize = 4 << 20;

/// All gRPC services of a capture: `DrainService`, `HookService`, `CaptureService`, health and reflection.
pub fn router(door: Door) -> Router {
    let drains = pb::drain_service_server::DrainServiceServer::new(DrainDoor::new(door.clone()));
    let captures = pb::capture_service_server::CaptureServiceServer::new(CaptureDoor::new(door.clone()))
        .max_decoding_message_size(MESSAGE_MAX_BYTES);
    let hook = pb::hook_service_server::HookServiceServer::new(HookDoor::new(door.clone()));
    let (reporter, health) = tonic_health::server::health_reporter();
    tokio::spawn(async move {
        let mut snapshots = door.snapshots;
        loop {
            let ready = snapshots.borrow_and_update().ready;
            let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
            reporter.set_service_status("", status).await;
            if snapshots.changed().await.is_err() {
                return;
            }
        }
    });
    let mut routes = Routes::new(drains).add_service(hook).add_service(captures).add_service(health);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTOR)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1();
    match reflection {
        Ok(reflection) => routes = routes.add_service(reflection),
        Err(error) => tracing::error!(%error, "no reflection: the descriptor cannot be read"),
    }
    // Whatever is no service at all is answered as HTTP has it, which gRPC's clients read, too.
    routes.into_axum_router().reset_fallback()
}

/// A message between captures, from its bytes; `None` when it is none. For fuzzing.
#[doc(hidden)]
pub fn envelope_from_bytes(bytes: &[u8]) -> Option<capturedrain_core::model::Envelope> {
    let envelope = <pb::Envelope as prost::Message>::decode(bytes).ok()?;
    envelope::decode(envelope).ok()
}

/// The bytes of a message between captures. For fuzzing.
#[doc(hidden)]
pub fn envelope_to_bytes(envelope: &capturedrain_core::model::Envelope) -> Vec<u8> {
    prost::Message::encode_to_vec(&envelope::encode(envelope))
}

/// The last cause of an error: what libraries tend to hide behind "transport error".
pub(crate) fn cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
