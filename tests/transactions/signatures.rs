//! `tx` on every form of function: the first call writes, the second one of the same key does not.

use std::fmt::Display;
use std::future::Future;
use std::ops::DerefMut;
use std::pin::Pin;
use std::rc::Rc;

use idempotency::store::SqlTransaction;
use idempotency::{Idempotency, WithEngine as _, idempotent};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::{Sqlite, SqliteConnection, Transaction};

use crate::world::{Fault, World, add};

/// Calls twice, each time in a transaction of its own, and sees one effect of each of `entries`.
macro_rules! assert_once {
    ($world:expr, [$($entry:expr),+], |$tx:ident| $call:expr) => {
        assert_once!($world, [$($entry),+], |$tx| local $call);
        let mut $tx = $world.begin().await?;
        assert_send(&$call);
        $tx.rollback().await?;
    };
    ($world:expr, [$($entry:expr),+], |$tx:ident| local $call:expr) => {
        for _ in 0..2 {
            let mut $tx = $world.begin().await?;
            let result: Result<_, Fault> = $call.await;
            result?;
            $tx.commit().await?;
            $(assert_eq!($world.entries($entry).await?, 1, "{}", stringify!($call));)+
        }
    };
}

fn assert_send(_: &impl Send) {}

mod argument {
    use super::*;

    #[idempotent(key = entry, ttl = "24h", engine = engine, tx = tx)]
    pub async fn transaction(
        engine: &Idempotency,
        tx: &mut Transaction<'_, Sqlite>,
        entry: &str,
    ) -> Result<(), Fault> {
        sqlx::query("INSERT INTO ledger VALUES (?)").bind(entry).execute(&mut **tx).await?;
        Ok(())
    }

    #[idempotent(key = entry, ttl = "24h", engine = engine, tx = tx)]
    pub async fn connection(
        engine: &Idempotency,
        tx: &mut SqliteConnection,
        entry: &str,
    ) -> Result<(), Fault> {
        sqlx::query("INSERT INTO ledger VALUES (?)").bind(entry).execute(&mut *tx).await?;
        Ok(())
    }

    #[idempotent(key = entry, ttl = "24h", engine = engine, tx = tx)]
    pub async fn given_away(
        engine: &Idempotency,
        tx: &mut SqliteConnection,
        entry: &str,
    ) -> Result<(), Fault> {
        // Without the attribute this is a move.
        sqlx::query("INSERT INTO ledger VALUES (?)").bind(entry).execute(tx).await?;
        Ok(())
    }

    #[idempotent(key = entry, ttl = "24h", engine = engine, tx = tx)]
    pub async fn lent(
        engine: &Idempotency,
        tx: &mut Transaction<'_, Sqlite>,
        entry: &str,
    ) -> Result<String, Fault> {
        add(tx, entry).await?;
        add(tx, &format!("{entry}2")).await
    }

    #[idempotent(key = entry, ttl = "24h", engine = engine, tx = &mut **tx)]
    pub async fn dereferenced(
        engine: &Idempotency,
        tx: &mut Transaction<'_, Sqlite>,
        entry: &str,
    ) -> Result<String, Fault> {
        add(tx, entry).await
    }

    #[idempotent(key = entry, ttl = "24h", engine = engine, tx = tx.as_mut())]
    pub async fn lending(
        engine: &Idempotency,
        tx: &mut Transaction<'static, Sqlite>,
        entry: &str,
    ) -> Result<String, Fault> {
        add(tx, entry).await
    }

    #[idempotent(key = entry, ttl = "24h", engine = engine, tx = tx)]
    pub async fn unused_in_the_body(
        engine: &Idempotency,
        tx: &mut SqliteConnection,
        entry: &str,
    ) -> Result<(), Fault> {
        Ok(())
    }

    #[idempotent(key = entry, ttl = "24h", engine = engine, tx = tx)]
    pub async fn mutable(
        engine: &Idempotency,
        mut tx: &mut SqliteConnection,
        entry: &str,
    ) -> Result<(), Fault> {
        sqlx::query("INSERT INTO ledger VALUES (?)").bind(entry).execute(&mut *tx).await?;
        #[expect(clippy::mut_mut, reason = "the reference itself can be borrowed")]
        let again = &mut tx;
        add(again, &format!("{entry}2")).await?;
        Ok(())
    }
}

