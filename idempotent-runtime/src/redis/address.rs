//! What names a server: a URL, or what the user already has.

use redis::{Client, ConnectionInfo, IntoConnectionInfo as _, RedisResult};

mod sealed {
    pub trait Sealed {}
}

/// What names a Redis server: a URL, a [`redis::ConnectionInfo`] or a [`redis::Client`].
pub trait RedisAddress: sealed::Sealed {
    /// The server's address, user and database.
    ///
    /// # Errors
    /// When the URL cannot be read.
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
