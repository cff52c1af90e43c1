//! capturedrain.
