//! A CA that makes certificates as tests need them: of any name, role and time.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use capturedrain::tls::{Current, Dialer, Files};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};

const DAY: Duration = Duration::from_hours(24);

/// Signs certificates.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// What a certificate says.
#[derive(Clone)]
pub(crate) struct Subject<'a> {
    pub(crate) name: &'a str,
    /// `capture`, `client` or another word; empty for none.
    pub(crate) role: &'a str,
    pub(crate) ip: [u8; 4],
    /// More names of the host, besides `localhost`.
    pub(crate) hosts: &'a [&'a str],
    pub(crate) from: SystemTime,
    pub(crate) until: SystemTime,
}

impl<'a> Subject<'a> {
    pub(crate) fn new(name: &'a str, role: &'a str) -> Self {
        let now = SystemTime::now();
        Self { name, role, ip: [127, 0, 0, 1], hosts: &[], from: now - DAY, until: now + DAY }
    }

    pub(crate) fn expired(self) -> Self {
        Self { from: SystemTime::now() - 2 * DAY, until: SystemTime::now() - DAY, ..self }
    }

    pub(crate) fn not_before_tomorrow(self) -> Self {
        Self { from: SystemTime::now() + DAY, until: SystemTime::now() + 2 * DAY, ..self }
    }
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    /// Its own certificate, PEM.
    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate and its key, PEM.
    pub(crate) fn sign(&self, subject: &Subject<'_>) -> (String, String) {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, subject.name);
        let hosts = ["localhost"].iter().chain(subject.hosts);
        params.subject_alt_names = hosts.map(|host| SanType::DnsName((*host).try_into().unwrap())).collect();
        params.subject_alt_names.push(SanType::IpAddress(subject.ip.into()));
        if !subject.role.is_empty() {
            let uri = format!("capturedrain://{}", subject.role);
            params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = (subject.from.into(), subject.until.into());
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// Writes a certificate and its key beside the CA's, as files of a name.
    pub(crate) fn issue(&self, folder: &Path, stem: &str, subject: &Subject<'_>) -> Papers {
        let papers = Papers::named(folder, stem);
        let (cert, key) = self.sign(subject);
        replace(&papers.ca, &self.pem());
        replace(&papers.cert, &cert);
        replace(&papers.key, &key);
        papers
    }
}

/// Writes a file beside its place, and moves it there, as Kubernetes does.
pub(crate) fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(&new, path).unwrap();
}

/// TLS files.
#[derive(Debug, Clone)]
pub(crate) struct Papers {
    pub(crate) ca: PathBuf,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl Papers {
    fn named(folder: &Path, stem: &str) -> Self {
        let file = |what: &str| folder.join(format!("{stem}-{what}.pem"));
        Self { ca: file("ca"), cert: file("cert"), key: file("key") }
    }

    /// As options of a command, which begin with a prefix.
    pub(crate) fn options(&self, prefix: &str) -> Vec<String> {
        let option = |name: &str, path: &Path| [format!("--{prefix}-{name}"), path.display().to_string()];
        [option("ca", &self.ca), option("cert", &self.cert), option("key", &self.key)].concat()
    }

    pub(crate) fn files(&self) -> Files {
        Files { ca: Some(self.ca.clone()), identity: Some((self.cert.clone(), self.key.clone())) }
    }

    /// Calls with these.
    pub(crate) fn dialer(&self) -> Dialer {
        Dialer::secure(Current::fixed(&self.files()).unwrap())
    }
}
