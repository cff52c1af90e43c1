//! The `CaptureDrain` resource and the pure stages that reconcile it.
