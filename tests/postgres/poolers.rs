//! Behind a pooler that gives every transaction another session.

use idempotency::store::{Remove, Renewal, Scan, State, Store as _, StoreErrorKind, WriteOutcome};
use idempotency::{Error, Idempotency};
use idempotency_test_support::deadline::within;
use idempotency_test_support::server::{PgBouncer, PgBouncerOptions};
use sqlx::postgres::PgPoolOptions;

use crate::world::{DAY, HOUR, OPERATION, PATIENCE, World, claim, key, patient, run, token};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_prepared_statements_everything_works_in_transaction_mode() -> anyhow::Result<()> {
    let world = World::new().await?;
    // Refuses every startup parameter that it does not know.
    let options = PgBouncerOptions::before(world.server).setting("ignore_startup_parameters", "");
    let pooler = PgBouncer::start(options.setting("default_pool_size", "2")).await?;
    let url = pooler.through(&world.url);
    let unprepared = || patient(&url).without_prepared_statements();
    let store = unprepared().connect().await?;
    store.migrate().await?;
    let other = unprepared().table("pooled.records").connect().await?;
    other.migrate().await?;
    run(&other, 1, "elsewhere", DAY).await?;

    let engine = Idempotency::builder(store.clone()).claim_timeout(PATIENCE).build()?;
    let tasks: Vec<_> = (0..64_u32)
        .map(|number| {
            let call = engine.call(OPERATION, number % 8).ttl(DAY);
            tokio::spawn(call.run(move || async move { Ok::<_, Error>(number % 8) }))
        })
        .collect();
    for (number, task) in tasks.into_iter().enumerate() {
        assert_eq!(task.await??, u32::try_from(number % 8)?);
    }
    assert_eq!(world.rows().await?, 8);

    // Names and bodies are data, whatever is in them.
    let mut odd = claim(100);
    odd.operation = "'); DROP TABLE idempotency_records; -- $1 \\ é".into();
    odd.trace = Some("\\'$2".into());
    store.claim(odd.clone()).await?;
    let record = store.read(key(100)).await?.expect("the record");
    assert_eq!((&record.operation, &record.trace), (&odd.operation, &odd.trace));
    let renewal = Renewal::new(key(100), token(100), HOUR);
    let nobodys = Renewal::new(key(101), token(100), HOUR);
    assert_eq!(
        store.renew(vec![renewal, nobodys]).await?,
        [WriteOutcome::Applied, WriteOutcome::Gone]
    );
    run(&store, 102, "\0\u{1}'\\", DAY).await?;
    let record = store.read(key(102)).await?.expect("the record");
    assert_eq!((record.state, &record.body[..]), (State::Completed, &b"\0\x01'\\"[..]));
    assert_eq!(store.scan(Scan::default()).await?.records.len(), 10);
    assert_eq!(store.purge(10).await?.removed, 0);
    let watch = store.watch(key(100)).await?;
    let mut remove = Remove::new(key(100), token(100));
    remove.force = true;
    store.remove(remove).await?;
    within("the wake", watch).await?;
    Ok(())
}

#[tokio::test]
async fn a_pooler_that_refuses_the_settings_of_a_session_is_named() -> anyhow::Result<()> {
    let world = World::new().await?;
    let pooler = PgBouncer::start(PgBouncerOptions::before(world.server)).await?;
    let error = patient(&pooler.through(&world.url)).connect().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Config, "{error}");
    assert!(error.to_string().contains("without_prepared_statements"), "{error}");
    Ok(())
}

#[tokio::test]
async fn in_session_mode_a_pooler_needs_to_let_the_settings_pass() -> anyhow::Result<()> {
    let world = World::new().await?;
    let options = PgBouncerOptions::before(world.server).setting("pool_mode", "session");
    let pooler = PgBouncer::start(options.setting("ignore_startup_parameters", "options")).await?;
    let store = patient(&pooler.through(&world.url)).connect().await?;
    for number in 0..10 {
        run(&store, number, "one", DAY).await?;
    }
    assert_eq!(world.rows().await?, 10);
    Ok(())
}

/// Major and minor.
async fn version(world: &World, pooler: &PgBouncer) -> anyhow::Result<(u32, u32)> {
    let console = format!("postgres://idempotency@{}/pgbouncer", pooler.address());
    let rows = world.server.sql_at(&console, "SHOW VERSION").await?;
    let printed = rows.into_iter().flatten().flatten().next().unwrap_or_default();
    let mut numbers = printed.split([' ', '.']).filter_map(|word| word.parse().ok());
    numbers.next().zip(numbers.next()).ok_or_else(|| anyhow::anyhow!("what version is {printed}?"))
}

/// From 1.21 on, where it is told to. Before that, the store says what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prepared_statements_work_in_transaction_mode_where_the_pooler_knows_them()
-> anyhow::Result<()> {
    let world = World::new().await?;
    let options = PgBouncerOptions::before(world.server)
        .setting("ignore_startup_parameters", "extra_float_digits, options");
    let options = options.setting("default_pool_size", "2");
    let plain = PgBouncer::start(options.clone()).await?;
    let knows_them = version(&world, &plain).await? >= (1, 21);
    let pooler = if knows_them {
        PgBouncer::start(options.setting("max_prepared_statements", "100")).await?
    } else {
        plain
    };
    let url = pooler.through(&world.url);
    let store = patient(&url).build()?;
    let engine = Idempotency::builder(store.clone()).claim_timeout(PATIENCE).build()?;
    let tasks: Vec<_> = (0..64_u32)
        .map(|number| {
            let call = engine.call(OPERATION, number % 8).ttl(DAY);
            tokio::spawn(call.run(move || async move { Ok::<_, Error>(number % 8) }))
        })
        .collect();
    let mut refused = 0;
    for (number, task) in tasks.into_iter().enumerate() {
        match task.await? {
            Ok(result) => assert_eq!(result, u32::try_from(number % 8)?),
            Err(error) => {
                assert!(format!("{error:?}").contains("without_prepared_statements"), "{error:?}");
                refused += 1;
            }
        }
    }
    assert_eq!(refused == 0, knows_them, "{refused} of 64 were refused");
    if !knows_them {
        return Ok(());
    }
    assert_eq!(world.rows().await?, 8);
    let renewal = Renewal::new(key(100), token(100), HOUR);
    store.claim(claim(100)).await?;
    assert_eq!(store.renew(vec![renewal]).await?, [WriteOutcome::Applied]);
    let pool = PgPoolOptions::new().max_connections(4).connect(&url).await?;
    for _ in 0..2 {
        let mut transaction = pool.begin().await?;
        engine
            .call(OPERATION, "tx")
            .ttl(DAY)
            .run_in(&mut transaction, async |_| Ok::<_, Error>(1))
            .await?;
        transaction.commit().await?;
    }
    assert_eq!(world.rows().await?, 10);
    Ok(())
}
