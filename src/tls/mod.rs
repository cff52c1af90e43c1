//! Who this process is, whom it believes, and how both are renewed without a lost call.
//!
//! Two pairs of things: [`Credentials`] are what the files held at one moment, [`Current`] follows the files;
//! a [`Caller`] is who is behind a call, a [`Dialer`] is how others are called.

mod behind;
mod caller;
mod credentials;
mod current;
mod dialer;
mod distrust;

use std::path::PathBuf;

use rustls::crypto::CryptoProvider;

pub use self::{
    caller::{Caller, REQUESTER_HEADER, Role},
    credentials::{Credentials, Files, Pem, valid_until, valid_until_der},
    current::Current,
    dialer::Dialer,
    distrust::{Distrust, distrust},
};

/// Why TLS cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// A file is not there, or cannot be read.
    #[error("TLS file {path} cannot be read: {reason}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A file has something else in it.
    #[error("TLS file {path} has no {what} in PEM form")]
    Empty {
        /// Which.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// A file has something in it that makes no sense.
    #[error("TLS file {path} is damaged: {reason}")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The own certificate is over.
    #[error("certificate {path} expired at {at}; renew it")]
    Expired {
        /// Its file.
        path: PathBuf,
        /// Its end, RFC 3339.
        at: String,
    },
    /// The own certificate is not valid yet.
    #[error("certificate {path} is valid only from {at}; is the clock of this machine right?")]
    NotYetValid {
        /// Its file.
        path: PathBuf,
        /// Its beginning, RFC 3339.
        at: String,
    },
    /// The own certificate and key are not a pair.
    #[error("key {key} does not belong to certificate {cert}")]
    KeyMismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The own certificate would be refused by everybody who believes the same CA.
    #[error("certificate {path} would be refused by other captures: {reason}")]
    Refused {
        /// Its file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The own certificate is of another role.
    #[error(
        "certificate {path} is not a capture's: it has to have the URI {uri} as a subject alternative name",
        uri = Role::Capture.uri()
    )]
    NotACapture {
        /// Its file.
        path: PathBuf,
    },
    /// The system's own certificates cannot be had.
    #[error("no certificate of a CA: give one by --tls-ca, since this system has none ({0})")]
    NoRoots(String),
    /// The TLS library refuses.
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

/// Makes ring the cryptography of every library in this process. A second call does nothing.
pub fn install_provider() {
    // Only a provider that is there already can fail this, and that one is as good.
    let _ = CryptoProvider::install_default(rustls::crypto::ring::default_provider());
}
