//! Why two do not believe each other, in words for the one who has to mend it.

use std::{error::Error, io};

use rustls::{AlertDescription, CertificateError, InvalidMessage};

/// Why a server and this process do not get together. The sentences are about the server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// It speaks HTTP there in the clear.
    #[error("it does not speak TLS: use http:// and no TLS files")]
    NoTls,
    /// One refuses the other's certificate.
    #[error("{0}")]
    Refused(String),
}

/// The alerts by which a server refuses a certificate, and what it means by them.
const REFUSALS: &[(AlertDescription, &str)] = &[
    (AlertDescription::UnknownCA, "it does not believe the CA of the certificate that it was shown"),
    (AlertDescription::CertificateExpired, "the certificate that it was shown has expired for it"),
    (AlertDescription::CertificateRequired, "it asks for a certificate, and none was given"),
    (AlertDescription::BadCertificate, "it refuses the certificate that it was shown as bad"),
    (AlertDescription::CertificateUnknown, "it refuses the certificate that it was shown"),
    (AlertDescription::CertificateRevoked, "the certificate that it was shown is revoked"),
    (AlertDescription::UnsupportedCertificate, "the certificate that it was shown is not for clients"),
    (AlertDescription::DecryptError, "it refuses the signature of the certificate that it was shown"),
    (AlertDescription::AccessDenied, "it refuses whom the certificate names that it was shown"),
];

/// What a failed call says about TLS; `None` when it failed for another reason.
pub fn distrust(error: &(dyn Error + 'static)) -> Option<Distrust> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = of_tls(error) {
            return judge(found);
        }
        next = error.source();
        if next.is_none() {
            return of_text(&error.to_string());
        }
    }
    None
}

/// The error of the TLS library in an error; I/O errors hide theirs from `source`.
fn of_tls<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let inside = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    let inside = inside.and_then(|inside| {
        inside.downcast_ref().or_else(|| inside.downcast_ref::<io::Error>().and_then(|error| of_tls(error)))
    });
    error.downcast_ref().or(inside)
}

/// HTTP/2 keeps no more of an alert than its text: with TLS 1.3 it comes when the handshake is over for the client.
fn of_text(text: &str) -> Option<Distrust> {
    let refusal = |alert: AlertDescription| rustls::Error::AlertReceived(alert);
    let found = REFUSALS.iter().find(|(alert, _)| refusal(*alert).to_string() == text)?;
    judge(&refusal(found.0))
}

fn judge(error: &rustls::Error) -> Option<Distrust> {
    let sentence = match error {
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => return Some(Distrust::NoTls),
        rustls::Error::InvalidCertificate(why) => match why {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "its certificate has expired",
            CertificateError::UnknownIssuer => "its certificate is of none of the CAs that are believed here",
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "its certificate is not valid for this address"
            }
            other => return Some(Distrust::Refused(format!("its certificate is refused: {other}"))),
        },
        rustls::Error::AlertReceived(alert) => REFUSALS.iter().find(|(refusal, _)| refusal == alert)?.1,
        _ => return None,
    };
    Some(Distrust::Refused(sentence.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(sentence: &str) -> Distrust {
        Distrust::Refused(sentence.to_owned())
    }

    #[test]
    fn what_tls_says_is_found_in_the_chain_of_an_error() {
        let expired = rustls::Error::InvalidCertificate(CertificateError::Expired);
        assert_eq!(distrust(&expired), Some(refused("its certificate has expired")));
        let hidden = io::Error::new(io::ErrorKind::InvalidData, expired);
        assert_eq!(distrust(&hidden), Some(refused("its certificate has expired")));
        assert_eq!(distrust(&io::Error::other(hidden)), Some(refused("its certificate has expired")));
        let plain = rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType);
        assert_eq!(distrust(&plain), Some(Distrust::NoTls));
    }

    #[test]
    fn an_alert_is_known_by_its_text_alone() {
        for (alert, sentence) in REFUSALS {
            let received = rustls::Error::AlertReceived(*alert);
            assert_eq!(distrust(&io::Error::other(received.to_string())), Some(refused(sentence)));
            assert_eq!(distrust(&received), Some(refused(sentence)));
        }
    }

    #[test]
    fn other_errors_say_nothing_about_tls() {
        assert_eq!(distrust(&io::Error::from(io::ErrorKind::ConnectionRefused)), None);
        assert_eq!(distrust(&io::Error::other("received fatal alert: InternalError")), None);
    }
}
