//! The end: sinks hold what their sources had, and whoever watched the mirror saw each key change in its order.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use capturedrain::verify::{self, Proof};

/// One key's new value; `None`: it was deleted.
pub(crate) type Write = (String, Option<Vec<u8>>);

/// What a changefeed replicates, as the proof reads it.
#[derive(Debug, Clone)]
pub(crate) enum Feed {
    /// A range of an etcd, every row of it, into files.
    Files { source: String, sink: PathBuf },
    /// A range of an etcd into a range of another.
    Mirror { source: String, sink: String },
    /// A made-up stream into files.
    MadeUp { source: String, sink: PathBuf },
}

/// Compares a sink with its source: rows from after `start_ts` up to `end_ts`.
pub(crate) async fn of(feed: &Feed, start_ts: u64, end_ts: u64) -> Result<Proof, String> {
    let proof = match feed {
        Feed::Files { source, sink } => verify::against_history(sink, source, start_ts, end_ts).await,
        Feed::Mirror { source, sink } => verify::against_mirror(source, sink).await,
        Feed::MadeUp { source, sink } => verify::against_synthetic(sink, source, start_ts, end_ts),
    };
    proof.map_err(|error| error.to_string())
}

/// What watchers of a copy saw, key by key.
pub(crate) type Copies = BTreeMap<String, Vec<Option<String>>>;

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

/// Adds what one transaction wrote.
pub(crate) fn add(copies: &mut Copies, writes: Vec<Write>) {
    for (key, value) in writes {
        copies.entry(key).or_default().push(value.map(text));
    }
}

/// What the keys of a source were, one after another.
pub(crate) async fn truth(source: &str, prefix: &str, end: u64) -> Copies {
    let mut truth = Copies::new();
    for (key, value) in verify::history(source, 1, end).await.unwrap() {
        let key = text(key);
        truth.entry(key.strip_prefix(prefix).unwrap_or(&key).to_owned()).or_default().push(value.map(text));
    }
    truth
}

/// What was seen of each key is what the source had, in its order and each but once, and ends as that. Values that were
/// replaced at once may be left out.
pub(crate) fn in_order(truth: &Copies, copies: &Copies) -> Result<(), String> {
    if let Some(key) = copies.keys().find(|key| !truth.contains_key(*key)) {
        return Err(format!("{key} was in the mirror, and the source never had it"));
    }
    for (key, values) in truth {
        let seen = copies.get(key).map_or(&[][..], Vec::as_slice);
        let mut rest = values.iter();
        for (n, value) in seen.iter().enumerate() {
            if !rest.any(|there| there == value) {
                let before = seen[..n].last();
                return Err(format!(
                    "{key} of the mirror was {value:?} after {before:?}, which is not the source's order"
                ));
            }
        }
        if seen.last().cloned().flatten() != values.last().cloned().flatten() {
            return Err(format!("{key} of the mirror ends as {:?}, the source as {:?}", seen.last(), values.last()));
        }
    }
    Ok(())
}

/// The folder of one of a sink's tables.
pub(crate) fn a_table(sink: &Path) -> PathBuf {
    let mut entries = fs::read_dir(sink).unwrap().map(|entry| entry.unwrap().path());
    entries.find(|path| path.is_dir()).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_comes_again_late_or_never_is_noticed() {
        let of = |values: &[&str]| -> Copies {
            let value = |value: &&str| Some((*value).to_owned()).filter(|value| !value.is_empty());
            BTreeMap::from([("k".to_owned(), values.iter().map(value).collect())])
        };
        let truth = of(&["1", "2", "", "3"]);
        for well in [&["1", "2", "", "3"][..], &["3"], &["2", "3"]] {
            assert_eq!(in_order(&truth, &of(well)), Ok(()), "{well:?}");
        }
        for (bad, says) in [
            (&["2", "1", "3"][..], "not the source's order"),
            (&["1", "1", "3"], "not the source's order"),
            (&["1", "2"], "ends as"),
            (&["1", "x", "3"], "not the source's order"),
            (&[], "ends as"),
        ] {
            assert!(in_order(&truth, &of(bad)).unwrap_err().contains(says), "{bad:?}");
        }
        assert!(in_order(&Copies::new(), &truth).unwrap_err().contains("never had it"));
        // A key that came and went before anybody could copy it.
        assert_eq!(in_order(&of(&["1", ""]), &Copies::new()), Ok(()));
    }
}
