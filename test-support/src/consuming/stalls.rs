//! A process that stands still for longer than its lease, and than its broker is patient, and goes
//! on.

use anyhow::ensure;

use super::broker::has_dead_letters;
use super::fleet::request_to_stop;
use super::worker::PLACES;
use super::{Broker, Orders, consume, finish, handler};
use crate::deadline::eventually;
use crate::worker::{AFTER_COMMIT, AFTER_EFFECT, BEFORE_COMMIT};

/// Stops a process (SIGSTOP) whose handler has had its effect, until another one has met the message,
/// and lets it go on then. Under `hold` the message is in doubt until the late result is stored, and
/// is a duplicate when its dead letter is moved back; under `retry` it has run again, and the late
/// result is refused.
///
/// # Errors
/// If it has other effects, or something is left.
pub async fn stand_still<B: Broker>(retries: bool) -> anyhow::Result<()> {
    let _place = PLACES.acquire().await?;
    let broker = B::create(0).await?;
    let orders = Orders { retries, ..Orders::of(&broker).await? };
    let wire = broker.wire().await?;
    broker.publish("m-0", "m-0").await?;
    let last = if retries { BEFORE_COMMIT } else { AFTER_COMMIT };
    let mut stalled = orders.by(wire.url()).spawn(&[AFTER_EFFECT, last])?;
    stalled.wait_for_point(AFTER_EFFECT).await?;
    stalled.stop()?;
    if !B::IS_IMPATIENT {
        // Such a broker leaves the message there for as long as the connection lives.
        wire.close();
    }
    let inbox = orders.inbox(orders.engine().await?);
    let until = async {
        if retries {
            let runs_again = || broker.effects().lines().is_ok_and(|lines| lines.len() == 2);
            eventually("a second effect", runs_again).await?;
        } else {
            has_dead_letters(&broker, 1).await?;
        }
        broker.is_empty().await
    };
    consume(inbox.clone(), broker.source().await?, handler(&broker), until).await??;

    stalled.cont()?;
    stalled.go_from(AFTER_EFFECT).await?;
    stalled.wait_for_point(last).await?;
    stalled.go().await?;
    // Where its connection is gone, it may have ended by itself.
    let _ = request_to_stop(&stalled);
    stalled.wait().await?;
    // A second one, if the process had asked for more messages before it was stopped.
    ensure!(retries == (broker.dead_letters().await? == 0), "dead letters under retry, or none");
    while broker.dead_letters().await? > 0 {
        let letter = broker.dead_letter().await?;
        ensure!(B::reason(&letter).as_deref() == Some("in-doubt"), "{:?}", B::reason(&letter));
        broker.redrive(&letter).await?;
    }
    finish(&broker, &inbox).await?;
    let effects = broker.effects().lines()?;
    ensure!(effects.len() == if retries { 2 } else { 1 }, "{effects:?}");
    ensure!(broker.left().await? == (0, 0), "{:?} are left", broker.left().await?);
    Ok(())
}
