//! What is in the folder of a file sink and in the fences of a mirror: names and lines, of any writer.

#![no_main]

use capturedrain::pipeline::{SinkRow, SpanLine, fence_reads_back, file_name, folder, parse_file_name, table_of};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some((span, writer, start_ts)) = std::str::from_utf8(bytes).ok().and_then(parse_file_name) {
        assert_eq!(parse_file_name(&file_name(span, writer, start_ts)), Some((span, writer, start_ts)));
    }
    if let Ok(row) = serde_json::from_slice::<SinkRow>(bytes) {
        let _ = row.row();
    }
    if let Ok(line) = serde_json::from_slice::<SpanLine>(bytes) {
        let _ = line.range();
    }
    let table = folder(&table_of(b"/shop/", bytes));
    assert!(!table.is_empty() && !table.starts_with('.') && !table.contains('/'), "{table} leaves the sink");
    assert!(fence_reads_back(bytes));
});
