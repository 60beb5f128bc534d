//! The setup of a Redis server.

use std::path::Path;

use super::certificates::Certificates;

/// The options of a private Redis server. The default has no persistence, no password and no
/// limits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedisOptions {
    private: bool,
    append_only: bool,
    password: Option<String>,
    users: Vec<(String, String)>,
    max_memory: Option<(u64, String)>,
    tls: Option<TlsClients>,
    debug_command: bool,
    settings: Vec<(String, String)>,
}

/// The certificates that clients must show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsClients {
    /// Any client that trusts the server may connect.
    Anybody,
    /// Only clients with a certificate of the same authority may connect.
    WithCertificate,
}

impl RedisOptions {
    /// The default.
    pub fn new() -> Self {
        Self::default()
    }

    /// Requests a private server even if `IDEMPOTENCY_REDIS_URL` names one: for tests that pause,
    /// stop or restart it, or change its settings. All other options request a private one too.
    #[must_use]
    pub fn private(mut self) -> Self {
        self.private = true;
        self
    }

    /// Puts every write on disk before it is answered, so that a restarted or killed server has
    /// lost nothing.
    #[must_use]
    pub fn append_only(mut self) -> Self {
        self.append_only = true;
        self
    }

    /// Sets the password of the user `default`.
    #[must_use]
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// Adds a user, with rules as `ACL SETUSER` accepts them: `"on >secret ~app:* +get +set"`.
    #[must_use]
    pub fn user(mut self, name: impl Into<String>, rules: impl Into<String>) -> Self {
        self.users.push((name.into(), rules.into()));
        self
    }

    /// Sets a limit in bytes, and the policy at the limit: `"noeviction"`, `"allkeys-lru"`.
    #[must_use]
    pub fn max_memory(mut self, bytes: u64, policy: impl Into<String>) -> Self {
        self.max_memory = Some((bytes, policy.into()));
        self
    }

    /// Adds a second port with TLS.
    #[must_use]
    pub fn tls(mut self, clients: TlsClients) -> Self {
        self.tls = Some(clients);
        self
    }

    /// Allows the command `DEBUG`, for example `DEBUG SLEEP`.
    #[must_use]
    pub fn debug_command(mut self) -> Self {
        self.debug_command = true;
        self
    }

    /// Sets any other setting, as in `redis.conf`.
    #[must_use]
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Returns true if a server that the environment names would do.
    pub(super) fn any_server_will_do(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn wants_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Returns the password of the user `default`, as the arguments of `AUTH`.
    pub(super) fn credentials(&self) -> Option<Vec<String>> {
        self.password.clone().map(|password| vec![password])
    }

    pub(super) fn credentials_in_url(&self) -> String {
        self.password.as_ref().map(|password| format!(":{password}@")).unwrap_or_default()
    }

    /// Returns the content of the file for `--aclfile`, if there are users.
    pub(super) fn access_control(&self) -> Option<String> {
        if self.users.is_empty() {
            return None;
        }
        let password = self
            .password
            .as_ref()
            .map_or_else(|| String::from("nopass"), |password| format!(">{password}"));
        let mut lines = vec![format!("user default on {password} ~* &* +@all")];
        lines.extend(self.users.iter().map(|(name, rules)| format!("user {name} {rules}")));
        Some(lines.join("\n") + "\n")
    }

    /// Returns the arguments of the server on `port`.
    pub(super) fn arguments(
        &self,
        port: u16,
        access_control: &Path,
        tls: Option<(u16, &Certificates)>,
    ) -> Vec<String> {
        let mut arguments = Vec::new();
        let mut set =
            |name: &str, value: &str| arguments.extend([format!("--{name}"), String::from(value)]);
        set("port", &port.to_string());
        set("bind", "127.0.0.1");
        set("save", "");
        set("appendonly", if self.append_only { "yes" } else { "no" });
        set("appendfsync", if self.append_only { "always" } else { "everysec" });
        if !self.users.is_empty() {
            set("aclfile", &access_control.to_string_lossy());
        } else if let Some(password) = &self.password {
            set("requirepass", password);
        }
        if let Some((bytes, policy)) = &self.max_memory {
            set("maxmemory", &bytes.to_string());
            set("maxmemory-policy", policy);
        }
        if let (Some(clients), Some((port, certificates))) = (self.tls, tls) {
            set("tls-port", &port.to_string());
            set("tls-cert-file", &certificates.server.to_string_lossy());
            set("tls-key-file", &certificates.server_key.to_string_lossy());
            set("tls-ca-cert-file", &certificates.authority.to_string_lossy());
            set(
                "tls-auth-clients",
                if clients == TlsClients::WithCertificate { "yes" } else { "no" },
            );
        }
        if self.debug_command {
            set("enable-debug-command", "yes");
        }
        for (name, value) in &self.settings {
            set(name, value);
        }
        arguments
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{RedisOptions, TlsClients};

    #[test]
    fn only_the_default_takes_any_server() {
        assert!(RedisOptions::new().any_server_will_do());
        let special = [
            RedisOptions::new().private(),
            RedisOptions::new().append_only(),
            RedisOptions::new().password("p"),
            RedisOptions::new().user("u", "on"),
            RedisOptions::new().max_memory(1, "noeviction"),
            RedisOptions::new().tls(TlsClients::Anybody),
            RedisOptions::new().debug_command(),
            RedisOptions::new().setting("hz", "100"),
        ];
        for options in special {
            assert!(!options.any_server_will_do(), "{options:?}");
        }
    }

    #[test]
    fn the_password_holds_with_and_without_other_users() {
        let options = RedisOptions::new().password("secret");
        let arguments = options.arguments(1, Path::new("users"), None).join(" ");
        assert!(arguments.contains("--requirepass secret"), "{arguments}");
        assert_eq!(options.access_control(), None);

        let options = options.user("app", "on >other ~app:* +get");
        let arguments = options.arguments(1, Path::new("users"), None).join(" ");
        assert!(
            arguments.contains("--aclfile users") && !arguments.contains("--requirepass"),
            "{arguments}"
        );
        let expected = "user default on >secret ~* &* +@all\nuser app on >other ~app:* +get\n";
        assert_eq!(options.access_control().as_deref(), Some(expected));
    }
}
