//! Which table a key belongs to, and what its folder is called.

use std::sync::Arc;

use capturedrain_core::model::Span;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

/// What a table's name leaves as it is, so that it can be a path segment anywhere.
pub(super) const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

/// The keys from `start` on that are before `end`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct KeyRange {
    pub(super) start: Vec<u8>,
    pub(super) end: Vec<u8>,
}

impl KeyRange {
    pub(super) fn of(span: &Span) -> Self {
        Self { start: span.start.to_vec(), end: span.end.to_vec() }
    }

    pub(super) fn contains(&self, key: &[u8]) -> bool {
        *self.start <= *key && *key < *self.end
    }

    /// What both have.
    pub(super) fn shared(&self, other: &Self) -> Option<Self> {
        let start = self.start.clone().max(other.start.clone());
        let end = self.end.clone().min(other.end.clone());
        (start < end).then_some(Self { start, end })
    }

    /// What only this one has: before the other one, and behind it.
    pub(super) fn without(&self, other: &Self) -> Vec<Self> {
        let before = Self { start: self.start.clone(), end: self.end.clone().min(other.start.clone()) };
        let behind = Self { start: self.start.clone().max(other.end.clone()), end: self.end.clone() };
        [before, behind].into_iter().filter(|range| range.start < range.end).collect()
    }
}

/// The table of a key below a prefix: the next path segment, percent-encoded; `""` for keys without one, and for those
/// whose segment is empty.
pub fn table_of(prefix: &[u8], key: &[u8]) -> Arc<str> {
    percent_encode(segment(prefix, key), KEPT).to_string().into()
}

/// The next path segment of a key below a prefix, without the slash that ends it; empty when there is none.
pub(super) fn segment<'a>(prefix: &[u8], key: &'a [u8]) -> &'a [u8] {
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
    whole_of(prefix, segment(prefix, key))
}

/// The whole range of the table of a path segment.
pub(super) fn whole_of(prefix: &[u8], segment: &[u8]) -> Span {
    let start = if segment.is_empty() { prefix.to_vec() } else { [prefix, segment, b"/"].concat() };
    let table = percent_encode(segment, KEPT).to_string().into();
    Span { table, end: after(&start).into(), start: start.into() }
}

/// The path segment whose table has this folder; `None` when no table has.
pub(super) fn segment_of(folder: &str) -> Option<Vec<u8>> {
    let table = match folder {
        "_" => String::new(),
        "%5F" => "_".to_owned(),
        dots if dots.starts_with("%2E") => format!(".{}", &dots[3..]),
        name => name.to_owned(),
    };
    let segment: Vec<u8> = percent_decode_str(&table).collect();
    (self::folder(&percent_encode(&segment, KEPT).to_string()) == folder).then_some(segment)
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
        let segments =
            folders.map(|folder| segment_of(&folder).map(|name| String::from_utf8_lossy(&name).into_owned()));
        assert_eq!(segments, ["", "_", ".", "..", ".x", "x"].map(|name| Some(name.to_owned())));
        for segment in ["ä b".as_bytes(), b"%", b"\xff/"] {
            let table = percent_encode(segment, KEPT).to_string();
            assert_eq!(segment_of(&folder(&table)).as_deref(), Some(segment));
        }
        for foreign in ["a b", ".hidden", "%zz"] {
            assert_eq!(segment_of(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_whole_table_is_the_range_of_its_segment() {
        let span = whole(b"/shop/", b"/shop/orders/1");
        assert_eq!((&*span.start, &*span.end), (b"/shop/orders/".as_slice(), b"/shop/orders0".as_slice()));
        assert_eq!(after(&[1, 255]), vec![2]);
    }
}
