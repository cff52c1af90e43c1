//! Manifests as `apply -f` reads them: what is read can be written, and reads back the same.

#![no_main]

use capturedrain::resource::{parse, to_yaml};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(drains) = parse(text, "fuzz.yaml") else { return };
    for drain in drains {
        let yaml = to_yaml(&drain).expect("what was read can be written");
        let again = parse(&yaml, "again.yaml").expect("what was written can be read");
        assert_eq!(serde_json::to_value(&again[0]).ok(), serde_json::to_value(&drain).ok());
    }
});
