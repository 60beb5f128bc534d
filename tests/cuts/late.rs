//! A claim that is believed lost, and arrives when everything is over.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};

use idempotency_test_support::deadline::eventually_async;
use idempotency_test_support::proxy::{Action, Fault, Moment, Request};

use crate::backend::Backend;
use crate::world::{World, call};

pub async fn a_claim_transmitted_twice_that_arrives_late_is_released_again<B: Backend>() -> anyhow::Result<()> {
    let world = World::<B>::new().await?;
    let way = world.way().await?;
    let sent = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&sent);
    let is_claim = move |request: &Request| {
        // Who asks for encryption waits for the refusal.
        if request.command() != "ENCRYPT" {
            seen.lock().expect("no test panics here").push(request.bytes().to_vec());
        }
        B::claims(request)
    };
    let lost = way.proxy.nth(1, is_claim, Fault::new(Moment::BeforeRequest, Action::Close));
    let failed = call(&way.engine, 1).run(|| async { Err::<(), _>(anyhow::anyhow!("busy")) }).await;
    assert_eq!(failed.unwrap_err().to_string(), "busy");
    lost.happened().await?;
    eventually_async("the release", async || world.record(1).await.is_none()).await?;

    // The engine cannot be faster than this test.
    way.proxy.half_open();
    let conversation = std::mem::take(&mut *sent.lock().expect("no test panics here"));
    let server = world.address().to_owned();
    tokio::task::spawn_blocking(move || repeat(&server, &conversation)).await??;
    let late = world.record(1).await.expect("the late claim is granted, to nobody");
    assert!(late.is_running());
    way.proxy.heal();
    eventually_async("the second release", async || world.record(1).await.is_none()).await?;
    world.recovers(&way.engine, 1).await
}

/// Says all that was said on a connection up to the claim, and waits until the server has done it.
fn repeat(server: &str, conversation: &[Vec<u8>]) -> std::io::Result<()> {
    let mut connection = TcpStream::connect(server)?;
    let mut some = [0; 1024];
    for message in conversation {
        connection.write_all(message)?;
        connection.read(&mut some)?;
    }
    connection.shutdown(Shutdown::Write)?;
    connection.read_to_end(&mut Vec::new())?;
    Ok(())
}
