//! Who is behind a call: the role and the name that a certificate gives.

use std::{convert::Infallible, sync::Arc};

use axum::{extract::FromRequestParts, http::request::Parts};
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::{FromDer as _, ParsedExtension},
};

/// Carries the name of a caller, percent-encoded, from the capture that was called to the one that answers.
pub const REQUESTER_HEADER: &str = "capturedrain-requester";
/// Longest name of a caller, in characters; the rest is cut off.
const NAME_MAX_CHARS: usize = 256;

/// What a certificate entitles its holder to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Speaks the protocol between captures, and calls.
    Capture,
    /// Calls.
    Client,
}

impl Role {
    /// The URI that a certificate has as a subject alternative name.
    pub const fn uri(self) -> &'static str {
        match self {
            Self::Capture => "capturedrain://capture",
            Self::Client => "capturedrain://client",
        }
    }
}

/// Who is behind a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Nobody was asked for a certificate: who calls is who he says he is.
    Anyone,
    /// A certificate was asked for, and none came.
    Stranger,
    /// The holder of a certificate that is trusted.
    Known {
        /// The subject's common name, or else its first alternative name.
        name: Arc<str>,
        /// `None`: none that this build knows.
        role: Option<Role>,
    },
}

impl Caller {
    /// The holder of a certificate, in DER, that was verified before.
    pub fn of_certificate(der: &[u8]) -> Self {
        let Ok((_, certificate)) = X509Certificate::from_der(der) else { return Self::Stranger };
        let names = alternative_names(&certificate);
        let has = |role: Role| names.iter().any(|name| matches!(name, GeneralName::URI(uri) if *uri == role.uri()));
        let role = [Role::Capture, Role::Client].into_iter().find(|role| has(*role));
        let common = certificate.subject().iter_common_name().find_map(|name| name.as_str().ok());
        let alternative = || names.iter().find_map(|name| name_of(name));
        let name =
            common.filter(|name| !name.is_empty()).or_else(alternative).unwrap_or("a certificate without a name");
        Self::Known { name: readable(name).into(), role }
    }

    /// The same, for whom a capture passes a call on.
    #[must_use]
    pub fn on_behalf_of(self, name: &str) -> Self {
        match self {
            Self::Known { role: Some(Role::Capture), .. } => {
                Self::Known { name: readable(name).into(), role: Some(Role::Client) }
            }
            other => other,
        }
    }

    /// The name that is known for certain.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Known { name, .. } => Some(name),
            Self::Anyone | Self::Stranger => None,
        }
    }

    /// What stands in the record for him. A certificate's name goes before what he says himself, except that captures
    /// are believed: they ask for others.
    pub fn requester(&self, claimed: &str) -> String {
        match self {
            Self::Known { name, role } if *role != Some(Role::Capture) || claimed.is_empty() => name.to_string(),
            // Its length is for those to judge who take it.
            _ => without_controls(claimed.chars()),
        }
    }
}

fn alternative_names<'a>(certificate: &'a X509Certificate<'a>) -> &'a [GeneralName<'a>] {
    let found = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => Some(names.general_names.as_slice()),
        _ => None,
    });
    found.unwrap_or_default()
}

fn name_of<'a>(name: &GeneralName<'a>) -> Option<&'a str> {
    match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) | GeneralName::RFC822Name(name) => Some(name),
        _ => None,
    }
}

/// The name as it may stand in a record.
fn readable(name: &str) -> String {
    without_controls(name.chars().take(NAME_MAX_CHARS))
}

/// What may stand in a log line.
fn without_controls(text: impl Iterator<Item = char>) -> String {
    text.map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Who is behind a request; [`Caller::Anyone`] when nobody has looked.
impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or(Self::Anyone))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

    use super::*;

    fn certificate(common: &str, names: &[SanType]) -> Caller {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if !common.is_empty() {
            params.distinguished_name.push(DnType::CommonName, common);
        }
        params.subject_alt_names = names.to_vec();
        Caller::of_certificate(params.self_signed(&KeyPair::generate().unwrap()).unwrap().der())
    }

    fn uri(uri: &str) -> SanType {
        SanType::URI(uri.try_into().unwrap())
    }

    fn dns(name: &str) -> SanType {
        SanType::DnsName(name.try_into().unwrap())
    }

    fn known(name: &str, role: Option<Role>) -> Caller {
        Caller::Known { name: name.into(), role }
    }

    #[test]
    fn the_role_is_one_of_two_uris_to_the_letter() {
        let check = |uris: &[&str], role| {
            let names: Vec<_> = uris.iter().map(|name| uri(name)).collect();
            assert_eq!(certificate("x", &names), known("x", role), "{uris:?}");
        };
        check(&["capturedrain://capture"], Some(Role::Capture));
        check(&["capturedrain://client"], Some(Role::Client));
        check(&["spiffe://other", "capturedrain://client"], Some(Role::Client));
        check(&["capturedrain://client", "capturedrain://capture"], Some(Role::Capture));
        check(&[], None);
        for none in ["capturedrain://captures", "capturedrain://capture/", "CAPTUREDRAIN://capture", "capture"] {
            check(&[none], None);
        }
        // The same text in another kind of name is no role.
        assert_eq!(certificate("capturedrain://capture", &[]), known("capturedrain://capture", None));
    }

    #[test]
    fn the_name_is_the_common_one_or_an_alternative() {
        assert_eq!(certificate("anna", &[dns("a.b")]).name(), Some("anna"));
        assert_eq!(certificate("", &[dns("a.b"), uri("capturedrain://client")]).name(), Some("a.b"));
        assert_eq!(certificate("", &[uri("capturedrain://client")]).name(), Some("capturedrain://client"));
        assert_eq!(certificate("", &[]).name(), Some("a certificate without a name"));
        assert_eq!(certificate("a\nb\u{1b}[31m", &[]).name(), Some("a?b?[31m"));
        assert_eq!(certificate(&"x".repeat(1000), &[]).name(), Some("x".repeat(NAME_MAX_CHARS).as_str()));
        assert_eq!(Caller::of_certificate(b"no certificate"), Caller::Stranger);
    }

    #[test]
    fn only_captures_are_believed_what_they_claim() {
        let (capture, client) = (known("capture-0", Some(Role::Capture)), known("anna", Some(Role::Client)));
        assert_eq!(Caller::Anyone.requester("bert"), "bert");
        assert_eq!(Caller::Anyone.requester("a\nb"), "a?b");
        assert_eq!(client.requester("bert"), "anna");
        assert_eq!(client.clone().on_behalf_of("bert").requester(""), "anna");
        assert_eq!(capture.requester(""), "capture-0");
        assert_eq!(capture.requester("shutdown of a"), "shutdown of a");
        assert_eq!(capture.on_behalf_of("anna").requester("bert"), "anna");
    }
}
