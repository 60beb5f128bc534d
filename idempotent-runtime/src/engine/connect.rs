//! Selects a store by its URL.

use super::Builder;
use crate::error::Error;

/// The URL schemes, and the feature that each needs.
const SCHEMES: [(&str, &str); 8] = [
    ("memory", "memory"),
    ("redis", "redis"),
    ("rediss", "redis"),
    ("mysql", "mysql"),
    ("mariadb", "mysql"),
    ("postgres", "postgres"),
    ("postgresql", "postgres"),
    ("sqlite", "sqlite"),
];

#[cfg_attr(
    not(any(feature = "mysql", feature = "postgres", feature = "redis", feature = "sqlite")),
    expect(clippy::unused_async, reason = "every store but the embedded one connects")
)]
pub(super) async fn builder(url: &str) -> Result<Builder, Error> {
    let scheme = url.split_once(':').map_or(url, |(scheme, _)| scheme);
    match scheme {
        #[cfg(feature = "memory")]
        "memory" => Ok(Builder::new(crate::store::MemoryStore::new())),
        #[cfg(feature = "redis")]
        "redis" | "rediss" => {
            let store = crate::store::RedisStore::connect(url).await;
            Ok(Builder::new(store.map_err(|error| Error::from_store(error, "redis"))?))
        }
        #[cfg(feature = "mysql")]
        "mysql" | "mariadb" => {
            let refused = |error| Error::from_store(error, "mysql");
            let store = crate::store::MySqlStore::connect(url).await.map_err(refused)?;
            // A caller that has only the engine cannot call `migrate` itself.
            store.migrate().await.map_err(refused)?;
            Ok(Builder::new(store))
        }
        #[cfg(feature = "postgres")]
        "postgres" | "postgresql" => {
            let refused = |error| Error::from_store(error, "postgres");
            let store = crate::store::PostgresStore::connect(url).await.map_err(refused)?;
            // A caller that has only the engine cannot call `migrate` itself.
            store.migrate().await.map_err(refused)?;
            Ok(Builder::new(store))
        }
        #[cfg(feature = "sqlite")]
        "sqlite" => {
            let store = crate::store::SqliteStore::connect(url).await;
            Ok(Builder::new(store.map_err(|error| Error::from_store(error, "sqlite"))?))
        }
        _ => Err(unknown(scheme)),
    }
}

fn unknown(scheme: &str) -> Error {
    let known = SCHEMES.iter().find(|(known, _)| *known == scheme);
    if let Some((_, feature)) = known {
        return Error::config(format!(
            "`{scheme}:` needs the feature `{feature}`: `idempotency = {{ version = \"…\", features = [\"{feature}\"] }}`"
        ));
    }
    let schemes: Vec<String> = SCHEMES
        .iter()
        .map(|(scheme, feature)| format!("`{scheme}:` (feature `{feature}`)"))
        .collect();
    // The URL itself may contain a password.
    Error::config(format!(
        "no store supports a URL that begins with `{scheme}:`; supported are {}",
        schemes.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::{SCHEMES, unknown};

    #[test]
    fn a_scheme_whose_feature_is_off_names_the_feature() {
        for (scheme, feature) in SCHEMES {
            let error = unknown(scheme);
            assert_eq!(error.kind(), crate::ErrorKind::Config);
            assert!(
                error.to_string().contains(&format!("needs the feature `{feature}`")),
                "{error}"
            );
        }
    }

    #[test]
    fn an_unknown_scheme_names_the_known_ones() {
        let error = unknown("gopher").to_string();
        assert!(
            error.contains("`gopher:`") && error.contains("`rediss:` (feature `redis`)"),
            "{error}"
        );
    }
}
