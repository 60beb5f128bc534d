//! The parts of a server's URL.

use anyhow::Context as _;

/// `scheme://user:password@host:port/database?…`. Only the scheme and the host are required.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServerUrl {
    /// The complete URL.
    pub(super) text: String,
    pub(super) scheme: String,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) database: String,
}

impl ServerUrl {
    /// Parses `text`, with `port` if it has none.
    ///
    /// # Errors
    /// If it is not such a URL. The message does not show it: it may contain a password.
    pub(super) fn parse(text: &str, port: u16) -> anyhow::Result<Self> {
        let (scheme, rest) =
            text.split_once("://").context("a URL begins with its scheme and ://")?;
        let rest = rest.split('?').next().unwrap_or_default();
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (credentials, address) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().context("the port of a URL is a number")?),
            None => (address, port),
        };
        anyhow::ensure!(!host.is_empty(), "a URL names a host");
        let given = |word: &str| Some(String::from(word)).filter(|word| !word.is_empty());
        Ok(Self {
            text: String::from(text),
            scheme: String::from(scheme),
            user: given(user),
            password: given(password),
            host: String::from(host),
            port,
            database: String::from(database),
        })
    }

    /// Returns the URL of the same server with another database.
    pub(super) fn with_database(&self, database: &str) -> String {
        let (before, query) = self
            .text
            .split_once('?')
            .map_or((&*self.text, None), |(url, query)| (url, Some(query)));
        let start = self.scheme.len() + "://".len();
        let end = before[start..].find('/').map_or(before.len(), |slash| start + slash);
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        format!("{}/{database}{query}", &before[..end])
    }
}

/// Returns `url` with another host and port.
pub(crate) fn with_address(url: &str, address: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("redis", url));
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let user = authority.rfind('@').map_or("", |at| &authority[..=at]);
    format!("{scheme}://{user}{address}{path}")
}

#[cfg(test)]
mod tests {
    use super::ServerUrl;

    #[test]
    fn urls_are_split() {
        let parts = |text: &str| {
            let url = ServerUrl::parse(text, 1).unwrap();
            let words = [url.user, url.password].map(Option::unwrap_or_default).join(":");
            format!("{} {words} {}:{} {}", url.scheme, url.host, url.port, url.database)
        };
        assert_eq!(parts("redis://localhost"), "redis : localhost:1 ");
        assert_eq!(parts("redis://:p@h:2/0"), "redis :p h:2 0");
        assert_eq!(parts("mysql://u:p@h:2/shop?ssl-mode=disabled"), "mysql u:p h:2 shop");
        assert_eq!(parts("postgres://u@h/shop"), "postgres u: h:1 shop");
        for wrong in ["localhost:1", "redis://", "redis://h:port"] {
            ServerUrl::parse(wrong, 1).unwrap_err();
        }
    }

    #[test]
    fn the_database_is_replaced_and_the_rest_is_kept() {
        for (text, expected) in [
            ("postgres://u:p@h:2/shop?sslmode=disable", "postgres://u:p@h:2/other?sslmode=disable"),
            ("mysql://h", "mysql://h/other"),
        ] {
            assert_eq!(ServerUrl::parse(text, 1).unwrap().with_database("other"), expected);
        }
    }
}
