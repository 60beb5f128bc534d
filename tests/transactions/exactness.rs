//! Many callers of the same keys, of whom some roll back, fail, are dropped or lose their
//! connection: in the end the effects in the database are those of the completed records, exactly.

use std::cell::Cell;
use std::time::Duration;

use anyhow::Context as _;
use futures::future::join_all;
use idempotency::ErrorKind;
use idempotency::store::SqlTransaction;
use idempotency_test_support::random::{Random, seed};
use sqlx::Transaction;
use tokio::sync::{Notify, Semaphore};

use crate::databases;
use crate::scene::{Connection, Database, Ending, Scene, charge, keys};
use crate::world::Fault;

const KEYS: usize = 60;
const CALLERS: usize = 32;
const CONNECTIONS: u32 = 16;

/// What a caller does, and what is done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Ends(Ending),
    /// Its future is dropped this long after its body began.
    Dropped(Duration),
}

impl Fate {
    fn choose(random: &mut Random) -> Self {
        match random.below(100) {
            0..15 => Self::Ends(Ending::CommitError),
            15..30 => Self::Ends(Ending::RollBack),
            30..40 => Self::Dropped(random.duration_below(Duration::from_millis(6))),
            _ => Self::Ends(Ending::Commit),
        }
    }
}

async fn a_caller<D: Database>(
    scene: &Scene<D>,
    key: &str,
    fate: Fate,
) -> Result<Option<String>, Fault>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let (ending, limit) = match fate {
        Fate::Ends(ending) => (ending, None),
        Fate::Dropped(limit) => (Ending::Commit, Some(limit)),
    };
    let began = Notify::new();
    let in_body = || began.notify_one();
    let charged = charge::<D>(&scene.pool, &scene.engine, key, ending, &in_body);
    let Some(limit) = limit else { return charged.await };
    let drop = async {
        began.notified().await;
        tokio::time::sleep(limit).await;
    };
    tokio::select! {
        result = charged => result,
        () = drop => Err(Fault::No),
    }
}

/// The most callers that end between two kills.
const CALLERS_OF_A_KILL: u64 = 8;

/// Kills connections on the side of the server as long as `callers` run. Gives how many.
///
/// Each kill waits until a few callers have added a permit to `ended`. By the clock instead, a slow
/// machine would kill the same transaction more often than it is made again.
async fn with_a_killer<D: Database, T>(
    scene: &Scene<D>,
    random: &mut Random,
    ended: &Semaphore,
    callers: impl Future<Output = T>,
) -> anyhow::Result<(T, usize)> {
    let killed = Cell::new(0);
    let kills = async {
        loop {
            for _ in 0..=random.below(CALLERS_OF_A_KILL) {
                match ended.acquire().await {
                    Ok(permit) => permit.forget(),
                    Err(closed) => return closed.into(),
                }
            }
            match scene.database.kill_a_backend().await {
                Ok(has_killed) => killed.set(killed.get() + usize::from(has_killed)),
                Err(error) => return error,
            }
        }
    };
    tokio::select! {
        done = callers => Ok((done, killed.get())),
        error = kills => Err(error),
    }
}

async fn chaos<D: Database>(is_server: bool) -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let seed = seed();
    let run = chaos_of::<D>(is_server, Random::new(seed)).await;
    run.with_context(|| format!("IDEMPOTENCY_SEED={seed} repeats the choices"))
}

async fn chaos_of<D: Database>(is_server: bool, mut random: Random) -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let scene = Scene::<D>::new(CONNECTIONS, None).await?;
    let keys = keys(KEYS);
    let mut callers: Vec<_> = keys.iter().flat_map(|key| vec![key; CALLERS]).collect();
    for at in (1..callers.len()).rev() {
        callers.swap(at, usize::try_from(random.below(at as u64 + 1))?);
    }
    let calls = callers.into_iter().map(|key| (key, Fate::choose(&mut random))).collect::<Vec<_>>();
    let scene_of = &scene;
    let ended = Semaphore::new(0);
    let running = join_all(calls.iter().map(|(key, fate)| async {
        let result = a_caller(scene_of, key, *fate).await;
        ended.add_permits(1);
        result
    }));
    let (results, killed) = with_a_killer(&scene, &mut random, &ended, running).await?;
    anyhow::ensure!(!is_server || killed >= 10, "only {killed} connections were killed");
    let mut answers = Vec::new();
    for ((key, fate), result) in calls.iter().zip(results) {
        match result {
            Ok(answer) => answers.extend(answer.map(|answer| ((*key).clone(), answer))),
            Err(Fault::No) => {}
            // No record stays that could tell whether a commit happened whose answer was lost.
            Err(Fault::Idempotency(error))
                if *fate == Fate::Ends(Ending::CommitError)
                    && error.kind() == ErrorKind::NotStored => {}
            Err(error) => anyhow::bail!("{fate:?} at {key}: {error}"),
        }
    }
    scene.is_exact(&keys, &answers).await?;
    // Whatever was left, one more call settles it.
    for key in &keys {
        let answer = charge::<D>(&scene.pool, &scene.engine, key, Ending::Commit, &|| {}).await?;
        answers.extend(answer.map(|answer| (key.clone(), answer)));
    }
    scene.is_exact(&keys, &answers).await?;
    let effects = scene.effects().await?;
    anyhow::ensure!(effects.len() == KEYS, "{} keys have effects", effects.len());
    println!("{} answers, {killed} connections killed", answers.len());
    Ok(())
}

#[tokio::test]
async fn on_sqlite_effects_are_those_of_the_records_whatever_happens_to_callers()
-> anyhow::Result<()> {
    chaos::<databases::Sqlite>(false).await
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_effects_are_those_of_the_records_whatever_happens_to_callers()
-> anyhow::Result<()> {
    chaos::<databases::Postgres>(true).await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_effects_are_those_of_the_records_whatever_happens_to_callers()
-> anyhow::Result<()> {
    chaos::<databases::MariaDb>(true).await
}
