//! Addresses of sources and sinks, and of stores.

#![no_main]

use capturedrain::pipeline::{SinkUrl, SourceUrl, check_config};
use capturedrain_core::model::ChangefeedConfig;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for refused in [SourceUrl::parse(text).map(drop), SinkUrl::parse(text).map(drop)] {
        if let Err(error) = refused {
            assert!(!error.to_string().is_empty());
        }
    }
    let (source, sink) = text.split_once('\n').unwrap_or((text, text));
    let _ = check_config(&ChangefeedConfig { source: source.into(), sink: sink.into(), start_ts: 0, span_max_keys: 0 });
    if let Ok(SourceUrl::Etcd(url)) = SourceUrl::parse(text) {
        assert!(url.prefix.starts_with(b"/") && !url.endpoints.is_empty());
    }
});
