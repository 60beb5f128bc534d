//! The expansion with `tx` is clean under the strictest lints, and hides none of the user's own.
//!
//! `cargo clippy --all-targets` is what checks the lints of clippy; the compiler checks the others.
#![deny(warnings, unused, clippy::all, clippy::pedantic, clippy::nursery)]
#![deny(unfulfilled_lint_expectations)]
#![allow(clippy::redundant_pub_crate, reason = "it contradicts the workspace's `unreachable_pub`")]

mod clean {
    use std::time::Duration;

    use idempotency::{ErrorAction, Idempotency, OnError, idempotent};
    use sqlx::{Sqlite, SqliteConnection, Transaction};

    use crate::world::{Fault, add};

    #[derive(Debug, thiserror::Error, serde::Serialize, serde::Deserialize)]
    pub(super) enum Refused {
        #[error("refused")]
        Refused,
    }

    impl From<idempotency::Error> for Refused {
        fn from(_: idempotency::Error) -> Self {
            Self::Refused
        }
    }

    pub(super) struct Entry {
        pub(super) name: String,
        pub(super) amount: u64,
    }

    const TTL: Duration = Duration::from_hours(1);

    const fn on_error(Refused::Refused: &Refused) -> OnError {
        OnError::Store
    }

    fn read_old(version: u32, _: &[u8]) -> Option<u64> {
        (version == 1).then_some(0)
    }

    /// Adds.
    #[idempotent(key = entry, ttl = "24h", engine = engine, tx = tx)]
    pub(super) async fn lent(
        engine: &Idempotency,
        tx: &mut Transaction<'_, Sqlite>,
        entry: &str,
    ) -> Result<String, Fault> {
        add(tx, entry).await
    }

    #[idempotent(
        key = "{entry.name}:{entry.amount}",
        ttl = TTL,
        name = "lints.every_option_in_a_transaction",
        scope = entry.name,
        fingerprint = (entry.name, entry.amount),
        on_conflict = wait("5s"),
        on_error = on_error,
        version = 2,
        upgrade = read_old,
        engine = engine,
        tx = &mut **tx,
        crate = ::idempotency
    )]
    pub(super) async fn every_option(
        engine: &Idempotency,
        tx: &mut Transaction<'_, Sqlite>,
        entry: Entry,
    ) -> Result<u64, Refused> {
        if add(tx, &entry.name).await.is_err() {
            return Err(Refused::Refused);
        }
        Ok(entry.amount)
    }

    #[idempotent(
        key = entry,
        ttl = "24h",
        on_error = |_| if strict { ErrorAction::Hold } else { ErrorAction::Release },
        engine = engine,
        tx = tx
    )]
    pub(super) async fn closure(
        engine: &Idempotency,
        tx: &mut SqliteConnection,
        entry: &str,
        strict: bool,
    ) -> anyhow::Result<()> {
        add(tx, entry).await?;
        Ok(())
    }

    #[idempotent(key = id, ttl = "24h", engine = engine, tx = tx)]
    pub(super) async fn assigns(
        engine: &Idempotency,
        tx: &mut SqliteConnection,
        mut id: u64,
        (mut first, _): (u64, u64),
        mut entry: Entry,
        mut names: Vec<String>,
    ) -> Result<Vec<String>, Fault> {
        entry.amount = id;
        id += 1;
        first += id;
        add(tx, &first.to_string()).await?;
        names.push(entry.name);
        Ok(names)
    }

    pub(super) struct Unit {
        pub(super) engine: Idempotency,
        pub(super) tx: Transaction<'static, Sqlite>,
    }

    impl Unit {
        #[idempotent(key = entry, ttl = "24h", engine = &self.engine, tx = &mut self.tx)]
        pub(super) async fn by_mutable_reference(&mut self, entry: &str) -> Result<String, Fault> {
            add(&mut self.tx, entry).await
        }

        #[idempotent(key = entry, ttl = "24h", engine = &self.engine, tx = self.tx)]
        pub(super) async fn by_value(mut self, entry: &str) -> Result<String, Fault> {
            add(&mut self.tx, entry).await
        }
    }

    #[async_trait::async_trait]
    pub(super) trait Boxing {
        async fn boxing(
            &self,
            tx: &mut SqliteConnection,
            id: u64,
            entry: &str,
        ) -> Result<String, Fault>;
    }

    #[async_trait::async_trait]
    impl Boxing for Idempotency {
        // The body does not use `id`.
        #[idempotent(key = (id, entry), ttl = "24h", engine = self, tx = tx)]
        async fn boxing(
            &self,
            tx: &mut SqliteConnection,
            id: u64,
            entry: &str,
        ) -> Result<String, Fault> {
            add(tx, entry).await
        }
    }
}