#[tokio::test]
async fn an_argument_is_the_transaction() -> anyhow::Result<()> {
    let world = World::new().await?;
    let engine = &world.engine;
    assert_once!(world, ["a"], |tx| argument::transaction(engine, &mut tx, "a"));
    assert_once!(world, ["b"], |tx| argument::connection(engine, &mut tx, "b"));
    assert_once!(world, ["c"], |tx| argument::given_away(engine, &mut tx, "c"));
    assert_once!(world, ["d", "d2"], |tx| argument::lent(engine, &mut tx, "d"));
    assert_once!(world, ["e"], |tx| argument::dereferenced(engine, &mut tx, "e"));
    assert_once!(world, ["f"], |tx| argument::lending(engine, &mut tx, "f"));
    assert_once!(world, ["g", "g2"], |tx| argument::mutable(engine, &mut tx, "g"));
    let mut tx = world.begin().await?;
    argument::unused_in_the_body(engine, &mut tx, "h").await?;
    Ok(())
}

/// Repositories that own or borrow their transaction.
struct Owning {
    engine: Idempotency,
    tx: Transaction<'static, Sqlite>,
    written: u64,
}

struct Borrowing<'a> {
    engine: &'a Idempotency,
    connection: &'a mut SqliteConnection,
}

impl Owning {
    #[idempotent(key = entry, ttl = "24h", engine = &self.engine, tx = &mut self.tx)]
    async fn by_reference(&mut self, entry: &str) -> Result<u64, Fault> {
        self.written += 1;
        add(&mut self.tx, entry).await?;
        Ok(self.written)
    }

    #[idempotent(key = entry, ttl = "24h", engine = &self.engine, tx = self.tx)]
    async fn without_ampersand(&mut self, entry: &str) -> Result<u64, Fault> {
        self.add(entry).await?;
        Ok(self.written)
    }

    #[idempotent(key = entry, ttl = "24h", engine = &self.engine, tx = self.tx.as_mut())]
    async fn lending(&mut self, entry: &str) -> Result<u64, Fault> {
        self.add(entry).await?;
        Ok(self.written)
    }

    async fn add(&mut self, entry: &str) -> Result<(), Fault> {
        self.written += 1;
        add(&mut self.tx, entry).await?;
        Ok(())
    }
}

impl Borrowing<'_> {
    #[idempotent(key = entry, ttl = "24h", engine = self.engine, tx = self.connection)]
    async fn borrowed(&mut self, entry: &str) -> Result<String, Fault> {
        add(self.connection, entry).await
    }

    #[idempotent(key = entry, ttl = "24h", engine = self.engine, tx = self.connection)]
    async fn by_value(self, entry: &str) -> Result<String, Fault> {
        add(self.connection, entry).await
    }

    #[idempotent(key = (entry, more.len()), ttl = "24h", engine = self.engine, tx = tx)]
    async fn beside(
        &self,
        tx: &mut Transaction<'_, Sqlite>,
        entry: &str,
        more: &[&str],
    ) -> Result<usize, Fault> {
        add(tx, entry).await?;
        for entry in more {
            add(tx, entry).await?;
        }
        Ok(more.len())
    }
}

