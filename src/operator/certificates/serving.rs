//! The certificate that callers are shown, changed while connections go on.

use std::{fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use rustls::{
    RootCertStore, ServerConfig,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::authority::{Pair, Unusable};
use crate::tls::valid_until;

/// A certificate that can be served.
#[derive(Clone)]
pub struct Serving {
    key: Arc<CertifiedKey>,
    ends_at: Timestamp,
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").field("ends_at", &self.ends_at).finish_non_exhaustive()
    }
}

impl PartialEq for Serving {
    fn eq(&self, other: &Self) -> bool {
        self.key.cert == other.key.cert
    }
}

impl Serving {
    /// Of a certificate, its chain behind it, and its key, PEM.
    ///
    /// # Errors
    /// When they make no sense, or do not belong together.
    pub fn of(pair: &Pair) -> Result<Self, Unusable> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pair.certificate.as_bytes()).collect();
        let chain = chain.map_err(Unusable::new)?;
        let ends_at = valid_until(pair.certificate.as_bytes()).map_err(Unusable::new)?;
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).map_err(Unusable::new)?;
        let key = CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(Unusable::new)?;
        Ok(Self { key: Arc::new(key), ends_at })
    }

    /// When it ends.
    pub fn ends_at(&self) -> Timestamp {
        self.ends_at
    }

    /// Checks that somebody who believes these CAs takes it for the server of this name.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, bundle: &[u8], name: &str, now: Timestamp) -> Result<(), Unusable> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(bundle) {
            roots.add(certificate.map_err(Unusable::new)?).map_err(Unusable::new)?;
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        let verifier = verifier.map_err(Unusable::new)?;
        let name = ServerName::try_from(name.to_owned()).map_err(Unusable::new)?;
        let since_1970 = Duration::from_secs(u64::try_from(now.as_second()).unwrap_or_default());
        let at = UnixTime::since_unix_epoch(since_1970);
        let (leaf, rest) = self.key.cert.split_first().ok_or_else(|| Unusable::new("there is no certificate"))?;
        verifier.verify_server_cert(leaf, rest, &name, &[], at).map_err(Unusable::new)?;
        Ok(())
    }
}

/// What is shown at this moment; nobody is served before there is something.
#[derive(Debug, Default)]
pub struct Shown(ArcSwapOption<Serving>);

impl Shown {
    /// The certificate of now.
    pub fn get(&self) -> Option<Arc<Serving>> {
        self.0.load_full()
    }

    /// New connections see this one.
    pub fn set(&self, serving: Serving) {
        self.0.store(Some(Arc::new(serving)));
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.get().map(|serving| serving.key.clone())
    }
}

/// How TLS is spoken with what is shown. Callers are not asked who they are: what they are told is no secret, and what
/// they can bring about is a drain.
///
/// # Errors
/// When the TLS library refuses.
pub fn server_config(shown: Arc<Shown>) -> Result<Arc<ServerConfig>, Unusable> {
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(Unusable::new)?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(shown);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}
