//! The least rights with which the store works: those that `docs/postgres.md` names.

use idempotency::store::{Store as _, StoreErrorKind, WriteOutcome};
use idempotency::{Error, Idempotency};

use crate::world::{DAY, OPERATION, World, claim, key, patient, run, token};

const PAGE: &str = include_str!("../../docs/postgres.md");

/// The statements between the fences that begin with this language.
fn grants() -> String {
    let (_, rest) = PAGE.split_once("## Rights").expect("the page has the section");
    let (_, rest) = rest.split_once("```sql\n").expect("the section has statements");
    rest.split_once("```").expect("the statements end").0.to_owned()
}

#[tokio::test]
async fn the_rights_of_the_documentation_are_enough() -> anyhow::Result<()> {
    let world = World::new().await?;
    let role = format!("app_{}", std::process::id());
    world
        .sql(&format!("CREATE ROLE {role} LOGIN; REVOKE ALL ON SCHEMA public FROM PUBLIC"))
        .await?;
    let url = world.url.replace("idempotency@", &format!("{role}@"));
    let refused = patient(&url).connect().await?.claim(claim(1)).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Config, "{refused}");

    let grants = grants()
        .replace("shop_app", &role)
        .replace("SCHEMA shop", "SCHEMA public")
        .replace("shop.", "public.");
    world.sql(&grants).await?;
    let store = patient(&url).connect().await?;
    // The table is there.
    store.migrate().await?;
    run(&store, 1, "one", DAY).await?;
    store.claim(claim(2)).await?;
    let renewal = idempotency::store::Renewal::new(key(2), token(2), DAY);
    assert_eq!(store.renew(vec![renewal]).await?, [WriteOutcome::Applied]);
    assert_eq!(
        store.release(idempotency::store::Release::new(key(2), token(2))).await?,
        WriteOutcome::Applied
    );
    assert_eq!(store.purge(10).await?.removed, 0);
    let engine = Idempotency::connect(&url).await?;
    assert_eq!(engine.call(OPERATION, 3_u32).ttl(DAY).run(async || Ok::<_, Error>(3)).await?, 3);

    let other = patient(&url).table("other").connect().await?;
    let error = other.migrate().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Config, "{error}");
    assert!(error.to_string().contains("rights"), "{error}");
    Ok(())
}
