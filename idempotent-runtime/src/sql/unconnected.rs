//! Reasons for a missing connection that do not lie with the server.

use std::io;

use crate::certificates;

/// Returns the problem with the files and certificates of TLS, if that is what `error` is about.
/// `is_local` means that the connection is one to a socket in the file system, which is missing too
/// if the server is down.
pub(crate) fn reason(error: &io::Error, is_local: bool) -> Option<&'static str> {
    if certificates::are_refused(error) {
        return Some(
            "a certificate was rejected: the server's by this client, or this client's by the \
             server",
        );
    }
    let is_missing = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory);
    (is_missing && !is_local).then_some(
        "a file that the URL names for TLS is missing: the authority, certificate or key",
    )
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::reason;

    #[test]
    fn a_missing_file_is_the_server_itself_where_that_is_reached_by_one() {
        let missing = io::Error::from(io::ErrorKind::NotFound);
        assert!(reason(&missing, false).is_some_and(|reason| reason.contains("missing")));
        assert_eq!(reason(&missing, true), None);
        assert_eq!(reason(&io::Error::from(io::ErrorKind::ConnectionRefused), false), None);
    }
}
