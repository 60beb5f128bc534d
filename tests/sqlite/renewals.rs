//! Many leases are renewed at once.

use std::path::Path;
use std::time::Duration;

use idempotency::key::KeyHash;
use idempotency::store::{
    Claim, Commit, Release, Renewal, SqliteStore, Store as _, Token, WriteOutcome,
};
use idempotency_test_support::deadline::eventually;

use crate::statements;
use crate::world::{DAY, OPERATION, World, patient};

const LEASE: Duration = Duration::from_secs(60);
const OWNER: Token = Token::from_bits(1);

fn key(number: u16) -> KeyHash {
    let mut bytes = [7; 32];
    bytes[..2].copy_from_slice(&number.to_be_bytes());
    KeyHash::from_bytes(bytes)
}

async fn claimed(store: &SqliteStore, count: u16) -> anyhow::Result<Vec<Renewal>> {
    for number in 0..count {
        let mut claim = Claim::new(key(number), OWNER, OPERATION.into());
        (claim.lease, claim.ttl, claim.linger) = (LEASE, DAY, DAY);
        store.claim(claim).await?;
    }
    Ok((0..count).map(|number| Renewal::new(key(number), OWNER, LEASE)).collect())
}

/// How many transactions the write-ahead log holds: the last page of each has the size of the file
/// then, the others have zero there (SQLite, "WAL-mode File Format").
fn commits(database: &Path) -> anyhow::Result<usize> {
    const HEADER: usize = 32;
    const FRAME: usize = 24;
    let mut path = database.as_os_str().to_owned();
    path.push("-wal");
    let log = std::fs::read(path)?;
    let figure = |at: usize| u32::from_be_bytes([log[at], log[at + 1], log[at + 2], log[at + 3]]);
    anyhow::ensure!(log.len() > HEADER, "the log is empty");
    let step = FRAME + usize::try_from(figure(8))?;
    Ok((HEADER..=log.len() - step).step_by(step).filter(|frame| figure(frame + 4) != 0).count())
}

#[tokio::test]
async fn a_thousand_leases_are_renewed_by_one_statement() -> anyhow::Result<()> {
    let world = World::new().await?;
    let store = patient(&world.path).table("counted").clock(world.clock.clone()).open().await?;
    let renewals = claimed(&store, 1_000).await?;
    world.clock.advance(LEASE / 2);
    statements::listen();
    assert_eq!(store.renew(renewals).await?, [WriteOutcome::Applied; 1_000]);
    // Told after the answer.
    eventually("the statement to be told", || statements::count("counted") > 0).await?;
    assert_eq!(statements::count("counted"), 1);
    Ok(())
}

#[tokio::test]
async fn the_leases_of_a_process_share_a_transaction() -> anyhow::Result<()> {
    let world = World::new().await?;
    let renewals = claimed(&world.store, 1_000).await?;
    world.store.release(Release::new(key(10), OWNER)).await?;
    world.store.complete(Commit::new(key(20), OWNER, "done".into(), DAY)).await?;
    world.clock.advance(LEASE / 2);
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&world.pool).await?;
    let written = world.store.renew(renewals).await?;
    assert_eq!(commits(&world.path)?, 1, "each is synced to the disk");
    for (number, written) in written.into_iter().enumerate() {
        let expected = match number {
            10 => WriteOutcome::Gone,
            20 => WriteOutcome::Lost,
            _ => WriteOutcome::Applied,
        };
        assert_eq!(written, expected, "{number}");
    }
    for number in [0, 999] {
        let record = world.store.read(key(number)).await?.expect("it is there");
        assert_eq!(record.lease_until, record.read_at + LEASE, "{number}");
    }
    Ok(())
}

#[tokio::test]
async fn more_leases_than_a_transaction_takes_are_all_renewed() -> anyhow::Result<()> {
    let world = World::new().await?;
    let renewals = claimed(&world.store, 3).await?;
    // The same ones again and again: a renewal can be repeated.
    let many: Vec<_> = renewals.iter().copied().cycle().take(1_201).collect();
    world.clock.advance(LEASE / 2);
    assert_eq!(world.store.renew(many).await?, [WriteOutcome::Applied; 1_201]);
    Ok(())
}

#[tokio::test]
async fn a_row_that_cannot_be_read_does_not_cost_others_their_leases() -> anyhow::Result<()> {
    let world = World::new().await?;
    let renewals = claimed(&world.store, 3).await?;
    let spoil = sqlx::query("UPDATE idempotency_records SET format = 2 WHERE key_hash = ?");
    spoil.bind(&key(1).as_bytes()[..]).execute(&world.pool).await?;
    world.clock.advance(LEASE / 2);
    assert_eq!(
        world.store.renew(renewals).await?,
        [WriteOutcome::Applied, WriteOutcome::Lost, WriteOutcome::Applied]
    );
    let record = world.store.read(key(2)).await?.expect("it is there");
    assert_eq!(record.lease_until, record.read_at + LEASE);
    Ok(())
}
