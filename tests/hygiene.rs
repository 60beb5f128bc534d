//! The expansion depends on no name that the user's code can change, and changes none.

#[path = "support/effects.rs"]
mod effects;

use effects::{Effects, once};
use idempotency::WithEngine as _;

mod macro_bodies {
    use idempotency::{Error, idempotent};

    use super::{Effects, once};

    macro_rules! charges {
        ($name:ident, $argument:ident: $type:ty, key = $key:expr, ttl = $ttl:literal, $body:block) => {
            #[idempotent(key = $key, ttl = $ttl)]
            async fn $name($argument: $type, effects: &Effects) -> Result<usize, Error> {
                effects.happen();
                $body
            }
        };
        ($name:ident($effects:ident) -> $result:ty $body:block) => {
            #[idempotent(key = "one", ttl = "1h", name = stringify!($name))]
            async fn $name($effects: &Effects) -> $result $body
        };
        (inner $name:ident) => {
            #[idempotent(key = (id, "{id}"), ttl = "24h")]
            async fn $name(id: u64, effects: &Effects) -> Result<usize, Error> {
                Ok(effects.happen() + usize::try_from(id).unwrap_or(0))
            }
        };
    }

    charges!(by_text, text: &str, key = text, ttl = "24h", {
        tokio::task::yield_now().await;
        Ok(text.len())
    });
    charges!(by_pair, pair: (u64, String), key = (pair.0, pair.1), ttl = "24h", {
        let (_, text) = pair;
        Ok(text.len())
    });
    charges!(block_is_the_body(effects) -> Result<usize, Error> {
        if effects.count() > 5 {
            return Ok(0);
        }
        Ok(effects.happen())
    });
    charges!(inner names_of_the_macro);

    #[tokio::test]
    async fn functions_can_come_from_a_macro() {
        assert_eq!(once(async |effects| by_text("text", effects).await).await, 4);
        assert_eq!(once(async |effects| by_pair((1, "a".to_owned()), effects).await).await, 1);
        assert_eq!(once(async |effects| block_is_the_body(effects).await).await, 1);
        assert_eq!(once(async |effects| names_of_the_macro(2, effects).await).await, 3);
    }
}

mod shadowed_names {
    use super::{Effects, once};

    // What the prelude calls so is something else here.
    #[expect(dead_code, reason = "they are here to be in the way")]
    mod in_the_way {
        pub(super) struct Result;
        pub(super) struct Option;
        pub(super) struct String;
        pub(super) struct Box;
        pub(super) struct Vec;
        pub(super) trait Future {}
        pub(super) trait Send {}
        pub(super) mod core {}
        pub(super) mod std {}
        pub(super) mod idempotency {}
        #[expect(non_snake_case, reason = "it shadows the prelude")]
        pub(super) const fn Ok() {}
        #[expect(non_snake_case, reason = "it shadows the prelude")]
        pub(super) const fn Err() {}
        pub(super) const SITE: u8 = 1;
    }
    #[allow(unused_imports, reason = "they are here to be in the way")]
    use in_the_way::*;

    #[::idempotency::idempotent(
        key = (id, "{id}"),
        ttl = "24h",
        lease = "1s",
        scope = id,
        fingerprint = id,
        on_conflict = wait("5s"),
        on_crash = hold,
        on_error = hold,
        version = 1
    )]
    async fn charge(
        id: u64,
        effects: &Effects,
    ) -> ::std::result::Result<usize, ::idempotency::Error> {
        effects.happen();
        ::std::result::Result::Ok(usize::from(SITE))
    }

    #[::idempotency::idempotent(key = id, ttl = "24h", detach)]
    async fn detached(id: u64, text: &str) -> ::std::result::Result<usize, ::idempotency::Error> {
        ::std::result::Result::Ok(text.len())
    }

    #[::idempotency::idempotent(key = id, ttl = "24h")]
    fn boxed(
        id: u64,
    ) -> ::std::pin::Pin<
        ::std::boxed::Box<
            dyn ::std::future::Future<Output = ::std::result::Result<u64, ::idempotency::Error>>,
        >,
    > {
        ::std::boxed::Box::pin(async move { ::std::result::Result::Ok(id) })
    }

    #[tokio::test]
    async fn names_of_the_prelude_can_mean_anything() {
        use ::idempotency::WithEngine as _;

        assert_eq!(once(async |effects| charge(1, effects).await).await, 1);
        let engine = ::idempotency::Idempotency::new(::idempotency::store::MemoryStore::new());
        assert_eq!(detached(1, "text").with_engine(&engine).await.unwrap(), 4);
        assert_eq!(boxed(3).with_engine(&engine).await.unwrap(), 3);
    }
}

