//! The registry of URL schemes: the stores of this crate, and those that others register.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::lock::RwLock;
use crate::store::{DynStore, Operation, Store, StoreError, StoreErrorKind};

const CONNECT: Operation = Operation::Connect;

type Connected = Pin<Box<dyn Future<Output = Result<Arc<dyn DynStore>, StoreError>> + Send>>;
type Connector = Arc<dyn Fn(String) -> Connected + Send + Sync>;

/// A scheme of this crate.
struct BuiltIn {
    scheme: &'static str,
    /// The feature of its store, which also is the store's name.
    feature: &'static str,
    /// `None` if the feature is not enabled.
    connect: Option<fn(String) -> Connected>,
}

/// Declares the schemes with the feature that each needs, and how a store connects.
macro_rules! built_in {
    ($($feature:literal: $($scheme:literal)|+ => $connect:expr;)*) => {
        const BUILT_IN: &[BuiltIn] = &[$($(
            #[cfg(feature = $feature)]
            BuiltIn { scheme: $scheme, feature: $feature, connect: Some($connect) },
            #[cfg(not(feature = $feature))]
            BuiltIn { scheme: $scheme, feature: $feature, connect: None },
        )+)*];
    };
}

built_in! {
    "memory": "memory" => |_| Box::pin(async {
        Ok(Arc::new(crate::store::MemoryStore::new()) as _)
    });
    "redis": "redis" | "rediss" => |url| Box::pin(async move {
        Ok(Arc::new(crate::store::RedisStore::connect(&url).await?) as _)
    });
    "mysql": "mysql" | "mariadb" => |url| Box::pin(async move {
        let store = crate::store::MySqlStore::connect(&url).await?;
        // A caller that has only the engine cannot call `migrate` itself.
        store.migrate().await?;
        Ok(Arc::new(store) as _)
    });
    "postgres": "postgres" | "postgresql" => |url| Box::pin(async move {
        let store = crate::store::PostgresStore::connect(&url).await?;
        // A caller that has only the engine cannot call `migrate` itself.
        store.migrate().await?;
        Ok(Arc::new(store) as _)
    });
    "sqlite": "sqlite" => |url| Box::pin(async move {
        Ok(Arc::new(crate::store::SqliteStore::connect(&url).await?) as _)
    });
}

static REGISTERED: RwLock<Vec<(String, Connector)>> = RwLock::new(Vec::new());

/// Connects to the store that `url` names. Creates or upgrades the table of a PostgreSQL, MySQL or
/// SQLite store.
///
/// | scheme | store | feature |
/// |---|---|---|
/// | `memory:` | `MemoryStore` | `memory` |
/// | `redis:`, `rediss:` | `RedisStore` | `redis` |
/// | `postgres:`, `postgresql:` | `PostgresStore` | `postgres` |
/// | `mysql:`, `mariadb:` | `MySqlStore` | `mysql` |
/// | `sqlite:` | `SqliteStore` | `sqlite` |
///
/// Others are [registered](register_scheme).
///
/// # Errors
/// [`Config`](StoreErrorKind::Config) if the scheme is unknown or its feature is not enabled.
/// Otherwise the errors of the store's own `connect` and `migrate`.
///
/// ```
/// # use idempotency::{Error, Idempotency, store};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// let store = store::connect("memory:").await?;
/// let engine = Idempotency::new(store);
/// # let _ = engine;
/// # Ok(())
/// # }
/// ```
pub async fn connect(url: &str) -> Result<Arc<dyn DynStore>, StoreError> {
    let scheme = scheme_of(url);
    if let Some(built_in) = built_in(scheme) {
        let Some(connect) = built_in.connect else {
            let feature = built_in.feature;
            return Err(config(format!(
                "`{scheme}:` needs the feature `{feature}`: `idempotency = {{ version = \"…\", features = [\"{feature}\"] }}`"
            )));
        };
        return connect(url.to_owned()).await;
    }
    let connector = {
        let registered = REGISTERED.read();
        let found = registered.iter().find(|(other, _)| other == scheme);
        // Without a colon all of it may be secret: `host=db password=…`.
        let shown = if url.contains(':') { scheme } else { "…" };
        found.map(|(_, connect)| Arc::clone(connect)).ok_or_else(|| unknown(shown, &registered))
    };
    connector?(url.to_owned()).await
}

