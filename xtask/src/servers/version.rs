//! The versions of servers, as they print them.

use anyhow::bail;

use super::wanted::Wanted;

/// Rejects a version that is too old. A version that is not printed, as for a custom build, is left
/// to the tests.
pub(super) fn check(wanted: &Wanted, printed: &str) -> anyhow::Result<()> {
    let Some(version) = version(printed) else { return Ok(()) };
    if version < wanted.lowest {
        bail!("{} is too old: {}\n{}", wanted.program, printed.trim_end(), wanted.advice());
    }
    Ok(())
}

/// Parses the first word that is a number with dots, perhaps after `v=`, `v` or `valgrind-`.
fn version(printed: &str) -> Option<(u32, u32)> {
    printed.split_whitespace().find_map(|word| {
        let mut numbers = word
            .trim_start_matches("valgrind-")
            .trim_start_matches("v=")
            .trim_start_matches('v')
            .split(|character: char| !character.is_ascii_digit());
        let major = numbers.next()?.parse().ok()?;
        Some((major, numbers.next().and_then(|minor| minor.parse().ok()).unwrap_or_default()))
    })
}

#[cfg(test)]
mod tests {
    use super::{check, version};
    use crate::servers::wanted::WANTED;

    #[test]
    fn versions_are_read_as_each_server_prints_them() {
        for (printed, expected) in [
            ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64", Some((7, 0))),
            ("Valkey server v=10.1.2 sha=0", Some((10, 1))),
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", Some((15, 18))),
            ("postgres (PostgreSQL) 19devel", Some((19, 0))),
            (
                "/usr/sbin/mariadbd  Ver 10.11.19-MariaDB-0+deb12u1 for debian-linux-gnu",
                Some((10, 11)),
            ),
            ("PgBouncer 1.18.0\nlibevent 2.1.12-stable", Some((1, 18))),
            ("nats-server: v2.9.10", Some((2, 9))),
            (
                "ChromeDriver 156.0.8078.79 (a21ce95c24ce3964416f09ae1862f53f319eb4d0-refs)",
                Some((156, 0)),
            ),
            ("curl 7.88.1 (x86_64-pc-linux-gnu) libcurl/7.88.1", Some((7, 88))),
            ("valgrind-3.19.0", Some((3, 19))),
            ("v18.20.4", Some((18, 20))),
            ("9.2.0", Some((9, 2))),
            ("Python 3.11.7", Some((3, 11))),
            ("something else", None),
        ] {
            assert_eq!(version(printed), expected, "{printed}");
        }
    }

    #[test]
    fn a_version_that_is_too_old_is_refused() {
        let [redis, postgres, mariadb, _, _, nats, chromedriver, curl, valgrind, node, npm, python] =
            &WANTED;
        for (wanted, old, new) in [
            (redis, "v=6.2.14", "v=7.0.0"),
            (postgres, "12.22", "13.0"),
            (mariadb, "Ver 10.4.34-MariaDB", "Ver 10.5.0-MariaDB"),
            (nats, "nats-server: v2.8.4", "nats-server: v2.9.10"),
            (chromedriver, "ChromeDriver 114.0.5735.90", "ChromeDriver 115.0.5790.102"),
            (curl, "curl 7.81.0", "curl 7.82.0"),
            (valgrind, "valgrind-3.17.0", "valgrind-3.18.1"),
            (node, "v16.20.2", "v18.0.0"),
            (npm, "7.24.2", "8.0.0"),
            (python, "Python 3.10.12", "Python 3.11.2"),
        ] {
            check(wanted, new).unwrap();
            let message = check(wanted, old).unwrap_err().to_string();
            assert!(message.contains(old) && message.contains(wanted.variable.0), "{message}");
        }
        check(redis, "something else").unwrap();
    }
}