#[tokio::test]
async fn a_field_is_the_transaction() -> anyhow::Result<()> {
    let world = World::new().await?;
    for (round, written) in [1, 0].into_iter().enumerate() {
        let mut owning =
            Owning { engine: world.engine.clone(), tx: world.begin().await?, written: 0 };
        assert_eq!(owning.by_reference("a").await?, 1);
        assert_eq!(owning.without_ampersand("b").await?, 2, "round {round}");
        assert_eq!(owning.lending("c").await?, 3, "round {round}");
        assert_eq!(owning.written, 3 * written);
        assert_send(&owning.by_reference("d"));
        owning.tx.commit().await?;
        for entry in ["a", "b", "c"] {
            assert_eq!(world.entries(entry).await?, 1, "{entry}");
        }
    }
    let engine = &world.engine;
    assert_once!(world, ["e"], |tx| Borrowing { engine, connection: &mut tx }.borrowed("e"));
    assert_once!(world, ["f"], |tx| Borrowing { engine, connection: &mut tx }.by_value("f"));
    let mut connection = world.pool.acquire().await?;
    let beside = Borrowing { engine, connection: &mut connection };
    assert_once!(world, ["g", "h"], |tx| beside.beside(&mut tx, "g", &["h"]));
    Ok(())
}

mod arguments {
    use super::*;

    pub struct Entry {
        pub name: String,
        pub tags: Vec<String>,
    }

    #[idempotent(key = entry.name, ttl = "24h", engine = &engine, tx = tx)]
    pub async fn moved(
        engine: Idempotency,
        tx: &mut SqliteConnection,
        entry: Entry,
    ) -> Result<(String, Vec<String>), Fault> {
        let Entry { name, tags } = entry;
        add(tx, &name).await?;
        Ok((name, tags))
    }

    #[idempotent(key = entry.name, ttl = "24h", engine = engine, tx = tx)]
    pub async fn moved_in_part(
        engine: &Idempotency,
        tx: &mut SqliteConnection,
        entry: Entry,
    ) -> Result<Vec<String>, Fault> {
        let tags = entry.tags;
        add(tx, &entry.name).await?;
        Ok(tags)
    }

    #[idempotent(key = n, ttl = "24h", engine = engine, tx = tx)]
    pub async fn changed(
        engine: &Idempotency,
        tx: &mut SqliteConnection,
        mut n: u32,
        mut entries: Vec<String>,
    ) -> Result<Vec<String>, Fault> {
        n += 1;
        entries.push(n.to_string());
        for entry in &entries {
            add(tx, entry).await?;
        }
        Ok(entries)
    }

    #[idempotent(key = name, ttl = "24h", engine = engine, tx = tx)]
    pub async fn patterns(
        engine: &Idempotency,
        tx: &mut SqliteConnection,
        Entry { name, mut tags }: Entry,
        (first, _): (u64, u64),
        &second: &u64,
    ) -> Result<Vec<String>, Fault> {
        tags.push(format!("{name} {first} {second}"));
        add(tx, &name).await?;
        Ok(tags)
    }

    #[idempotent(key = entry, ttl = "24h", engine = engine, tx = tx)]
    pub async fn early_returns(
        engine: &Idempotency,
        tx: &mut Transaction<'_, Sqlite>,
        entry: &str,
        limit: Option<u64>,
    ) -> Result<Option<u64>, Fault> {
        add(tx, entry).await?;
        let Some(limit) = limit else { return Ok(None) };
        if limit == 0 {
            return Err(Fault::No);
        }
        add(tx, &format!("{entry}2")).await?;
        Ok(Some(limit))
    }

    #[idempotent(key = entry, ttl = "24h", engine = engine, tx = tx)]
    pub async fn local(
        engine: &Idempotency,
        tx: &mut SqliteConnection,
        entry: &str,
    ) -> Result<String, Fault> {
        let shared = Rc::new(entry);
        add(tx, &shared).await
    }

    #[idempotent(key = entry, ttl = "24h", engine = engine, tx = tx, on_conflict = reject)]
    pub async fn with_inner_items(
        engine: &Idempotency,
        tx: &mut SqliteConnection,
        entry: &str,
    ) -> Result<String, Fault> {
        #![allow(clippy::items_after_statements)]
        async fn write(connection: &mut SqliteConnection, entry: &str) -> Result<String, Fault> {
            add(connection, entry).await
        }
        write(tx, entry).await
    }
}