/// Registers a store for URLs that begin with `scheme:`, for the rest of the process.
/// [`connect`] and [`Idempotency::connect`](crate::Idempotency::connect) use it from then on.
///
/// # Errors
/// [`Config`](StoreErrorKind::Config) if the scheme is not a valid one (a lowercase letter, then
/// lowercase letters, digits, `+`, `-` or `.`), belongs to a store of this crate, or is registered
/// already.
///
/// ```
/// # use idempotency::{Error, Idempotency, store::{self, MemoryStore}};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// store::register_scheme("bounded", |url| async move {
///     let records = url.trim_start_matches("bounded:").parse().unwrap_or(10_000);
///     Ok(MemoryStore::builder().max_records(records).build())
/// })?;
/// let engine = Idempotency::connect("bounded:500").await?;
/// # let _ = engine;
/// # Ok(())
/// # }
/// ```
pub fn register_scheme<S, F>(
    scheme: &str,
    connect: impl Fn(String) -> F + Send + Sync + 'static,
) -> Result<(), StoreError>
where
    S: Store,
    F: Future<Output = Result<S, StoreError>> + Send + 'static,
{
    let is_valid = scheme.starts_with(|first: char| first.is_ascii_lowercase())
        && scheme.chars().all(|other| {
            other.is_ascii_lowercase() || other.is_ascii_digit() || "+-.".contains(other)
        });
    if !is_valid {
        return Err(config(format!("`{scheme}` is not a valid URL scheme, for example `file`")));
    }
    if built_in(scheme).is_some() {
        return Err(config(format!("`{scheme}:` belongs to a store of this crate")));
    }
    let mut registered = REGISTERED.write();
    if registered.iter().any(|(other, _)| other == scheme) {
        return Err(config(format!("`{scheme}:` is registered already")));
    }
    let connector: Connector = Arc::new(move |url| {
        let connected = connect(url);
        Box::pin(async move { Ok(Arc::new(connected.await?) as Arc<dyn DynStore>) })
    });
    registered.push((scheme.to_owned(), connector));
    Ok(())
}

/// Returns the name of the store of this crate to which `url` belongs.
pub(crate) fn store_name(url: &str) -> Option<&'static str> {
    built_in(scheme_of(url)).map(|built_in| built_in.feature)
}

fn scheme_of(url: &str) -> &str {
    url.split_once(':').map_or(url, |(scheme, _)| scheme)
}

fn built_in(scheme: &str) -> Option<&'static BuiltIn> {
    BUILT_IN.iter().find(|built_in| built_in.scheme == scheme)
}

fn config(detail: String) -> StoreError {
    StoreError::new(StoreErrorKind::Config, CONNECT).with_detail(detail)
}

// The URL itself may contain a password.
fn unknown(scheme: &str, registered: &[(String, Connector)]) -> StoreError {
    let built_in = BUILT_IN.iter();
    let built_in = built_in
        .map(|BuiltIn { scheme, feature, .. }| format!("`{scheme}:` (feature `{feature}`)"));
    let registered = registered.iter().map(|(scheme, _)| format!("`{scheme}:`"));
    let known: Vec<_> = built_in.chain(registered).collect();
    config(format!(
        "no store is known for a URL that begins with `{scheme}:`; known are {}",
        known.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::{BUILT_IN, connect, unknown};
    use crate::store::{StoreError, StoreErrorKind};

    fn refused<T>(result: Result<T, StoreError>) -> String {
        let error = result.err().expect("it is refused");
        assert_eq!(error.kind(), StoreErrorKind::Config);
        error.to_string()
    }

    #[tokio::test]
    async fn a_scheme_whose_feature_is_off_names_the_feature() {
        for built_in in BUILT_IN.iter().filter(|built_in| built_in.connect.is_none()) {
            let message = refused(connect(&format!("{}:", built_in.scheme)).await);
            let wanted = format!("needs the feature `{}`", built_in.feature);
            assert!(message.contains(&wanted), "{message}");
        }
    }

    #[tokio::test]
    async fn nothing_of_a_text_that_is_no_url_is_shown() {
        let message = refused(connect("host=db password=secret").await);
        assert!(!message.contains("secret") && message.contains("no store is known"), "{message}");
    }

    #[test]
    fn an_unknown_scheme_names_the_known_ones() {
        let message = unknown("gopher", &[]).to_string();
        assert!(
            message.contains("`gopher:`") && message.contains("`rediss:` (feature `redis`)"),
            "{message}"
        );
    }

    #[cfg(feature = "memory")]
    #[tokio::test]
    async fn a_scheme_is_registered_once_and_not_over_one_of_ours() {
        use super::register_scheme;
        use crate::store::MemoryStore;

        let register = |scheme| register_scheme(scheme, async |_| Ok(MemoryStore::new()));
        assert!(refused(connect("registered-once:x").await).contains("no store is known"));
        register("registered-once").unwrap();
        assert_eq!(connect("registered-once:x").await.unwrap().name(), "memory");
        assert!(refused(register("registered-once")).contains("already"));
        assert!(refused(register("redis")).contains("belongs to a store of this crate"));
        for invalid in ["", "1st", "Upper", "a:b", "a b"] {
            assert!(refused(register(invalid)).contains("not a valid URL scheme"), "{invalid}");
        }
    }
}
