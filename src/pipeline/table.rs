//! Which table a key belongs to, and what its folder is called.

use std::sync::Arc;

use capturedrain_core::model::Span;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

/// What a table's name leaves as it is, so that it can be a path segment anywhere.
const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

/// The table of a key below a prefix: the next path segment, percent-encoded; `""` for keys without one, and for those
/// whose segment is empty.
pub fn table_of(prefix: &[u8], key: &[u8]) -> Arc<str> {
    percent_encode(segment(prefix, key), KEPT).to_string().into()
}

/// The next path segment of a key below a prefix, without the slash that ends it; empty when there is none.
fn segment<'a>(prefix: &[u8], key: &'a [u8]) -> &'a [u8] {
    let rest = key.strip_prefix(prefix).unwrap_or(key);
    rest.iter().position(|byte| *byte == b'/').map_or(&[], |end| &rest[..end])
}

/// The folder of a table. No two tables share one.
pub fn folder(table: &str) -> String {
    match table {
        "" => "_".to_owned(),
        "_" => "%5F".to_owned(),
        dots if dots.starts_with('.') => format!("%2E{}", &dots[1..]),
        name => name.to_owned(),
    }
}

/// The first key that does not begin with `prefix`.
pub(super) fn after(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // Every key that there is.
    vec![0]
}

/// The whole range of the table that a key belongs to: the same for every key of a table.
pub(super) fn whole(prefix: &[u8], key: &[u8]) -> Span {
    let start = match segment(prefix, key) {
        [] => prefix.to_vec(),
        segment => [prefix, segment, b"/"].concat(),
    };
    Span { table: table_of(prefix, key), end: after(&start).into(), start: start.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_the_next_path_segment() {
        for (key, table) in [
            ("/shop/orders/1", "orders"),
            ("/shop/orders/1/2", "orders"),
            ("/shop/top", ""),
            ("/shop//x", ""),
            ("/shop/ä b/1", "%C3%A4%20b"),
        ] {
            assert_eq!(&*table_of(b"/shop/", key.as_bytes()), table, "{key}");
        }
    }

    #[test]
    fn keys_of_one_table_have_one_range_whichever_comes_first() {
        for prefix in ["/shop/", "/shop"] {
            for key in ["/shop//x", "/shop/top", "/shop/orders/1", "/shop/orders//1", "/shop//", "/shop/"] {
                for other in ["/shop//x", "/shop/top", "/shop/orders/2", "/shop", "/shop///y"] {
                    let (one, two) =
                        (whole(prefix.as_bytes(), key.as_bytes()), whole(prefix.as_bytes(), other.as_bytes()));
                    let shared = one.table == two.table;
                    assert_eq!(one == two, shared, "{prefix}: {key} and {other}");
                    assert!(*one.start <= *key.as_bytes() && *key.as_bytes() < *one.end, "{prefix}: {key} is outside");
                }
            }
        }
    }

    #[test]
    fn folders_stay_inside_and_apart() {
        let folders = ["", "_", ".", "..", ".x", "x"].map(folder);
        assert_eq!(folders, ["_", "%5F", "%2E", "%2E.", "%2Ex", "x"]);
    }

    #[test]
    fn a_whole_table_is_the_range_of_its_segment() {
        let span = whole(b"/shop/", b"/shop/orders/1");
        assert_eq!((&*span.start, &*span.end), (b"/shop/orders/".as_slice(), b"/shop/orders0".as_slice()));
        assert_eq!(after(&[1, 255]), vec![2]);
    }
}