#[tokio::test]
async fn arguments_are_moved_changed_and_taken_apart() -> anyhow::Result<()> {
    let world = World::new().await?;
    let engine = &world.engine;
    let entry =
        |name: &str| arguments::Entry { name: name.to_owned(), tags: vec!["tag".to_owned()] };
    assert_once!(world, ["a"], |tx| arguments::moved(engine.clone(), &mut tx, entry("a")));
    assert_once!(world, ["b"], |tx| arguments::moved_in_part(engine, &mut tx, entry("b")));
    assert_once!(world, ["c", "8"], |tx| arguments::changed(
        engine,
        &mut tx,
        7,
        vec!["c".to_owned()]
    ));
    assert_once!(world, ["d"], |tx| arguments::patterns(engine, &mut tx, entry("d"), (1, 2), &3));
    assert_once!(world, ["e"], |tx| arguments::early_returns(engine, &mut tx, "e", None));
    assert_once!(world, ["f", "f2"], |tx| arguments::early_returns(engine, &mut tx, "f", Some(1)));
    assert_once!(world, ["g"], |tx| local arguments::local(engine, &mut tx, "g"));
    assert_once!(world, ["h"], |tx| arguments::with_inner_items(engine, &mut tx, "h"));
    let mut transaction = world.begin().await?;
    let result = arguments::early_returns(engine, &mut transaction, "i", Some(0)).await;
    assert!(matches!(result, Err(Fault::No)), "{result:?}");
    transaction.commit().await?;
    assert_eq!(world.entries("i").await?, 0);
    Ok(())
}

mod generics {
    use super::*;

    #[idempotent(key = (entry.to_string(), N), ttl = "24h", name = "generics.any", engine = engine, tx = tx)]
    pub async fn any<'a, X, T, const N: usize>(
        engine: &Idempotency,
        tx: &'a mut X,
        entry: impl Display + Send + Sync,
        value: [T; N],
    ) -> Result<Vec<T>, Fault>
    where
        X: SqlTransaction + DerefMut<Target = SqliteConnection>,
        T: Serialize + DeserializeOwned + Send + 'a,
    {
        add(tx, &entry.to_string()).await?;
        Ok(value.into_iter().collect())
    }

    #[idempotent(key = entry, ttl = "24h", engine = engine, tx = tx)]
    pub async fn lifetimes<'a, 'b>(
        engine: &Idempotency,
        tx: &'a mut Transaction<'b, Sqlite>,
        entry: &'a str,
    ) -> Result<String, Fault>
    where
        'b: 'a,
    {
        add(tx, entry).await
    }
}

#[tokio::test]
async fn parameters_stay_what_they_are() -> anyhow::Result<()> {
    let world = World::new().await?;
    let engine = &world.engine;
    assert_once!(world, ["a"], |tx| generics::any(engine, &mut tx, "a", [1, 2]));
    assert_once!(world, ["b"], |tx| generics::lifetimes(engine, &mut tx, "b"));
    Ok(())
}

mod traits {
    use super::*;

    pub trait Native {
        async fn native(
            &self,
            tx: &mut Transaction<'_, Sqlite>,
            entry: &str,
        ) -> Result<String, Fault>;
    }

    impl Native for Idempotency {
        #[idempotent(key = entry, ttl = "24h", engine = self, tx = tx)]
        async fn native(
            &self,
            tx: &mut Transaction<'_, Sqlite>,
            entry: &str,
        ) -> Result<String, Fault> {
            add(tx, entry).await
        }
    }

    #[async_trait::async_trait]
    pub trait Boxing {
        async fn boxing(
            &self,
            tx: &mut Transaction<'_, Sqlite>,
            entry: &str,
            more: Vec<String>,
        ) -> Result<usize, Fault>;

        async fn given_away(
            &self,
            tx: &mut SqliteConnection,
            entry: &str,
            n: u64,
        ) -> Result<u64, Fault>;
    }

    #[async_trait::async_trait]
    impl Boxing for Idempotency {
        #[idempotent(key = (entry, more.len()), ttl = "24h", engine = self, tx = tx)]
        async fn boxing(
            &self,
            tx: &mut Transaction<'_, Sqlite>,
            entry: &str,
            more: Vec<String>,
        ) -> Result<usize, Fault> {
            add(tx, entry).await?;
            for entry in &more {
                add(tx, entry).await?;
            }
            Ok(more.len())
        }

