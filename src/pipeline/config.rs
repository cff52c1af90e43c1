//! Addresses of sources and sinks.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use capturedrain_core::model::ChangefeedConfig;
use percent_encoding::percent_decode_str;
use url::Url;

use super::PipelineError;

/// How an etcd's address is written.
const ETCD_FORM: &str = "etcd://HOST:PORT[,HOST:PORT…]/PREFIX[?ca=FILE&cert=FILE&key=FILE]";
/// The slowest write of a sink that only pretends.
const LATENCY_MAX_MS: u64 = 1000;

/// A range of an etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdUrl {
    /// `host:port` each.
    pub endpoints: Vec<String>,
    /// All keys that begin so. It begins with a slash itself.
    pub prefix: Vec<u8>,
    /// TLS, when its files are named.
    pub tls: Option<TlsFiles>,
    /// As it was given.
    pub url: String,
}

/// The files of a TLS connection, PEM each.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TlsFiles {
    /// Who may have signed the server's certificate.
    pub ca: PathBuf,
    /// The own certificate and its key, for servers that ask.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// A stream that is computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntheticUrl {
    /// How many tables.
    pub tables: u64,
    /// Rows a second and table, at most 1000.
    pub rate: u64,
    /// By how much the rows of each table come later than those of the one before, so that they do not come all at once.
    pub stagger_ms: u64,
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
    /// `etcd://HOST:PORT[,HOST:PORT…]/PREFIX[?ca=FILE&cert=FILE&key=FILE]`
    Etcd(EtcdUrl),
    /// `synthetic://?tables=8&rate=100&keys=1000&seed=1&value_bytes=16`
    Synthetic(SyntheticUrl),
}

/// A sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SinkUrl {
    /// `file:///FOLDER`
    File(PathBuf),
    /// `etcd://HOST:PORT[,HOST:PORT…]/PREFIX[?ca=FILE&cert=FILE&key=FILE]`: a copy of the source's range
    Mirror(EtcdUrl),
    /// `blackhole://[?latency_ms=20]`: a write takes so long
    Blackhole(Duration),
}

impl SourceUrl {
    /// Reads the address of a source.
    ///
    /// # Errors
    /// When it makes no sense.
    pub fn parse(url: &str) -> Result<Self, PipelineError> {
        let wrong = |reason: &str| PipelineError::SourceUrl { url: url.to_owned(), reason: reason.to_owned() };
        match url.split_once("://") {
            Some(("etcd", rest)) => etcd(url, rest)
                .map(Self::Etcd)
                .map_err(|reason| PipelineError::SourceUrl { url: without_password(url), reason }),
            Some(("synthetic", _)) => synthetic(url).map(Self::Synthetic).map_err(|reason| wrong(&reason)),
            _ => Err(wrong(&format!("use {ETCD_FORM} or synthetic://"))),
        }
    }
}

/// Reads what follows `etcd://`.
fn etcd(url: &str, rest: &str) -> Result<EtcdUrl, String> {
    let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (hosts, prefix) = address.split_once('/').ok_or("it names no prefix of keys")?;
    if hosts.contains('@') {
        return Err("users and passwords are not taken, name a client certificate by cert and key".to_owned());
    }
    let endpoints: Vec<_> = hosts.split(',').map(str::to_owned).collect();
    let named = |endpoint: &String| {
        endpoint.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
    };
    if !endpoints.iter().all(named) {
        return Err(format!("use {ETCD_FORM}"));
    }
    let prefix = percent_decode_str(&format!("/{prefix}")).collect();
    Ok(EtcdUrl { endpoints, prefix, tls: tls(query)?, url: url.to_owned() })
}

/// Reads the names of TLS files, percent-encoded.
fn tls(query: &str) -> Result<Option<TlsFiles>, String> {
    let mut files = BTreeMap::new();
    for (name, value) in
        query.split('&').filter(|part| !part.is_empty()).map(|part| part.split_once('=').unwrap_or((part, "")))
    {
        if !["ca", "cert", "key"].contains(&name) {
            return Err(format!("there is no option {name}: use ca, cert and key"));
        }
        if value.is_empty() || files.insert(name, decoded_path(value)).is_some() {
            return Err(format!("{name} has to name one file"));
        }
    }
    let identity = match (files.remove("cert"), files.remove("key")) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        _ => return Err("cert and key belong together".to_owned()),
    };
    match (files.remove("ca"), identity) {
        (Some(ca), identity) => Ok(Some(TlsFiles { ca, identity })),
        (None, None) => Ok(None),
        (None, Some(_)) => Err("cert and key need ca, by which the server is known".to_owned()),
    }
}

fn decoded_path(value: &str) -> PathBuf {
    PathBuf::from(OsString::from_vec(percent_decode_str(value).collect()))
}

/// The address without what stands between `://` and `@`, for messages.
fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let hosts = rest.find('/').unwrap_or(rest.len());
    match rest[..hosts].rfind('@') {
        Some(at) => format!("{scheme}://…{}", &rest[at..]),
        None => url.to_owned(),
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
        stagger_ms: take("stagger_ms", 0, 0..=999)?,
        keys: take("keys", 1000, 1..=1_000_000_000)?,
        seed: take("seed", 1, 0..=u64::MAX)?,
        value_bytes: usize::try_from(take("value_bytes", 16, 0..=65_536)?).unwrap_or(0),
        url: url.to_owned(),
    };
    match values.keys().next() {
        Some(name) => {
            Err(format!("there is no option {name}: use tables, rate, stagger_ms, keys, seed or value_bytes"))
        }
        None => Ok(made),
    }
}

