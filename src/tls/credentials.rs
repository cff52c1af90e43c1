//! What the TLS files held at one moment, read, checked and ready to use.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use rustls::{
    CertificateError, ClientConfig, RootCertStore, ServerConfig,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, UnixTime,
        pem::{self, PemObject as _},
    },
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

use super::{Caller, Role, TlsError, behind::Behind};

/// Longest TLS file, in bytes.
const FILE_MAX_BYTES: u64 = 1 << 20;
/// How long an idle connection to a server is kept: shorter than servers keep theirs, so that no call meets its end.
const POOL_IDLE: Duration = Duration::from_secs(4);
/// How long a connection may take to be made.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Where the credentials are, in PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// Certificates of the CAs that are believed; `None`: the system's.
    pub ca: Option<PathBuf>,
    /// The own certificate, its chain behind it, and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Credentials in PEM that are in no files.
#[derive(Clone, Default)]
pub struct Pem {
    /// Certificates of the CAs that are believed; `None`: the system's.
    pub ca: Option<Vec<u8>>,
    /// The own certificate, its chain behind it, and its key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl std::fmt::Debug for Pem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pem").finish_non_exhaustive()
    }
}

impl Pem {
    /// With names by which complaints call its parts.
    pub(super) fn named(self, name: &str) -> (Files, Texts) {
        let part = |key: &str| PathBuf::from(format!("{name}, {key}"));
        let files = Files {
            ca: self.ca.as_ref().map(|_| part("ca.crt")),
            identity: self.identity.as_ref().map(|_| (part("tls.crt"), part("tls.key"))),
        };
        (files, Texts { ca: self.ca, identity: self.identity })
    }
}

