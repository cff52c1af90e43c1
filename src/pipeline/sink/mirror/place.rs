//! Where things are in a mirror's etcd.
//!
//! Fences begin without a slash, so that no range which an address can name has them: readers of a mirror see data only.

use std::sync::Arc;

use capturedrain_core::model::SpanId;
use percent_encoding::{percent_decode_str, percent_encode};

use crate::pipeline::table::{KEPT, KeyRange, after, folder, table_of};

/// Below this are the fences of all mirrors of an etcd, a folder each, named by the percent-encoded prefix.
pub(super) const FENCES: &str = "capturedrain-mirror/";

/// The folder of a mirror's fences.
pub(super) fn fences_of(prefix: &[u8]) -> String {
    format!("{FENCES}{}/", percent_encode(prefix, KEPT))
}

/// The prefix whose fences a key belongs to.
pub(super) fn prefix_of(key: &[u8]) -> Option<Vec<u8>> {
    let (folder, _) = std::str::from_utf8(key).ok()?.strip_prefix(FENCES)?.split_once('/')?;
    Some(percent_decode_str(folder).collect())
}

/// The key that names the changefeed of a mirror.
pub(super) fn owner_key(prefix: &[u8]) -> String {
    fences_of(prefix) + "owner"
}

/// The folder of a table's fences.
#[derive(Debug, Clone)]
pub(super) struct TableFences(Arc<str>);

impl TableFences {
    pub(super) fn new(prefix: &[u8], table: &str) -> Self {
        Self(format!("{}table/{}/", fences_of(prefix), folder(table)).into())
    }

    /// All of its keys.
    pub(super) fn range(&self) -> KeyRange {
        KeyRange { start: self.0.as_bytes().to_vec(), end: after(self.0.as_bytes()) }
    }

    /// The key that every new writer of the table compares and replaces.
    pub(super) fn turn_key(&self) -> Vec<u8> {
        format!("{}turn", self.0).into_bytes()
    }

    /// The fence of a range.
    pub(super) fn key(&self, range: SpanId) -> Vec<u8> {
        format!("{}range/{range}", self.0).into_bytes()
    }
}

/// Which key of the mirror a key of the source is.
#[derive(Debug, Clone)]
pub(super) struct Mapping {
    pub(super) from: Vec<u8>,
    pub(super) to: Vec<u8>,
    /// Keys of other tables in the range are not its own, when this is set.
    pub(super) only_table: Option<Arc<str>>,
}

impl Mapping {
    pub(super) fn there(&self, key: &[u8]) -> Vec<u8> {
        [&self.to, key.strip_prefix(&*self.from).unwrap_or(key)].concat()
    }

    pub(super) fn range_there(&self, range: &KeyRange) -> KeyRange {
        let inside = |key: &[u8]| key.starts_with(&self.from);
        KeyRange {
            start: if inside(&range.start) { self.there(&range.start) } else { self.to.clone() },
            end: if inside(&range.end) { self.there(&range.end) } else { after(&self.to) },
        }
    }

    /// Whether a key of the mirror, which is in the range, is of the table.
    pub(super) fn owns(&self, there: &[u8]) -> bool {
        self.only_table.as_ref().is_none_or(|only| table_of(&self.to, there) == *only)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_what_follows_the_prefix() {
        let mapping = Mapping { from: b"/shop/".to_vec(), to: b"/copy/of/".to_vec(), only_table: Some("".into()) };
        assert_eq!(mapping.there(b"/shop/a/1"), b"/copy/of/a/1");
        let range = |start: &str, end: &str| KeyRange { start: start.into(), end: end.into() };
        assert_eq!(mapping.range_there(&range("/shop/a/", "/shop/a0")), range("/copy/of/a/", "/copy/of/a0"));
        assert_eq!(mapping.range_there(&range("/shop/", "/shop0")), range("/copy/of/", "/copy/of0"));
        assert!(mapping.owns(b"/copy/of/top") && !mapping.owns(b"/copy/of/a/1"));
    }

    #[test]
    fn fences_are_in_no_range_that_an_address_can_name() {
        for prefix in ["/", "/copy/", "/capturedrain-mirror/"] {
            let fences = TableFences::new(prefix.as_bytes(), "t");
            assert!(!fences.range().start.starts_with(b"/"));
            assert_eq!(prefix_of(&fences.turn_key()).as_deref(), Some(prefix.as_bytes()));
        }
        assert_eq!(fences_of(b"/copy/"), "capturedrain-mirror/%2Fcopy%2F/");
    }
}
