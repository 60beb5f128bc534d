//! What makes an encrypted connection impossible is named, and not taken for a server that is away.

use std::path::Path;

use idempotency::store::{MySqlStore, StoreErrorKind};
use idempotency_test_support::server::{Certificates, MariaDbOptions, MariaDbServer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::world::patient;

/// A server that takes TLS, with a certificate of an authority that nobody trusts by himself.
async fn encrypting(certificates: &Certificates) -> anyhow::Result<MariaDbServer> {
    let file = |path: &Path| path.display().to_string();
    let options = MariaDbOptions::new()
        .setting("ssl", "1")
        .setting("ssl_ca", file(&certificates.authority))
        .setting("ssl_cert", file(&certificates.server))
        .setting("ssl_key", file(&certificates.server_key));
    MariaDbServer::start(options).await
}

#[tokio::test]
async fn certificates_that_are_refused_and_files_that_are_missing_are_configuration()
-> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let certificates = Certificates::create(directory.path())?;
    let server = encrypting(&certificates).await?;
    let url = server.url();
    let trusting =
        format!("{url}?ssl-mode=VERIFY_IDENTITY&ssl-ca={}", certificates.authority.display());
    patient(&trusting).connect().await?;
    let strangers = tempfile::tempdir()?;
    let stranger = Certificates::create(strangers.path())?;
    let client = (stranger.client.display(), stranger.client_key.display());
    let cases = [
        (format!("{url}?ssl-mode=VERIFY_CA"), "a certificate was rejected"),
        (
            format!("{url}?ssl-mode=VERIFY_CA&ssl-ca={}", stranger.authority.display()),
            "a certificate was rejected",
        ),
        (
            format!("{trusting}&ssl-cert={}&ssl-key={}", client.0, client.1),
            "a certificate was rejected",
        ),
        (format!("{trusting}.not_there"), "a file that the URL names for TLS is missing"),
    ];
    for (url, expected) in cases {
        let error = patient(&url).connect().await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Config, "{url}: {error:?}");
        assert!(error.to_string().contains(expected), "{url}: {error:?}");
    }
    let missing =
        format!("mysql://localhost/shop?socket={}", directory.path().join("s.sock").display());
    let error = patient(&missing).connect().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Refused, "{error:?}");
    Ok(())
}

/// The beginning of MySQL's conversation, as far as the question for a password that is not in the
/// server's cache. MariaDB has no such users.
async fn ask_for_the_password(mut client: TcpStream) -> anyhow::Result<()> {
    const GREETING: &[u8] =
        b"\x0a8.4.0\0\x01\0\0\0saltsalt\0\xff\xf7\x2d\x02\0\xff\x81\x15\0\0\0\0\0\0\0\0\0\0\
        saltsaltsalt\0caching_sha2_password\0";
    const WHOLE_PASSWORD: &[u8] = b"\x01\x04";
    const PUBLIC_KEY: &[u8] = b"\x01-----BEGIN PUBLIC KEY-----";
    for (number, packet) in [(0, GREETING), (2, WHOLE_PASSWORD), (4, PUBLIC_KEY)] {
        client.write_all(&[u8::try_from(packet.len())?, 0, 0, number]).await?;
        client.write_all(packet).await?;
        // What the client says to it is of no interest.
        client.read_buf(&mut Vec::new()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_password_that_needs_encryption_is_named() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("mysql://shop:secret@{}/shop", listener.local_addr()?);
    let serving = tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let _ = ask_for_the_password(client).await;
        }
    });
    let error = MySqlStore::connect(&url).await.unwrap_err();
    serving.abort();
    assert_eq!(error.kind(), StoreErrorKind::Config, "{error:?}");
    for words in ["caching_sha2_password", "TLS"] {
        assert!(error.to_string().contains(words), "{error}");
    }
    Ok(())
}
