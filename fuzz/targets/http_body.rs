//! JSON bodies of the HTTP API, and the answers that a client reads.

#![no_main]

use capturedrain::view::{
    CaptureView, ChangefeedView, CreatedChangefeed, DrainAccepted, DrainEndView, DrainView, ErrorView, NewChangefeed,
};
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};

fn reads_back<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(body: &[u8]) {
    if let Ok(read) = serde_json::from_slice::<T>(body) {
        let written = serde_json::to_vec(&read).expect("what was read can be written");
        assert_eq!(serde_json::from_slice::<T>(&written).expect("it reads back"), read);
    }
}

fuzz_target!(|body: &[u8]| {
    reads_back::<NewChangefeed>(body);
    reads_back::<CreatedChangefeed>(body);
    reads_back::<ChangefeedView>(body);
    reads_back::<DrainAccepted>(body);
    reads_back::<DrainView>(body);
    reads_back::<DrainEndView>(body);
    reads_back::<CaptureView>(body);
    reads_back::<ErrorView>(body);
});
