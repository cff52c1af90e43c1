//! Refusals.
use capturedrain_core::model::Refusal;
use tonic::Status;
pub(crate) fn to_status(refusal: &Refusal) -> Status {
    Status::unavailable(refusal.to_string())
}
