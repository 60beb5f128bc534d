//! TLS failures caused by refused certificates.

use std::io;

use rustls::AlertDescription as Alert;

/// Returns true if TLS failed for a reason that another attempt does not change. A client learns
/// that its own certificate was refused only after it considers the connection established.
pub(crate) fn are_refused(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    cause.is_some_and(|cause| match cause {
        rustls::Error::InvalidCertificate(_) => true,
        rustls::Error::AlertReceived(alert) => matches!(
            alert,
            Alert::CertificateRequired
                | Alert::NoCertificate
                | Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                // The signature is not that of the authority it names.
                | Alert::DecryptError
        ),
        _ => false,
    })
}
