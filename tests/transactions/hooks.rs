//! Code of the user that panics around a body in a transaction.

use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;
use idempotency::record::State;
use idempotency::{Error, ErrorKind};
use serde::{Deserialize, Serialize};

use crate::world::World;

#[derive(Deserialize)]
struct Breaks;

impl Serialize for Breaks {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        panic!("the result breaks")
    }
}

/// Whoever catches the panic and commits all the same has committed what the body wrote.
#[tokio::test]
async fn a_result_that_panics_when_it_is_encoded_is_in_doubt_if_it_is_committed()
-> anyhow::Result<()> {
    let world = World::new().await?;
    let mut transaction = world.begin().await?;
    let call = world.call("a").run_in(&mut transaction, async |connection| {
        sqlx::query("INSERT INTO ledger VALUES ('a')")
            .execute(connection)
            .await
            .expect("the ledger takes a line");
        Ok::<_, Error>(Breaks)
    });
    assert!(AssertUnwindSafe(call).catch_unwind().await.is_err());
    transaction.commit().await?;
    assert_eq!((world.state("a").await?, world.entries("a").await?), (Some(State::InDoubt), 1));
    let again = world.call("a").run(async || Ok::<_, Error>(1)).await;
    assert_eq!(again.unwrap_err().kind(), ErrorKind::InDoubt);
    Ok(())
}
