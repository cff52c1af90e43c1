//! Addresses of sources and sinks.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use capturedrain_core::model::ChangefeedConfig;
use percent_encoding::percent_decode_str;
use url::Url;

use super::PipelineError;

/// A range of an etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdUrl {
    /// `host:port` each.
    pub endpoints: Vec<String>,
    /// All keys that begin so.
    pub prefix: Vec<u8>,
    /// As it was given.
    pub url: String,
}

/// A stream that is computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntheticUrl {
    /// How many tables.
    pub tables: u64,
    /// Rows a second and table, at most 1000.
    pub rate: u64,
    /// Keys a table.
    pub keys: u64,
    /// Another seed, another stream.
    pub seed: u64,
    /// Size of a value.
    pub value_bytes: usize,
    /// As it was given.
    pub url: String,
}

/// A source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceUrl {
    /// `etcd://HOST:PORT[,HOST:PORT…]/PREFIX`
    Etcd(EtcdUrl),
    /// `synthetic://?tables=8&rate=100&keys=1000&seed=1&value_bytes=16`
    Synthetic(SyntheticUrl),
}

/// A sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SinkUrl {
    /// `file:///FOLDER`
    File(PathBuf),
    /// `blackhole://`
    Blackhole,
}

impl SourceUrl {
    /// Reads the address of a source.
    ///
    /// # Errors
    /// When it makes no sense.
    pub fn parse(url: &str) -> Result<Self, PipelineError> {
        let wrong = |reason: &str| PipelineError::SourceUrl { url: url.to_owned(), reason: reason.to_owned() };
        match url.split_once("://") {
            Some(("etcd", rest)) => {
                let (hosts, prefix) = rest.split_once('/').ok_or_else(|| wrong("it names no prefix of keys"))?;
                let endpoints: Vec<_> = hosts.split(',').map(str::to_owned).collect();
                let named = |endpoint: &String| {
                    endpoint
                        .rsplit_once(':')
                        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
                };
                if !endpoints.iter().all(named) {
                    return Err(wrong("use etcd://HOST:PORT[,HOST:PORT…]/PREFIX"));
                }
                let prefix = percent_decode_str(&format!("/{prefix}")).collect();
                Ok(Self::Etcd(EtcdUrl { endpoints, prefix, url: url.to_owned() }))
            }
            Some(("synthetic", _)) => synthetic(url).map(Self::Synthetic).map_err(|reason| wrong(&reason)),
            _ => Err(wrong("use etcd://HOST:PORT[,HOST:PORT…]/PREFIX or synthetic://")),
        }
    }
}

fn synthetic(url: &str) -> Result<SyntheticUrl, String> {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let mut values: BTreeMap<String, u64> = BTreeMap::new();
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        let number = value.parse().map_err(|_| format!("{name} has to be a number"))?;
        values.insert(name.into_owned(), number);
    }
    let mut take = |name: &str, default: u64, range: std::ops::RangeInclusive<u64>| {
        let value = values.remove(name).unwrap_or(default);
        let fits = range.contains(&value);
        if fits { Ok(value) } else { Err(format!("{name} has to be {} to {}", range.start(), range.end())) }
    };
    let made = SyntheticUrl {
        tables: take("tables", 8, 1..=100_000)?,
        rate: take("rate", 100, 1..=1000)?,
        keys: take("keys", 1000, 1..=1_000_000_000)?,
        seed: take("seed", 1, 0..=u64::MAX)?,
        value_bytes: usize::try_from(take("value_bytes", 16, 0..=65_536)?).unwrap_or(0),
        url: url.to_owned(),
    };
    match values.keys().next() {
        Some(name) => Err(format!("there is no option {name}: use tables, rate, keys, seed or value_bytes")),
        None => Ok(made),
    }
}

impl SinkUrl {
    /// Reads the address of a sink.
    ///
    /// # Errors
    /// When it makes no sense.
    pub fn parse(url: &str) -> Result<Self, PipelineError> {
        let wrong = || PipelineError::SinkUrl { url: url.to_owned() };
        if url == "blackhole://" {
            return Ok(Self::Blackhole);
        }
        let parsed = Url::parse(url).map_err(|_| wrong())?;
        let path = (parsed.scheme() == "file").then(|| parsed.to_file_path()).and_then(Result::ok);
        let path = path.filter(|path| path.is_absolute() && path != Path::new("/"));
        path.map(Self::File).ok_or_else(wrong)
    }
}

/// Whether the addresses of a changefeed make sense.
///
/// # Errors
/// Which one does not.
pub fn check_config(config: &ChangefeedConfig) -> Result<(), PipelineError> {
    SourceUrl::parse(&config.source)?;
    SinkUrl::parse(&config.sink)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

    use super::*;

    #[test]
    fn an_etcd_source_is_endpoints_and_a_prefix() {
        let SourceUrl::Etcd(etcd) = SourceUrl::parse("etcd://a:1,b:2/shop/%20").unwrap() else { panic!("not etcd") };
        assert_eq!((etcd.endpoints, etcd.prefix), (vec!["a:1".to_owned(), "b:2".to_owned()], b"/shop/ ".to_vec()));
        for bad in ["etcd://a:1", "etcd://a/x/", "etcd://:1/x", "mysql://a:1/x", "shop"] {
            assert!(SourceUrl::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_synthetic_source_has_bounds() {
        assert!(SourceUrl::parse("synthetic://").is_ok());
        assert!(SourceUrl::parse("synthetic://?tables=3&rate=1000").is_ok());
        for bad in ["synthetic://?rate=1001", "synthetic://?tabels=3", "synthetic://?keys=x"] {
            assert!(SourceUrl::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_sink_is_a_folder_or_nothing() {
        assert_eq!(SinkUrl::parse("file:///a/b"), Ok(SinkUrl::File(PathBuf::from("/a/b"))));
        assert_eq!(SinkUrl::parse("blackhole://"), Ok(SinkUrl::Blackhole));
        for bad in ["file://relative/x", "file:///", "/a/b", "s3://b"] {
            assert!(SinkUrl::parse(bad).is_err(), "{bad}");
        }
    }
}
