//! Lists of records: one walk of the keys, past whatever else is in the database.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context as _;
use idempotency::key::KeyHash;
use idempotency::store::{CensusBudget, Claim, Scan, Store as _, Token};
use idempotency_test_support::proxy::{Action, Fault, Moment};

use crate::world::{DAY, OPERATION, World, patient};

/// Returns the number of `SCAN` commands that the server has answered.
async fn steps(world: &World) -> anyhow::Result<u64> {
    let stats = world.server.command(&["INFO", "commandstats"]).await?;
    let Some((_, scan)) = stats.split_once("cmdstat_scan:calls=") else { return Ok(0) };
    Ok(scan.split(',').next().context("a number")?.parse()?)
}

/// Stores the record of `key` under this number of other names.
async fn copies(world: &World, key: KeyHash, number: u32) -> anyhow::Result<()> {
    let name = format!("idempotency:{{{}}}", key.to_hex());
    let script = "local record = redis.call('GET', KEYS[1])
        for number = 1, tonumber(ARGV[1]) do
            local digits = redis.sha1hex(number) .. string.sub(redis.sha1hex(-number), 1, 24)
            redis.call('SET', 'idempotency:{' .. digits .. '}', record, 'PX', 86400000)
        end
        return 'done'";
    world.server.command(&["EVAL", script, "1", &name, &number.to_string()]).await?;
    Ok(())
}

async fn pages(world: &World, mut scan: Scan) -> anyhow::Result<Vec<KeyHash>> {
    let mut listed = Vec::new();
    loop {
        let page = world.direct.scan(scan.clone()).await?;
        anyhow::ensure!(page.records.len() <= scan.limit, "the page is too long");
        listed.extend(page.records.iter().map(|record| record.key));
        scan.after = page.next;
        if scan.after.is_none() {
            return Ok(listed);
        }
    }
}

fn pages_of(limit: usize) -> Scan {
    let mut scan = Scan::default();
    scan.limit = limit;
    scan
}

#[tokio::test]
async fn many_records_are_listed_in_one_walk_and_not_in_one_for_each_page() -> anyhow::Result<()> {
    let world = World::patient().await?;
    let key = KeyHash::from_bytes([7; 32]);
    world.direct.claim(Claim::new(key, Token::from_bits(7), OPERATION.into())).await?;
    copies(&world, key, 5_000).await?;
    let before = steps(&world).await?;
    let listed = pages(&world, pages_of(50)).await?;
    let distinct: BTreeSet<_> = listed.iter().collect();
    assert_eq!(distinct.len(), 5_001);
    // One walk in steps of 50 keys takes 100 of them, and each page may need another short one.
    let taken = steps(&world).await? - before;
    assert!(taken <= 400, "{taken} steps for 5001 records on pages of 50");

    // A page that lists little examines much, and one that lists nothing too.
    let before = steps(&world).await?;
    let mut scan = pages_of(1_000);
    scan.operation = Some("another".into());
    assert!(pages(&world, scan).await?.is_empty());
    let taken = steps(&world).await? - before;
    assert!(taken <= 40, "{taken} steps for 5001 records that are not listed");
    let found = world.elsewhere().find(&listed[4_321].to_string()).await?;
    assert_eq!(found, [listed[4_321]]);
    Ok(())
}

#[tokio::test]
async fn a_census_is_one_walk_and_says_how_far_it_came() -> anyhow::Result<()> {
    let world = World::patient().await?;
    let key = KeyHash::from_bytes([7; 32]);
    world.direct.claim(Claim::new(key, Token::from_bits(7), OPERATION.into())).await?;
    copies(&world, key, 20_000).await?;
    let before = steps(&world).await?;
    let census = world.direct.census(CensusBudget::of(DAY)).await?;
    assert_eq!((census.count(), census.unreadable, census.complete), (20_001, 0, true));
    let taken = steps(&world).await? - before;
    assert!(taken <= 40, "{taken} steps for 20001 records");

    // As many steps as its time allows: the place of the walk says how much that is.
    for millis in [0, 1, 5, 10, 20, 40] {
        let part = world.direct.census(CensusBudget::of(Duration::from_millis(millis))).await?;
        let share = part.count() * 100 / census.count();
        let percent = part.percent.context("a walk has a place")?;
        assert_eq!(part.complete, percent == 100, "{part:?}");
        assert!(share.abs_diff(percent.into()) <= 3, "{percent} % with {share} % of the records");
    }
    Ok(())
}

#[tokio::test]
async fn a_census_whose_server_goes_away_keeps_what_it_has_counted() -> anyhow::Result<()> {
    let world = World::patient().await?;
    let store = patient(&world.proxy.url(&world.server.url())).connect().await?;
    let key = KeyHash::from_bytes([7; 32]);
    world.direct.claim(Claim::new(key, Token::from_bits(7), OPERATION.into())).await?;
    copies(&world, key, 20_000).await?;
    let close = Fault::new(Moment::AfterRequest, Action::Close);
    let nth = |nth| world.proxy.nth(nth, |request| request.command() == "SCAN", close);

    let planned = nth(11);
    let census = store.census(CensusBudget::of(DAY)).await?;
    planned.happened().await?;
    assert!(!census.complete, "{census:?}");
    let percent = census.percent.context("a walk has a place")?;
    let share = census.count() * 100 / 20_001;
    assert!(share.abs_diff(percent.into()) <= 3, "{percent} % with {share} % of the records");
    assert!((40..60).contains(&percent), "ten of some twenty steps, and not {percent} %");

    let planned = nth(1);
    let error = store.census(CensusBudget::of(DAY)).await.expect_err("nothing was counted");
    planned.happened().await?;
    assert!(error.is_transient(), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_name_that_is_not_text_costs_no_record_its_place_in_a_list() -> anyhow::Result<()> {
    let world = World::patient().await?;
    let key = |number| KeyHash::from_bytes([number; 32]);
    for number in 1..=3_u8 {
        let token = Token::from_bits(number.into());
        world.direct.claim(Claim::new(key(number), token, OPERATION.into())).await?;
    }
    // Each matches the pattern that the store searches with.
    let script = "for _, digits in ipairs({string.rep('\\255', 64), '\\195\\040', '', 'a}{b'}) do
            redis.call('SET', 'idempotency:{' .. digits .. '}', 'foreign')
        end
        redis.call('SET', 'idempotency:{' .. string.rep('AB', 32) .. '}', 'foreign')
        return redis.call('DBSIZE')";
    let names = world.server.command(&["EVAL", script, "0"]).await?;
    assert!(names.contains('8'), "{names}");
    for limit in [1, 100] {
        let page = pages(&world, pages_of(limit)).await?;
        assert_eq!(page.into_iter().collect::<BTreeSet<_>>(), [1, 2, 3].map(key).into());
    }
    Ok(())
}
