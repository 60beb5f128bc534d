//! Connections that are cut around each request: no second effect, no key that stays blocked, recovery by itself.

use idempotency::{ErrorKind, OnCrash};
use idempotency_test_support::proxy::{Action, Fault, Moment};

use crate::setup::{Setup, call, until_ok};

const MOMENTS: [Moment; 2] = [Moment::BeforeRequest, Moment::AfterRequest];
const ACTIONS: [Action; 2] = [Action::Close, Action::Reset];

#[tokio::test]
async fn a_claim_that_is_cut_runs_once() -> anyhow::Result<()> {
    for moment in MOMENTS {
        for action in ACTIONS {
            let setup = Setup::new().await?;
            let cut = setup.proxy.next("SET", Fault::new(moment, action));
            let receipt = until_ok(async || setup.charge(&setup.engine, 1, OnCrash::Hold).await).await;
            cut.happened().await?;
            assert_eq!(receipt, "receipt 1.1", "{moment:?} {action:?}");
            assert_eq!(setup.charge(&setup.elsewhere().await?, 1, OnCrash::Hold).await?, receipt);
            assert_eq!(setup.effects(1), 1, "{moment:?} {action:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_commit_that_is_cut_is_stored_once() -> anyhow::Result<()> {
    for moment in MOMENTS {
        for action in ACTIONS {
            let setup = Setup::new().await?;
            let cut = setup.proxy.next("EVALSHA", Fault::new(moment, action));
            let receipt = setup.charge(&setup.engine, 1, OnCrash::Hold).await?;
            cut.happened().await?;
            assert_eq!(setup.charge(&setup.elsewhere().await?, 1, OnCrash::Hold).await?, receipt);
            assert_eq!(setup.effects(1), 1, "{moment:?} {action:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn renewals_that_are_cut_are_sent_again_and_the_body_runs_once() -> anyhow::Result<()> {
    for moment in MOMENTS {
        let setup = Setup::new().await?;
        let there = setup.elsewhere().await?;
        let (started, has_started) = tokio::sync::oneshot::channel();
        let cut = setup.proxy.next("EVALSHA", Fault::new(moment, Action::Close));
        let long = call(&setup.engine, 1).on_crash(OnCrash::Retry).run(|| async {
            let _ = started.send(());
            // Three leases long.
            tokio::time::sleep(crate::setup::LEASE * 3).await;
            setup.effect(1)
        });
        let other = async {
            has_started.await?;
            anyhow::Ok(setup.charge(&there, 1, OnCrash::Retry).await?)
        };
        let (long, other) = tokio::join!(long, other);
        cut.happened().await?;
        assert_eq!(long?, other?, "{moment:?}");
        assert_eq!(setup.effects(1), 1, "{moment:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_connection_that_is_half_open_is_given_up() -> anyhow::Result<()> {
    let setup = Setup::new().await?;
    setup.proxy.half_open();
    let error = setup.charge(&setup.engine, 1, OnCrash::Hold).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
    assert_eq!(setup.effects(1), 0);
    // What the half-open connections swallowed never arrives.
    setup.proxy.close_all();
    setup.proxy.heal();
    let receipt = until_ok(async || setup.charge(&setup.engine, 1, OnCrash::Hold).await).await;
    assert_eq!((receipt.as_str(), setup.effects(1)), ("receipt 1.1", 1));
    Ok(())
}

#[tokio::test]
async fn scripts_that_the_server_forgot_are_loaded_again() -> anyhow::Result<()> {
    let setup = Setup::new().await?;
    for key in 1..4 {
        setup.server.command(&["SCRIPT", "FLUSH"]).await?;
        let receipt = setup.charge(&setup.engine, key, OnCrash::Hold).await?;
        assert_eq!(setup.charge(&setup.engine, key, OnCrash::Hold).await?, receipt);
        assert_eq!(setup.effects(key), 1);
    }
    Ok(())
}

#[tokio::test]
async fn a_dropped_body_is_in_doubt_for_every_process() -> anyhow::Result<()> {
    let setup = Setup::new().await?;
    let hanging = call(&setup.engine, 1).run(|| async {
        setup.effect(1)?;
        std::future::pending::<Result<String, idempotency::Error>>().await
    });
    let mut hanging = Box::pin(hanging);
    let effect = async {
        while setup.effects(1) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = &mut hanging => unreachable!("the body hangs"),
        () = effect => {}
    }
    drop(hanging);
    for engine in [&setup.engine, &setup.elsewhere().await?] {
        assert_eq!(setup.charge(engine, 1, OnCrash::Hold).await.unwrap_err().kind(), ErrorKind::InDoubt);
    }
    assert_eq!(setup.effects(1), 1);
    Ok(())
}
