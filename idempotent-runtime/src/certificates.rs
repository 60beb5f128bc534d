//! Certificates that are refused.

use std::io;

use rustls::AlertDescription as Alert;

/// Whether TLS failed for a reason that another try does not change. A client reads of its own
/// certificate's refusal when it takes the connection to be made.
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
                // Its signature is not that of the authority that it names.
                | Alert::DecryptError
        ),
        _ => false,
    })
}