#[no_implicit_prelude]
mod no_prelude {
    #[::idempotency::idempotent(
        key = "order:{id}",
        ttl = "24h",
        lease = "30s",
        scope = (id, "eu"),
        fingerprint = (id, note),
        on_conflict = wait("5s"),
        on_crash = retry,
        on_error = |_| ::idempotency::ErrorAction::Hold,
        version = 2,
        upgrade = read_old,
        upgrade_error = read_old_error
    )]
    pub(crate) async fn charge(
        id: u64,
        note: &str,
    ) -> ::std::result::Result<u64, ::idempotency::Error> {
        ::std::result::Result::Ok(id + note.len() as u64)
    }

    fn read_old_error(_version: u32, _body: &[u8]) -> ::std::option::Option<::idempotency::Error> {
        ::std::option::Option::None
    }

    fn read_old(_version: u32, _body: &[u8]) -> ::std::option::Option<u64> {
        ::std::option::Option::None
    }

    #[::idempotency::idempotent(key = id, ttl = "24h", detach)]
    pub(crate) async fn detached(
        id: u64,
        note: &str,
    ) -> ::std::result::Result<u64, ::idempotency::Error> {
        ::std::result::Result::Ok(id + note.len() as u64)
    }

    #[derive(Debug, ::serde::Serialize, ::serde::Deserialize)]
    pub(crate) struct Failure(pub(crate) u64);

    impl ::std::convert::From<::idempotency::Error> for Failure {
        fn from(_: ::idempotency::Error) -> Self {
            Self(0)
        }
    }

    #[::idempotency::idempotent(key = id, ttl = "24h", on_error = store)]
    pub(crate) async fn stores(id: u64) -> ::std::result::Result<u64, Failure> {
        ::std::result::Result::Err(Failure(id))
    }
}

#[tokio::test]
async fn nothing_is_taken_from_the_prelude() {
    let engine = idempotency::Idempotency::new(idempotency::store::MemoryStore::new());
    assert_eq!(no_prelude::charge(1, "note").with_engine(&engine).await.unwrap(), 5);
    assert_eq!(no_prelude::detached(1, "note").with_engine(&engine).await.unwrap(), 5);
    assert_eq!(no_prelude::stores(3).with_engine(&engine).await.unwrap_err().0, 3);
}

mod locals {
    use idempotency::{Error, idempotent};

    use super::{Effects, once};

    /// The names that the expansion uses for itself.
    #[idempotent(key = (__key, __parts), ttl = "24h", scope = __call, on_error = |_| if __body == 0 { idempotency::ErrorAction::Hold } else { idempotency::ErrorAction::Release })]
    async fn charge(
        __key: u64,
        __parts: u64,
        __call: u64,
        __codec: u64,
        __body: u64,
        __result: u64,
        effects: &Effects,
    ) -> Result<u64, Error> {
        const SITE: u64 = 100;
        effects.happen();
        Ok(__key + __parts + __call + __codec + __body + __result + SITE)
    }

    const SITE: &str = "hygiene.named";

    #[idempotent(key = 1, ttl = "24h", name = SITE)]
    async fn named(effects: &Effects) -> Result<usize, Error> {
        Ok(effects.happen())
    }

    #[tokio::test]
    async fn arguments_and_constants_can_have_the_names_of_the_expansion() {
        assert_eq!(once(async |effects| charge(1, 2, 3, 4, 5, 6, effects).await).await, 121);
        assert_eq!(once(async |effects| named(effects).await).await, 1);
    }
}

mod renamed_crate {
    use super::{Effects, once};

    mod reexported {
        pub(super) use ::idempotency as guard;
    }

    #[reexported::guard::idempotent(key = id, ttl = "24h", crate = reexported::guard)]
    async fn charge(id: u64, effects: &Effects) -> Result<usize, reexported::guard::Error> {
        Ok(effects.happen())
    }

    mod through_a_macro {
        #[allow(unused_macros, reason = "it is used below")]
        macro_rules! charge {
            ($name:ident) => {
                #[::idempotency::idempotent(key = id, ttl = "24h", crate = $crate::renamed_crate::reexported::guard)]
                pub(super) async fn $name(id: u64, effects: &super::Effects) -> Result<usize, ::idempotency::Error> {
                    Ok(effects.happen())
                }
            };
        }
        charge!(charge);
    }

    #[tokio::test]
    async fn the_facade_can_be_anywhere() {
        assert_eq!(once(async |effects| charge(1, effects).await).await, 1);
        assert_eq!(once(async |effects| through_a_macro::charge(1, effects).await).await, 1);
    }
}

mod nested_functions {
    use idempotency::{Error, idempotent};

    use super::{Effects, once};

    #[idempotent(key = id, ttl = "24h")]
    async fn outer(id: u64, effects: &Effects) -> Result<usize, Error> {
        #[idempotent(key = id, ttl = "24h")]
        async fn inner(id: u64) -> Result<u64, Error> {
            Ok(id * 10)
        }
        effects.happen();
        Ok(usize::try_from(inner(id).await? + inner(id).await?).unwrap_or(0))
    }

    #[idempotent(key = r#type, ttl = "24h")]
    async fn r#match(r#type: u64, effects: &Effects) -> Result<usize, Error> {
        Ok(effects.happen() + usize::from(r#type == 0))
    }

    #[tokio::test]
    async fn a_guarded_function_can_contain_another() {
        assert_eq!(once(async |effects| outer(1, effects).await).await, 20);
    }

    #[tokio::test]
    async fn raw_identifiers_are_names() {
        let ((), report) = idempotency::with_report(async {
            once(async |effects| r#match(1, effects).await).await;
        })
        .await;
        assert!(report.is_some());
    }
}
