//! Addresses of a server: a URL, or options or a pool that the user already has.

use std::str::FromStr as _;

use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;

use super::error::connection_error;
use crate::store::{Operation, StoreError};

/// The source of a store's connections.
#[derive(Clone)]
pub enum Source {
    Server(Box<PgConnectOptions>),
    Pool(PgPool),
}

mod sealed {
    pub trait Sealed {
        fn source(self) -> Result<super::Source, super::StoreError>;
    }
}

pub(super) use sealed::Sealed;

/// An address of a PostgreSQL server: a URL, [`PgConnectOptions`] or a [`PgPool`].
pub trait PostgresAddress: Sealed {}

macro_rules! addresses {
    ($($type:ty: |$address:ident| $source:expr;)*) => {$(
        impl Sealed for $type {
            fn source(self) -> Result<Source, StoreError> {
                let $address = self;
                $source
            }
        }

        impl PostgresAddress for $type {}
    )*};
}

addresses! {
    &str: |url| of_url(url);
    &String: |url| of_url(url);
    String: |url| of_url(&url);
    PgConnectOptions: |options| Ok(Source::Server(Box::new(options)));
    &PgConnectOptions: |options| Ok(Source::Server(Box::new(options.clone())));
    PgPool: |pool| Ok(Source::Pool(pool));
    &PgPool: |pool| Ok(Source::Pool(pool.clone()));
}

fn of_url(url: &str) -> Result<Source, StoreError> {
    let options = PgConnectOptions::from_str(url)
        .map_err(|error| connection_error(Operation::Connect, error, false))?;
    Ok(Source::Server(Box::new(options)))
}
