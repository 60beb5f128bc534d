//! What a call costs the server.

use idempotency::{Error, OnCrash};

use crate::setup::{Setup, call};

/// How often the server ran `command`, by its own statistics.
async fn runs(setup: &Setup, command: &str) -> anyhow::Result<u64> {
    let statistics = setup.server.command(&["INFO", "commandstats"]).await?;
    let line = statistics.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    Ok(line.and_then(|line| line.split(',').next()).map_or(Ok(0), str::parse)?)
}

#[tokio::test]
async fn a_hit_is_one_plain_set_and_a_miss_one_more_script() -> anyhow::Result<()> {
    let setup = Setup::new().await?;
    // The script is known to the server after the first miss.
    setup.charge(&setup.engine, 1, OnCrash::Hold).await?;
    let before = (runs(&setup, "set").await?, runs(&setup, "evalsha").await?);
    setup.charge(&setup.engine, 2, OnCrash::Hold).await?;
    let miss = (runs(&setup, "set").await?, runs(&setup, "evalsha").await?);
    // The script's own SET is the one that stores the result.
    assert_eq!((miss.0 - before.0, miss.1 - before.1), (2, 1));
    setup.charge(&setup.engine, 2, OnCrash::Hold).await?;
    let hit = (runs(&setup, "set").await?, runs(&setup, "evalsha").await?);
    assert_eq!((hit.0 - miss.0, hit.1 - miss.1), (1, 0));
    assert_eq!(setup.effects(2), 1);
    Ok(())
}

#[tokio::test]
async fn a_large_result_is_staged_and_never_passes_through_a_script() -> anyhow::Result<()> {
    let setup = Setup::new().await?;
    let large = "x".repeat(100_000);
    for _ in 0..2 {
        let result: Result<String, Error> = call(&setup.engine, 1)
            .run(|| async {
                setup.effect(1)?;
                Ok(large.clone())
            })
            .await;
        assert_eq!(result?.len(), large.len());
    }
    assert_eq!(setup.effects(1), 1);
    assert_eq!(runs(&setup, "rename").await?, 1);
    let keys = setup.server.command(&["DBSIZE"]).await?;
    assert!(keys.trim().ends_with('1'), "nothing staged is left behind: {keys}");
    Ok(())
}
