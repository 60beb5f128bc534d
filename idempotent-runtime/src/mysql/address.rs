//! Addresses of a server: a URL, or options or a pool that the user already has.

use sqlx::MySqlPool;
use sqlx::mysql::MySqlConnectOptions;

use crate::store::{Operation, StoreError, StoreErrorKind};

/// The source of a store's connections.
#[derive(Clone)]
pub enum Source {
    Server(Box<MySqlConnectOptions>),
    Pool(MySqlPool),
}

mod sealed {
    pub trait Sealed {
        fn source(self) -> Result<super::Source, super::StoreError>;
    }
}

pub(super) use sealed::Sealed;

/// An address of a MySQL or MariaDB server: a URL, [`MySqlConnectOptions`] or a [`MySqlPool`].
pub trait MySqlAddress: Sealed {}

macro_rules! addresses {
    ($($type:ty: |$address:ident| $source:expr;)*) => {$(
        impl Sealed for $type {
            fn source(self) -> Result<Source, StoreError> {
                let $address = self;
                $source
            }
        }

        impl MySqlAddress for $type {}
    )*};
}

addresses! {
    &str: |url| of_url(url);
    &String: |url| of_url(url);
    String: |url| of_url(&url);
    MySqlConnectOptions: |options| Ok(Source::Server(Box::new(options)));
    &MySqlConnectOptions: |options| Ok(Source::Server(Box::new(options.clone())));
    MySqlPool: |pool| Ok(Source::Pool(pool));
    &MySqlPool: |pool| Ok(Source::Pool(pool.clone()));
}

/// Parses a URL, and checks its scheme: the client would accept any.
fn of_url(url: &str) -> Result<Source, StoreError> {
    let unfit =
        |detail| StoreError::new(StoreErrorKind::Config, Operation::Connect).with_detail(detail);
    if !["mysql://", "mariadb://"].iter().any(|scheme| url.starts_with(scheme)) {
        return Err(unfit("the URL of a MySQL store begins with `mysql://` or `mariadb://`"));
    }
    let options =
        url.parse().map_err(|error: sqlx::Error| unfit("the URL is invalid").with_source(error))?;
    Ok(Source::Server(Box::new(options)))
}

#[cfg(test)]
mod tests {
    use super::{Sealed as _, Source};
    use crate::store::StoreErrorKind;

    #[test]
    fn urls_of_other_stores_are_refused() {
        for url in ["mysql://user:password@host:3307/shop?ssl-mode=REQUIRED", "mariadb://host/shop"]
        {
            let Ok(Source::Server(options)) = url.source() else { panic!("{url}") };
            assert_eq!(options.get_database(), Some("shop"), "{url}");
        }
        for url in [
            "postgres://host/shop",
            "mysql:shop",
            "mysql://ho st/",
            "mysql://host/?ssl-mode=perhaps",
            "",
        ] {
            assert_eq!(
                url.source().err().map(|error| error.kind()),
                Some(StoreErrorKind::Config),
                "{url}"
            );
        }
    }
}