        #[idempotent(key = (entry, n), ttl = "24h", engine = self, tx = tx)]
        async fn given_away(
            &self,
            tx: &mut SqliteConnection,
            entry: &str,
            mut n: u64,
        ) -> Result<u64, Fault> {
            sqlx::query("INSERT INTO ledger VALUES (?)").bind(entry).execute(tx).await?;
            n += 1;
            Ok(n)
        }
    }

    #[idempotent(key = entry, ttl = "24h", engine = engine, tx = tx)]
    pub fn boxed<'a>(
        engine: &'a Idempotency,
        tx: &'a mut Transaction<'_, Sqlite>,
        entry: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<String, Fault>> + Send + 'a>> {
        if entry.is_empty() {
            return Box::pin(async { Err(Fault::No) });
        }
        Box::pin(async move { add(tx, entry).await })
    }

    #[idempotent(key = entry, ttl = "24h", engine = engine, tx = tx)]
    pub fn boxed_alias<'a>(
        engine: &'a Idempotency,
        tx: &'a mut SqliteConnection,
        entry: &'a str,
    ) -> futures::future::BoxFuture<'a, Result<String, Fault>> {
        Box::pin(add(tx, entry))
    }
}

#[tokio::test]
async fn methods_of_traits_and_boxed_futures_take_the_transaction() -> anyhow::Result<()> {
    use traits::{Boxing, Native};

    let world = World::new().await?;
    let engine = &world.engine;
    assert_once!(world, ["a"], |tx| engine.native(&mut tx, "a"));
    assert_once!(world, ["b", "c"], |tx| engine.boxing(&mut tx, "b", vec!["c".to_owned()]));
    assert_once!(world, ["d"], |tx| engine.given_away(&mut tx, "d", 1));
    assert_once!(world, ["e"], |tx| traits::boxed(engine, &mut tx, "e"));
    assert_once!(world, ["f"], |tx| traits::boxed_alias(engine, &mut tx, "f"));
    Ok(())
}

mod from_a_macro {
    use super::*;

    macro_rules! adds {
        ($name:ident, $tx:ident: $type:ty) => {
            #[idempotent(key = entry, ttl = "24h", engine = engine, tx = $tx)]
            pub async fn $name(engine: &Idempotency, $tx: $type, entry: &str) -> Result<(), Fault> {
                sqlx::query("INSERT INTO ledger VALUES (?)").bind(entry).execute($tx).await?;
                Ok(())
            }
        };
        ($name:ident) => {
            #[idempotent(key = entry, ttl = "24h", engine = engine, tx = tx)]
            pub async fn $name(
                engine: &Idempotency,
                tx: &mut SqliteConnection,
                entry: &str,
            ) -> Result<(), Fault> {
                sqlx::query("INSERT INTO ledger VALUES (?)").bind(entry).execute(tx).await?;
                Ok(())
            }
        };
    }

    adds!(given, transaction: &mut SqliteConnection);
    adds!(own);
}

mod without_prelude {
    #![no_implicit_prelude]

    use ::core::result::Result::Ok;
    use ::idempotency::{Error, store::SqlTransaction};

    #[::idempotency::idempotent(key = id, ttl = "24h", name = "without_prelude", tx = tx)]
    pub async fn compiles<X: SqlTransaction>(
        tx: &mut X,
        id: u64,
    ) -> ::core::result::Result<u64, Error> {
        let _ = tx.connection();
        Ok(id)
    }
}

#[tokio::test]
async fn names_come_from_where_they_are_written() -> anyhow::Result<()> {
    let world = World::new().await?;
    let engine = &world.engine;
    assert_once!(world, ["a"], |tx| from_a_macro::given(engine, &mut tx, "a"));
    assert_once!(world, ["b"], |tx| from_a_macro::own(engine, &mut tx, "b"));
    let mut transaction = world.begin().await?;
    let result = without_prelude::compiles(&mut transaction, 1).with_engine(engine).await;
    assert_eq!(result?, 1);
    Ok(())
}
