//! The connection is cut at every boundary of every message of a call.

use std::time::Duration;

use idempotency::record::State;
use idempotency::{Error, ErrorKind, Idempotency, OnConflict, OnCrash};
use idempotency_test_support::deadline::{eventually_async, within};
use idempotency_test_support::proxy::{Action, Fault, Moment, Proxy};

use crate::world::{DAY, OPERATION, STEADY_LEASE, World, engine_on, impatient, large, patient};

/// Cuts the whole way of a call, from the connection to the commit, at each request and each moment
/// of it.
async fn cut_everywhere(action: Action, body: &str) -> anyhow::Result<()> {
    let world = World::new().await?;
    let url = world.proxy.url(&world.server.url());
    let engine =
        || -> anyhow::Result<Idempotency> { Ok(engine_on(impatient(&url).build()?).build()?) };

    let before = world.proxy.requests();
    world.server.command(&["SCRIPT", "FLUSH"]).await?;
    charge(&world, &engine()?, 0, body).await?;
    let messages = world.proxy.requests() - before;
    assert!(
        messages >= 5,
        "connecting, claiming, loading a script and committing took {messages} messages"
    );

    let mut key = 0;
    for message in 1..=messages {
        for moment in Moment::ALL {
            key += 1;
            world.server.command(&["SCRIPT", "FLUSH"]).await?;
            let engine = engine()?;
            let cut = world.proxy.nth(message, |_| true, Fault::new(moment, action));
            let what = format!("message {message}, {moment:?}");
            match within(&what, charge(&world, &engine, key, body)).await? {
                Ok(answer) => assert_eq!(answer, body, "{what}"),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{what}: {error}");
                    assert_eq!(world.count(key), 0, "{what}: the body ran");
                }
            }
            cut.happened().await?;
            assert_eq!(within(&what, charge(&world, &engine, key, body)).await??, body, "{what}");
            assert_eq!(world.count(key), 1, "{what}");
            assert_eq!(
                world.record(key).await.map(|record| record.state),
                Some(State::Completed),
                "{what}"
            );
        }
    }
    Ok(())
}

async fn charge(
    world: &World,
    engine: &Idempotency,
    key: u64,
    body: &str,
) -> Result<String, Error> {
    let call = engine.call(OPERATION, key).ttl(DAY).run(|| async {
        world.effect(key);
        Ok(body.to_owned())
    });
    call.await
}

#[tokio::test]
async fn a_connection_closed_at_any_message_of_a_call_has_one_effect() -> anyhow::Result<()> {
    cut_everywhere(Action::Close, "receipt").await
}

#[tokio::test]
async fn a_connection_reset_at_any_message_of_a_call_has_one_effect() -> anyhow::Result<()> {
    cut_everywhere(Action::Reset, "receipt").await
}

#[tokio::test]
async fn a_connection_silent_from_any_message_of_a_call_has_one_effect() -> anyhow::Result<()> {
    cut_everywhere(Action::Silence, "receipt").await
}

#[tokio::test]
async fn a_connection_closed_at_any_message_of_a_call_with_a_large_result_has_one_effect()
-> anyhow::Result<()> {
    cut_everywhere(Action::Close, &large()).await
}

/// Another process waits to take over while the owner's renewals are cut.
#[tokio::test]
async fn a_renewal_cut_at_any_boundary_does_not_lose_the_lease() -> anyhow::Result<()> {
    let world = World::new().await?;
    let rounds = Moment::ALL
        .into_iter()
        .flat_map(|moment| [Action::Close, Action::Reset].map(|action| (moment, action)));
    let rounds = rounds
        .enumerate()
        .map(|(round, (moment, action))| renewal_cut(&world, round, Fault::new(moment, action)));
    futures::future::try_join_all(rounds).await?;
    Ok(())
}

async fn renewal_cut(world: &World, round: usize, fault: Fault) -> anyhow::Result<()> {
    let key = u64::try_from(round)?;
    // A proxy of its own: the rounds run at the same time.
    let proxy = Proxy::start(world.server.address()).await?;
    let store = impatient(&proxy.url(&world.server.url())).build()?;
    let owner = engine_on(store).lease(STEADY_LEASE).build()?;
    let elsewhere =
        engine_on(patient(&world.server.url()).connect().await?).lease(STEADY_LEASE).build()?;
    let name = world.name(key);
    let is_renewal = move |request: &idempotency_test_support::proxy::Request| {
        request.command() == "EVALSHA" && request.arguments().len() == 5 && request.mentions(&name)
    };
    let (start, started) = tokio::sync::oneshot::channel();
    let body = owner.call(OPERATION, key).ttl(DAY).on_crash(OnCrash::Retry).run(|| async {
        let first = world.record(key).await.expect("the claim is there").lease_until;
        let cut = proxy.nth(1, is_renewal, fault);
        let _ = start.send(());
        cut.happened().await.expect("the renewal is cut");
        let is_over = async || world.record(key).await.is_some_and(|record| record.read_at > first);
        eventually_async("the first lease to end", is_over)
            .await
            .expect("the server's clock goes on");
        Ok::<_, Error>(world.effect(key))
    });
    let waiting = async {
        started.await?;
        let call = elsewhere.call(OPERATION, key).ttl(DAY).on_crash(OnCrash::Retry);
        let call = call.on_conflict(OnConflict::Wait(Duration::from_secs(60)));
        Ok::<_, anyhow::Error>(call.run(|| async { Ok::<_, Error>(world.effect(key)) }).await?)
    };
    let (answer, waited) = tokio::join!(body, waiting);
    assert_eq!(
        (answer?, waited?),
        (format!("receipt {key}.1"), format!("receipt {key}.1")),
        "{fault:?}"
    );
    assert_eq!((world.count(key), owner.duplicates()), (1, 0), "{fault:?}");
    Ok(())
}
