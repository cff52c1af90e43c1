//! The webhook's certificates, made by the operator itself: what is to be done about them is decided in [`plan`], from
//! what the Secret holds and the time; [`authority`] makes them; [`serving`] is the one that is shown to callers, changed
//! while connections go on. `controller/certificates` keeps Secret, configuration and server together.

pub mod authority;
pub mod plan;
pub mod serving;

/// The annotation of the Secret that asks for another CA, whatever its value.
pub const ROTATE_CA: &str = "capturedrain.io/rotate-ca";
/// The annotation of the Secret that says when the change of CA that is under way took its last step, RFC 3339.
pub const CHANGED_AT: &str = "capturedrain.io/ca-changed-at";
