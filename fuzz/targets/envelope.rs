//! Messages of other captures: whatever arrives is refused, or is a message that goes out again as it came.

#![no_main]

use capturedrain::wire::{envelope_from_bytes, envelope_to_bytes};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some(envelope) = envelope_from_bytes(bytes) {
        assert_eq!(envelope_from_bytes(&envelope_to_bytes(&envelope)), Some(envelope));
    }
});