/// The bytes of the files.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Texts {
    ca: Option<Vec<u8>>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Texts {
    pub(super) fn read(files: &Files) -> Result<Self, TlsError> {
        Ok(Self {
            ca: files.ca.as_deref().map(read).transpose()?,
            identity: files.identity.as_ref().map(|(cert, key)| Ok((read(cert)?, read(key)?))).transpose()?,
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let cannot = |reason: String| TlsError::Read { path: path.to_owned(), reason };
    let failed = |error: std::io::Error| cannot(error.to_string());
    // A pipe would be waited for without an end.
    if !path.metadata().map_err(failed)?.is_file() {
        return Err(cannot("it is not a file".to_owned()));
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(FILE_MAX_BYTES + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > FILE_MAX_BYTES {
        return Err(cannot(format!("it is longer than {FILE_MAX_BYTES} bytes")));
    }
    Ok(bytes)
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let damaged = |error: pem::Error| {
        let reason = match error {
            pem::Error::MissingSectionEnd { .. } => "it is cut off".to_owned(),
            pem::Error::Base64Decode(_) => "a section of it is not base64".to_owned(),
            other => other.to_string(),
        };
        TlsError::Damaged { path: path.to_owned(), reason }
    };
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(damaged)?;
    let empty = TlsError::Empty { path: path.to_owned(), what: "certificate" };
    if found.is_empty() { Err(empty) } else { Ok(found) }
}

/// The own certificate and key.
struct Own {
    path: PathBuf,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    pem: tonic::transport::Identity,
    valid_from_s: i64,
    valid_until_s: i64,
}

impl Own {
    fn of(files: (&Path, &Path), cert: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let chain = certificates(files.0, cert)?;
        let parsed = PrivateKeyDer::from_pem_slice(key);
        let parsed = parsed.map_err(|_| TlsError::Empty { path: files.1.to_owned(), what: "private key" })?;
        let pem = tonic::transport::Identity::from_pem(cert, key);
        let (valid_from_s, valid_until_s) = validity(files.0, &chain[0])?;
        let path = files.0.to_owned();
        Ok(Self { path, chain, key: parsed, pem, valid_from_s, valid_until_s })
    }

    fn check_time(&self, now: Timestamp) -> Result<(), TlsError> {
        let path = self.path.clone();
        let at = |seconds| Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |at| at.to_string());
        if now.as_second() > self.valid_until_s {
            return Err(TlsError::Expired { path, at: at(self.valid_until_s) });
        }
        if now.as_second() < self.valid_from_s {
            return Err(TlsError::NotYetValid { path, at: at(self.valid_from_s) });
        }
        Ok(())
    }
}

/// The first and the last second of a certificate, since 1970.
fn validity(path: &Path, der: &[u8]) -> Result<(i64, i64), TlsError> {
    let (_, certificate) = X509Certificate::from_der(der)
        .map_err(|error| TlsError::Damaged { path: path.to_owned(), reason: error.to_string() })?;
    let validity = certificate.validity();
    Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// When the certificate that comes first in a PEM text ends.
///
/// # Errors
/// When there is none, or it makes no sense.
pub fn valid_until(pem: &[u8]) -> Result<Timestamp, String> {
    let first = CertificateDer::pem_slice_iter(pem).next().ok_or("there is no certificate in PEM form")?;
    let der = first.map_err(|error| error.to_string())?;
    let (_, valid_until_s) = validity(Path::new(""), &der).map_err(|error| error.to_string())?;
    Timestamp::from_second(valid_until_s).map_err(|error| error.to_string())
}

/// When a certificate ends, by its DER; `None` when it makes no sense.
pub fn valid_until_der(der: &[u8]) -> Option<Timestamp> {
    let (_, valid_until_s) = validity(Path::new(""), &CertificateDer::from(der)).ok()?;
    Timestamp::from_second(valid_until_s).ok()
}

/// What the files held.
pub struct Credentials {
    own: Option<Own>,
    /// The CA file, as it was.
    ca: Option<tonic::transport::Certificate>,
    /// Judges the servers that are dialled.
    servers: Arc<WebPkiServerVerifier>,
    /// Judges those who dial; only with a CA of its own.
    clients: Option<Arc<dyn ClientCertVerifier>>,
    http: reqwest::Client,
    /// The same for those behind a name, by that name, once somebody has asked for it.
    behind: Mutex<BTreeMap<String, reqwest::Client>>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = self.own.as_ref().map(|own| &own.path);
        f.debug_struct("Credentials").field("certificate", &path).finish_non_exhaustive()
    }
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

#[allow(clippy::needless_pass_by_value, reason = "the form that map_err wants")]
fn setup(error: impl std::fmt::Display) -> TlsError {
    TlsError::Setup(error.to_string())
}

/// The certificates of a CA file, or else the system's.
fn roots(ca: Option<(&Path, &[u8])>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    if let Some((path, pem)) = ca {
        for certificate in certificates(path, pem)? {
            let damaged = |error: rustls::Error| TlsError::Damaged { path: path.to_owned(), reason: error.to_string() };
            roots.add(certificate).map_err(damaged)?;
        }
        return Ok(roots);
    }
    let system = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(system.certs);
    if roots.is_empty() {
        let why = system.errors.first().map_or_else(|| "none found".to_owned(), ToString::to_string);
        return Err(TlsError::NoRoots(why));
    }
    Ok(roots)
}

/// An HTTP client that dials nobody but whom it is told to: no proxy of the environment diverts it, and no redirect.
pub(super) fn http_client(tls: ClientConfig) -> Result<reqwest::Client, TlsError> {
    let client = reqwest::Client::builder().no_proxy().connect_timeout(CONNECT_TIMEOUT).pool_idle_timeout(POOL_IDLE);
    client.redirect(reqwest::redirect::Policy::none()).tls_backend_preconfigured(tls).build().map_err(setup)
}

impl Credentials {
    /// Reads the files, and checks what can be checked without others.
    ///
    /// # Errors
    /// When one is missing, damaged, not of its time or does not fit the others.
    pub fn load(files: &Files) -> Result<Self, TlsError> {
        Self::of(files, &Texts::read(files)?)
    }

    pub(super) fn of(files: &Files, texts: &Texts) -> Result<Self, TlsError> {
        let own = match (&files.identity, &texts.identity) {
            (Some((cert_path, key_path)), Some((cert, key))) => {
                let own = Own::of((cert_path, key_path), cert, key)?;
                own.check_time(Timestamp::now())?;
                Some(own)
            }
            _ => None,
        };
        let roots = Arc::new(roots(files.ca.as_deref().zip(texts.ca.as_deref()))?);
        let servers = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider()).build().map_err(setup)?;
        let clients = files.ca.as_ref().map(|_| {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
            verifier.allow_unauthenticated().build().map_err(setup)
        });
        let clients = clients.transpose()?;
        let config = client_config(servers.clone(), own.as_ref()).map_err(|error| mismatch(files, &error))?;
        let http = http_client(config)?;
        let ca = texts.ca.as_ref().map(tonic::transport::Certificate::from_pem);
        Ok(Self { own, ca, servers, clients, http, behind: Mutex::default() })
    }

    /// Whether callers are asked for a certificate.
    pub fn is_mutual(&self) -> bool {
        self.clients.is_some()
    }

    pub(super) fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// The same for those behind a name: whoever is called by a bare address has to prove that name.
    pub(super) fn http_behind(&self, name: &str) -> reqwest::Client {
        let mut behind = self.behind.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = behind.get(name) {
            return known.clone();
        }
        let made = ServerName::try_from(name.to_owned()).map_err(setup).and_then(|server| {
            let verifier = Behind { name: server, servers: self.servers.clone() };
            http_client(client_config(Arc::new(verifier), self.own.as_ref()).map_err(setup)?)
        });
        // A name that is none cannot be proven: then the address has to be.
        let client = made.unwrap_or_else(|_| self.http.clone());
        behind.insert(name.to_owned(), client.clone());
        client
    }

    pub(super) fn servers(&self) -> Arc<WebPkiServerVerifier> {
        self.servers.clone()
    }

    pub(super) fn identity(&self) -> Option<&tonic::transport::Identity> {
        self.own.as_ref().map(|own| &own.pem)
    }

    /// What etcd's client takes.
    pub(crate) fn for_etcd(&self) -> tonic::transport::ClientTlsConfig {
        let mut tls = tonic::transport::ClientTlsConfig::new().timeout(CONNECT_TIMEOUT);
        if let Some(ca) = &self.ca {
            tls = tls.ca_certificate(ca.clone());
        }
        if let Some(identity) = self.identity() {
            tls = tls.identity(identity.clone());
        }
        tls
    }

    /// How much of the own certificate's time is left, as a share of it; `None` without one.
    pub(super) fn time_left(&self, now: Timestamp) -> Option<f64> {
        let own = self.own.as_ref()?;
        let seconds = |from: i64, until: i64| Duration::from_secs(u64::try_from(until - from).unwrap_or(0));
        let left = seconds(now.as_second(), own.valid_until_s);
        Some(left.as_secs_f64() / seconds(own.valid_from_s, own.valid_until_s).as_secs_f64().max(1.0))
    }

    /// Checks that other captures would accept this one, at the host that they dial.
    ///
    /// # Errors
    /// Why they would not.
    pub fn check_capture(&self, host: &str) -> Result<(), TlsError> {
        let Some(own) = &self.own else { return Ok(()) };
        let path = own.path.clone();
        let refused = |reason: String| TlsError::Refused { path: path.clone(), reason };
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(bare).map_err(|_| refused(format!("\"{host}\" is not a name of a host")))?;
        let (leaf, rest) = (&own.chain[0], &own.chain[1..]);
        let served = self.servers.verify_server_cert(leaf, rest, &name, &[], UnixTime::now());
        served.map_err(|error| refused(explain(&error, host)))?;
        let Some(clients) = &self.clients else { return Ok(()) };
        let dialled = clients.verify_client_cert(leaf, rest, UnixTime::now());
        dialled.map_err(|error| refused(explain(&error, host)))?;
        match Caller::of_certificate(leaf) {
            Caller::Known { role: Some(Role::Capture), .. } => Ok(()),
            _ => Err(TlsError::NotACapture { path }),
        }
    }

    /// Whether a chain that was trusted once, leaf first, still is.
    pub(crate) fn still_trusts(&self, chain: &[Vec<u8>]) -> bool {
        let (Some(clients), Some((leaf, rest))) = (&self.clients, chain.split_first()) else { return false };
        let rest: Vec<_> = rest.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        clients.verify_client_cert(&leaf.as_slice().into(), &rest, UnixTime::now()).is_ok()
    }

    /// How a server speaks TLS with these credentials: HTTP/2 and HTTP/1.1, a caller's certificate asked for when there
    /// is a CA. No session is resumed, so that each connection is judged by what is trusted then.
    ///
    /// # Errors
    /// When there is no certificate of its own.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let own = self.own.as_ref().ok_or_else(|| setup("a server needs a certificate"))?;
        let versions = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = versions.map_err(setup)?;
        let builder = match &self.clients {
            Some(clients) => builder.with_client_cert_verifier(clients.clone()),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(own.chain.clone(), own.key.clone_key()).map_err(setup)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

fn client_config(verifier: Arc<dyn ServerCertVerifier>, own: Option<&Own>) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    Ok(match own {
        Some(own) => builder.with_client_auth_cert(own.chain.clone(), own.key.clone_key())?,
        None => builder.with_no_client_auth(),
    })
}

fn mismatch(files: &Files, error: &rustls::Error) -> TlsError {
    match (&files.identity, error) {
        (Some((cert, key)), rustls::Error::InconsistentKeys(_)) => {
            TlsError::KeyMismatch { cert: cert.clone(), key: key.clone() }
        }
        (Some((_, key)), error) => TlsError::Damaged { path: key.clone(), reason: error.to_string() },
        (None, error) => setup(error),
    }
}

/// Why a certificate is refused, for those who have to make a better one.
fn explain(error: &rustls::Error, host: &str) -> String {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "no CA that is believed has signed it".to_owned()
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => format!("it is not valid for {host}, at which this capture is dialled (--advertise-addr)"),
        rustls::Error::InvalidCertificate(
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. },
        ) => "its extended key usage has to allow servers and clients".to_owned(),
        other => other.to_string(),
    }
}
