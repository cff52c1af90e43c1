//! Makes CAs and what they sign.

use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

/// How long a CA is good for: ten years.
const AUTHORITY_LIFE: Duration = Duration::from_hours(24 * 3653);
/// How much earlier than now they begin, for clocks that are behind.
const BACKDATED: Duration = Duration::from_hours(1);

/// A certificate and its key, PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The key.
    pub key: String,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").finish_non_exhaustive()
    }
}

/// Why a certificate cannot be made, or makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(String);

impl Unusable {
    pub(crate) fn new(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// A CA of its own name, so that two of them can be told apart.
///
/// # Errors
/// When there is no randomness.
pub fn authority(now: Timestamp) -> Result<Pair, Unusable> {
    let key = KeyPair::generate().map_err(Unusable::new)?;
    let params = of_authority(&format!("capturedrain webhook CA {}", now.as_millisecond()), now, AUTHORITY_LIFE);
    let certificate = params.self_signed(&key).map_err(Unusable::new)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// A certificate for a server of these names, the first of which is its own.
///
/// # Errors
/// When the CA makes no sense, a name is none, or there is no randomness.
pub fn leaf(authority: &Pair, names: &[String], now: Timestamp, life: Duration) -> Result<Pair, Unusable> {
    let key = KeyPair::generate().map_err(Unusable::new)?;
    let signer = KeyPair::from_pem(&authority.key).map_err(Unusable::new)?;
    // The name of who signs is all that is taken from the CA's certificate, besides its key.
    let issuer = Issuer::new(of_authority(&common_name(&authority.certificate)?, now, life), signer);
    let mut params = within("capturedrain webhook", now, life);
    params.subject_alt_names = CertificateParams::new(names).map_err(Unusable::new)?.subject_alt_names;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &issuer).map_err(Unusable::new)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// A CA that signs servers only.
fn of_authority(name: &str, now: Timestamp, life: Duration) -> CertificateParams {
    let mut params = within(name, now, life);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// A certificate of this name and time, otherwise plain.
fn within(name: &str, now: Timestamp, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let since_1970 = Duration::from_secs(u64::try_from(now.as_second()).unwrap_or_default());
    params.not_before = date_time_ymd(1970, 1, 1) + since_1970.saturating_sub(BACKDATED);
    params.not_after = date_time_ymd(1970, 1, 1) + since_1970 + life;
    params
}

fn common_name(pem: &str) -> Result<String, Unusable> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(Unusable::new)?;
    let (_, certificate) = X509Certificate::from_der(&der).map_err(Unusable::new)?;
    let name = certificate.subject().iter_common_name().find_map(|name| name.as_str().ok());
    name.map(str::to_owned).ok_or_else(|| Unusable::new("the CA has no name"))
}
