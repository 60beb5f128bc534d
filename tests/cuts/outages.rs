//! The server stops, restarts or is out of reach while calls are under way, and comes back.

use std::time::Duration;

use idempotency::Error;
use idempotency::record::State;
use idempotency_test_support::deadline::within;
use idempotency_test_support::proxy::{Action, Fault, Moment};
use idempotency_test_support::server::Server;
use tokio::sync::oneshot;

use crate::backend::Backend;
use crate::world::{OPERATION, Way, World, call};

const SILENCE: Fault = Fault::new(Moment::BeforeRequest, Action::Silence);

/// How many connections were made so far.
fn logins(way: &Way) -> usize {
    way.proxy.requests_of("LOGIN")
}

/// A connection on which an answer is owed would give it to the next request.
pub async fn a_server_that_stops_runs_no_body_and_owes_no_answer_when_it_goes_on<B: Backend>()
-> anyhow::Result<()> {
    let server = Server::<B>::start(B::private()).await?;
    let world = World::<B>::on(&server).await?;
    let way = world.warm_way().await?;
    world.charge(&way.engine, 1).await?;
    let before = logins(&way);
    server.pause()?;
    world.refused(&way, 2).await?;
    server.resume()?;
    assert_eq!(world.charge(&way.engine, 1).await?, "receipt 1.1");
    assert!(logins(&way) > before, "the connection that owes an answer was used again");
    world.recovers(&way.engine, 2).await?;
    assert_eq!(world.record(2).await.map(|record| record.state), Some(State::Completed));
    Ok(())
}

/// It goes on before the caller's patience is over, and after the store's.
pub async fn a_call_that_outlasts_a_stop_of_the_server_has_one_effect<B: Backend>()
-> anyhow::Result<()> {
    let server = Server::<B>::start(B::private()).await?;
    let world = World::<B>::on(&server).await?;
    let way = world.warm_way().await?;
    let bystander = world.impatient()?;
    let hash = way.engine.record(OPERATION, 1_u64).hash()?;
    server.pause()?;
    let going_on = async {
        // Each waits for as long as the call does for an answer.
        for _ in 0..2 {
            assert!(bystander.clone().read(hash).await.is_err(), "the server stands still");
        }
        assert_eq!(world.count(1), 0, "the body did not run");
        server.resume()
    };
    let (receipt, resumed) = tokio::join!(world.charge(&way.engine, 1), going_on);
    resumed?;
    assert_eq!((receipt?, world.count(1)), ("receipt 1.1".to_owned(), 1));
    assert_eq!(world.charge(&world.elsewhere().build()?, 1).await?, "receipt 1.1");
    let record = world.record(1).await.expect("the result is stored");
    assert_eq!((record.state, record.attempts, way.engine.duplicates()), (State::Completed, 1, 0));
    Ok(())
}

pub async fn a_commit_under_way_when_the_server_stops_is_stored_when_it_goes_on<B: Backend>()
-> anyhow::Result<()> {
    let server = Server::<B>::start(B::private()).await?;
    let world = World::<B>::on(&server).await?;
    let way = world.warm_way().await?;
    let before = logins(&way);
    let (stop, stopped) = oneshot::channel();
    let owner = call(&way.engine, 1).run(|| async {
        let receipt = world.effect(1);
        server.pause().expect("the server runs");
        let _ = stop.send(());
        Ok::<_, Error>(receipt)
    });
    let meanwhile = async {
        stopped.await?;
        // Takes longer than the store waits for the answer to the commit.
        world.refused(&way, 2).await?;
        server.resume()
    };
    let (receipt, resumed) = tokio::join!(owner, meanwhile);
    resumed?;
    assert_eq!(
        (receipt?, world.count(1), way.engine.duplicates()),
        ("receipt 1.1".to_owned(), 1, 0)
    );
    assert!(logins(&way) > before, "the connection that owes an answer was used again");
    assert_eq!(world.record(1).await.map(|record| record.state), Some(State::Completed));
    assert_eq!(world.charge(&world.elsewhere().build()?, 1).await?, "receipt 1.1");
    world.recovers(&way.engine, 2).await
}

pub async fn a_result_is_stored_after_the_server_was_restarted_since_the_claim<B: Backend>()
-> anyhow::Result<()> {
    let mut server = Server::<B>::start(B::durable()).await?;
    let world = World::<B>::on(&server).await?;
    let way =
        world.warm_way_with(|builder| builder.commit_timeout(Duration::from_secs(60))).await?;
    for (key, is_killed) in [(1, true), (2, false)] {
        let (start, started) = oneshot::channel();
        let (finish, finished) = oneshot::channel::<()>();
        let owner = call(&way.engine, key).run(|| async {
            let receipt = world.effect(key);
            let _ = start.send(());
            let _ = finished.await;
            Ok::<_, Error>(receipt)
        });
        let meanwhile = async {
            started.await?;
            if is_killed {
                server.kill()?;
            } else {
                server.stop().await?;
            }
            // The commit begins while there is no server.
            let _ = finish.send(());
            server.restart().await
        };
        let (receipt, restarted) = tokio::join!(owner, meanwhile);
        restarted?;
        assert_eq!(
            (receipt?, world.count(key), way.engine.duplicates()),
            (format!("receipt {key}.1"), 1, 0)
        );
    }
    server.kill()?;
    world.refused(&way, 3).await?;
    server.restart().await?;
    for key in [1, 2, 3] {
        world.recovers(&way.engine, key).await?;
        assert_eq!(world.record(key).await.map(|record| record.state), Some(State::Completed));
    }
    Ok(())
}

/// It is not asked once more whether it is alive, which would take as long again.
pub async fn a_connection_that_owes_an_answer_is_replaced_at_once<B: Backend>() -> anyhow::Result<()>
{
    const LONG: Duration = Duration::from_secs(9);
    let world = World::<B>::new().await?;
    let way = world.patient_way(LONG, |builder| builder.claim_timeout(LONG * 11 / 6)).await?;
    let silent = way.proxy.nth(1, B::claims, SILENCE);
    world.recovers(&way.engine, 1).await?;
    silent.happened().await
}

/// The pool asks connections that come back whether they work. The only one must not be waited for
/// without end.
pub async fn a_connection_that_falls_silent_when_it_is_given_back_is_replaced<B: Backend>()
-> anyhow::Result<()> {
    let world = World::<B>::new().await?;
    let way = world.warm_way().await?;
    let silent = way.proxy.nth(1, |request| request.command() == B::PING, SILENCE);
    world.recovers(&way.engine, 1).await?;
    silent.happened().await?;
    world.recovers(&way.engine, 2).await
}

pub async fn a_connection_that_is_reset_is_made_anew_within_the_call<B: Backend>()
-> anyhow::Result<()> {
    let world = World::<B>::new().await?;
    let way = world.warm_way().await?;
    for key in 1..6 {
        way.proxy.reset_all();
        world.recovers(&way.engine, key).await?;
    }
    Ok(())
}

pub async fn a_server_that_refuses_connections_runs_no_body_and_is_found_again<B: Backend>()
-> anyhow::Result<()> {
    let world = World::<B>::new().await?;
    let way = world.warm_way().await?;
    world.charge(&way.engine, 1).await?;
    way.proxy.refuse().await?;
    way.proxy.close_all();
    world.refused(&way, 2).await?;
    way.proxy.accept().await?;
    within("the recovery", world.recovers(&way.engine, 2)).await??;
    assert_eq!(world.charge(&way.engine, 1).await?, "receipt 1.1");
    Ok(())
}
