//! The connection is cut at every boundary of every message of a call.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use idempotency::record::State;
use idempotency::{Error, ErrorKind, Idempotency};
use idempotency_test_support::deadline::within;
use idempotency_test_support::proxy::{Action, Fault, Moment, Planned, Request};

use crate::backend::Backend;
use crate::world::{Way, World, call};

/// How many calls are made at the same time, each on a way of its own.
const AT_ONCE: usize = 8;

/// A result that goes into one packet of the network.
const SMALL: usize = 7;
/// One that is larger than the clients' buffers and what a table keeps within its row.
const LARGE: usize = 20_000;
const VERY_LARGE: usize = 200_000;

/// Cuts the whole way of a call, from the connection to the commit, at each message and each moment
/// of it.
async fn cut_everywhere<B: Backend>(action: Action, size: usize) -> anyhow::Result<()> {
    let world = World::<B>::new().await?;
    let messages = messages_of_a_call(&world, size).await?;
    let rounds = (1..=messages).flat_map(|message| Moment::ALL.map(|moment| (message, moment)));
    let rounds = (1_u64..).zip(rounds).map(|(key, (message, moment))| {
        let world = &world;
        async move {
            // Only a connection that is silent is given up for want of an answer.
            let way = if action == Action::Silence {
                world.way().await?
            } else {
                world.patient_way(Duration::from_secs(20), |builder| builder).await?
            };
            let cut = way.proxy.nth(message, |_| true, Fault::new(moment, action));
            round(world, &way, cut, key, size, &format!("message {message}, {moment:?}")).await
        }
    });
    futures::stream::iter(rounds).buffer_unordered(AT_ONCE).try_collect().await
}

/// From the connection to the question whether the connection still works after the commit.
async fn messages_of_a_call<B: Backend>(world: &World<B>, size: usize) -> anyhow::Result<usize> {
    // Nothing is sent twice because it was not answered in time.
    let way = world.patient_way(Duration::from_secs(20), |builder| builder).await?;
    let sent = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&sent);
    let until_the_commit = move |request: &Request| {
        seen.lock().expect("no test panics here").push(request.command());
        B::commits(request)
    };
    let commit =
        way.proxy.nth(1, until_the_commit, Fault::new(Moment::AfterRequest, Action::Close));
    charge(world, &way.engine, 0, size).await?;
    commit.happened().await?;
    let sent = sent.lock().expect("no test panics here");
    assert!(sent.len() >= 7, "connecting, preparing, claiming and committing: {sent:?}");
    Ok(sent.len() + 1)
}

/// One call that meets a cut, and the next one.
async fn round<B: Backend>(
    world: &World<B>,
    way: &Way,
    cut: Planned,
    key: u64,
    size: usize,
    what: &str,
) -> anyhow::Result<()> {
    let before = world.count(key);
    match within(what, charge(world, &way.engine, key, size)).await? {
        Ok(answer) => assert!(answer == result(size), "{what}"),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{what}: {error}");
            assert_eq!(world.count(key), before, "{what}: the body ran");
        }
    }
    cut.happened().await?;
    assert!(within(what, charge(world, &way.engine, key, size)).await?? == result(size), "{what}");
    assert_eq!(world.count(key), 1, "{what}");
    assert_eq!(
        world.record(key).await.map(|record| record.state),
        Some(State::Completed),
        "{what}"
    );
    Ok(())
}

async fn charge<B: Backend>(
    world: &World<B>,
    engine: &Idempotency,
    key: u64,
    size: usize,
) -> Result<String, Error> {
    let call = call(engine, key).run(|| async {
        world.effect(key);
        Ok(result(size))
    });
    call.await
}

/// Letters in an order that no lost piece leaves intact.
fn result(size: usize) -> String {
    (0..size)
        .map(|position| char::from(b'a' + u8::try_from(position % 23).unwrap_or_default()))
        .collect()
}

pub async fn a_connection_closed_at_any_message_of_a_call_has_one_effect<B: Backend>()
-> anyhow::Result<()> {
    cut_everywhere::<B>(Action::Close, SMALL).await
}

pub async fn a_connection_reset_at_any_message_of_a_call_has_one_effect<B: Backend>()
-> anyhow::Result<()> {
    cut_everywhere::<B>(Action::Reset, SMALL).await
}

pub async fn a_connection_silent_from_any_message_of_a_call_has_one_effect<B: Backend>()
-> anyhow::Result<()> {
    cut_everywhere::<B>(Action::Silence, SMALL).await
}

pub async fn a_connection_closed_at_any_message_of_a_call_with_a_large_result_has_one_effect<
    B: Backend,
>() -> anyhow::Result<()> {
    cut_everywhere::<B>(Action::Close, LARGE).await
}

pub async fn a_connection_closed_at_any_message_of_a_call_with_a_very_large_result_has_one_effect<
    B: Backend,
>() -> anyhow::Result<()> {
    cut_everywhere::<B>(Action::Close, VERY_LARGE).await
}

/// What comes after the first half of an answer is never made up for.
pub async fn a_replay_cut_at_any_boundary_gives_the_whole_result_or_none<B: Backend>()
-> anyhow::Result<()> {
    let world = World::<B>::new().await?;
    let actions = [Action::Close, Action::Reset, Action::Silence];
    let faults =
        actions.into_iter().flat_map(|action| Moment::ALL.map(|moment| Fault::new(moment, action)));
    let rounds = faults.flat_map(|fault| [SMALL, LARGE, VERY_LARGE].map(|size| (fault, size)));
    let rounds = (1_u64..).zip(rounds).map(|(key, (fault, size))| {
        let world = &world;
        async move {
            charge(world, &world.elsewhere().build()?, key, size).await?;
            let way = world.way().await?;
            let cut = way.proxy.nth(1, B::reads, fault);
            round(world, &way, cut, key, size, &format!("{fault:?}, {size} bytes")).await
        }
    });
    futures::stream::iter(rounds).buffer_unordered(AT_ONCE).try_collect().await
}
