//! What a session was told when it began is read back.

use idempotency::store::{MySqlStore, Operation, Store as _, StoreErrorKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::world::{World, key};

const TOLD: &[u8] = b"innodb_lock_wait_timeout = 1";
const KEPT: &[u8] = b"innodb_lock_wait_timeout = 9";

/// Something between the store and the server that has a mind of its own about the settings of
/// sessions. Its address.
async fn headstrong(server: String) -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&server).await?;
            tokio::spawn(pass_on(client, server));
        }
        anyhow::Ok(())
    });
    Ok(address)
}

async fn pass_on(client: TcpStream, server: TcpStream) -> anyhow::Result<()> {
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
    let mut bytes = vec![0; 1 << 16];
    loop {
        let length = from_client.read(&mut bytes).await?;
        if length == 0 {
            return Ok(());
        }
        if let Some(place) = bytes[..length].windows(TOLD.len()).position(|part| part == TOLD) {
            bytes[place..][..KEPT.len()].copy_from_slice(KEPT);
        }
        to_server.write_all(&bytes[..length]).await?;
    }
}

#[tokio::test]
async fn a_proxy_that_drops_what_a_session_was_told_is_noticed() -> anyhow::Result<()> {
    let world = World::new().await?;
    let url =
        world.url.replace(&world.server().address(), &headstrong(world.server().address()).await?);
    assert_ne!(url, world.url);
    let error = MySqlStore::connect(&url).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.operation()),
        (StoreErrorKind::Config, Operation::Connect),
        "{error}"
    );
    assert!(error.to_string().contains("innodb_lock_wait_timeout"), "{error}");
    // Who does not connect at once is told by the first request.
    let error = MySqlStore::builder(&url).build()?.read(key(1)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Config, "{error}");
    Ok(())
}
