//! SIGSTOP beyond the lease: the owner lives, and comes back when it is believed dead.

use idempotency::{ErrorKind, OnCrash, State};
use idempotency_test_support::history::Outcome;
use idempotency_test_support::worker::{AFTER_EFFECT, BEFORE_COMMIT};

use crate::backend::Backend;
use crate::scene::Scene;
use crate::worker::{DUPLICATE, answers};

/// In the body, and with the commit all but sent.
const POINTS: [&str; 2] = [AFTER_EFFECT, BEFORE_COMMIT];

pub async fn under_retry_the_commit_of_an_owner_that_was_taken_over_is_refused(backend: Backend) -> anyhow::Result<()> {
    let scene = Scene::new(backend).await?;
    for point in POINTS {
        let mut stopped = scene.caller(OnCrash::Retry, point, point, false)?;
        stopped.wait_for_point(point).await?;
        stopped.stop()?;
        let (winner, report) = scene.call(OnCrash::Retry, point).await?;
        let winner = winner?;
        assert_eq!((report.replayed, report.attempt), (false, 2), "{point}: the call was taken over");
        let record = scene.record(point).await?.expect("the result is stored");

        stopped.go().await?;
        stopped.cont()?;
        let lines = stopped.lines().await?;
        let late = answers(&lines)?;
        assert_eq!(
            late[0].outcome,
            Outcome::Value(winner.bytes()),
            "{point}: the late owner gives the winner's result"
        );
        assert!(lines.iter().any(|line| line == DUPLICATE), "{point}: the second effect is reported: {lines:?}");
        let after = scene.record(point).await?.expect("the result is stored");
        assert_eq!((after.owner, after.fence, &after.body), (record.owner, record.fence, &record.body), "{point}");
        let (third, _) = scene.call(OnCrash::Retry, point).await?;
        assert_eq!(third?, winner, "{point}");
        assert_eq!(scene.effects(point)?.len(), 2, "{point}: the effect of a stopped body cannot be taken back");
    }
    Ok(())
}

pub async fn under_hold_an_owner_that_was_in_doubt_settles_its_own_record(backend: Backend) -> anyhow::Result<()> {
    let scene = Scene::new(backend).await?;
    for point in POINTS {
        let mut stopped = scene.caller(OnCrash::Hold, point, point, false)?;
        stopped.wait_for_point(point).await?;
        stopped.stop()?;
        let (refused, _) = scene.call(OnCrash::Hold, point).await?;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InDoubt, "{point}");
        assert_eq!(scene.record(point).await?.map(|record| record.state), Some(State::InDoubt), "{point}");

        stopped.go().await?;
        stopped.cont()?;
        let late = answers(&stopped.lines().await?)?;
        let (replayed, report) = scene.call(OnCrash::Hold, point).await?;
        assert_eq!((&late[0].outcome, report.replayed), (&Outcome::Value(replayed?.bytes()), true), "{point}");
        assert_eq!(scene.effects(point)?.len(), 1, "{point}");
    }
    Ok(())
}
