//! A certificate that is refused, or a file that is missing, is not taken for a server that is
//! away.

use std::fs::{Permissions, metadata, set_permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;

use idempotency::store::StoreErrorKind;
use idempotency_test_support::deadline::eventually_async;
use idempotency_test_support::server::{Certificates, PostgresOptions, PostgresServer};

use crate::world::patient;

/// A server that takes TLS, with a certificate of an authority that nobody trusts by himself.
async fn encrypting() -> anyhow::Result<(PostgresServer, Certificates)> {
    let server = PostgresServer::start(PostgresOptions::new().private()).await?;
    let directory = server.directory()?;
    let certificates = Certificates::create(directory)?;
    // The server takes a key that is its user's alone.
    let user = metadata(directory)?;
    for file in [&certificates.authority, &certificates.server, &certificates.server_key] {
        chown(file, Some(user.uid()), Some(user.gid()))?;
        set_permissions(file, Permissions::from_mode(0o600))?;
    }
    let setting =
        |name: &str, file: &Path| format!("ALTER SYSTEM SET {name} = '{}';", file.display());
    let statements = [
        setting("ssl_ca_file", &certificates.authority),
        setting("ssl_cert_file", &certificates.server),
        setting("ssl_key_file", &certificates.server_key),
        String::from("ALTER SYSTEM SET ssl = on; SELECT pg_reload_conf()"),
    ];
    server.sql(&statements.concat()).await?;
    let required = format!("{}?sslmode=require", server.url());
    eventually_async("the server to encrypt", async || {
        server.sql_at(&required, "SELECT 1").await.is_ok()
    })
    .await?;
    Ok((server, certificates))
}

#[tokio::test]
async fn certificates_that_are_refused_and_files_that_are_missing_are_configuration()
-> anyhow::Result<()> {
    let (server, certificates) = encrypting().await?;
    let trusting = format!(
        "{}?sslmode=verify-full&sslrootcert={}",
        server.url(),
        certificates.authority.display()
    );
    patient(&trusting).connect().await?;
    let cases = [
        (format!("{}?sslmode=verify-full", server.url()), "a certificate was rejected"),
        (format!("{trusting}.not_there"), "a file that the URL names for TLS is missing"),
    ];
    for (url, expected) in cases {
        let error = patient(&url).connect().await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Config, "{url}: {error:?}");
        assert!(error.to_string().contains(expected), "{url}: {error:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_client_whose_certificate_the_server_does_not_know_is_configuration() -> anyhow::Result<()>
{
    let (server, certificates) = encrypting().await?;
    let strangers = tempfile::tempdir()?;
    let stranger = Certificates::create(strangers.path())?;
    let url = |client: &Certificates| {
        let (certificate, key) = (client.client.display(), client.client_key.display());
        format!("{}?sslmode=require&sslcert={certificate}&sslkey={key}", server.url())
    };
    patient(&url(&certificates)).connect().await?;
    let error = patient(&url(&stranger)).connect().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Config, "{error:?}");
    assert!(error.to_string().contains("a certificate was rejected"), "{error:?}");
    Ok(())
}

#[tokio::test]
async fn a_socket_in_the_file_system_that_is_missing_is_a_server_that_is_away() -> anyhow::Result<()>
{
    let directory = tempfile::tempdir()?;
    let url = format!("postgres://localhost/shop?host={}", directory.path().display());
    let error = patient(&url).connect().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Refused, "{error:?}");
    Ok(())
}