/// Reads how long a write takes.
fn blackhole(query: &str) -> Option<Duration> {
    if query.is_empty() {
        return Some(Duration::ZERO);
    }
    let latency_ms = query.strip_prefix("?latency_ms=")?.parse().ok()?;
    (latency_ms <= LATENCY_MAX_MS).then(|| Duration::from_millis(latency_ms))
}

impl SinkUrl {
    /// Reads the address of a sink.
    ///
    /// # Errors
    /// When it makes no sense.
    pub fn parse(url: &str) -> Result<Self, PipelineError> {
        let wrong = |reason: String| PipelineError::SinkUrl { url: without_password(url), reason };
        let form = || format!("use file:///FOLDER, {ETCD_FORM} or blackhole://[?latency_ms=N]");
        match url.split_once("://") {
            Some(("blackhole", query)) => blackhole(query).map(Self::Blackhole).ok_or_else(|| wrong(form())),
            Some(("etcd", rest)) => etcd(url, rest).map(Self::Mirror).map_err(wrong),
            Some(("file", _)) => {
                let path = Url::parse(url).ok().and_then(|url| url.to_file_path().ok());
                let path = path.filter(|path| path.is_absolute() && path != Path::new("/"));
                path.map(Self::File).ok_or_else(|| wrong(form()))
            }
            _ => Err(wrong(form())),
        }
    }
}

/// Whether the addresses of a changefeed make sense.
///
/// # Errors
/// Which one does not.
pub fn check_config(config: &ChangefeedConfig) -> Result<(), PipelineError> {
    let source = SourceUrl::parse(&config.source)?;
    let SinkUrl::Mirror(sink) = SinkUrl::parse(&config.sink)? else { return Ok(()) };
    let wrong = |reason: &str| Err(PipelineError::SinkUrl { url: sink.url.clone(), reason: reason.to_owned() });
    // Keys keep what follows the prefix.
    let ends = |prefix: &[u8]| prefix.ends_with(b"/");
    match source {
        SourceUrl::Etcd(source) if ends(&source.prefix) && !ends(&sink.prefix) => {
            wrong("its prefix has to end with a slash, as the source's does")
        }
        SourceUrl::Etcd(source) if !ends(&source.prefix) && ends(&sink.prefix) => {
            wrong("its prefix must not end with a slash, as the source's does not")
        }
        SourceUrl::Synthetic(_) if !ends(&sink.prefix) => wrong("its prefix has to end with a slash"),
        _ => Ok(()),
    }
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
    fn tls_is_three_files_whose_names_may_have_any_byte() {
        let parse = |query: &str| SinkUrl::parse(&format!("etcd://a:1/m/?{query}"));
        let Ok(SinkUrl::Mirror(sink)) = parse("ca=/tls/c%26a%ff.pem&key=k+1&cert=c") else { panic!("not a mirror") };
        let tls = sink.tls.unwrap();
        assert_eq!(tls.ca, PathBuf::from(OsString::from_vec(b"/tls/c&a\xff.pem".to_vec())));
        assert_eq!((sink.prefix, tls.identity), (b"/m/".to_vec(), Some(("c".into(), "k+1".into()))));
        for bad in ["ca=a&cert=b", "cert=b&key=c", "ca=", "ca=a&ca=b", "user=x", "ca"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_is_refused_and_not_repeated() {
        for url in ["etcd://root:secret@a:1/x", "etcd://root:se@cret@a:1"] {
            for error in [SourceUrl::parse(url).map(|_| ()), SinkUrl::parse(url).map(|_| ())] {
                let sentence = error.unwrap_err().to_string();
                assert!(!sentence.contains("secret") && !sentence.contains("se@"), "{sentence}");
            }
        }
    }

    #[test]
    fn a_mirror_ends_with_a_slash_where_its_source_does() {
        let check = |source: &str, sink: &str| {
            let config = ChangefeedConfig {
                source: source.into(),
                sink: sink.into(),
                start_ts: 0,
                span_max_keys: 0,
                unknown: BTreeMap::new(),
            };
            check_config(&config).is_ok()
        };
        assert!(check("etcd://a:1/shop/", "etcd://b:1/copy/") && check("etcd://a:1/shop", "etcd://b:1/copy"));
        assert!(!check("etcd://a:1/shop/", "etcd://b:1/copy") && !check("etcd://a:1/shop", "etcd://b:1/copy/"));
        assert!(check("synthetic://", "etcd://b:1/copy/") && !check("synthetic://", "etcd://b:1/copy"));
    }

    #[test]
    fn a_synthetic_source_has_bounds() {
        assert!(SourceUrl::parse("synthetic://").is_ok());
        assert!(SourceUrl::parse("synthetic://?tables=3&rate=1000&stagger_ms=10").is_ok());
        for bad in ["synthetic://?rate=1001", "synthetic://?tabels=3", "synthetic://?keys=x"] {
            assert!(SourceUrl::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_sink_is_a_folder_or_nothing() {
        assert_eq!(SinkUrl::parse("file:///a/b"), Ok(SinkUrl::File(PathBuf::from("/a/b"))));
        assert_eq!(SinkUrl::parse("blackhole://"), Ok(SinkUrl::Blackhole(Duration::ZERO)));
        let slow = SinkUrl::parse("blackhole://?latency_ms=20");
        assert_eq!(slow, Ok(SinkUrl::Blackhole(Duration::from_millis(20))));
        let slowest = "blackhole://?latency_ms=1001";
        for bad in ["file://relative/x", "file:///", "/a/b", "s3://b", "blackhole://x", "blackhole://?a=1", slowest] {
            assert!(SinkUrl::parse(bad).is_err(), "{bad}");
        }
    }
}
