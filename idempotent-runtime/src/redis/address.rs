//! Addresses of a server: a URL, or an object that the user already has.

use redis::{Client, ConnectionInfo, IntoConnectionInfo as _, RedisResult};

mod sealed {
    pub trait Sealed {}
}

/// An address of a Redis server: a URL, a [`redis::ConnectionInfo`] or a [`redis::Client`].
pub trait RedisAddress: sealed::Sealed {
    /// Returns the server's address, user and database.
    ///
    /// # Errors
    /// If the URL cannot be parsed.
    fn connection_info(self) -> RedisResult<ConnectionInfo>;
}

macro_rules! addresses {
    ($($type:ty: |$address:ident| $info:expr;)*) => {$(
        impl sealed::Sealed for $type {}

        impl RedisAddress for $type {
            fn connection_info(self) -> RedisResult<ConnectionInfo> {
                let $address = self;
                $info
            }
        }
    )*};
}

addresses! {
    &str: |url| url.into_connection_info();
    &String: |url| url.as_str().into_connection_info();
    String: |url| url.as_str().into_connection_info();
    ConnectionInfo: |info| Ok(info);
    Client: |client| Ok(client.get_connection_info().clone());
    &Client: |client| Ok(client.get_connection_info().clone());
}
