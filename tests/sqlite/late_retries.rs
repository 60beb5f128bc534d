//! `after_expiry` and `on_crash_verify`, on a file.

use idempotency::record::State;
use idempotency::{Context, Error, ErrorKind, Verdict};

use super::world::{DAY, OPERATION, World};

#[tokio::test]
async fn a_late_retry_is_told_that_its_record_has_expired() -> anyhow::Result<()> {
    let world = World::new().await?;
    let engine = world.engine(|builder| builder);
    let call = async || {
        let call = engine.call(OPERATION, 1).ttl(DAY).after_expiry(30 * DAY);
        call.run(|| async { Ok::<_, Error>("receipt".to_owned()) }).await
    };
    call().await?;
    world.clock.advance(DAY);
    assert_eq!(call().await.unwrap_err().kind(), ErrorKind::Expired);
    world.clock.advance(30 * DAY);
    assert_eq!(call().await?, "receipt");
    Ok(())
}

#[tokio::test]
async fn a_question_without_an_answer_is_kept_and_asked_again() -> anyhow::Result<()> {
    let world = World::new().await?;
    let engine = world.engine(|builder| builder);
    let started = tokio::sync::Notify::new();
    let ask = async |verdict: Verdict<String>| {
        let call = engine.call(OPERATION, 1).ttl(DAY).settle(std::time::Duration::ZERO);
        let body = || async {
            started.notify_one();
            std::future::pending::<Result<String, Error>>().await
        };
        call.on_crash_verify(async |_: Context| Ok(verdict)).run(body).await
    };
    let mut crashed = Box::pin(ask(Verdict::Unknown));
    tokio::select! {
        _ = &mut crashed => panic!("the body does not end"),
        () = started.notified() => {}
    }
    drop(crashed);
    let unknown = ask(Verdict::Unknown).await.unwrap_err();
    let rest = unknown.retry_after().expect("it is asked again");
    assert_eq!(
        (unknown.kind(), ask(Verdict::NotExecuted).await.unwrap_err().kind()),
        (ErrorKind::InDoubt, ErrorKind::InDoubt)
    );
    world.clock.advance(rest);
    assert_eq!(ask(Verdict::Completed("receipt".to_owned())).await?, "receipt");
    let view = engine.record(OPERATION, 1).inspect().await?.expect("the record is kept");
    assert_eq!((view.state, view.attempts), (State::Completed, 3));
    Ok(())
}
