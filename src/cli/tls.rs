//! The options that name TLS files.

use std::path::PathBuf;

use clap::Args;

use super::exit::Failure;
use crate::tls::Files;

/// Who this process says it is to captures, and whom it believes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "TLS")]
pub(super) struct TlsArgs {
    /// Certificates of the CAs that are believed, PEM [default for https://: the system's]; a server asks callers for a
    /// certificate then
    #[arg(id = "tls_ca", long = "tls-ca", global = true, env = "CAPTUREDRAIN_TLS_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Own certificate with its chain, PEM; the URI in it says the role: `capturedrain://capture` or `capturedrain://client`
    #[arg(id = "tls_cert", long = "tls-cert", global = true, env = "CAPTUREDRAIN_TLS_CERT", value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Key of the own certificate, PEM
    #[arg(id = "tls_key", long = "tls-key", global = true, env = "CAPTUREDRAIN_TLS_KEY", value_name = "FILE")]
    key: Option<PathBuf>,
    /// Name that a server has to prove which is called by an address [default: that address]
    #[arg(long, global = true, env = "CAPTUREDRAIN_TLS_SERVER_NAME", value_name = "NAME")]
    tls_server_name: Option<String>,
}

/// Who this process says it is to etcd, and whom it believes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "TLS")]
pub(super) struct EtcdArgs {
    /// Certificates of the CAs that are believed to know the store's etcd, PEM; TLS is spoken to it then
    #[arg(id = "etcd_ca", long = "etcd-ca", env = "CAPTUREDRAIN_ETCD_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Own certificate for it, PEM
    #[arg(
        id = "etcd_cert",
        long = "etcd-cert",
        env = "CAPTUREDRAIN_ETCD_CERT",
        value_name = "FILE",
        requires = "etcd_ca"
    )]
    cert: Option<PathBuf>,
    /// Key of that certificate, PEM
    #[arg(
        id = "etcd_key",
        long = "etcd-key",
        env = "CAPTUREDRAIN_ETCD_KEY",
        value_name = "FILE",
        requires = "etcd_ca"
    )]
    key: Option<PathBuf>,
}

impl TlsArgs {
    /// The files that are named; `None`: none at all.
    pub(super) fn files(&self) -> Result<Option<Files>, Failure> {
        files("tls", self.ca.as_ref(), self.cert.as_ref(), self.key.as_ref())
    }

    /// What servers that are called by an address have to prove; `None`: that address.
    pub(super) fn server_name(&self) -> Option<&str> {
        self.tls_server_name.as_deref().filter(|name| !name.is_empty())
    }
}

impl EtcdArgs {
    /// The files that are named; `None`: none at all.
    pub(super) fn files(&self) -> Result<Option<Files>, Failure> {
        files("etcd", self.ca.as_ref(), self.cert.as_ref(), self.key.as_ref())
    }
}

fn files(
    prefix: &str,
    ca: Option<&PathBuf>,
    cert: Option<&PathBuf>,
    key: Option<&PathBuf>,
) -> Result<Option<Files>, Failure> {
    let identity = match (cert, key) {
        (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
        (None, None) => None,
        _ => return Err(Failure::usage(format!("--{prefix}-cert and --{prefix}-key go together"))),
    };
    let files = Files { ca: ca.cloned(), identity };
    Ok(if files == Files::default() { None } else { Some(files) })
}
