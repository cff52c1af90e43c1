//! How this process calls others: in the clear, or with its credentials of now.

use std::{net::SocketAddr, sync::Arc};

use rustls::{ClientConfig, RootCertStore};
use tonic::transport::{ClientTlsConfig, Endpoint};

use super::{
    Current, TlsError,
    credentials::{CONNECT_TIMEOUT, http_client, provider},
};

/// Calls others.
#[derive(Debug, Clone)]
pub struct Dialer {
    way: Way,
    /// The name that certificates have to be made out to when a bare address is called.
    name: Option<Arc<str>>,
}

#[derive(Debug, Clone)]
enum Way {
    Plain(reqwest::Client),
    Secure(Current),
}

impl Dialer {
    /// In the clear.
    ///
    /// # Errors
    /// When the HTTP client cannot be made.
    pub fn plain() -> Result<Self, TlsError> {
        let setup = |error: rustls::Error| TlsError::Setup(error.to_string());
        let versions = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let nobody = versions.map_err(setup)?.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        Ok(Self { way: Way::Plain(http_client(nobody)?), name: None })
    }

    /// Over TLS.
    pub fn secure(credentials: Current) -> Self {
        Self { way: Way::Secure(credentials), name: None }
    }

    /// In the clear without credentials, over TLS with them.
    ///
    /// # Errors
    /// When the HTTP client cannot be made.
    pub fn with(credentials: Option<Current>) -> Result<Self, TlsError> {
        credentials.map_or_else(Self::plain, |credentials| Ok(Self::secure(credentials)))
    }

    /// The same for those behind a name: whoever is called by a bare address has to prove that name.
    #[must_use]
    pub fn behind(self, name: &str) -> Self {
        Self { name: Some(name.into()), ..self }
    }

    /// Whether calls go over TLS.
    pub fn is_secure(&self) -> bool {
        matches!(self.way, Way::Secure(_))
    }

    /// The URL of a path, which begins with a slash, at a `host:port`.
    pub fn url(&self, addr: &str, path: &str) -> String {
        let scheme = if self.is_secure() { "https" } else { "http" };
        format!("{scheme}://{addr}{path}")
    }

    /// What is called over HTTP/1.1, with the credentials of now.
    pub fn http(&self) -> reqwest::Client {
        match &self.way {
            Way::Plain(client) => client.clone(),
            Way::Secure(current) => {
                let credentials = current.get();
                self.name.as_ref().map_or_else(|| credentials.http().clone(), |name| credentials.http_behind(name))
            }
        }
    }

    /// What is called by gRPC, with the credentials of now.
    ///
    /// # Errors
    /// When the address makes no sense.
    pub fn endpoint(&self, addr: &str) -> Result<Endpoint, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(self.url(addr, ""))?.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true);
        let Way::Secure(current) = &self.way else { return Ok(endpoint) };
        let credentials = current.get();
        let mut tls = ClientTlsConfig::new().timeout(CONNECT_TIMEOUT);
        if let Some(name) = self.name.as_ref().filter(|_| addr.parse::<SocketAddr>().is_ok()) {
            tls = tls.domain_name(&**name);
        }
        if let Some(identity) = credentials.identity() {
            tls = tls.identity(identity.clone());
        }
        endpoint.tls_config_with_verifier(tls, credentials.servers())
    }

    /// Waits until there are other credentials; for ever in the clear.
    pub async fn renewed(&mut self) {
        match &mut self.way {
            Way::Plain(_) => std::future::pending().await,
            Way::Secure(current) => current.changed().await,
        }
    }
}