/// What the user's own code is told without the attribute, it is told with it.
mod told {
    use idempotency::{Idempotency, idempotent};
    use sqlx::SqliteConnection;

    use crate::world::{Fault, add};

    #[expect(dead_code, reason = "nobody calls it")]
    #[idempotent(key = entry, ttl = "24h", engine = engine, tx = tx)]
    async fn unused_function(
        engine: &Idempotency,
        tx: &mut SqliteConnection,
        entry: &str,
    ) -> Result<String, Fault> {
        add(tx, entry).await
    }

    #[expect(unused_variables, reason = "neither the key nor the body uses it")]
    #[idempotent(key = entry, ttl = "24h", engine = engine, tx = tx)]
    pub(super) async fn unused_argument(
        engine: &Idempotency,
        tx: &mut SqliteConnection,
        entry: &str,
        unused: u64,
    ) -> Result<String, Fault> {
        add(tx, entry).await
    }

    #[expect(unused_mut, reason = "nothing changes it")]
    #[idempotent(key = entry, ttl = "24h", engine = engine, tx = tx)]
    pub(super) async fn unused_mut(
        engine: &Idempotency,
        tx: &mut SqliteConnection,
        mut entry: String,
    ) -> Result<String, Fault> {
        add(tx, &entry).await
    }

    #[idempotent(key = entry, ttl = "24h", engine = engine, tx = tx)]
    pub(super) async fn unused_variable(
        engine: &Idempotency,
        tx: &mut SqliteConnection,
        entry: &str,
    ) -> Result<String, Fault> {
        #[expect(unused_variables, reason = "it is said of the body as well")]
        let unused = 1;
        add(tx, entry).await
    }

    #[expect(unreachable_code, reason = "the edge that names the return type must not hide it")]
    #[idempotent(key = entry, ttl = "24h", engine = engine, tx = tx)]
    pub(super) async fn unreachable(
        engine: &Idempotency,
        tx: &mut SqliteConnection,
        entry: &str,
    ) -> Result<String, Fault> {
        return add(tx, entry).await;
        Ok(String::new())
    }

    #[expect(clippy::len_zero, clippy::clone_on_copy, reason = "clippy looks into the body")]
    #[idempotent(key = entry, ttl = "24h", engine = engine, tx = tx)]
    pub(super) async fn body(
        engine: &Idempotency,
        tx: &mut SqliteConnection,
        entry: &str,
        id: u64,
    ) -> Result<bool, Fault> {
        add(tx, entry).await?;
        Ok(entry.len() == 0 && id.clone() == 0)
    }
}

#[tokio::test]
async fn everything_that_is_clean_also_works() -> anyhow::Result<()> {
    use clean::{Boxing, Entry, Unit};

    let world = crate::world::World::new().await?;
    let engine = &world.engine;
    let entry = || Entry { name: "b".to_owned(), amount: 1 };
    let mut transaction = world.begin().await?;
    let tx = &mut transaction;
    clean::lent(engine, tx, "a").await?;
    clean::every_option(engine, tx, entry()).await?;
    clean::closure(engine, tx, "c", true).await?;
    clean::assigns(engine, tx, 1, (2, 3), entry(), Vec::new()).await?;
    engine.boxing(tx, 1, "d").await?;
    told::unused_argument(engine, tx, "e", 1).await?;
    told::unused_mut(engine, tx, "f".to_owned()).await?;
    told::unused_variable(engine, tx, "g").await?;
    told::unreachable(engine, tx, "h").await?;
    told::body(engine, tx, "i", 1).await?;
    let mut unit = Unit { engine: engine.clone(), tx: transaction };
    unit.by_mutable_reference("j").await?;
    unit.by_value("k").await?;
    Ok(())
}
