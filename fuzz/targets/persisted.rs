//! Keys and values of the store, which may be of another version or of another program.

#![no_main]

use capturedrain_core::model::{
    Candidacy, ChangefeedInfo, DrainEnd, DrainRecord, KeyName, LastEpoch, LivenessMark, Placement, Position, Registration,
    decode, encode,
};
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};

fn reads_back<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(value: &[u8]) {
    if let Ok(read) = decode::<T>("key", value) {
        assert_eq!(decode::<T>("key", &encode(&read)).expect("it reads back"), read);
    }
}

fuzz_target!(|bytes: &[u8]| {
    if let Some(name) = std::str::from_utf8(bytes).ok().and_then(KeyName::parse) {
        assert_eq!(KeyName::parse(&name.key()), Some(name));
    }
    reads_back::<Registration>(bytes);
    reads_back::<LivenessMark>(bytes);
    reads_back::<LastEpoch>(bytes);
    reads_back::<Candidacy>(bytes);
    reads_back::<DrainRecord>(bytes);
    reads_back::<DrainEnd>(bytes);
    reads_back::<ChangefeedInfo>(bytes);
    reads_back::<Placement>(bytes);
    reads_back::<Position>(bytes);
});
