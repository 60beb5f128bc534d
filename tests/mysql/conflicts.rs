//! A transaction that the server has rolled back for the sake of others is made again, whatever the
//! server calls that.
//!
//! The errors come from a trigger: a server answers with the number that it is told. Who really
//! gives them are MariaDB with `innodb_snapshot_isolation` (1020), Galera (1213) and Group
//! Replication (3101, 1180).

use idempotency::Error;
use idempotency::store::{Store as _, StoreErrorKind};
use idempotency::tx::in_transaction;

use crate::world::{World, claim, fresh, key, mine};

const CONFLICTS: [(u16, &str); 4] = [
    (1020, "Record has changed since last read in table"),
    (1213, "Deadlock found when trying to get lock; try restarting transaction"),
    (3101, "Plugin instructed the server to rollback the current transaction."),
    (1180, "Got error 149 - 'Lock deadlock; Retry transaction' during COMMIT"),
];

/// The next `times` rows are refused.
async fn refuse(world: &World, times: u32, (number, message): (u16, &str)) -> anyhow::Result<()> {
    let message = message.replace('\'', "''");
    // The count is kept where nothing is rolled back.
    let statements = format!(
        "CREATE TABLE IF NOT EXISTS refusals (left_over INT) ENGINE = MyISAM;
         DELETE FROM refusals; INSERT INTO refusals VALUES ({times});
         DROP TRIGGER IF EXISTS refused;
         DELIMITER //
         CREATE TRIGGER refused BEFORE INSERT ON idempotency_records FOR EACH ROW
         BEGIN
             UPDATE refusals SET left_over = left_over - 1;
             IF (SELECT left_over FROM refusals) >= 0 THEN
                 SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {number}, MESSAGE_TEXT = '{message}';
             END IF;
         END //"
    );
    world.sql(&statements).await?;
    Ok(())
}

#[tokio::test]
async fn a_statement_is_sent_again_and_refused_in_the_end() -> anyhow::Result<()> {
    let world = World::new().await?;
    for (number, conflict) in (1..).zip(CONFLICTS) {
        refuse(&world, 3, conflict).await?;
        mine(world.store.claim(claim(key(number), fresh())).await?);
        refuse(&world, 1_000, conflict).await?;
        let error = world.store.claim(claim(key(number + 100), fresh())).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Refused, "{conflict:?}: {error}");
        let tries = 1_000 - world.figure("SELECT left_over FROM refusals").await?;
        assert_eq!(tries, 10, "{conflict:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_commit_that_failed_for_another_reason_may_have_happened() -> anyhow::Result<()> {
    let world = World::new().await?;
    refuse(&world, 1_000, (1180, "Got error 5 - 'Input/output error' during COMMIT")).await?;
    let error = world.store.claim(claim(key(1), fresh())).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
    Ok(())
}

#[tokio::test]
async fn a_transaction_of_the_users_is_made_again() -> anyhow::Result<()> {
    let world = World::new().await?;
    let engine = &idempotency::Idempotency::new(world.store.clone());
    let pool = world.pool("SET autocommit = 1").await?;
    for (number, conflict) in (1_u64..).zip(CONFLICTS) {
        refuse(&world, 2, conflict).await?;
        let charge = in_transaction(&pool, |mut tx| async move {
            let call = engine.call("payments.charge", number).ttl(crate::world::DAY);
            call.run_in(&mut tx, async |_| Ok::<_, Error>(number)).await
        });
        assert_eq!(charge.await?, number, "{conflict:?}");
    }
    Ok(())
}
